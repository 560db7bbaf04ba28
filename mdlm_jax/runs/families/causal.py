"""The autoregressive baseline: each token from those before it, with an exact likelihood."""

from typing import Any

import jax
from jax.sharding import Mesh

from mdlm_jax.diffusion import corrupt_causal
from mdlm_jax.evaluation.bounds import likelihoods, rate_curves
from mdlm_jax.evaluation.bounds.likelihoods import OfRows
from mdlm_jax.runs.experiment import ObjectiveConfig
from mdlm_jax.runs.families import encoder, masks
from mdlm_jax.runs.families.base import About, Family, Prepare
from mdlm_jax.runs.families.measures import by_likelihood

Array = jax.Array
PyTree = Any


def check(objective: ObjectiveConfig, config: encoder.Config) -> None:
    """Raises: ValueError: the encoder sees what it predicts."""
    if config.attention != "causal":
        raise ValueError(
            f"model.attention {config.attention!r} sees what objective.name {objective.name!r} "
            "predicts: take --config.model.attention=causal (and model.window=0)"
        )


def make_prepare(
    objective: ObjectiveConfig, config: encoder.Config, *, paired: bool, start_id: int | None
) -> Prepare:
    """The rows one position later. Nothing is drawn.

    Args:
      objective, config, paired: unused.
      start_id: stands before the first token of a row.
    """
    del objective, config, paired

    def prepare(key: Array, step: Array, batch: PyTree) -> PyTree:
        del key, step
        corrupted = corrupt_causal(batch["tokens"], start_id=start_id, maskable=batch["maskable"])
        return masks.with_corrupted(batch, corrupted)

    return prepare


def make_likelihood(
    objective: ObjectiveConfig,
    config: encoder.Config,
    *,
    start_id: int | None,
    seed: int,
    draws: int,
    mesh: Mesh | None,
) -> OfRows:
    """The likelihood of each row by the chain rule.

    Args:
      objective, seed, draws: unused, because nothing is drawn.
      config: the encoder.
      start_id: as in training.
      mesh: its devices share the rows.
    """
    del objective, seed, draws
    return likelihoods.make_causal_likelihood(
        likelihoods.denoiser_of(config), start_id=start_id, mesh=mesh
    )


def make_at_rates(
    objective: ObjectiveConfig, config: encoder.Config, *, start_id: int | None, seed: int
) -> rate_curves.AtRates:
    """The cross-entropy at its one rate, 1: each token given those before it.

    Args:
      objective, seed: unused, because nothing is drawn.
      config: the encoder.
      start_id: as in training.
    """
    del objective, seed
    return rate_curves.causal_at_rates(likelihoods.denoiser_of(config), start_id=start_id)


def about(objective: ObjectiveConfig) -> About:
    """The text about a run on its pages."""
    del objective
    return About(
        training="trained autoregressively, to predict each token from those before it. Its "
        "likelihood is exact: the baseline of masked diffusion language models.",
        loss="training loss",
        loss_note="The training loss is the cross-entropy of training text, with dropout.",
    )


def is_exact(objective: ObjectiveConfig) -> bool:
    """The chain rule always is."""
    del objective
    return True


FAMILY = Family(
    network=encoder.NETWORK,
    check=check,
    pairs_rows=lambda objective, length: False,
    make_prepare=make_prepare,
    make_loss=encoder.make_loss,
    make_likelihood=make_likelihood,
    make_measure=by_likelihood(make_likelihood, is_exact),
    make_at_rates=make_at_rates,
    is_exact=is_exact,
    is_causal=True,
    about=about,
)
