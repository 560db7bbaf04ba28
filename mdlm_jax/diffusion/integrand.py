"""The NELBO's integrand: a denoiser's cross-entropy and confidence at one mask rate of every row.

The average over all rates is the NELBO. At 15 % the integrand is BERT's loss with every selected
token masked.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mdlm_jax.diffusion import checks, noise
from mdlm_jax.diffusion.denoisers import Denoiser
from mdlm_jax.diffusion.objectives import slot_nats
from mdlm_jax.diffusion.processes.corruption import Corrupted, lay_out
from mdlm_jax.diffusion.processes.masks import maskable_of, share_counts, share_masks
from mdlm_jax.diffusion.schedules import Schedule, check_schedule, linear

Array = jax.Array

CONFIDENCE_BINS = 10


class AtRate(NamedTuple):
    """Sums over the masked tokens of one corruption, by row and by confidence.

    The confidence at a position is the probability of its most likely token.

    Attributes:
      nats: f32[B], summed cross-entropy.
      masked: i32[B], how many tokens these are.
      binned: i32[10], tokens whose confidence lies in (0, 0.1], (0.1, 0.2], ..., (0.9, 1].
      confidence: f32[10], the sum of their confidences.
      correct: i32[10], for how many of them the most likely token is right.
    """

    nats: Array
    masked: Array
    binned: Array
    confidence: Array
    correct: Array


def at_rate(
    denoiser: Denoiser,
    key: Array | None,
    tokens: Array,
    *,
    mask_id: int,
    rate: float,
    maskable: Array | None = None,
    rows: Array | None = None,
    keys: Array | None = None,
    schedule: Schedule = linear(),
) -> AtRate:
    """Masks `max(1, round(rate * L))` of each row's L maskable tokens, once, and predicts them.

    Args:
      denoiser: `(canvas, t) -> logits` in its two halves.
      key: the masks of a row are a function of (key, its number in `rows`).
      tokens: i32[B, L], clean.
      mask_id: the mask token.
      rate: in (0, 1].
      maskable: bool[B, L], the tokens that may be masked; default all but `mask_id`.
      rows: i32[B], the rows' numbers in the whole text; default 0..B-1.
      keys: [B], one a row, instead of `key` and `rows`, as in `corrupt`.
      schedule: turns the mask rate into the denoiser's time.

    Raises:
      ValueError: the rate is out of its range, and as `corrupt`.
      TypeError: as `diffusion_loss`.
    """
    corrupted = corrupt_at_rate(
        key,
        tokens,
        mask_id=mask_id,
        rate=rate,
        maskable=maskable,
        rows=rows,
        keys=keys,
        schedule=schedule,
    )
    return read_at_rate(denoiser, corrupted, mask_id=mask_id)


def corrupt_at_rate(
    key: Array | None,
    tokens: Array,
    *,
    mask_id: int,
    rate: float,
    maskable: Array | None = None,
    rows: Array | None = None,
    keys: Array | None = None,
    schedule: Schedule = linear(),
    slots: int | None = None,
) -> Corrupted:
    """The masks of `at_rate`: they depend on no network, and can be drawn long before one reads.

    Args:
      key, tokens, mask_id, rate, maskable, rows, keys, schedule: as of `at_rate`.
      slots: C, room for the masks of a row; by default as much as the rate needs. With L, batches
        of all rates have one shape.

    Raises:
      ValueError, TypeError: as `at_rate`.
    """
    if not 0 < rate <= 1:
        raise ValueError(f"at_rate: rate is {rate}, it must be in (0, 1]")
    check_schedule(schedule)
    maskable = maskable_of(tokens, mask_id, maskable)
    of_rows = noise.keys_of_rows(key, keys, rows, tokens)
    masks = share_masks(noise.derive(of_rows, "place"), rate, maskable=maskable)
    masks = masks._replace(t=schedule.rate_to_time(masks.t))
    canvas = jnp.where(masks.selected, mask_id, tokens)
    room = int(share_counts(rate, tokens.shape[1])[-1]) if slots is None else slots
    return lay_out(tokens, canvas, masks, slots=room, paired=False)


def read_at_rate(denoiser: Denoiser, corrupted: Corrupted, *, mask_id: int | None) -> AtRate:
    """The sums of `at_rate`, of masks that were drawn before.

    Args:
      denoiser: `(canvas, t) -> logits` in its two halves.
      corrupted: groups of one row, as `corrupt_at_rate` and `corrupt_causal` give.
      mask_id: removed from the logits where given.

    Raises:
      TypeError: as `diffusion_loss`.
    """
    checks.check_denoiser(denoiser)
    filled = corrupted.weights > 0  # [B, C]
    read = slot_nats(denoiser, corrupted, mask_id=mask_id)

    bins = jnp.clip(jnp.ceil(read.confidence * CONFIDENCE_BINS), 1, CONFIDENCE_BINS)
    of_bin = filled[..., None] & (
        bins[..., None] == jnp.arange(1.0, CONFIDENCE_BINS + 1)[None, None]
    )  # [B, C, 10]

    def by_bin(values: Array) -> Array:
        return jnp.sum(jnp.where(of_bin, values[..., None], 0), axis=(0, 1))

    return AtRate(
        nats=read.nats.sum(axis=1),
        masked=filled.sum(axis=1, dtype=jnp.int32),
        binned=by_bin(filled.astype(jnp.int32)),
        confidence=by_bin(read.confidence),
        correct=by_bin(read.correct.astype(jnp.int32)),
    )
