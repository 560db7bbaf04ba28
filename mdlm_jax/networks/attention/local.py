"""Local attention block by block: work and memory grow linearly with the row."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mdlm_jax.host import parallel

Array = jax.Array

_SMALLEST_BLOCK = 16
_HALF_TILE = 64  # cuDNN computes 128 queries and 128 keys at a time


class Blocks(NamedTuple):
    """How a row is cut.

    Attributes:
      size: queries of a block.
      reach: keys beyond the block on either side; at least the window, at most `size`.
    """

    size: int
    reach: int

    @property
    def keys(self) -> int:
        """Keys that are computed for each query."""
        return self.size + 2 * self.reach


def blocks_of(window: int, implementation: str) -> Blocks:
    """How rows are cut for a window: of the keys of a block, a query sees a quarter or more.

    With 'cudnn' it sees less of them for windows below 64: its tiles are of that size, so smaller
    blocks would cost as much.
    """
    if implementation == "cudnn":
        reach = -(-window // _HALF_TILE) * _HALF_TILE
        return Blocks(2 * reach, reach)
    return Blocks(max(_SMALLEST_BLOCK, 2 * window), window)


def pays(length: int, blocks: Blocks) -> bool:
    """Whether a block has less than half of a row's keys; at half, a mask is as fast on GPUs."""
    return 2 * blocks.keys < length


def local_attention(
    q: Array,
    k: Array,
    v: Array,
    window: int,
    valid: Array | None = None,
    segment_ids: Array | None = None,
    *,
    blocks: Blocks | None = None,
    implementation: str = "xla",
) -> Array:
    """`attention` of 'local' masks: the same values wherever the query is valid.

    A query always sees itself, so none is without a key.

    Args:
      q: queries `[B, L, H, d]`; `k` and `v` alike.
      window: reach on either side.
      valid: bool `[B, L]`, False at keys that no query may see.
      segment_ids: i32 `[B, L]`; a query sees the keys of its own segment.
      blocks: how rows are cut; by default `blocks_of` the window.
      implementation: of the product in a block: 'xla' or 'cudnn'.
    """
    rows, length, *_ = q.shape
    size, reach = blocks_of(window, implementation) if blocks is None else blocks
    count = -(-length // size)

    def of_blocks(x: Array) -> Array:  # [B, L, ...] -> [B, n, b, ...], filled up with zeros
        padding = [(0, 0)] * x.ndim
        padding[1] = (0, count * size - length)
        return jnp.pad(x, padding).reshape(rows, count, size, *x.shape[2:])

    def with_neighbours(x: Array) -> Array:  # [B, L, ...] -> [B, n, r + b + r, ...]
        x = of_blocks(x)
        nothing = jnp.zeros_like(x[:, :1, :reach])
        before = jnp.concatenate([nothing, x[:, :-1, size - reach :]], axis=1)
        behind = jnp.concatenate([x[:, 1:, :reach], nothing], axis=1)
        return jnp.concatenate([before, x, behind], axis=2)

    real = jnp.ones((rows, length), bool) if valid is None else valid
    ahead = jnp.arange(-reach, size + reach)[None] - jnp.arange(size)[:, None]  # key - query
    ahead = ahead[None, None]  # [1, 1, b, r + b + r]
    mask = with_neighbours(real)[:, :, None] & (jnp.abs(ahead) <= window)  # [B, n, b, r + b + r]
    if segment_ids is not None:
        mask &= of_blocks(segment_ids)[..., None] == with_neighbours(segment_ids)[:, :, None]
    mask = parallel.spread_rows(mask | (ahead == 0))

    def as_rows(x: Array) -> Array:
        return x.reshape(rows * count, *x.shape[2:])

    with jax.numpy_dtype_promotion("standard"):  # JAX's own logits are wider than `q`
        out = jax.nn.dot_product_attention(
            as_rows(of_blocks(q)),
            as_rows(with_neighbours(k)),
            as_rows(with_neighbours(v)),
            mask=as_rows(mask)[:, None],
            implementation=implementation,
        )
    return out.reshape(rows, count * size, *out.shape[2:])[:, :length]
