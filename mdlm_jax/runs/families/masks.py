"""Masked diffusion: the loss over all mask rates, and the NELBO."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mdlm_jax.diffusion import corrupt, keep_around, keep_prefix, noise
from mdlm_jax.evaluation.bounds import likelihoods, rate_curves
from mdlm_jax.evaluation.bounds.likelihoods import OfRows
from mdlm_jax.runs.experiment import SCHEDULES, ObjectiveConfig
from mdlm_jax.runs.families import encoder
from mdlm_jax.runs.families.base import About, Family, Prepare
from mdlm_jax.runs.families.measures import Curve, by_likelihood

Array = jax.Array
PyTree = Any

_KEEP = {"prefix": keep_prefix, "infill": keep_around}


def check(objective: ObjectiveConfig, config: encoder.Config) -> None:
    """Every encoder fills masks."""


def pairs_rows(objective: ObjectiveConfig, length: int) -> bool:
    """Rows share slots if counts are exact."""
    del length
    return objective.corruption == "exact"


def make_prepare(
    objective: ObjectiveConfig, config: encoder.Config, *, paired: bool, start_id: int | None
) -> Prepare:
    """Draws all masks of the global batch at once, from the key of the step.

    Args:
      objective: decides what is masked.
      config: the encoder.
      paired: whether neighbouring rows share slots, as in `corrupt`.
      start_id: unused: no row has a token before it.
    """
    del start_id

    def prepare(key: Array, step: Array, batch: PyTree) -> PyTree:
        corrupted = corrupt(
            noise.derive(key, "masks"),
            batch["tokens"],
            mask_id=config.mask_id,
            maskable=kept(objective, key, batch),
            schedule=SCHEDULES[objective.schedule](),
            corruption=objective.corruption,
            max_rate=highest_rate(objective, step),
            paired=paired,
        )
        return with_corrupted(batch, corrupted)

    return prepare


def kept(objective: ObjectiveConfig, key: Array, batch: PyTree) -> Array:
    """bool[B, L], what may be masked: all text except what `objective.keep` draws."""
    if not objective.keep:
        return batch["maskable"]
    return _KEEP[objective.keep](noise.derive(key, "prompts"), batch["maskable"])


def with_corrupted(batch: PyTree, corrupted: Any) -> PyTree:
    """The parts of a batch that the loss needs."""
    others = {name: batch[name] for name in ("label", "valid") if name in batch}
    return {"corrupted": corrupted, **others}


def highest_rate(objective: ObjectiveConfig, step: Array) -> Array | float:
    """The bound on the mask rate at a step (from 0): it rises from `curriculum_rate` to 1."""
    if not objective.curriculum_steps:
        return 1.0
    first = objective.curriculum_rate
    return jnp.minimum(1.0, first + (1.0 - first) * step / objective.curriculum_steps)


def make_likelihood(
    objective: ObjectiveConfig,
    config: encoder.Config,
    *,
    start_id: int | None,
    seed: int,
    draws: int,
    mesh: Mesh | None,
) -> OfRows:
    """The NELBO of each row.

    Args:
      objective: its schedule gives the network's time.
      config: the encoder.
      start_id: unused.
      seed: of the draws.
      draws: corruptions of each row, at least 2.
      mesh: its devices share the rows.
    """
    del start_id
    return likelihoods.make_nelbo(
        likelihoods.denoiser_of(config),
        mask_id=config.mask_id,
        seed=seed,
        draws=draws,
        schedule=SCHEDULES[objective.schedule](),
        mesh=mesh,
    )


def make_at_rates(
    objective: ObjectiveConfig, config: encoder.Config, *, start_id: int | None, seed: int
) -> rate_curves.AtRates:
    """The cross-entropy at mask rates, in halves.

    Args:
      objective: its schedule gives the network's time.
      config: the encoder.
      start_id: unused.
      seed: of the masks.
    """
    del start_id
    return rate_curves.masks_at_rates(
        likelihoods.denoiser_of(config),
        mask_id=config.mask_id,
        seed=seed,
        schedule=SCHEDULES[objective.schedule](),
    )


def make_curve(
    objective: ObjectiveConfig, config: encoder.Config, *, seed: int, mesh: Mesh | None
) -> Curve:
    """The curve over mask rates, and its integral."""
    halves = make_at_rates(objective, config, start_id=None, seed=seed)
    return Curve(rate_curves.curve_of(halves, mesh), rate_curves.trapezoid)


def about(objective: ObjectiveConfig) -> About:
    """The text about a run on its pages."""
    del objective
    return About(
        training="trained over all mask rates. That makes the network that fills in blanks a "
        "masked diffusion language model: it has a likelihood, and it writes text from nothing but "
        "masks.",
        loss="training loss",
        loss_note="The training loss is an estimate of the NELBO on training text, from one draw "
        "of masks.",
    )


FAMILY = Family(
    network=encoder.NETWORK,
    check=check,
    pairs_rows=pairs_rows,
    make_prepare=make_prepare,
    make_loss=encoder.make_loss,
    make_likelihood=make_likelihood,
    make_measure=by_likelihood(make_likelihood, lambda objective: False, make_curve=make_curve),
    make_at_rates=make_at_rates,
    about=about,
)
