"""Attention by Splash, JAX's block-sparse flash attention for TPUs, without `[L, L]` in memory."""

from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import (
    BlockSizes,
    CausalMask,
    FullMask,
    LocalMask,
    Mask,
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
    length = q.shape[1]
    segments = _segments(q.shape[:2], valid, segment_ids)
    q, k, v = (_fill_up(x, 0) for x in (q, k, v))
    shape = (q.shape[1],) * 2
    mask = {
        "full": lambda: FullMask(shape),
        "causal": lambda: CausalMask(shape),
        "local": lambda: LocalMask(shape, (window, window), 0),
    }[kind]()
    return _on_devices(q, k, v, mask, segments, segments, interpret)[:, :length]


class Rule(Protocol):
    """Says which query sees which key, by their places; hashable."""

    def sees(self, query: Any, key: Any) -> Any:
        """`(query [Q, 1], key [1, K]) -> bool [Q, K]`, for NumPy."""


class SparseMask(Mask):
    """A mask by a rule; what it excludes is not computed.

    A place of the padding to multiples of 128 is seen by nobody, and as a query it sees the first
    key, so that no query is without one.
    """

    def __init__(self, rule: Rule, size: tuple[int, int]):
        """Of so many queries and keys."""
        self.rule, self.size = rule, size

    @property
    def shape(self) -> tuple[int, int]:
        """Queries and keys, multiples of 128."""
        queries, keys = (-(-n // _LANES) * _LANES for n in self.size)
        return queries, keys

    def __getitem__(self, places: tuple[slice, slice]) -> np.ndarray:
        """The mask of a block of queries and keys."""
        query, key = (
            np.arange(*part.indices(n)) for part, n in zip(places, self.shape, strict=True)
        )
        query, key = query[:, None], key[None]
        queries, keys = self.size
        return np.where(query < queries, self.rule.sees(query, key) & (key < keys), key == 0)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SparseMask):
            return NotImplemented
        return (self.rule, self.size) == (other.rule, other.size)

    def __hash__(self) -> int:
        return hash((self.rule, self.size))


def splash_of_mask(
    q: Array,
    k: Array,
    v: Array,
    mask: SparseMask,
    valid: Array | None = None,
    *,
    interpret: bool = False,
) -> Array:
    """Attention for TPUs by any mask of places.

    Args:
      q: queries `[B, Q, H, d]`, the first places of the keys.
      k: keys `[B, K, H, d]`; `v` alike.
      mask: each query sees itself, or every key that it sees is valid.
      valid: bool `[B, K]`. A query sees only keys that are valid if it is, and else only others.
      interpret: as in `splash_attention`.
    """
    length = q.shape[1]
    of_queries = of_keys = None
    if valid is not None:
        segments = valid.astype(jnp.int32)
        first = segments[:, :1]  # of the key that padding sees
        of_keys = _fill_up(segments, _PADDING)
        of_queries = segments[:, :length]
        padding = jnp.broadcast_to(first, (q.shape[0], -length % _LANES))
        of_queries = jnp.concatenate([of_queries, padding], axis=1)
    q, k, v = (_fill_up(x, 0) for x in (q, k, v))
    return _on_devices(q, k, v, mask, of_queries, of_keys, interpret)[:, :length]


def _on_devices(
    q: Array,
    k: Array,
    v: Array,
    mask: Mask,
    of_queries: Array | None,
    of_keys: Array | None,
    interpret: bool,
) -> Array:
    """The kernel on each device's rows and heads, of lengths that are multiples of 128."""
    q = (q.astype(jnp.float32) * q.shape[-1] ** -0.5).astype(q.dtype)
    q, k, v = (jnp.moveaxis(x, 1, 2) for x in (q, k, v))  # [B, H, L', d]

    def of_device(q: Array, k: Array, v: Array, of_queries, of_keys) -> Array:
        kernel = _kernel(mask, q.shape[1], interpret)
        ids = None if of_queries is None else SegmentIds(of_queries, of_keys)
        return jax.vmap(kernel)(q, k, v, ids)

    mesh = parallel.mesh_in_use()
    if mesh is not None:
        split = q.shape[0] % parallel.row_shards(mesh) == 0
        rows = parallel.ROW_AXES if split else None
        heads = "tensor" if q.shape[1] % mesh.shape["tensor"] == 0 else None
        of_head = PartitionSpec(rows, heads)
        of_device = jax.shard_map(
            of_device,
            in_specs=(of_head, of_head, of_head, PartitionSpec(rows), PartitionSpec(rows)),
            out_specs=of_head,
            check_vma=False,  # the kernel's outputs lack the axes over which they vary
        )
    return jnp.moveaxis(of_device(q, k, v, of_queries, of_keys), 1, 2)


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


def _kernel(mask: Mask, heads: int, interpret: bool):
    """`(q [H, Q, d], k, v [H, K, d], segment ids) -> [H, Q, d]`, with one mask for all heads."""
    of_queries, of_keys = (
        max(b for b in range(_LANES, _LARGEST_BLOCK + 1, _LANES) if length % b == 0)
        for length in mask.shape
    )
    blocks = BlockSizes(
        block_q=of_queries,
        block_kv=of_keys,
        block_q_dkv=of_queries,
        block_kv_dkv=of_keys,
        block_q_dq=of_queries,
        block_kv_dq=of_keys,
    )
    return make_splash_mha_single_device(
        MultiHeadMask([mask] * heads), block_sizes=blocks, interpret=interpret
    )
