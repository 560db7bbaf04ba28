"""What a program of a kernel of two streams computes: one tile of one head of one row.

A tile walks over those tiles of the other side that it sees, or that see it. Refs are `[n, d]`, or
`[n]` where there is one number a query; a tile that reaches over its stream's end is read as zeros
there and not written.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from mdlm_jax.networks.attention.layout import Run, Streams, Walk, count, pick

Array = jax.Array
Ref = Any
Refs = dict[str, Ref]

_LOWEST = -1e20  # less than any score
_NEVER = -1e30  # a product whose exponential is 0, also beside `_LOWEST`


class Tile(NamedTuple):
    """How a kernel is cut.

    Attributes:
      queries: of a tile, a power of two from 16.
      keys: of a tile, alike.
      warps: of 32 threads, which compute a tile together.
      stages: how many tiles are on their way at a time.
    """

    queries: int
    keys: int
    warps: int = 4
    stages: int = 3


class Places(NamedTuple):
    """A tile of a stream.

    Attributes:
      clean: 1 of the clean stream, 0 of the noisy one.
      first: the position of its first token.
      last: of its last one in the stream.
      where: its places in the arrays of both streams.
      positions: i32 `[n]`.
      inside: bool `[n]`, which of them are in the stream.
    """

    clean: Array
    first: Array
    last: Array
    where: Any
    positions: Array
    inside: Array


class Plan(NamedTuple):
    """What is known before a kernel is compiled.

    Attributes:
      streams: how they lie.
      tile: how the kernel is cut.
      both: whether the clean stream asks, too.
      masks: whether some places are not valid.
      scale: of the scores.
      interpret: whether it runs on any device, slowly.
    """

    streams: Streams
    tile: Tile
    both: bool
    masks: bool
    scale: float
    interpret: bool

    @property
    def scale_of_powers(self) -> float:
        """Of scores of which powers are of 2."""
        return self.scale * math.log2(math.e)

    def own(self, size: int) -> Places:
        """The tile that is this program's: those of the noisy stream come first."""
        number = pl.program_id(0)
        noisy = pl.cdiv(self.streams.length, size)
        clean = (number >= noisy).astype(jnp.int32)
        return self.at(clean, number - clean * noisy, size)

    def at(self, clean: Array, number: Array, size: int) -> Places:
        """A tile by its stream and its number there."""
        length = self.streams.length
        first, limit = number * size, length - clean * self.streams.size
        positions = first + jnp.arange(size, dtype=jnp.int32)
        return Places(
            clean,
            first,
            jnp.minimum(first + size, limit) - 1,
            pl.ds(clean * length + first, size),
            positions,
            positions < limit,
        )

    def keys_of(self, asks: Places) -> Walk:
        """The tiles of keys that a tile of queries sees."""
        walk = Walk()
        for clean in (0, 1):
            spans = self.streams.sight(asks.clean, clean).keys(asks.first, asks.last)
            exists = 1 - asks.clean * (1 - clean)
            walk = walk.over(clean, spans, self.tile.keys, exists, whole=not self.masks)
        return walk

    def queries_of(self, keys: Places) -> Walk:
        """The tiles of queries that see a tile of keys."""
        walk = Walk()
        for clean in range(1 + self.both):
            limit = self.streams.clean if clean else self.streams.length
            sight = self.streams.sight(clean, keys.clean)
            spans = sight.queries(keys.first, keys.last, limit)
            exists = 1 - clean * (1 - keys.clean)
            walk = walk.over(clean, spans, self.tile.queries, exists, whole=not self.masks)
        return walk

    def only_seen(
        self, products: Array, asks: Places, keys: Places, valid: Array | None, axis: int
    ) -> Array:
        """The products of queries, along an axis, and keys; `_NEVER` where no query sees the key.

        Beyond the end of a stream nothing is masked. No query sees such a key; and such a query,
        whose slope is read as zeros, adds nothing to gradients.
        """
        query = jnp.expand_dims(asks.positions, 1 - axis)
        key = jnp.expand_dims(keys.positions, axis)
        start, stop = self.streams.sight(asks.clean, keys.clean).bounds(query)
        seen = (key >= start) & (key < stop)
        if valid is not None:  # each sees itself, so that no softmax is over nothing
            seen &= jnp.expand_dims(valid, axis) | (query == key)
        return jnp.where(seen, products, _NEVER)

    def power(self, x: Array) -> Array:
        """`2 ** x`, with tiny results as 0: one instruction, where CUDA's own function has four."""
        if self.interpret:
            return jnp.exp2(x)
        [out] = plgpu.elementwise_inline_asm(
            "ex2.approx.ftz.f32 $0, $1;",
            args=[x],
            constraints="=f,f",
            pack=1,
            result_shape_dtypes=[jax.ShapeDtypeStruct(x.shape, x.dtype)],
        )
        return out


def forward(plan: Plan, given: Refs, out: Ref, totals: Ref) -> None:
    """Output of a tile of queries, and log2 of the sums of their softmaxes."""
    asks = plan.own(plan.tile.queries)
    q = _load(given["q"], asks, edge=True)
    scale = plan.scale_of_powers

    def look(softmax: tuple[Array, Array, Array], keys: Places, edge: bool):
        peak, total, mixed = softmax
        k, v = (_load(given[name], keys, edge=edge) for name in "kv")
        products = _product(q, k.T)
        if edge:
            products = plan.only_seen(products, asks, keys, _valid(given, keys), 0)
        higher = jnp.maximum(peak, products.max(axis=1) * scale)
        weights = plan.power(products * scale - higher[:, None])
        fades = plan.power(peak - higher)
        mixed = mixed * fades[:, None] + _product(weights.astype(v.dtype), v)
        return higher, total * fades + weights.sum(axis=1), mixed

    nothing = jnp.zeros(asks.positions.shape, jnp.float32)
    softmax = nothing + _LOWEST, nothing, jnp.zeros(q.shape, jnp.float32)
    peak, total, mixed = _visit(plan, plan.keys_of(asks), plan.tile.keys, look, softmax)
    _store(out, asks, mixed / total[:, None])
    _store(totals, asks, peak + jnp.log2(total))


def of_queries(plan: Plan, given: Refs, of_q: Ref, means: Ref) -> None:
    """Gradient of a tile of queries, and the mean of their weights' slopes."""
    asks = plan.own(plan.tile.queries)
    names = "q", "out", "slope", "totals"
    q, out, slope, total = (_load(given[name], asks, edge=True) for name in names)
    mean = (out.astype(jnp.float32) * slope.astype(jnp.float32)).sum(axis=1)
    _store(means, asks, mean)

    def look(of_q: Array, keys: Places, edge: bool) -> Array:
        k, v = (_load(given[name], keys, edge=edge) for name in "kv")
        products = _product(q, k.T)
        if edge:
            products = plan.only_seen(products, asks, keys, _valid(given, keys), 0)
        weights = plan.power(products * plan.scale_of_powers - total[:, None])
        slopes = weights * (_product(slope, v.T) - mean[:, None])
        return of_q + _product(slopes.astype(k.dtype), k)

    nothing = jnp.zeros(q.shape, jnp.float32)
    found = _visit(plan, plan.keys_of(asks), plan.tile.keys, look, nothing)
    _store(of_q, asks, found * plan.scale)


def of_keys(plan: Plan, given: Refs, of_k: Ref, of_v: Ref) -> None:
    """Gradients of a tile of keys and values. Its products are of keys by queries."""
    keys = plan.own(plan.tile.keys)
    k, v = (_load(given[name], keys, edge=True) for name in "kv")
    valid = _valid(given, keys)
    names = "q", "slope", "totals", "means"

    def look(found: tuple[Array, Array], asks: Places, edge: bool) -> tuple[Array, Array]:
        of_k, of_v = found
        q, slope, total, mean = (_load(given[name], asks, edge=edge) for name in names)
        products = _product(k, q.T)
        if edge:
            products = plan.only_seen(products, asks, keys, valid, 1)
        weights = plan.power(products * plan.scale_of_powers - total[None])
        of_v += _product(weights.astype(slope.dtype), slope)
        slopes = weights * (_product(v, slope.T) - mean[None])
        return of_k + _product(slopes.astype(q.dtype), q), of_v

    nothing = jnp.zeros(k.shape, jnp.float32)
    walk = plan.queries_of(keys)
    found_k, found_v = _visit(plan, walk, plan.tile.queries, look, (nothing, nothing))
    _store(of_k, keys, found_k * plan.scale)
    _store(of_v, keys, found_v)


def _visit(plan: Plan, walk: Walk, size: int, look: Callable, carry: Any) -> Any:
    """The carry of `look(carry, tile, edge)` after all tiles of a walk, in two loops."""

    def over(runs: tuple[Run, ...], edge: bool, carry: Any) -> Any:
        def step(i: Array, carry: Any) -> Any:
            return look(carry, plan.at(*pick(runs, i), size), edge)

        return jax.lax.fori_loop(0, count(runs), step, carry) if runs else carry

    return over(walk.wholes, False, over(walk.edges, True, carry))


def _load(ref: Ref, tile: Places, *, edge: bool) -> Array:
    """A tile; at an edge with zeros beyond the stream."""
    if not edge:
        return plgpu.load(ref.at[_index(ref, tile)])
    return plgpu.load(ref.at[_index(ref, tile)], mask=_inside(ref, tile), other=0.0)


def _store(ref: Ref, tile: Places, x: Array) -> None:
    plgpu.store(ref.at[_index(ref, tile)], x.astype(ref.dtype), mask=_inside(ref, tile))


def _index(ref: Ref, tile: Places) -> tuple[Any, ...]:
    return tile.where, *[slice(None)] * (len(ref.shape) - 1)


def _inside(ref: Ref, tile: Places) -> Array:
    return tile.inside[:, None] if len(ref.shape) == 2 else tile.inside


def _valid(given: Refs, keys: Places) -> Array | None:
    """bool `[keys]`, or None if all are valid. Both streams have the same."""
    if "valid" not in given:
        return None
    at = given["valid"].at[pl.ds(keys.first, keys.positions.shape[0])]
    return plgpu.load(at, mask=keys.inside, other=False)


def _product(a: Array, b: Array) -> Array:
    return jnp.dot(a, b, preferred_element_type=jnp.float32)
