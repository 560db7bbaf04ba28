"""BERT's masked-LM loss: the integrand of masked diffusion at one mask rate.

All else is as in masked diffusion: the model is measured by the NELBO, and writes text.
"""

from typing import Any

import jax

from mdlm_jax.diffusion import corrupt_mlm, noise
from mdlm_jax.runs.experiment import ObjectiveConfig
from mdlm_jax.runs.families import encoder, masks
from mdlm_jax.runs.families.base import About, Prepare

Array = jax.Array
PyTree = Any


def make_prepare(
    objective: ObjectiveConfig, config: encoder.Config, *, paired: bool, start_id: int | None
) -> Prepare:
    """Selects `objective.rate` of the tokens of each row, from the key of the step.

    Args:
      objective: the rate.
      config: the encoder.
      paired: unused: rows share no slots.
      start_id: unused.
    """
    del paired, start_id

    def prepare(key: Array, step: Array, batch: PyTree) -> PyTree:
        del step
        corrupted = corrupt_mlm(
            noise.derive(key, "masks"),
            batch["tokens"],
            mask_id=config.mask_id,
            vocab_size=config.vocab_size,
            rate=objective.rate,
            maskable=masks.kept(objective, key, batch),
        )
        return masks.with_corrupted(batch, corrupted)

    return prepare


def about(objective: ObjectiveConfig) -> About:
    """The text about a run on its pages."""
    rate = f"{100 * objective.rate:g}\N{NO-BREAK SPACE}%"
    return About(
        training=f"trained as BERT is, to predict {rate} of the tokens from the rest. It is "
        "measured here as a masked diffusion language model, over all mask rates. It never saw "
        "most of them.",
        loss=f"BERT's loss at {rate}",
        loss_note="The training loss is in nats per selected token, at one mask rate: it is no "
        "estimate of the NELBO, which averages over all of them.",
    )


FAMILY = masks.FAMILY._replace(
    pairs_rows=lambda objective, length: False, make_prepare=make_prepare, about=about
)
