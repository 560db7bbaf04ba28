"""A model to be measured, wherever it lies: a run, what `export` wrote, or Hugging Face's files."""

from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from tokenizers import Tokenizer

from mdlm_jax.data import reading
from mdlm_jax.interop import load_pretrained
from mdlm_jax.networks import bert
from mdlm_jax.runs import workdir
from mdlm_jax.runs.experiment import ObjectiveConfig
from mdlm_jax.runs.families import Family, family_of
from mdlm_jax.runs.program import padded_for, place_parameters, put_parameters

PyTree = Any


class Model(NamedTuple):
    """What is to be known of it.

    Attributes:
      params: on the mesh.
      encoder: their network.
      tokenizer: of its text.
      objective: what it was trained for.
      length: of the rows that it was trained on, or the longest that it takes.
      weights: 'ema' or 'params'; None of a checkpoint of Hugging Face.
      step: of the training; None where nothing tells.
      padded: whether it was trained on rows of one text each, filled up with padding.
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
        """Whose model it is."""
        return family_of(self.objective.name)

    @property
    def exact(self) -> bool:
        """Whether its likelihood is the chain rule's, and not a bound."""
        return self.family.is_exact


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
    """Loads a model; of several processes all must.

    Args:
      name: the folder of a run or of what `export` wrote; else, as `interop.load_pretrained` takes
        it, a folder of Hugging Face's files or a name of its hub, which was trained as BERT is.
      mesh: where its parameters lie, as in training.
      weights: of a run, 'ema' (which None is, too) or 'params'.
      step: of a run, of which checkpoint, as of `workdir.load`.

    Raises:
      ValueError: `weights` or `step` of what is no run, a checkpoint without a tokenizer, or as
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
    pretrained = load_pretrained(name)
    if pretrained.tokenizer is None:
        raise ValueError(f"{name} has no tokenizer.json and no vocab.txt: no text can be read")
    encoder = padded_for(pretrained.config, mesh)
    params = jax.device_get(pretrained.params)
    return Model(
        params=put_parameters(params, encoder, *place_parameters(encoder, mesh)),
        encoder=encoder,
        tokenizer=pretrained.tokenizer,
        objective=ObjectiveConfig(name="mlm"),
        length=encoder.max_length,
        weights=None,
        step=None,
        framed=True,
    )
