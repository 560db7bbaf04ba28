"""The memory of the host, which is also that of XLA's CPU backend."""

import ctypes
import platform

import jax

# Of glibc's mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_KEPT = 2**30  # a block, in bytes
_MOST_KEPT = 2**31 - 1  # in bytes; mallopt takes an int


def keep_freed() -> bool:
    """Lets the C library keep and reuse freed blocks, if XLA computes on the CPU.

    XLA allocates its memory anew for each call. glibc takes large blocks from the system and
    returns them at once, so each page is cleared and mapped again at its first touch: 12,000 page
    faults a step of the quickstart, and two fifths of its time. After this call the process keeps
    the memory that it once needed, except for blocks above 1 GiB and free memory above 2 GiB at the
    end of the heap.

    Returns:
      Whether it took effect. It does nothing without glibc or on another backend.
    """
    if jax.default_backend() != "cpu" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    kept = {_MMAP_THRESHOLD: _LARGEST_KEPT, _TRIM_THRESHOLD: _MOST_KEPT}
    return all(mallopt(parameter, value) for parameter, value in kept.items())
