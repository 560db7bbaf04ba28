"""The exact NELBO of few tokens: it sums over every set of masks instead of drawing some."""

import jax
import jax.numpy as jnp

from mdlm_jax.diffusion import checks, shards
from mdlm_jax.diffusion.denoisers import Denoiser
from mdlm_jax.diffusion.objectives import group_nats
from mdlm_jax.diffusion.processes.corruption import lay_out
from mdlm_jax.diffusion.processes.masks import Masks, maskable_of

Array = jax.Array


def enumerated_nelbo(
    denoiser: Denoiser,
    tokens: Array,
    *,
    mask_id: int,
    longest: int,
    maskable: Array | None = None,
    together: int = 1,
) -> Array:
    """Each row's exact NELBO, for a denoiser that ignores the time.

    It is exact-count masking with both means written out. For n maskable tokens,

        n E_{k ~ U{1..n}} [ S_k / k ] = sum over the sets s that are not empty of
                                        nats(s) / (|s| C(n, |s|)),

    where `nats(s)` is the summed cross-entropy of the tokens in s when these are masked. It takes
    `2^n - 1` network evaluations, with n of the row that has most, so it suits answers of a few
    words. Call it under `jax.jit`.

    Args:
      denoiser: `(canvas, t) -> logits` in its two halves; its time is 1 throughout.
      tokens: i32[B, L], clean.
      mask_id: the mask token.
      longest: the most maskable tokens that a row may have, from 1 to 30.
      maskable: bool[B, L], the tokens that count; default all but `mask_id`.
      together: so many neighbouring rows are read out as one, for rows that are short.

    Returns:
      f32[B], nats; 0 where nothing is maskable. If `maskable` is traced, a row with more than
      `longest` has NaN.

    Raises:
      ValueError: on a `longest` out of its range; on a row that is known to have more; and as
        `corrupt`.
      TypeError: as `diffusion_loss`.
    """
    checks.check_denoiser(denoiser)
    checks.check_whole("longest", longest)
    if not 1 <= longest <= 30:
        raise ValueError(f"longest is {longest}, it must be from 1 to 30")
    maskable = maskable_of(tokens, mask_id, maskable)
    length = maskable.sum(axis=1, dtype=jnp.int32)
    seen = checks.known(length)
    if seen is not None and seen.max() > longest:
        raise ValueError(
            f"row {seen.argmax()} has {seen.max()} maskable tokens: longest is {longest}"
        )
    place = jnp.cumsum(maskable, axis=1) - 1  # among the row's maskable tokens
    ones = jnp.ones(len(tokens))

    def add_set(bits: Array, total: Array) -> Array:
        selected = maskable & (bits >> jnp.maximum(place, 0) & 1 > 0)
        size = selected.sum(axis=1, dtype=jnp.int32)
        # A row with fewer tokens has fewer sets.
        weight = jnp.where(bits < 1 << length, _weight(length, size), 0.0)
        masks = Masks(jnp.argsort(~selected, axis=1, stable=True), size, length, ones, weight)
        canvas = jnp.where(selected, mask_id, tokens)
        corrupted = lay_out(
            tokens, canvas, masks, slots=min(longest, tokens.shape[1]), paired=False
        )
        return total + group_nats(denoiser, corrupted, mask_id=mask_id, together=together)

    sets = 1 << jnp.minimum(length.max(), longest)
    total = shards.alike(jnp.zeros(len(tokens)), tokens, maskable)
    total = jax.lax.fori_loop(1, sets, add_set, total)
    return jnp.where(length <= longest, total, jnp.nan)


def _weight(length: Array, size: Array) -> Array:
    """`1 / (size C(length, size))`, which is `B(size, length - size + 1)`."""
    lgamma = jax.lax.lgamma
    size, rest = jnp.maximum(size, 1).astype(jnp.float32), (length - size).astype(jnp.float32)
    return jnp.exp(lgamma(size) + lgamma(rest + 1.0) - lgamma(size + rest + 1.0))
