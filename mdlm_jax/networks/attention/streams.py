"""Attention of two streams: the clean text, and every block of it as a noisy block in its place.

A noisy block sees itself and the clean blocks before it; a clean block sees itself and the clean
blocks before it (Arriola et al. 2025, BD3-LM, section 3.3). Nobody sees the last clean block, so
it is left out. Noisy block b and clean block b - 1 then have the same last key in the clean stream
and are computed together, a few neighbouring blocks at a time: exactly `L^2` pairs of query and key
are allowed, and not many more are computed. All pairs would be almost `(2 L)^2`.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mdlm_jax.networks.attention.dispatch import backend_of, masked
from mdlm_jax.networks.attention.splash import SparseMask, splash_of_mask

Array = jax.Array

# More groups compute fewer pairs and take longer to compile: (1 + 3 / groups) L^2 are computed.
_GROUPS = 8


class Streams(NamedTuple):
    """How the streams lie: noisy blocks `0..n-1`, then clean blocks `0..n-2`.

    Attributes:
      length: L, tokens of the noisy stream.
      size: of a block, a divisor of L.
      window: how many tokens before its own a block sees, a multiple of the size; None for all.
    """

    length: int
    size: int
    window: int | None = None

    @property
    def clean(self) -> int:
        """Tokens of the clean stream."""
        return self.length - self.size

    @property
    def both(self) -> int:
        """Tokens of both streams."""
        return self.length + self.clean

    def join(self, noisy: Array, clean: Array) -> Array:
        """Both streams `[B, both]` of texts `[B, L]`."""
        return jnp.concatenate([noisy, clean[:, : self.clean]], axis=1)

    def sees(self, query: Any, key: Any) -> Any:
        """Whether queries see keys, by their places in the streams; NumPy or JAX."""
        count = self.length // self.size
        reach = count if self.window is None else self.window // self.size
        before = query // self.size % count - key // self.size % count  # in blocks
        asks_noisy, is_noisy = query < self.length, key < self.length
        earlier = (before > 0) & (before <= reach)
        return (~is_noisy & earlier) | ((asks_noisy == is_noisy) & (before == 0))


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
    seen = None if valid is None else streams.join(valid, valid)
    backend = backend_of(backend, q)
    if backend == "splash":
        sparse = SparseMask(streams, (q.shape[1], k.shape[1]))
        return splash_of_mask(q, k, v, sparse, seen, interpret=interpret)
    noisy, clean = [], []
    for asking, keys in _groups(streams, q.shape[1]):
        own, others = _places(asking), _places(keys)
        mask = streams.sees(own[:, None], others[None])[None]
        if seen is not None:  # each sees itself, so that no softmax is over nothing
            mask = (mask & _take(seen, keys)[:, None]) | (own[:, None] == others[None])[None]
        out = masked(_take(q, asking), _take(k, keys), _take(v, keys), mask, backend=backend)
        first = asking[0].stop - asking[0].start
        noisy.append(out[:, :first])
        clean.append(out[:, first:])
    return jnp.concatenate([*noisy, *clean], axis=1)


def _groups(streams: Streams, asking: int) -> Iterator[tuple[list[slice], list[slice]]]:
    """The places that ask together, and those of the keys that any of them may see."""
    size, length = streams.size, streams.length
    count = length // size
    step = -(-count // _GROUPS) * size
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
