"""Local attention block by block: work and memory that grow with the row, not with its square."""

import jax
import jax.numpy as jnp

Array = jax.Array

_SMALLEST_BLOCK = 16


def block_size(window: int) -> int:
    """Queries of a block, which share `block + 2 window` keys: half of them are seen, or more."""
    return max(_SMALLEST_BLOCK, 2 * window)


def pays(length: int, window: int) -> bool:
    """Whether a block's keys are at most half of a row's."""
    return 2 * (block_size(window) + 2 * window) <= length


def local_attention(
    q: Array,
    k: Array,
    v: Array,
    window: int,
    valid: Array | None = None,
    segment_ids: Array | None = None,
) -> Array:
    """`attention` of 'local' masks, by XLA: the same values wherever a query sees a key.

    Args:
      q: queries `[B, L, H, d]`; `k` and `v` alike.
      window: reach on either side.
      valid: bool `[B, L]`, False at keys that nobody may see.
      segment_ids: i32 `[B, L]`; a query sees the keys of its own segment.
    """
    rows, length, *_ = q.shape
    block = block_size(window)
    blocks = -(-length // block)

    def of_blocks(x: Array) -> Array:  # [B, L, ...] -> [B, n, b, ...], filled up with zeros
        padding = [(0, 0)] * x.ndim
        padding[1] = (0, blocks * block - length)
        return jnp.pad(x, padding).reshape(rows, blocks, block, *x.shape[2:])

    def with_neighbours(x: Array) -> Array:  # [B, L, ...] -> [B, n, w + b + w, ...]
        x = of_blocks(x)
        nothing = jnp.zeros_like(x[:, :1, :window])
        before = jnp.concatenate([nothing, x[:, :-1, block - window :]], axis=1)
        behind = jnp.concatenate([x[:, 1:, :window], nothing], axis=1)
        return jnp.concatenate([before, x, behind], axis=2)

    real = jnp.ones((rows, length), bool) if valid is None else valid
    ahead = jnp.arange(-window, block + window) - jnp.arange(block)[:, None]  # key - query
    mask = with_neighbours(real)[:, :, None] & (jnp.abs(ahead) <= window)  # [B, n, b, w + b + w]
    if segment_ids is not None:
        mask &= of_blocks(segment_ids)[..., None] == with_neighbours(segment_ids)[:, :, None]

    def as_rows(x: Array) -> Array:
        return x.reshape(rows * blocks, *x.shape[2:])

    out = jax.nn.dot_product_attention(
        as_rows(of_blocks(q)),
        as_rows(with_neighbours(k)),
        as_rows(with_neighbours(v)),
        mask=as_rows(mask)[:, None],
        implementation="xla",
    )
    return out.reshape(rows, blocks * block, *out.shape[2:])[:, :length]
