"""Attention by Splash, JAX's block-sparse flash attention for TPUs, without `[L, L]` in memory."""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    BlockSizes,
    CausalMask,
    FullMask,
    LocalMask,
    MultiHeadMask,
    SegmentIds,
    make_splash_mha_single_device,
)
from jax.sharding import PartitionSpec

from mdlm_jax.host import parallel

Array = jax.Array

# The kernel's blocks are multiples of this (lanes of a vector register).
_LANES = 128
_LARGEST_BLOCK = 512

# The segment of positions that are no tokens; no user's segment has this number.
_PADDING = jnp.iinfo(jnp.int32).min


def splash_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    kind: str = "full",
    window: int = 0,
    valid: Array | None = None,
    segment_ids: Array | None = None,
    interpret: bool = False,
) -> Array:
    """`attention` for TPUs: the same arguments, and the same values wherever the query is valid.

    Positions that are not valid form a segment of their own, and so does the padding of a length to
    a multiple of 128, so no query is without a key. Within a mesh in `use`, each device runs the
    kernel on its rows and heads. With `interpret` it runs slowly on any device, for tests.
    """
    length, head_dim = q.shape[1], q.shape[-1]
    segments = _segments(q.shape[:2], valid, segment_ids)
    q = (q.astype(jnp.float32) * head_dim**-0.5).astype(q.dtype)
    q, k, v = (jnp.moveaxis(_fill_up(x, 0), 1, 2) for x in (q, k, v))  # [B, H, L', d]

    def of_device(q: Array, k: Array, v: Array, segments: Array | None) -> Array:
        kernel = _kernel(kind, window, q.shape[1:3], interpret)
        ids = None if segments is None else SegmentIds(segments, segments)
        return jax.vmap(kernel)(q, k, v, ids)

    mesh = parallel.mesh_in_use()
    if mesh is not None:
        split = q.shape[0] % parallel.row_shards(mesh) == 0
        rows = parallel.ROW_AXES if split else None
        heads = "tensor" if q.shape[1] % mesh.shape["tensor"] == 0 else None
        of_head = PartitionSpec(rows, heads)
        of_device = jax.shard_map(
            of_device,
            in_specs=(of_head, of_head, of_head, PartitionSpec(rows)),
            out_specs=of_head,
            check_vma=False,  # the kernel's outputs lack the axes over which they vary
        )
    return jnp.moveaxis(of_device(q, k, v, segments), 1, 2)[:, :length]


def _segments(
    shape: tuple[int, int], valid: Array | None, segment_ids: Array | None
) -> Array | None:
    """Segments `i32[B, L']`, or None if every query may see every key."""
    if valid is None and segment_ids is None and shape[1] % _LANES == 0:
        return None
    ids = jnp.zeros(shape, jnp.int32) if segment_ids is None else segment_ids
    if valid is not None:
        ids = jnp.where(valid, ids, _PADDING)
    return _fill_up(ids, _PADDING)


def _fill_up(x: Array, value: int) -> Array:
    """`[B, L, ...]` to `[B, L', ...]`, L' the next multiple of 128."""
    return jnp.pad(
        x, [(0, 0), (0, -x.shape[1] % _LANES)] + [(0, 0)] * (x.ndim - 2), constant_values=value
    )


def _kernel(kind: str, window: int, size: tuple[int, int], interpret: bool):
    """`(q, k, v [H, L, d], segment ids) -> [H, L, d]`, for the given H and L."""
    heads, length = size
    shape = (length, length)
    mask = {
        "full": lambda: FullMask(shape),
        "causal": lambda: CausalMask(shape),
        "local": lambda: LocalMask(shape, (window, window), 0),
    }[kind]()
    block = max(b for b in range(_LANES, _LARGEST_BLOCK + 1, _LANES) if length % b == 0)
    blocks = BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    return make_splash_mha_single_device(
        MultiHeadMask([mask] * heads), block_sizes=blocks, interpret=interpret
    )
