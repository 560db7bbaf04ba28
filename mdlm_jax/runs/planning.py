"""From a config and a folder to everything that training needs, checked and open."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from etils import epath

from mdlm_jax import data
from mdlm_jax.host import parallel
from mdlm_jax.runs import starting, workdir
from mdlm_jax.runs.experiment import Experiment
from mdlm_jax.runs.program import Program, make_program
from mdlm_jax.training import weights_and_biases
from mdlm_jax.training.metrics import require_tensorboard


class Job(NamedTuple):
    """Everything that a run needs, checked and open."""

    program: Program
    prepared: data.Prepared
    batches: data.TrainBatches
    workdir: epath.Path
    steps_before: int | None  # of a run that resumes; None for a new one

    @property
    def goes_on(self) -> bool:
        """Whether anything was saved already."""
        return self.steps_before is not None


def plan(experiment: Experiment, folder: epath.Path) -> tuple[Job, Any]:
    """Checks everything that can be checked before anything is compiled or written.

    Returns:
      The job, and the encoder as the config has it, before a mesh pads its vocabulary.

    Raises:
      ValueError: what is wrong, in one line.
      OSError: a file or folder cannot be read.
    """
    _check_workdir(experiment, folder)
    if experiment.training.tensorboard:
        require_tensorboard()
    if experiment.training.wandb and jax.process_index() == 0:  # which writes
        weights_and_biases.require(experiment.training.wandb)
    mesh = parallel.make_mesh(**dataclasses.asdict(experiment.mesh))
    saved = workdir.saved_config(folder)
    if saved is not None and saved.get("start") == dataclasses.asdict(experiment.start):
        # Its start and its tokenizer may be gone.
        architecture = workdir.read_encoder(folder) if experiment.start.checkpoint else None
        prepared = workdir.prepare_again(folder, experiment.data, saved)
    else:
        architecture = starting.architecture(experiment.start)
        experiment.planned_encoder(architecture)  # says at once what needs no data
        prepared = data.prepare(experiment.data)
    encoder = experiment.encoder(prepared, architecture)
    program = make_program(experiment, encoder, mesh, start_id=prepared.sep_id)
    batches = data.train_batches(
        prepared.splits["train"],
        batch_size=experiment.training.batch_size,
        seed=experiment.training.seed,
        local=parallel.local_rows(mesh, experiment.training.batch_size),
    )
    steps_before = None if saved is None else saved["training"]["steps"]
    return Job(program, prepared, batches, folder, steps_before), encoder


def load_start(job: Job, say: Callable[[str], None]) -> Any:
    """The weights that a new run starts from, on the devices; None if they are fresh.

    Args:
      job: from `plan`.
      say: called with a line about what was found.

    Raises:
      ValueError, OSError, ImportError: as `starting.load`.
    """
    start = job.program.experiment.start
    if job.goes_on or not start.checkpoint or start.fresh_weights:
        return None
    resized = starting.load(start, job.prepared)
    found = "all" if resized.found == resized.size else f"{resized.found:,} of"
    words = f"starting from {start.checkpoint}, which knows {found} {resized.size:,} tokens"
    say(words + ("" if found == "all" else "; the others begin as the mean of its tokens"))
    return job.program.place(resized.pretrained.params)


def _check_workdir(experiment: Experiment, folder: epath.Path) -> None:
    """A local folder, because the libraries of TensorBoard and profiles cannot write to buckets."""
    if "://" not in str(folder):
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"--workdir={folder}: a file is there, it must be a folder")
        return
    for key, value in (
        ("training.tensorboard", experiment.training.tensorboard),
        ("profile_steps", experiment.profile_steps),
    ):
        if value:
            raise ValueError(f"{key} needs a local workdir, not {folder}")
