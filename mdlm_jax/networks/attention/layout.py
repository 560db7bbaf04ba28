"""How the two streams of block diffusion lie, and which tiles of one see which of the other.

All questions of who sees whom are asked of positions in the text, which both streams share: a query
sees an interval of positions of a stream of keys, and a key is seen by an interval of positions of
a stream of queries. A kernel that walks over tiles therefore needs four numbers a stream.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


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

    def sight(self, asks_clean: Any, is_clean: Any) -> "Sight":
        """What a stream of queries sees of a stream of keys: 1 is the clean one, 0 the noisy.

        Of clean queries and noisy keys, which see nothing of each other, it means nothing.
        """
        reach = self.length if self.window is None else self.window
        return Sight(self.size, self.size * (1 - is_clean * (1 - asks_clean)), reach * is_clean)


class Sight(NamedTuple):
    """A query whose block begins at b sees the positions `[b - back, b + own)`; ints or traced.

    Attributes:
      size: of a block.
      own: the size if a block sees the one at its own position, 0 if only those before it.
      back: a multiple of the size.
    """

    size: int
    own: Any
    back: Any

    def bounds(self, query: Any) -> tuple[Any, Any]:
        """Where the positions that a query sees begin, perhaps before 0, and where they end."""
        begin = self._block(query)
        return begin - self.back, begin + self.own

    def keys(self, first: Any, last: Any) -> "Spans":
        """What the queries `first..last` see."""
        (start, stop_of_all), (start_of_all, stop) = self.bounds(first), self.bounds(last)
        return Spans(jnp.maximum(start, 0), stop, jnp.maximum(start_of_all, 0), stop_of_all)

    def queries(self, first: Any, last: Any, length: int) -> "Spans":
        """Who sees the keys `first..last`, of a stream of so many queries."""
        low, high = (self._block(at) + self.size for at in (first, last))
        return Spans(
            *(low - self.own, jnp.minimum(high + self.back, length)),
            *(high - self.own, jnp.minimum(low + self.back, length)),
        )

    def _block(self, position: Any) -> Any:
        return position - jax.lax.rem(position, jnp.int32(self.size))


class Spans(NamedTuple):
    """Positions `[start, stop)` that see some of a tile, or that some of it see."""

    start: Any
    stop: Any
    start_of_all: Any  # the positions of which all see all of the tile, or the other way round
    stop_of_all: Any


class Run(NamedTuple):
    """Neighbouring tiles of a stream."""

    clean: int
    first: Any
    count: Any


class Walk(NamedTuple):
    """Tiles in the order in which a kernel visits them.

    Attributes:
      edges: of which some is not seen.
      wholes: of which all is seen.
    """

    edges: tuple[Run, ...] = ()
    wholes: tuple[Run, ...] = ()

    def over(self, clean: int, spans: Spans, tile: int, exists: Any, *, whole: bool) -> "Walk":
        """With the tiles of one more stream.

        Args:
          clean: which one.
          spans: the positions to visit.
          tile: the size of one.
          exists: 0 if none of them are to be visited, else 1.
          whole: whether there are tiles of which all is seen.
        """
        first, stop = _floor(spans.start, tile), _ceil(spans.stop, tile)
        if not whole:
            return Walk((*self.edges, Run(clean, first, (stop - first) * exists)), self.wholes)
        begin = jnp.minimum(_ceil(spans.start_of_all, tile), stop)
        end = jnp.maximum(_floor(spans.stop_of_all, tile), begin)
        before, after = (
            Run(clean, at, (until - at) * exists) for at, until in ((first, begin), (end, stop))
        )
        inside = Run(clean, begin, (end - begin) * exists)
        return Walk((*self.edges, before, after), (*self.wholes, inside))


def count(runs: Sequence[Run]) -> Array:
    """How many tiles there are."""
    return sum((run.count for run in runs), start=jnp.int32(0))


def pick(runs: Sequence[Run], i: Array) -> tuple[Array, Array]:
    """The stream of the tile i of all runs (1 is the clean one), and its number in the stream."""
    clean, tile = jnp.int32(runs[0].clean), runs[0].first + i
    passed = runs[0].count
    for run in runs[1:]:
        later = i >= passed
        clean = jnp.where(later, jnp.int32(run.clean), clean)
        tile = jnp.where(later, run.first + i - passed, tile)
        passed += run.count
    return clean, tile


def _floor(x: Any, tile: int) -> Any:
    return jax.lax.div(x, jnp.int32(tile))


def _ceil(x: Any, tile: int) -> Any:
    return jax.lax.div(x + (tile - 1), jnp.int32(tile))
