"""Attention of a block to what was committed before it: a cache that grows from the left.

Places of the cache are read in chunks of one shape, as many as the longest row has filled, and each
chunk is merged into the softmax so far (Milakov and Gimelshein 2018, Online normalizer calculation
for softmax). So the cost follows the context and not the room. A chunk without a place that a row
sees leaves the row exactly as it was, so no row notices how long the others are.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mdlm_jax.networks.attention import triton
from mdlm_jax.networks.attention.dispatch import backend_of
from mdlm_jax.networks.attention.memory import Attend, Memory, write

Array = jax.Array

_CHUNK = 512


class Cache(NamedTuple):
    """Keys and values of a text's beginning, after normalisation and rotation.

    Attributes:
      keys: `[layers, B, room, H, d]`; what lies beyond a row's length is never used.
      values: `[layers, B, room, H, d]`.
      length: i32 `[B]`, tokens that were committed.
    """

    keys: Array
    values: Array
    length: Array


def empty(
    layers: int, rows: int, length: int, heads: int, head_dim: int, dtype: jnp.dtype
) -> Cache:
    """A cache without tokens; the room is the length, rounded up to whole chunks."""
    chunk = min(_CHUNK, length)
    shape = (layers, rows, -(-length // chunk) * chunk, heads, head_dim)
    return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros(rows, jnp.int32))


def ring(cache: Cache, window: int | None) -> int | None:
    """The window, if new tokens take the places of those that left it; None if all have room."""
    return window if window is not None and cache.keys.shape[2] >= window else None


def overflows(cache: Cache, window: int | None) -> Array:
    """bool `[B]`: rows with more tokens than the cache has room for."""
    if ring(cache, window):
        return jnp.zeros(cache.length.shape, bool)
    return cache.length > cache.keys.shape[2]


def commit(cache: Cache, own: Memory, window: int | None, where: Array | None = None) -> Cache:
    """The cache with the next tokens of each row.

    Args:
      cache: of what is before them.
      own: keys and values `[layers, B, w, H, d]`.
      window: tokens that are kept, if not all; not fewer than w.
      where: bool `[B]`, the rows that get them, or `[B, w]`, the first tokens of each row that it
        gets; by default all.
    """
    rows, count = cache.length.shape[0], own.keys.shape[2]
    places = cache.length[:, None] + jnp.arange(count, dtype=jnp.int32)[None]
    if turn := ring(cache, window):
        places %= turn
    if where is None:
        where = jnp.ones(rows, bool)
    where = jnp.broadcast_to(where.reshape(rows, -1), places.shape)
    places = jnp.where(where, places, cache.keys.shape[2])
    kept = write(Memory(cache.keys, cache.values), own, places)
    return Cache(*kept, cache.length + where.sum(axis=1, dtype=jnp.int32))


def clear(cache: Cache, where: Array) -> Cache:
    """The cache without tokens in the marked rows, bool `[B]`."""
    return cache._replace(length=jnp.where(where, 0, cache.length))


def after(
    cache: Cache, own: Array, starts: Array, window: int | None = None, *, backend: str
) -> Attend:
    """Attention of the tokens that follow a cache, to it and to each other.

    Args:
      cache: it stays as it is.
      own: bool `[B, w, w]` or `[1, w, w]`, which of the tokens sees which; each sees itself.
      starts: i32 `[B, w]`, the position at which the block of each token begins.
      window: how many tokens before `starts` a token sees; by default all.
      backend: as in `attention`. 'cudnn' stands for a kernel for NVIDIA GPUs (`triton`), which
        leaves types of 32 bits and heads of odd widths to 'xla'; so does 'splash'.

    Returns:
      An `Attend` that keeps the tokens' keys and values as a `Memory` `[layers, B, w, H, d]`. Its
      queries may be the first ones alone.
    """
    look = partial(_look_back, window=window, backend=backend)
    return jax.tree_util.Partial(look, cache=cache, own=own, starts=starts)


class _Softmax(NamedTuple):
    """A softmax over the keys so far, and their values mixed by it, before the division; f32."""

    peak: Array  # [B, H, Q], the greatest score
    total: Array  # [B, H, Q], sum of exp(score - peak)
    mixed: Array  # [B, H, Q, d], sum of exp(score - peak) value


def _look_back(
    q: Array,
    k: Array,
    v: Array,
    number: Array,
    *,
    cache: Cache,
    own: Array,
    starts: Array,
    window: int | None,
    backend: str,
) -> tuple[Array, Memory]:
    asking = q.shape[1]
    own, starts = own[:, :asking], starts[:, :asking]
    if backend_of(backend, q) == "cudnn" and not triton.refused(q):
        turn = ring(cache, window)
        out = triton.attention_after_cache(
            *(q, k, v, own, starts, *cache, number), window=window, turn=turn
        )
    else:
        out = _by_chunks(q, k, v, number, cache, own, starts, window)
    return out, Memory(k, v)


def _by_chunks(
    q: Array,
    k: Array,
    v: Array,
    number: Array,
    cache: Cache,
    own: Array,
    starts: Array,
    window: int | None,
) -> Array:
    """`triton.attention_after_cache` by what XLA has, for all types and devices."""
    asking, room = q.shape[1], cache.keys.shape[2]
    chunk = min(_CHUNK, room)

    def look(i: Array | int, softmax: _Softmax) -> _Softmax:
        first, shape = (number, 0, i * chunk, 0, 0), (1, *k.shape[:1], chunk, *k.shape[2:])
        keys, values = (
            jax.lax.dynamic_slice(x, first, shape)[0] for x in (cache.keys, cache.values)
        )
        places = (i * chunk + jnp.arange(chunk, dtype=jnp.int32))[None]  # [1, C]
        length = cache.length[:, None]
        positions, held = places, places < length
        if turn := ring(cache, window):
            # The last position that was written there.
            positions = length - 1 - (length - 1 - places) % turn
            held = (positions >= 0) & (places < turn)
        seen = held[:, None]
        if window is not None:
            seen &= positions[:, None] >= starts[..., None] - window
        # What was never written may be anything, and 0 times NaN is NaN.
        values = jnp.where(held[..., None, None], values, 0)
        return _merge(softmax, q, keys, values, seen)

    # Each chunk in a loop: the same program for any number of them. Of a loop that it knows to have
    # one turn XLA would make none, and round otherwise; its first turn is therefore unknown to it.
    counts = [2**i for i in range((room // chunk - 1).bit_length())] + [room // chunk]
    filled = -(-jnp.minimum(cache.length.max(), room) // chunk)
    which = sum((filled > count).astype(jnp.int32) for count in counts[:-1])
    zero = jnp.minimum(cache.length.min(), 0)
    first = [zero if count == 1 else 0 for count in counts]
    loops = [
        partial(jax.lax.fori_loop, *bounds, look) for bounds in zip(first, counts, strict=True)
    ]
    shape = (q.shape[0], q.shape[2], asking)
    nothing = _Softmax(
        jnp.full(shape, -jnp.inf, jnp.float32),
        jnp.zeros(shape, jnp.float32),
        jnp.zeros((*shape, q.shape[3]), jnp.float32),
    )
    softmax = jax.lax.switch(which, loops, _merge(nothing, q, k, v, own))
    out = softmax.mixed / softmax.total[..., None]
    return jnp.moveaxis(out, 1, 2).astype(q.dtype)


def _merge(softmax: _Softmax, q: Array, k: Array, v: Array, seen: Array) -> _Softmax:
    """The softmax with more keys. `seen` is bool `[B, Q, K]`; the first call's sees some each."""
    product = partial(jnp.einsum, preferred_element_type=jnp.float32)
    scores = product("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
    scores = jnp.where(seen[:, None], scores, -jnp.inf)
    peak = jnp.maximum(softmax.peak, scores.max(axis=-1))
    fades = jnp.exp(softmax.peak - peak)
    weights = jnp.exp(scores - peak[..., None])
    mixed = product("bhqk,bkhd->bhqd", weights.astype(v.dtype), v)
    return _Softmax(
        peak,
        softmax.total * fades + weights.sum(axis=-1),
        softmax.mixed * fades[..., None] + mixed,
    )
