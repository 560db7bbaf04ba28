"""A deployment of a model from a run, an export, or Hugging Face's files."""

from collections.abc import Sequence

from mdlm_jax import data
from mdlm_jax.runs.experiment import SCHEDULES
from mdlm_jax.runs.models import Model
from mdlm_jax.serving.batching.served import Deployment
from mdlm_jax.writing import decoding


def deployment_of(
    name: str,
    model: Model,
    *,
    strategies: Sequence[str] = ("exact_count",),
    lengths: Sequence[int] | None = None,
    slots: int = 32,
) -> Deployment:
    """A deployment of what `models.load` loaded.

    Args:
      name: by which jobs name it.
      model: its parameters stay where they are.
      strategies: as `generate --strategy` names them. Each is a compiled program for all its
        numbers. A causal model has 'left_to_right' alone, whatever is given.
      lengths: of the rows; by default that of the training.
      slots: rows that are written at a time.

    Raises:
      ValueError: an unknown strategy, or a length that the model does not take.
    """
    lengths = tuple(lengths or (model.length,))
    blocks = {each: own for each in lengths if (own := model.blocks_for(each)) is not None}
    longest = model.encoder.max_length
    for length in lengths:
        if not 1 <= length <= longest and not (blocks and length > longest):
            raise ValueError(f"length must be from 1 to {longest}, the model's rows, not {length}")
    causal = model.family.is_causal
    schedule = SCHEDULES[model.objective.schedule]()
    names = ("left_to_right",) if causal else strategies
    return Deployment(
        name=name,
        params=model.params,
        encoder=model.encoder,
        lengths=lengths,
        strategies={each: decoding.strategy(each, schedule) for each in names},
        slots=slots,
        padded=model.padded or model.framed,
        blocks=blocks or None,
        start_id=data.special_ids(model.tokenizer).sep if causal else None,
    )
