"""Prompts: which of a row's tokens are kept, so that the loss is on the rest given them.

Both functions map `maskable` to `maskable`, which `corrupt`, `diffusion_loss` and `nelbo` take.
Tokens that are never masked anyway, such as the question of a pair, stay kept.
"""

import jax
import jax.numpy as jnp

from mdlm_jax.diffusion import checks, noise

Array = jax.Array


def keep_prefix(
    key: Array | None,
    maskable: Array,
    rows: Array | None = None,
    *,
    keys: Array | None = None,
) -> Array:
    """Keeps a random prefix of each row: the model learns to continue.

    Of a row's n maskable tokens the first m are kept, with m uniform on {0..n-1}. So no prompt is
    as likely as a prompt of any length, and at least one token is left to mask.

    Args:
      key: of this step; the noise of a row is a function of (key, its number in `rows`).
      maskable: bool[B, L], the tokens that may be masked.
      rows: i32[B], the rows' numbers in the global batch; default 0..B-1.
      keys: [B], one a row, instead of `key` and `rows`, as in `corrupt`.

    Returns:
      bool[B, L], true at the tokens that still may be masked.
    """
    u, rank, count = _of_rows(key, maskable, rows, keys)
    kept = _below(u[:, 0], count)
    return maskable & (rank >= kept[:, None])


def keep_around(
    key: Array | None,
    maskable: Array,
    rows: Array | None = None,
    *,
    keys: Array | None = None,
) -> Array:
    """Keeps what stands around a random span of each row: the model learns to fill in.

    Of a row's n maskable tokens a run of l is left to mask and the others are kept. l is uniform on
    {1..n}, and the start is uniform on {0..n-l} given l. A span may reach either end, or be the
    whole row.

    Args:
      key: as in `keep_prefix`.
      maskable: bool[B, L], the tokens that may be masked.
      rows: i32[B], as in `keep_prefix`.
      keys: [B], as in `keep_prefix`.

    Returns:
      bool[B, L], true at the tokens of the span.
    """
    u, rank, count = _of_rows(key, maskable, rows, keys)
    span = 1 + _below(u[:, 0], count)
    begin = _below(u[:, 1], count + 1 - span)
    inside = (rank >= begin[:, None]) & (rank < (begin + span)[:, None])
    return maskable & inside


def _of_rows(
    key: Array | None, maskable: Array, rows: Array | None, keys: Array | None
) -> tuple[Array, Array, Array]:
    """Two uniforms a row `f32[B, 2]`, each token's number among the maskable, their count."""
    checks.check_maskable("maskable", maskable)
    of_rows = noise.keys_of_rows(key, keys, rows, maskable)
    u = noise.row_uniform(noise.derive(of_rows, "keep"), 2)
    rank = jnp.cumsum(maskable, axis=1, dtype=jnp.int32) - 1
    return u, rank, maskable.sum(axis=1, dtype=jnp.int32)


def _below(u: Array, count: Array) -> Array:
    """Whole numbers on {0..count-1}, uniform if `u` is on [0, 1)."""
    return jnp.minimum(
        (u * count.astype(jnp.float32)).astype(jnp.int32), count - 1
    )  # the product may round up
