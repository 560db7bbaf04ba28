"""Objectives: denoiser x corrupted batch -> loss in nats."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from mdlm_jax.diffusion import checks
from mdlm_jax.diffusion.denoisers import Denoiser, check_mask, law_of, vocabulary_size
from mdlm_jax.diffusion.processes.corruption import (
    Corrupted,
    corrupt,
    corrupt_mlm,
    laid_together,
)
from mdlm_jax.diffusion.reading import slots
from mdlm_jax.diffusion.reading.slots import SlotNats
from mdlm_jax.diffusion.schedules import Schedule, linear

Array = jax.Array

RATE_BINS = 10


class LossAux(NamedTuple):
    """What a loss reports besides itself. All are sums, so microbatches add up leaf by leaf.

    Attributes:
      nats: f32[10], summed cross-entropy of the masked tokens of rows whose mask rate lies in
        (0, 0.1], (0.1, 0.2], ..., (0.9, 1].
      masked: i32[10], how many tokens these are.
      correct: i32[10], how many of them have the highest logit at the clean token.
    """

    nats: Array
    masked: Array
    correct: Array

    @property
    def loss_by_rate(self) -> Array:
        """Mean cross-entropy of a masked token by mask-rate bin, f32[10]; NaN in an empty bin."""
        return self.nats / self.masked.astype(jnp.float32)

    @property
    def accuracy(self) -> Array:
        """Share of the masked tokens whose highest logit is the right one."""
        return self.correct.sum() / jnp.maximum(self.masked.sum(), 1)


def diffusion_loss(
    denoiser: Denoiser,
    key: Array | None,
    tokens: Array,
    *,
    mask_id: int,
    schedule: Schedule = linear(),
    corruption: Literal["exact", "bernoulli"] = "exact",
    maskable: Array | None = None,
    max_rate: Array | float = 1.0,
    rows: Array | None = None,
    keys: Array | None = None,
    paired: bool | None = None,
) -> tuple[Array, LossAux]:
    """The continuous-time NELBO of masked diffusion, estimated from one corruption of each row.

        -log p(x) <= E_t [ weight(t) sum_{masked i} -log p(x_i | canvas) ]

    (MD4, Shi et al. 2024, eq. 5; MDLM, Sahoo et al. 2024, eq. 10), over `corrupt`'s exact counts by
    default. With the true conditionals the bound is an equality.

    It may be differentiated backward (`jax.grad`), and its gradient forward again (Hessian-vector
    products). `jax.jvp` of the loss itself is a `TypeError`: the gradient is taken in the forward
    pass, while the logits are there, and JAX has only backward rules for that.

    Args:
      denoiser: built from the parameters to be trained, within the differentiated function.
      key: of this step; None beside `keys`.
      tokens: i32[B, L], clean.
      mask_id: the mask token.
      schedule: as in `corrupt`, as all that follow.
      corruption: "exact" or "bernoulli".
      max_rate: the highest mask rate.
      maskable: bool[B, L], which tokens may be masked and count.
      rows: i32[B], the rows' numbers in the global batch. A part of a batch (in `shard_map`, in
        `vmap`) needs `rows` or `keys`, or it draws the same noise as the other parts. The loss is
        then per maskable token of the part.
      keys: [B], one a row, instead of `key` and `rows`.
      paired: whether neighbouring rows share slots.

    Returns:
      The loss in nats per maskable token (a float32 scalar), and a `LossAux`.

    Raises:
      ValueError: as `corrupt`, and as `corrupted_loss`.
      TypeError: as `corrupt`, and on a bare function for a denoiser.
    """
    checks.check_denoiser(denoiser)
    corrupted = corrupt(
        key,
        tokens,
        mask_id=mask_id,
        schedule=schedule,
        corruption=corruption,
        max_rate=max_rate,
        maskable=maskable,
        rows=rows,
        keys=keys,
        paired=paired,
    )
    return corrupted_loss(denoiser, corrupted, mask_id=mask_id)


def mlm_loss(
    denoiser: Denoiser,
    key: Array | None,
    tokens: Array,
    *,
    mask_id: int,
    vocab_size: int | None = None,
    rate: float = 0.15,
    mask_share: float = 0.8,
    random_share: float = 0.1,
    maskable: Array | None = None,
    rows: Array | None = None,
    keys: Array | None = None,
) -> tuple[Array, LossAux]:
    """BERT's masked-LM loss (Devlin et al. 2019): the NELBO's integrand at one mask rate.

    With `mask_share=1` it is the mean cross-entropy of the masked tokens when
    `max(1, round(rate * L))` of each row are masked. The random and the kept tokens of the original
    recipe do not belong to the absorbing process.

    Args:
      denoiser: `(canvas, t) -> logits` in its two halves.
      key: the noise of a row is a function of (key, its number in `rows`).
      tokens: i32[B, L], clean.
      mask_id: the mask token.
      vocab_size: random tokens are below it; default the number of logits, which counts the padding
        of a padded vocabulary too.
      rate: share of a row's maskable tokens that is selected.
      mask_share: share of the selected that becomes the mask.
      random_share: share of the selected that becomes a random token.
      maskable: bool[B, L], which tokens may be selected; default all but `mask_id`.
      rows: i32[B], the rows' numbers in the global batch; default 0..B-1.
      keys: [B], one a row, instead of `key` and `rows`, as in `corrupt`.

    Returns:
      The loss in nats per selected token, and a `LossAux`.

    Raises:
      ValueError: as `corrupt_mlm`.
      TypeError: as `corrupt_mlm`, and on a bare function for a denoiser.
    """
    checks.check_denoiser(denoiser)
    checks.check_text("tokens", tokens)
    if vocab_size is None:
        hidden = jax.eval_shape(denoiser.encode, tokens, jnp.full(tokens.shape[:1], rate))
        vocab_size = vocabulary_size(denoiser.readout, hidden)
    corrupted = corrupt_mlm(
        key,
        tokens,
        mask_id=mask_id,
        vocab_size=vocab_size,
        rate=rate,
        mask_share=mask_share,
        random_share=random_share,
        maskable=maskable,
        rows=rows,
        keys=keys,
    )
    return corrupted_loss(denoiser, corrupted, mask_id=mask_id)


def corrupted_loss(
    denoiser: Denoiser, corrupted: Corrupted, *, mask_id: int | None = None
) -> tuple[Array, LossAux]:
    """The weighted cross-entropy of a corrupted batch: deterministic, differentiable.

    If transforms have shaped the denoiser, the loss is that of the shaped law.

    The weights are normalised over the batch that `corrupt` saw, so the losses of its microbatches
    add up to the loss of the whole.

    Args:
      denoiser: `(canvas, t) -> logits` in its two halves.
      corrupted: from `corrupt` or `corrupt_mlm`, or some of its leading rows.
      mask_id: removed from the logits, unless the denoiser has done so.

    Raises:
      TypeError: on a bare function for a denoiser, or tokens that were not corrupted.
      ValueError: on a mask that is not one of the denoiser's tokens, or not its own.
    """
    checks.check_denoiser(denoiser)
    checks.check_kind("corrupted", corrupted, Corrupted, "corrupt(key, tokens, mask_id=mask_id)")
    loss, read = slots.cross_entropy(*_read_out(denoiser, corrupted, mask_id), mask_id=mask_id)
    filled = corrupted.weights > 0
    bins = jnp.ceil(corrupted.rate * RATE_BINS).astype(jnp.int32) - 1  # [B]
    of_bin = by_slot(corrupted, bins)[..., None] == jnp.arange(RATE_BINS)[None, None]  # [G, C, 10]

    def by_rate(values):  # [G, C] -> [10]
        return jnp.sum(jnp.where(of_bin, values[..., None], 0), axis=(0, 1))

    aux = LossAux(
        nats=by_rate(read.nats),
        masked=by_rate(filled.astype(jnp.int32)),
        correct=by_rate(read.correct.astype(jnp.int32)),
    )
    return loss, aux


def slot_nats(denoiser: Denoiser, corrupted: Corrupted, *, mask_id: int | None) -> SlotNats:
    """Encodes the canvas and reads out its slots."""
    return slots.slot_nats(*_read_out(denoiser, corrupted, mask_id), mask_id=mask_id)


def group_nats(
    denoiser: Denoiser, corrupted: Corrupted, *, mask_id: int | None, together: int = 1
) -> Array:
    """Each group's weighted nats, `f32[G]`.

    Args:
      denoiser: `(canvas, t) -> logits` in its two halves.
      corrupted: G groups.
      mask_id: removed from the logits where given.
      together: so many neighbouring groups are read out as one, which changes no number.
    """
    read = slot_nats(denoiser, laid_together(corrupted, together), mask_id=mask_id)
    return jnp.sum(corrupted.weights * read.nats.reshape(corrupted.weights.shape), axis=1)


def _read_out(denoiser: Denoiser, corrupted: Corrupted, mask_id: int | None) -> tuple:
    check_mask(denoiser, mask_id)
    return (
        law_of(denoiser, mask_id),
        denoiser.encode(corrupted.canvas, corrupted.t),
        corrupted.positions,
        corrupted.targets,
        corrupted.weights,
    )


def by_slot(corrupted: Corrupted, values: Array) -> Array:
    """The value of each slot's row, from `values [B]`: `[G, C]`."""
    groups = corrupted.positions.shape[0]
    row = corrupted.positions // corrupted.canvas.shape[1]  # within the group
    return jnp.take_along_axis(values.reshape(groups, -1), row, axis=1)
