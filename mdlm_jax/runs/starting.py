"""Reads what a run starts from: the network first, then the weights for the run's vocabulary."""

import sys

import jax
from etils import epath

from mdlm_jax import data, interop
from mdlm_jax.data import reading
from mdlm_jax.host import distributed
from mdlm_jax.interop import Pretrained, Resized
from mdlm_jax.networks import bert
from mdlm_jax.runs import workdir
from mdlm_jax.runs.start_config import StartConfig


def architecture(start: StartConfig) -> bert.Config | None:
    """The network of the checkpoint, without its weights; None if a run starts from nothing.

    Its vocabulary, mask and number of positions are still those of the checkpoint.

    Raises:
      FileNotFoundError, ValueError: there is no such checkpoint, or it cannot be read.
    """
    if not start.checkpoint:
        return None
    run = _run(start.checkpoint)
    if run is not None:
        return workdir.read_encoder(run)
    return interop.read_architecture(start.checkpoint)


def load(start: StartConfig, prepared: data.Prepared) -> Resized:
    """The weights of the checkpoint (averaged, for a run) in the vocabulary of the data.

    They are whole in the memory of every process, and all processes must call it. Process 0 writes
    a line on stderr for each thing that is new or left out.

    Raises:
      FileNotFoundError, ValueError, ImportError: they cannot be read, do not fit the vocabulary, or
        are those of a model with other classes.
    """
    run = _run(start.checkpoint)
    trained = None if run is None else workdir.load(run)
    with distributed.failing_together():
        if trained is None:
            pretrained, notes = interop.read_pretrained(start.checkpoint)
        else:
            _check_classes(run, trained.encoder, prepared)
            params = jax.device_get(trained.params)
            pretrained, notes = Pretrained(params, trained.encoder, trained.tokenizer), ()
        resized = interop.resize_vocabulary(pretrained, prepared.tokenizer)
    if jax.process_index() == 0:
        for note in notes:
            print(f"note: {note}", file=sys.stderr)
    return resized


def _run(checkpoint: str) -> epath.Path | None:
    """The folder of a run, or of what `export` wrote; None for Hugging Face's."""
    folder = reading.path(checkpoint)
    return folder if (folder / "checkpoints").is_dir() else None


def _check_classes(run: epath.Path, encoder: bert.Config, prepared: data.Prepared) -> None:
    names = tuple(workdir.label_names(run)) if encoder.classes else prepared.label_names
    if names != prepared.label_names:
        raise ValueError(
            f"start.checkpoint {run} has the classes {', '.join(names)}, the data have "
            f"{', '.join(prepared.label_names)}: they must be the same, in the same order"
        )
