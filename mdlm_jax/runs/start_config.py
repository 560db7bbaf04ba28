"""What a run starts from, and which part of its model a checkpoint decides."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mdlm_jax.networks import bert

# How a model is trained, compiled or computed: the config decides. The checkpoint decides the rest.
OF_TRAINING = (
    "attention_backend",
    "class_dropout",
    "dropout",
    "dtype",
    "remat",
    "scan",
    "vocab_multiple",
)


@dataclasses.dataclass(frozen=True)
class StartConfig:
    """What a run starts from.

    Attributes:
      checkpoint: folder of a Hugging Face checkpoint, a name of its hub, or the folder of a run or
        of what `export` wrote (its averaged weights). The run has its architecture. '' is for a new
        model, which `model` describes.
      fresh_weights: takes only the architecture, with new weights. Such a run differs in nothing
        else, so it shows what the pretrained weights are worth.

    Raises:
      ValueError: fresh weights of no checkpoint.
    """

    checkpoint: str = ""
    fresh_weights: bool = False

    def __post_init__(self):
        if self.fresh_weights and not self.checkpoint:
            raise ValueError(
                "start.fresh_weights does nothing without a start.checkpoint, whose architecture "
                "it would take: leave it out"
            )


def adopt(model: Mapping[str, Any], architecture: bert.Config, length: int) -> dict[str, Any]:
    """The fields of an encoder that has the architecture of a checkpoint.

    Args:
      model: the keys that were set: they may repeat the architecture, not change it.
      architecture: of the checkpoint.
      length: of the run's rows. Learned positions bound it; rotary ones do not.

    Raises:
      ValueError: a key of `model` asks for another architecture, or rows are too long.
    """
    defaults, theirs = dataclasses.asdict(bert.Config()), dataclasses.asdict(architecture)
    for name, value in model.items():
        if name not in OF_TRAINING and value != theirs[name]:
            raise ValueError(
                f"model.{name} is {value!r}, but the architecture is that of start.checkpoint, "
                f"which has {theirs[name]!r}: leave it out"
            )
    if architecture.positions == "learned" and length > architecture.max_length:
        raise ValueError(
            f"data.length is {length}, but start.checkpoint has learned only "
            f"{architecture.max_length} positions: take at most so many"
        )
    ours = {name: model.get(name, defaults[name]) for name in OF_TRAINING}
    return {**theirs, **ours, "max_length": max(length, architecture.max_length)}
