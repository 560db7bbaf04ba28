"""Likelihood: denoiser x data -> NELBO with its error."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mdlm_jax.diffusion import checks, noise
from mdlm_jax.diffusion.corruption import lay_out
from mdlm_jax.diffusion.denoisers import Denoiser
from mdlm_jax.diffusion.masks import exact_masks
from mdlm_jax.diffusion.objectives import slot_nats
from mdlm_jax.diffusion.schedules import Schedule, check_schedule, linear

Array = jax.Array


class Likelihood(NamedTuple):
    """Each row's `-log p`, or an upper bound of it, estimated, with the variance of the estimate.

    Attributes:
      nats: f32[B], the estimated NELBO of each row; of `causal_likelihood` its `-log p`.
      mc_variance: f32[B], the estimate's own variance, from independent replicates within the row;
        0 where nothing was drawn.
      tokens: i32[B], the tokens that count.
    """

    nats: Array
    mc_variance: Array
    tokens: Array

    @property
    def nats_per_token(self) -> Array:
        """That of the whole text per token."""
        return self.nats.sum() / self.tokens.sum()

    @property
    def mc_error(self) -> Array:
        """Standard error of `nats_per_token` as an estimate for this text: more draws shrink it."""
        return jnp.sqrt(self.mc_variance.sum()) / self.tokens.sum()

    @property
    def text_error(self) -> Array:
        """Standard error of `nats_per_token` over texts: more rows shrink it, more draws do not.

        The ratio estimator's error from the rows' residuals `nats - nats_per_token tokens` (Cochran
        1977, eq. 2.46); it contains the Monte Carlo error. NaN for a single row.
        """
        rows = jnp.sum(self.tokens > 0)
        residual = self.nats - self.nats_per_token * self.tokens
        return jnp.sqrt(rows / (rows - 1) * jnp.sum(residual**2)) / self.tokens.sum()


def nelbo(
    denoiser: Denoiser,
    key: Array,
    tokens: Array,
    *,
    mask_id: int,
    draws: int,
    maskable: Array | None = None,
    rows: Array | None = None,
    schedule: Schedule = linear(),
) -> Likelihood:
    """Estimates each row's NELBO from `draws` corruptions with exact counts.

    The draws of a row form independent replicates; within a replicate the mask counts are spread
    over {1..L} by rotated strata, which is what makes few draws do. The error therefore comes from
    the replicates: the naive error of the draws ignores the spreading, and is several times too
    large. The number of replicates is the divisor of `draws` nearest below its square root (all
    draws, where they are prime).

    Args:
      denoiser: `(canvas, t) -> logits` in its two halves; it always sees all B rows, in order.
      key: the rows' draws are functions of (key, their number in `rows`).
      tokens: i32[B, L], clean.
      mask_id: the mask token.
      draws: network evaluations a row, at least 2.
      maskable: bool[B, L], the tokens that count; default all but `mask_id`.
      rows: i32[B], the rows' numbers in the whole text; default 0..B-1.
      schedule: turns the mask rate into the time that the denoiser is told.

    Raises:
      ValueError: with fewer than 2 draws, and as `corrupt`.
      TypeError: as `diffusion_loss`.
    """
    if draws < 2:
        raise ValueError(f"nelbo: draws is {draws}, at least 2 are needed to tell the error")
    checks.check_denoiser(denoiser)
    check_schedule(schedule)
    checks.check_text("tokens", tokens)
    checks.check_whole("mask_id", mask_id)
    maskable = tokens != mask_id if maskable is None else maskable
    checks.check_maskable("maskable", maskable, tokens.shape)
    rows = jnp.arange(tokens.shape[0]) if rows is None else rows
    checks.check_rows(rows, tokens.shape[0])
    replicates = _replicates(draws)
    strata = draws // replicates
    rotation_key, placing_key = jax.random.split(key)

    def one_draw(index):  # i32[] -> f32[B]
        replicate, stratum = index // strata, index % strata
        rotation_keys = noise.row_keys(jax.random.fold_in(rotation_key, replicate), rows)
        rotation = noise.row_uniform(rotation_keys, 1)[:, 0]
        masks = exact_masks(
            noise.row_keys(jax.random.fold_in(placing_key, index), rows),
            jnp.mod(rotation + stratum / strata, 1.0),
            jnp.zeros_like(rows),
            maskable=maskable,
            schedule=schedule,
        )
        canvas = jnp.where(masks.selected, mask_id, tokens)
        corrupted = lay_out(tokens, canvas, masks, slots=tokens.shape[1], paired=False)
        nats = slot_nats(denoiser, corrupted, mask_id=mask_id).nats  # [B, L], a slot a token
        return jnp.sum(corrupted.weights * nats, axis=1)

    nats = jax.lax.map(one_draw, jnp.arange(draws))  # [draws, B]
    by_replicate = nats.reshape(replicates, strata, -1).mean(axis=1)  # [replicates, B]
    return Likelihood(
        nats=by_replicate.mean(axis=0),
        mc_variance=by_replicate.var(axis=0, ddof=1) / replicates,
        tokens=maskable.sum(axis=1, dtype=jnp.int32),
    )


def _replicates(draws: int) -> int:
    """The largest divisor from 2 to the square root of `draws`, or all of them."""
    divisors = [d for d in range(2, math.isqrt(draws) + 1) if draws % d == 0]
    return max(divisors, default=draws)
