"""Attention of a block to a cache as one kernel for NVIDIA GPUs, written with Pallas and Triton.

What XLA makes of the same loop copies every chunk of the cache before it multiplies it, and asks
the host in every layer how many chunks there are. This kernel reads a row's keys and values where
they lie, as many as the row has, and merges them into one softmax as it goes (Dao 2023,
FlashAttention-2, algorithm 1, of one block of queries).
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jax.sharding import PartitionSpec

from mdlm_jax.host import parallel

Array = jax.Array

_CHUNK = 64  # places of the cache that are read at a time
_LEAST = 16  # rows and columns of the smallest product of matrices
_NEVER = -1e30  # a score whose exponential is 0, and whose difference to itself is not NaN


def refused(q: Array) -> str:
    """Why the kernel cannot compute attention of queries like `q [B, Q, H, d]`; '' if it can."""
    head_dim = q.shape[-1]
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"{q.dtype} (its products are of 16 bits)"
    if head_dim < _LEAST or head_dim & (head_dim - 1):
        return f"heads of width {head_dim} (powers of two from {_LEAST})"
    return ""


def attention_after_cache(
    q: Array,
    k: Array,
    v: Array,
    own: Array,
    starts: Array,
    keys: Array,
    values: Array,
    length: Array,
    layer: Array,
    *,
    window: int | None,
    turn: int | None,
    interpret: bool = False,
) -> Array:
    """`softmax(q k^T / sqrt(d)) v` over what a row's cache holds and the row's own tokens.

    Args:
      q: queries `[B, Q, H, d]`.
      k: keys of the own tokens `[B, w, H, d]`; `v` alike.
      own: bool `[B, Q, w]` or `[1, Q, w]`, which own tokens a query sees, at least one each.
      starts: i32 `[B, Q]`, the position at which the block of each query begins.
      keys: the cache's keys of all layers `[layers, B, room, H, d]`; `values` alike. What lies
        beyond a row's length may be anything.
      length: i32 `[B]`, tokens that were committed.
      layer: i32, which of the layers.
      window: how many tokens before `starts` a query sees; None for all.
      turn: the places of a ring, whose oldest tokens give way to new ones; None if all have room.
      interpret: run it slowly on any device, for tests.

    Returns:
      `[B, Q, H, d]` in the type of `q`.
    """
    rows, asking, heads, head_dim = q.shape
    tall, wide = (max(_LEAST, pl.next_power_of_2(n)) for n in (asking, k.shape[1]))
    q, starts = _filled(q, tall), _filled(starts, tall)
    k, v = _filled(k, wide), _filled(v, wide)
    own = jnp.pad(own, [(0, 0), (0, tall - own.shape[1]), (0, wide - own.shape[2])])
    own = jnp.broadcast_to(own, (rows, tall, wide))
    kernel = functools.partial(
        _kernel, window=window, turn=turn, room=keys.shape[2], scale=head_dim**-0.5
    )

    def of_device(number, length, q, k, v, own, starts, keys, values) -> Array:
        of_head = {n: pl.BlockSpec((None, n, None, head_dim), _at_head) for n in {tall, wide}}
        whole = pl.BlockSpec(keys.shape, lambda row, head: (0,) * keys.ndim)
        return pl.pallas_call(
            kernel,
            grid=q.shape[::2],
            in_specs=[
                pl.BlockSpec((1,), lambda row, head: (0,)),
                pl.BlockSpec((1,), lambda row, head: (row,)),
                of_head[tall],
                of_head[wide],
                of_head[wide],
                pl.BlockSpec((None, tall, wide), lambda row, head: (row, 0, 0)),
                pl.BlockSpec((None, tall), lambda row, head: (row, 0)),
                whole,
                whole,
            ],
            out_specs=of_head[tall],
            out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
            compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),
            interpret=interpret,
            name="attention_after_cache",
        )(number, length, q, k, v, own, starts, keys, values)

    mesh = parallel.mesh_in_use()
    if mesh is not None:
        split = parallel.ROW_AXES if rows % parallel.row_shards(mesh) == 0 else None
        tensor = "tensor" if heads % mesh.shape["tensor"] == 0 else None
        of_rows, of_heads = PartitionSpec(split), PartitionSpec(split, None, tensor)
        of_layers = PartitionSpec(None, split, None, tensor)
        of_device = jax.shard_map(
            of_device,
            in_specs=(
                *(PartitionSpec(), of_rows, of_heads, of_heads, of_heads, of_rows, of_rows),
                *(of_layers, of_layers),
            ),
            out_specs=of_heads,
            check_vma=False,  # the kernel's outputs lack the axes over which they vary
        )
    number = jnp.reshape(layer, (1,)).astype(jnp.int32)
    return of_device(number, length, q, k, v, own, starts, keys, values)[:, :asking]


def _kernel(
    number, length, q, k, v, own, starts, keys, values, out, *, window, turn, room, scale
) -> None:
    """One head of one row: its own tokens first, of which each query sees one, then the cache."""
    row, head = pl.program_id(0), pl.program_id(1)
    layer, count = number[0], length[0]
    asks, begins = q[...], starts[...]

    scores = jnp.where(own[...], _product(asks, k[...].T) * scale, _NEVER)
    peak = scores.max(axis=1)
    weights = jnp.exp(scores - peak[:, None])
    mixed = _product(weights.astype(v.dtype), v[...])

    held = jnp.minimum(count, room if turn is None else turn)

    def look(i: Array, softmax: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        peak, total, mixed = softmax
        places = i * _CHUNK + jnp.arange(_CHUNK, dtype=jnp.int32)
        filled = places < held
        # The last position that was written to a place of a ring.
        at = places if turn is None else count - 1 - (count - 1 - places) % turn
        seen = filled[None]
        if window is not None:
            seen &= at[None] >= begins[:, None] - window
        where = (layer, row, pl.ds(i * _CHUNK, _CHUNK), head, slice(None))
        of_keys, of_values = (
            plgpu.load(x.at[where], mask=filled[:, None], other=0.0) for x in (keys, values)
        )
        scores = jnp.where(seen, _product(asks, of_keys.T) * scale, _NEVER)
        higher = jnp.maximum(peak, scores.max(axis=1))
        fades, weights = jnp.exp(peak - higher), jnp.exp(scores - higher[:, None])
        added = _product(weights.astype(of_values.dtype), of_values)
        return higher, total * fades + weights.sum(axis=1), mixed * fades[:, None] + added

    softmax = peak, weights.sum(axis=1), mixed
    chunks = (held + _CHUNK - 1) // _CHUNK
    _, total, mixed = jax.lax.fori_loop(0, chunks, look, softmax)
    out[...] = (mixed / total[:, None]).astype(out.dtype)


def _product(a: Array, b: Array) -> Array:
    return jnp.dot(a, b, preferred_element_type=jnp.float32)


def _at_head(row: Array, head: Array) -> tuple[Array, int, Array, int]:
    return row, 0, head, 0


def _filled(x: Array, size: int) -> Array:
    """`[B, n, ...]` to `[B, size, ...]`, with zeros."""
    return jnp.pad(x, [(0, 0), (0, size - x.shape[1])] + [(0, 0)] * (x.ndim - 2))
