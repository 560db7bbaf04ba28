"""Blocks: masked diffusion within each block, given the clean blocks before it."""

from typing import Any

import jax
from jax.sharding import Mesh

from mdlm_jax import data
from mdlm_jax.diffusion import blocks, noise
from mdlm_jax.diffusion.blocks import BlockDenoiser
from mdlm_jax.evaluation.bounds import likelihoods, rate_curves
from mdlm_jax.evaluation.bounds.likelihoods import OfRows
from mdlm_jax.networks import in_blocks
from mdlm_jax.runs.experiment import SCHEDULES, ObjectiveConfig
from mdlm_jax.runs.families import encoder, masks
from mdlm_jax.runs.families.base import About, Blocks, Family, Prepare
from mdlm_jax.runs.families.measures import Curve, by_likelihood
from mdlm_jax.training.step import LossFn

Array = jax.Array
PyTree = Any


def of(objective: ObjectiveConfig) -> Blocks:
    """The blocks of the objective."""
    return Blocks(objective.block_size, objective.window or None)


def check(objective: ObjectiveConfig, config: encoder.Config) -> None:
    """Raises: ValueError: the encoder cannot read a text in blocks."""
    try:
        in_blocks.check(config, objective.block_size, objective.window or None)
    except ValueError as error:
        raise ValueError(f"objective.name 'block' with model.{error}") from None


def check_rows(objective: ObjectiveConfig, rows: data.Config) -> None:
    """Raises: ValueError: blocks do not divide the rows, or rows have padding."""
    size, length = objective.block_size, rows.length
    if length % size:
        raise ValueError(
            f"objective.block_size {size} does not divide data.length {length}: take one that does"
        )
    if rows.has_padding:
        raise ValueError(
            "objective.name 'block' is for packed rows and for pairs, not for data.rows 'padded': "
            "a cache of what was written knows no padding"
        )


def pairs_rows(objective: ObjectiveConfig, length: int) -> bool:
    """Rows share slots if one has an odd number of blocks; else blocks of a row do."""
    return length // objective.block_size % 2 == 1


def make_prepare(
    objective: ObjectiveConfig, config: encoder.Config, *, paired: bool, start_id: int | None
) -> Prepare:
    """Draws the masks of all blocks of the global batch at once, from the key of the step.

    Args:
      objective: the blocks.
      config: the encoder.
      paired: whether neighbouring rows share slots, if their number of blocks is odd.
      start_id: unused: no row has a token before it.
    """
    del start_id
    size = objective.block_size

    def prepare(key: Array, step: Array, batch: PyTree) -> PyTree:
        del step
        odd = pairs_rows(objective, batch["tokens"].shape[1])
        corrupted = blocks.corrupt(
            noise.derive(key, "masks"),
            batch["tokens"],
            block_size=size,
            mask_id=config.mask_id,
            schedule=SCHEDULES[objective.schedule](),
            maskable=batch["maskable"],
            paired=paired if odd else True,
        )
        return masks.with_corrupted(batch, corrupted)

    return prepare


def make_loss(objective: ObjectiveConfig, config: encoder.Config) -> LossFn:
    """`(params, key, batch) -> (loss, aux)` of the "corrupted" batch from `prepare`."""

    def of_batch(params: PyTree, config: encoder.Config, batch: PyTree, **how) -> BlockDenoiser:
        return encoder.block_denoiser(params, config, of(objective), batch, **how)

    return encoder.loss_of(config, of_batch, blocks.corrupted_loss)


def make_likelihood(
    objective: ObjectiveConfig,
    config: encoder.Config,
    *,
    start_id: int | None,
    seed: int,
    draws: int,
    mesh: Mesh | None,
) -> OfRows:
    """The NELBO over blocks; with blocks of one token the likelihood, of which nothing is drawn.

    Args:
      objective: the blocks.
      config: the encoder.
      start_id: unused.
      seed: of the draws.
      draws: corruptions of each row, at least 2.
      mesh: its devices share the rows.
    """
    del start_id
    return likelihoods.make_nelbo(
        likelihoods.block_denoiser_of(config, *of(objective)),
        mask_id=config.mask_id,
        seed=seed,
        draws=draws,
        schedule=SCHEDULES[objective.schedule](),
        mesh=mesh,
    )


def make_at_rates(
    objective: ObjectiveConfig, config: encoder.Config, *, start_id: int | None, seed: int
) -> rate_curves.AtRates:
    """The cross-entropy at the mask rates of a block, in halves.

    Args:
      objective: the blocks.
      config: the encoder.
      start_id: unused.
      seed: of the masks.
    """
    del start_id
    return rate_curves.blocks_at_rates(
        likelihoods.block_denoiser_of(config, *of(objective)),
        objective.block_size,
        mask_id=config.mask_id,
        seed=seed,
        schedule=SCHEDULES[objective.schedule](),
    )


def make_curve(
    objective: ObjectiveConfig, config: encoder.Config, *, seed: int, mesh: Mesh | None
) -> Curve:
    """The curve over the mask rates of a block, and its mean."""
    halves = make_at_rates(objective, config, start_id=None, seed=seed)
    size = objective.block_size
    return Curve(
        rate_curves.curve_of(halves, mesh),
        lambda points: rate_curves.mean_over_counts(points, size),
    )


def is_exact(objective: ObjectiveConfig) -> bool:
    """A block of one token is masked or not: nothing is drawn."""
    return objective.block_size == 1


def about(objective: ObjectiveConfig) -> About:
    """The text about a run on its pages."""
    size = objective.block_size
    if is_exact(objective):
        training = (
            "trained in blocks of one token, to predict each from those before it. Its likelihood "
            "is exact."
        )
        return About(training, "training loss", "The training loss is -log p of training text.")
    return About(
        training=f"trained in blocks of {size} tokens: each is masked at all rates and predicted "
        "from what is left of it and from the clean blocks before it. It writes block after block, "
        "and keeps the keys and values of those that are written.",
        loss="training loss",
        loss_note="The training loss is an estimate of the NELBO on training text, from one draw "
        "of masks in every block.",
    )


FAMILY = Family(
    network=encoder.NETWORK,
    check=check,
    check_rows=check_rows,
    pairs_rows=pairs_rows,
    make_prepare=make_prepare,
    make_loss=make_loss,
    make_likelihood=make_likelihood,
    make_measure=by_likelihood(
        make_likelihood,
        is_exact,
        make_curve=make_curve,
        figures_of=lambda objective: {"block_size": objective.block_size},
    ),
    make_at_rates=make_at_rates,
    blocks=of,
    is_exact=is_exact,
    about=about,
)
