"""Rotary positions (Su et al. 2021)."""

import jax
import jax.numpy as jnp

Array = jax.Array


def rope_turns(
    length: int, head_dim: int, theta: float = 10_000.0, positions: Array | None = None
) -> Array:
    """Cosine and sine of the angles `m * theta^(-2i/d)`, f32 `[2, L, d/2]`.

    m is the position and i the feature pair: Su et al. 2021 (RoFormer), equation 15, with theta
    10,000.

    Args:
      length: L; positions are 0..L-1 unless given.
      head_dim: d.
      theta: base of the wavelengths.
      positions: i32 `[B, L]`: then `[2, B, L, d/2]`.
    """
    frequencies = theta ** (-jnp.arange(0, head_dim, 2) / head_dim)
    places = jnp.arange(length) if positions is None else positions
    angles = places[..., None].astype(jnp.float32) * frequencies.reshape(*(1,) * places.ndim, -1)
    # Stacked and behind a barrier, they are not recomputed for each row and head.
    return jax.lax.optimization_barrier(jnp.stack([jnp.cos(angles), jnp.sin(angles)]))


def rotate(x: Array, turns: Array) -> Array:
    """Turns the feature pairs `(i, i + d/2)` of `x [B, L, H, d]` by `turns [2, L, d/2]`.

    Or by `[2, B, L, d/2]`, if rows have their own positions.
    """
    cos, sin = turns[..., None, :] if turns.ndim == 4 else turns[:, None, :, None]  # [., L, 1, d/2]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)
