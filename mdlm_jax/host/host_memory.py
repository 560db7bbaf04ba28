"""The memory of the host, which is also that of XLA's CPU backend."""

import ctypes
import platform

import jax

# Of glibc's mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_KEPT = 2**30  # a block, in bytes
_MOST_KEPT = 2**31 - 1  # in bytes; mallopt takes an int


def keep_freed() -> bool:
    """Where XLA computes on the CPU, lets the C library keep freed blocks and give them out again.

    XLA allocates what a call computes in anew each time. glibc takes large blocks from the system
    and returns them at once, so that every page of theirs is cleared and mapped at its first touch,
    again and again: 12,000 page faults a step of the quickstart, and two fifths of its time. With
    this the whole process keeps what it once needed, but for blocks above 1 GiB and what is free
    above 2 GiB at the heap's end.

    Returns:
      Whether it does that here; elsewhere than under glibc and on JAX's CPU backend, nothing.
    """
    if jax.default_backend() != "cpu" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    kept = {_MMAP_THRESHOLD: _LARGEST_KEPT, _TRIM_THRESHOLD: _MOST_KEPT}
    return all(mallopt(parameter, value) for parameter, value in kept.items())
