"""Noise as a function of (key, row): no mesh, process count or batch split can change it."""

import jax
import jax.numpy as jnp

Array = jax.Array

# 2^32 over the golden ratio: the additive recurrence that spreads any run of consecutive indices
# most evenly over the circle.
_GOLDEN = 0x9E3779B9


def row_keys(key: Array, rows: Array) -> Array:
    """One key a row: `keys [B]` from one key and `rows i32[B]`."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, rows)


def row_uniform(keys: Array, length: int) -> Array:
    """`f32[B, length]` uniform on [0, 1), each row from its own key."""
    return jax.vmap(lambda key: jax.random.uniform(key, (length,)))(keys)


def row_gumbel(keys: Array, length: int) -> Array:
    """`f32[B, length]` standard Gumbel, each row from its own key."""
    return jax.vmap(lambda key: jax.random.gumbel(key, (length,), mode="high"))(keys)


def stratified(key: Array, index: Array) -> Array:
    """`f32[N]` on [0, 1): each uniform given its index, together spread as evenly as strata.

    `u_i = frac(r + i / golden ratio)` with one random rotation `r` (a Cranley-Patterson rotated
    Kronecker sequence). Strata over a batch would need the batch's size; this depends on the key
    and the index alone, so a batch may be cut anywhere. Computed in exact 32-bit integer
    arithmetic.
    """
    rotation = jax.random.bits(key, dtype=jnp.uint32)
    bits = rotation + index.astype(jnp.uint32) * jnp.uint32(_GOLDEN)
    return (bits >> 8).astype(jnp.float32) * 2.0**-24  # 24 bits: nothing is rounded
