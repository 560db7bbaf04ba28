"""Attention of two streams: the clean text, and every block of it as a noisy block in its place.

A noisy block sees itself and the clean blocks before it; a clean block sees itself and the clean
blocks before it (Arriola et al. 2025, BD3-LM, section 3.3). Nobody sees the last clean block, so
it is left out. Noisy block b and clean block b - 1 then have the same last key in the clean stream
and are computed together, a few neighbouring blocks at a time: exactly `L^2` pairs of query and key
are allowed, and not many more are computed. All pairs would be almost `(2 L)^2`.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp

from mdlm_jax.networks.attention import triton_streams
from mdlm_jax.networks.attention.dispatch import backend_of, masked
from mdlm_jax.networks.attention.layout import Streams
from mdlm_jax.networks.attention.splash import SparseMask, splash_of_mask

Array = jax.Array

# Whether kernels of their own (`triton_streams`) compute two streams on NVIDIA GPUs, instead of
# groups by cuDNN. They have not been timed there yet: `python -m benchmarks.stream_attention`.
_KERNELS_ON_GPUS = False

# More groups compute fewer pairs, without a window `(1 + 3 / groups) L^2`, and start more kernels.
# Of 2, 4, 8 and 16 four were the fastest on an H100 (32 rows of 1024, blocks of 16, both passes).
_GROUPS = {"cudnn": 4, "xla": 8}
_GROUPS_OF_A_WINDOW = 8


def two_streams(
    q: Array,
    k: Array,
    v: Array,
    streams: Streams,
    valid: Array | None = None,
    *,
    backend: str,
    interpret: bool = False,
) -> Array:
    """`softmax(q k^T / sqrt(d)) v` of both streams, one softmax over all that a query sees.

    Args:
      q: queries `[B, both, H, d]`; or `[B, L, H, d]`, of the noisy stream alone.
      k: keys `[B, both, H, d]`; `v` alike.
      streams: how they lie.
      valid: bool `[B, L]`, False at places that no other may see, in both streams.
      backend: as in `attention`. 'xla' and 'cudnn' compute a group of blocks at a time, with a
        mask within the group; 'splash' skips what the mask excludes.
      interpret: of `splash_attention`.

    Returns:
      As `q`. At places that are not valid it means nothing.
    """
    backend = backend_of(backend, q)
    if backend == "splash":
        seen = None if valid is None else streams.join(valid, valid)
        sparse = SparseMask(streams, (q.shape[1], k.shape[1]))
        return splash_of_mask(q, k, v, sparse, seen, interpret=interpret)
    if backend == "cudnn" and _KERNELS_ON_GPUS and not triton_streams.refused(q):
        return triton_streams.attention_of_streams(q, k, v, streams, valid)
    return by_groups(q, k, v, streams, valid, backend=backend)


def by_groups(
    q: Array,
    k: Array,
    v: Array,
    streams: Streams,
    valid: Array | None = None,
    *,
    backend: str,
    groups: int | None = None,
) -> Array:
    """`two_streams` by 'xla' or 'cudnn', at most so many groups of blocks one after the other."""
    if groups is None:
        groups = _GROUPS[backend] if streams.window is None else _GROUPS_OF_A_WINDOW
    seen = None if valid is None else streams.join(valid, valid)
    noisy, clean = [], []
    for asking, keys in _groups(streams, q.shape[1], groups):
        own, others = _places(asking), _places(keys)
        mask = streams.sees(own[:, None], others[None])[None]
        if seen is not None:  # each sees itself, so that no softmax is over nothing
            mask = (mask & _take(seen, keys)[:, None]) | (own[:, None] == others[None])[None]
        out = masked(_take(q, asking), _take(k, keys), _take(v, keys), mask, backend=backend)
        first = asking[0].stop - asking[0].start
        noisy.append(out[:, :first])
        clean.append(out[:, first:])
    return jnp.concatenate([*noisy, *clean], axis=1)


def _groups(
    streams: Streams, asking: int, groups: int
) -> Iterator[tuple[list[slice], list[slice]]]:
    """The places that ask together, and those of the keys that any of them may see."""
    size, length = streams.size, streams.length
    count = length // size
    step = -(-count // groups) * size
    for start in range(0, length, step):
        stop = min(start + step, length)
        before = slice(max(start - size, 0), stop - size)  # of the clean stream
        reach = start if streams.window is None else size + streams.window
        noisy, seen = slice(start, stop), slice(max(start - reach, 0), stop - size)
        asks = [noisy, _shifted(before, length)] if asking > length else [noisy]
        yield asks, [noisy, _shifted(seen, length)]


def _shifted(places: slice, by: int) -> slice:
    return slice(places.start + by, places.stop + by)


def _places(slices: list[slice]) -> Array:
    return jnp.concatenate([jnp.arange(part.start, part.stop) for part in slices])


def _take(x: Array, slices: list[slice]) -> Array:
    return jnp.concatenate([x[:, part] for part in slices], axis=1)
