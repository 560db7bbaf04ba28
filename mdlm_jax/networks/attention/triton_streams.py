"""Attention of two streams as kernels for NVIDIA GPUs, written with Pallas and Triton.

A tile of queries of either stream walks over the tiles of keys that it sees, and merges them into
one softmax (Dao 2023, FlashAttention-2, algorithms 1 and 2). So what is computed is what is
allowed, up to tiles at the diagonal, and only those need a mask. The backward pass walks twice, by
queries and by keys, so that no two programs add to one place.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jax.sharding import PartitionSpec

from mdlm_jax.host import parallel
from mdlm_jax.networks.attention import stream_kernels as kernels
from mdlm_jax.networks.attention.layout import Streams
from mdlm_jax.networks.attention.stream_kernels import Plan, Tile

Array = jax.Array
Arrays = dict[str, Array]
Shapes = Mapping[str, Array | jax.ShapeDtypeStruct]

_LEAST, _MOST = 16, 128  # widths of heads


class Tiling(NamedTuple):
    """How each kernel is cut: of the forward pass, and of gradients of queries, and of keys."""

    forward: Tile
    of_queries: Tile
    of_keys: Tile


def tiling(head_dim: int) -> Tiling:
    """How the kernels are cut by default, so that registers suffice on Ampere and on Hopper."""
    if head_dim > 64:
        return Tiling(Tile(128, 64, 8, 2), Tile(64, 64, 4, 2), Tile(32, 64, 4, 2))
    return Tiling(Tile(128, 64, 8, 3), Tile(64, 64, 4, 3), Tile(64, 64, 4, 3))


def refused(q: Array) -> str:
    """Why the kernels cannot compute attention of queries like `q [B, Q, H, d]`; '' if they can."""
    head_dim = q.shape[-1]
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"{q.dtype} (their products are of 16 bits)"
    if head_dim & (head_dim - 1) or not _LEAST <= head_dim <= _MOST:
        return f"heads of width {head_dim} (powers of two from {_LEAST} to {_MOST})"
    return ""


def attention_of_streams(
    q: Array,
    k: Array,
    v: Array,
    streams: Streams,
    valid: Array | None = None,
    *,
    tiles: Tiling | None = None,
    interpret: bool = False,
) -> Array:
    """`softmax(q k^T / sqrt(d)) v` of both streams, one softmax over all that a query sees.

    Within a mesh in `use`, each device runs the kernels on its rows and heads.

    Args:
      q: queries `[B, both, H, d]`; or `[B, L, H, d]`, of the noisy stream alone.
      k: keys `[B, both, H, d]`; `v` alike.
      streams: how they lie.
      valid: bool `[B, L]`, False at places that no other may see, in both streams.
      tiles: how the kernels are cut; by default as `tiling` says.
      interpret: run them slowly on any device and in any type, for tests.

    Returns:
      As `q`.
    """
    rows, _, heads, head_dim = q.shape
    tiles = tiling(head_dim) if tiles is None else tiles

    def of_device(q: Array, k: Array, v: Array, valid: Array | None) -> Array:
        return _attend(q, k, v, valid, streams, tiles, interpret)

    mesh = parallel.mesh_in_use()
    if mesh is not None:
        split = parallel.ROW_AXES if rows % parallel.row_shards(mesh) == 0 else None
        tensor = "tensor" if heads % mesh.shape["tensor"] == 0 else None
        of_heads = PartitionSpec(split, None, tensor)
        of_device = jax.shard_map(
            of_device,
            in_specs=(of_heads, of_heads, of_heads, PartitionSpec(split)),
            out_specs=of_heads,
            check_vma=False,  # the kernels' outputs lack the axes over which they vary
        )
    return of_device(q, k, v, valid)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _attend(
    q: Array,
    k: Array,
    v: Array,
    valid: Array | None,
    streams: Streams,
    tiles: Tiling,
    interpret: bool,
) -> Array:
    return _attend_and_keep(q, k, v, valid, streams, tiles, interpret)[0]


def _attend_and_keep(q, k, v, valid, streams, tiles, interpret) -> tuple[Array, Arrays]:
    given = {"q": q, "k": k, "v": v} | ({} if valid is None else {"valid": valid})
    given |= forward(given, streams, tiles.forward, interpret=interpret)
    return given["out"], given


def _gradients(streams, tiles, interpret, kept, slope) -> tuple[Array, Array, Array, None]:
    given = kept | {"slope": slope}
    given |= of_queries(given, streams, tiles.of_queries, interpret=interpret)
    given |= of_keys(given, streams, tiles.of_keys, interpret=interpret)
    return given["of_q"], given["of_k"], given["of_v"], None


_attend.defvjp(_attend_and_keep, _gradients)


def forward(given: Arrays, streams: Streams, tile: Tile, *, interpret: bool = False) -> Arrays:
    """The forward pass: of `q`, `k`, `v` and perhaps `valid` the output `out`, and `totals`."""
    outputs: Shapes = {"out": given["q"], "totals": _a_number_each(given["q"])}
    return _run(kernels.forward, given, "q k v valid", outputs, streams, tile, interpret)


def of_queries(given: Arrays, streams: Streams, tile: Tile, *, interpret: bool = False) -> Arrays:
    """Of what `forward` read and wrote, and the gradient `slope` of `out`: `of_q`, and `means`."""
    outputs: Shapes = {"of_q": given["q"], "means": _a_number_each(given["q"])}
    names = "q k v valid out slope totals"
    return _run(kernels.of_queries, given, names, outputs, streams, tile, interpret)


def of_keys(given: Arrays, streams: Streams, tile: Tile, *, interpret: bool = False) -> Arrays:
    """Of what `of_queries` read and wrote the gradients `of_k` and `of_v`."""
    outputs: Shapes = {"of_k": given["k"], "of_v": given["v"]}
    names = "q k v valid slope totals means"
    return _run(kernels.of_keys, given, names, outputs, streams, tile, interpret, by_keys=True)


def _run(
    kernel: Callable[..., None],
    given: Arrays,
    names: str,
    outputs: Shapes,
    streams: Streams,
    tile: Tile,
    interpret: bool,
    *,
    by_keys: bool = False,
) -> Arrays:
    """What a kernel writes, with a program for each tile of queries or keys, head and row."""
    given = {name: given[name] for name in names.split() if name in given}
    rows, asking, heads, head_dim = given["q"].shape
    both = asking > streams.length
    plan = Plan(streams, tile, both, "valid" in given, head_dim**-0.5, interpret)
    size = tile.keys if by_keys else tile.queries
    clean = streams.clean if both or by_keys else 0

    def body(given: kernels.Refs, outputs: kernels.Refs) -> None:
        kernel(plan, given, **outputs)

    return pl.pallas_call(
        body,
        grid=(pl.cdiv(streams.length, size) + pl.cdiv(clean, size), heads, rows),
        in_specs=[{name: _part(x.shape) for name, x in given.items()}],
        out_specs={name: _part(x.shape) for name, x in outputs.items()},
        out_shape={name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in outputs.items()},
        compiler_params=plgpu.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
        interpret=interpret,
        name=f"streams_{kernel.__name__}",
    )(given)


def _part(shape: tuple[int, ...]) -> pl.BlockSpec:
    """What a program is given of `[B, n, H, d]`, `[B, H, n]` or `[B, n]`: its row and head."""
    if len(shape) == 4:
        part = (None, shape[1], None, shape[3])
        return pl.BlockSpec(part, lambda tile, head, row: (row, 0, head, 0))
    if len(shape) == 3:
        return pl.BlockSpec((None, None, shape[2]), lambda tile, head, row: (row, head, 0))
    return pl.BlockSpec((None, shape[1]), lambda tile, head, row: (row, 0))


def _a_number_each(q: Array) -> jax.ShapeDtypeStruct:
    """f32 `[B, H, Q]` of queries."""
    rows, asking, heads, _ = q.shape
    return jax.ShapeDtypeStruct((rows, heads, asking), jnp.float32)
