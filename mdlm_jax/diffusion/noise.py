"""Noise: one seed, named purposes, one key a row.

Every random number of a run is a function of (seed, purpose, step, row). The mesh, the number of
processes and the split of the batch cannot change it, and no two purposes share any of it:

    key = noise.seed_key(seed)                        # instead of `jax.random.key(seed)`
    noise.derive(key, "init")                         # fresh weights
    of_step = noise.derive(key, "training", step)     # of one step; from it:
    noise.derive(of_step, "masks")                    # what the batch's corruption draws
    noise.derive(of_step, "prompts")                  # what is kept of each row
    noise.derive(of_step, "dropout", microbatch)      # of one microbatch
    noise.derive(key, "evaluation")                   # a likelihood
    noise.derive(key, "rates", rate_index)            # a likelihood's integrand
    noise.derive(key, "samples")                      # what a command writes
    noise.derive(key, "shown", step)                  # the sample shown while training

The purpose comes first. `jax.random.split(key)[i]` and `jax.random.fold_in(key, i)` are the same
key, so a step, a row and a half of a key would share noise if they had the same number. A purpose
is folded in as a number that no step, row or index reaches.

Functions that draw for a batch take `key=`, of the whole batch, with `rows=`; or they take `keys=`,
one a row. `keys_of_rows` checks them.
"""

import functools
import operator
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mdlm_jax.diffusion import checks, shards

Array = jax.Array

# What is drawn, each from noise of its own.
PURPOSES = (
    # Of a run.
    "init",  # fresh weights
    "training",  # all that a step draws
    "masks",  # of a step: its corruption
    "prompts",  # of a step: what is kept of each row
    "dropout",  # of a step
    "evaluation",  # a likelihood, an exact answer's drawn one too
    "rates",  # a likelihood's integrand
    "samples",  # what is written for somebody
    "shown",  # a sample while training
    # Of a function of this package.
    "row",
    "block",  # of a row
    "spread",  # mask counts, stratified over rows
    "place",  # which tokens are masked
    "fate",  # of BERT's selected tokens: mask, another token, or as it was
    "other",  # which other token
    "keep",
    "begin",  # of a strategy
    "propose",
    "draw",
    "commit",
)

# 2^32 over the golden ratio: the additive recurrence that spreads any run of consecutive indices
# most evenly over the circle.
_GOLDEN = 0x9E3779B9


def _number(purpose: str) -> np.uint32:
    """At least 2^31, which no step, row or index reaches; independent of the other names."""
    return np.uint32(zlib.crc32(purpose.encode()) | 1 << 31)


_NUMBERS = {purpose: _number(purpose) for purpose in PURPOSES}
assert len(set(_NUMBERS.values())) == len(PURPOSES)


def seed_key(seed: int) -> Array:
    """The key of a seed. All 64 bits count, so different seeds have different keys.

    Below 2^32 it is `jax.random.key(seed)`. JAX's own function reads only the low 32 bits (unless
    64-bit numbers are switched on), so it cannot tell seeds 1 and 2^32 + 1, or -1 and 2^32 - 1.

    Args:
      seed: from 0 to 2^64 - 1.

    Raises:
      ValueError: any other seed.
    """
    return key_of_words(jnp.asarray(seed_words(seed)))


def seed_words(seed: int) -> np.ndarray:
    """u32[2], the seed as two words, the high one first: what `key_of_words` makes its key of.

    Raises:
      ValueError: as `seed_key`.
    """
    try:
        number = operator.index(seed)
    except TypeError:
        number = -1
    if isinstance(seed, bool) or not 0 <= number < 2**64:
        raise ValueError(f"seed is {seed!r}, it must be a whole number from 0 to 2^64 - 1")
    return np.array([number >> 32, number & 0xFFFFFFFF], np.uint32)


def key_of_words(words: Array) -> Array:
    """The keys `[...]` of seeds that are given as `seed_words`, u32[..., 2]; they may be traced."""
    plain = jax.random.key(0)
    size = jax.random.key_data(plain).size  # 2 of threefry; of rbg 4, which are the 2 twice
    data = jnp.tile(words, (*(1,) * (words.ndim - 1), size // 2))
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(plain))


def derive(key: Array, purpose: str, *numbers: Array | int) -> Array:
    """The key of a purpose, and of a step or an index within it.

    Args:
      key: one key, or keys `[B]`, which are derived from one by one.
      purpose: one of `PURPOSES`.
      numbers: whole numbers from 0 to 2^31 - 1, folded in one after the other; may be traced. With
        keys `[B]` a number may be `[B]`, one a key.

    Returns:
      One key, or keys `[B]`.

    Raises:
      ValueError: the purpose is none of `PURPOSES`.
    """
    if purpose not in _NUMBERS:
        raise ValueError(f"purpose is {purpose!r}, it must be one of {', '.join(PURPOSES)}")

    fold_in = jax.random.fold_in
    if not _typed(key).ndim:
        return functools.reduce(fold_in, (_NUMBERS[purpose], *numbers), key)
    for number in (_NUMBERS[purpose], *numbers):
        key = jax.vmap(fold_in, in_axes=(0, 0 if jnp.ndim(number) else None))(key, number)
    return key


def row_keys(key: Array, rows: Array) -> Array:
    """One key a row: `keys [B]` from one key and `rows i32[B]`."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(derive(key, "row"), rows)


def keys_of_rows(key: Array | None, keys: Array | None, rows: Array | None, tokens: Array) -> Array:
    """The rows' keys `[B]`, for a function that takes `key` and `rows`, or `keys`.

    Args:
      key: one key for the batch; None beside `keys`.
      keys: `[B]`, one a row; None beside `key`.
      rows: i32[B], the rows' numbers in the global batch, beside `key`; default 0..B-1.
      tokens: `[B, ...]`, what the noise is for.

    Raises:
      TypeError: an argument is no key, or no array.
      ValueError: both of `key` and `keys`, or neither; `rows` beside `keys`; a wrong length; or one
        key without `rows` for tokens that are mapped or sharded, because each part would draw the
        same noise. This is detected directly within `vmap`, and within a `shard_map` that checks
        (`check_vma=True`), but not through a `jit` within `vmap`.
    """
    batch = tokens.shape[0]
    if (key is None) == (keys is None):
        raise ValueError(
            f"{'neither' if key is None else 'both'} of key and keys given: give key, one for the "
            "batch, or keys, one a row, and None for the other"
        )
    if keys is not None:
        if rows is not None:
            raise ValueError("rows given beside keys: they number the rows of one key, omit them")
        keys = _checked("keys", keys)
        if keys.shape != (batch,):
            raise ValueError(f"keys has shape {keys.shape}, it must be ({batch},): one a row")
        return keys
    key = _checked("key", key)
    if key.shape:
        raise ValueError(f"key has shape {key.shape}, it must be one key; keys= takes one a row")
    if rows is None:
        if _is_in_parts(tokens, key):
            raise ValueError(
                "the tokens are mapped and the key is not: each part would draw the same noise; "
                "give rows, their numbers in the global batch, or keys, one a row"
            )
        rows = jnp.arange(batch)
    else:
        checks.check_rows(rows, batch)
    return row_keys(key, rows)


def row_uniform(keys: Array, length: int) -> Array:
    """`f32[B, length]` uniform on [0, 1), each row from its own key."""
    return jax.vmap(lambda key: jax.random.uniform(key, (length,)))(keys)


def row_gumbel(keys: Array, length: int) -> Array:
    """`f32[B, length]` standard Gumbel, each row from its own key."""
    return jax.vmap(lambda key: jax.random.gumbel(key, (length,), mode="high"))(keys)


def stratified(key: Array, index: Array) -> Array:
    """`f32[N]` on [0, 1): each is uniform, and together they are spread as evenly as strata.

    `u_i = frac(r + i / golden ratio)` with one random rotation `r` (a Cranley-Patterson rotated
    Kronecker sequence). Strata over a batch would need the batch's size. This depends only on the
    key and the index, so a batch may be cut anywhere. It is computed in exact 32-bit integers.
    """
    rotation = jax.random.bits(key, dtype=jnp.uint32)
    bits = rotation + index.astype(jnp.uint32) * jnp.uint32(_GOLDEN)
    return (bits >> 8).astype(jnp.float32) * 2.0**-24  # 24 bits: nothing is rounded


def _typed(key: Array) -> Array:
    """Typed keys, made from the bare words of `jax.random.PRNGKey` if need be."""
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key
    return jax.random.wrap_key_data(key)


def _checked(name: str, key: Any) -> Array:
    array = isinstance(key, jax.Array | np.ndarray)
    typed = array and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not typed and not (
        array and key.dtype == np.uint32 and key.ndim and key.shape[-1] in (2, 4)
    ):
        what = f"{key.dtype}{list(key.shape)}" if array else f"of type {type(key).__name__}"
        raise TypeError(f"{name} is {what}, it must be made by jax.random.key(seed) and the like")
    return _typed(key)


def _is_in_parts(tokens: Array, key: Array) -> bool:
    """Whether `vmap` or `shard_map` visibly cuts up the tokens, and not the key."""
    mapped = _is_mapped(tokens) and not _is_mapped(key)
    return mapped or bool(shards.varying(tokens) - shards.varying(key))


def _is_mapped(x: Array) -> bool:
    return type(x).__name__ == "BatchTracer"  # which JAX does not export
