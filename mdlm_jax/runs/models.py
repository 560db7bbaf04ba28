"""A model from a run, from what `export` wrote, or from Hugging Face's files."""

import dataclasses
from typing import Any, NamedTuple

import jax
from etils import epath
from jax.sharding import Mesh
from tokenizers import Tokenizer

from mdlm_jax.data import json_text, reading
from mdlm_jax.host import distributed
from mdlm_jax.interop import load_pretrained
from mdlm_jax.networks import bert
from mdlm_jax.runs import workdir
from mdlm_jax.runs.experiment import ObjectiveConfig
from mdlm_jax.runs.families import Blocks, Family, family_of
from mdlm_jax.runs.program import padded_for, place_parameters, put_parameters

PyTree = Any

NOTE = "mdlm_jax.json"  # in a folder that `convert` wrote of a run


class Model(NamedTuple):
    """A model, with what is known of its training.

    Attributes:
      params: on the mesh.
      encoder: the config of the network.
      tokenizer: of its text.
      objective: the objective of its training.
      length: of the rows that it was trained on, or the longest that it takes.
      weights: 'ema' or 'params'; None for a checkpoint of Hugging Face.
      step: of the training; None if unknown.
      padded: whether it was trained on padded rows, with one text each.
      framed: whether a row is a text between BERT's `[CLS]` and `[SEP]`.
    """

    params: PyTree
    encoder: bert.Config
    tokenizer: Tokenizer
    objective: ObjectiveConfig
    length: int
    weights: str | None
    step: int | None
    padded: bool = False
    framed: bool = False

    @property
    def family(self) -> Family:
        """The family of the model."""
        return family_of(self.objective.name)

    @property
    def exact(self) -> bool:
        """Whether its likelihood is exact, by the chain rule, and not a bound."""
        return self.family.is_exact(self.objective)

    @property
    def block_size(self) -> int:
        """Rows are whole blocks of so many tokens."""
        blocks = self.family.blocks(self.objective)
        return 1 if blocks is None else blocks.size

    def blocks_for(self, length: int) -> Blocks | None:
        """The blocks of rows of so many tokens; None for a model of whole rows.

        In rows that are longer than in training a block sees the tokens before it that it saw at
        most there.
        """
        own = self.family.blocks(self.objective)
        if own is not None and own.window is None and length > self.length > own.size:
            return own._replace(window=self.length - own.size)
        return own


def of_run(trained: workdir.Trained, weights: str) -> Model:
    """What `workdir.load` read."""
    config, encoder = trained.config, trained.encoder
    return Model(
        params=trained.params,
        encoder=encoder,
        tokenizer=trained.tokenizer,
        objective=trained.objective,
        length=config.get("data", {}).get("length", encoder.max_length),
        weights=weights,
        step=trained.step,
        padded=workdir.has_padding(config),
    )


def load(
    name: str, mesh: Mesh, *, weights: str | None = None, step: int | str | None = None
) -> Model:
    """Loads a model. All processes must call it.

    Args:
      name: the folder of a run or of what `export` wrote; otherwise a folder of Hugging Face's
        files or a name of its hub, as in `interop.load_pretrained`, trained as BERT was.
      mesh: holds the parameters, as in training.
      weights: for a run, 'ema' (the default) or 'params'.
      step: for a run, the checkpoint, as in `workdir.load`.

    Raises:
      ValueError: `weights` or `step` without a run, a checkpoint without a tokenizer, or as
        `workdir.load` and `load_pretrained`.
      FileNotFoundError: as these.
      ImportError: as `load_pretrained`.
    """
    folder = reading.path(name)
    if (folder / "checkpoints").is_dir():
        weights = weights or "ema"
        return of_run(workdir.load(folder, weights=weights, step=step, mesh=mesh), weights)
    if weights is not None:
        raise ValueError(f"{name} is no run: it has one kind of weights, and not {weights!r}")
    if step is not None:
        raise ValueError(f"{name} is no run: it has no checkpoint of step {step!r}")
    with distributed.failing_together():
        pretrained = load_pretrained(name)
        if pretrained.tokenizer is None:
            raise ValueError(f"{name} has no tokenizer.json and no vocab.txt: no text can be read")
        note = _note(folder)
    encoder = padded_for(pretrained.config, mesh)
    params = jax.device_get(pretrained.params)
    return Model(
        params=put_parameters(params, encoder, *place_parameters(encoder, mesh)),
        encoder=encoder,
        tokenizer=pretrained.tokenizer,
        objective=ObjectiveConfig(**note.get("objective", {"name": "mlm"})),
        length=note.get("length", encoder.max_length),
        weights=None,
        step=None,
        padded=note.get("padded", False),
        framed=not note,
    )


def note_of(trained: workdir.Trained) -> dict[str, Any]:
    """What `convert` leaves beside the weights of a run: its objective, and what its rows are."""
    model = of_run(trained, "ema")
    return {
        "objective": dataclasses.asdict(model.objective),
        "length": model.length,
        "padded": model.padded,
    }


def _note(folder: epath.Path) -> dict[str, Any]:
    path = folder / NOTE
    return json_text.load(path) if path.is_file() else {}
