"""Checkpoints by Orbax: the one file that imports it.

A checkpoint is the folder `<directory>/<step>`. It is written under another name and renamed when
whole, so a half-written one is never seen. Each field of the state is a separate item in it, so
that generation and evaluation read only the parameters. Folders may lie in a bucket (`gs://`).
"""

import contextlib
import errno
import gc
import itertools
import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging as absl_logging
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import utils, v1

from mdlm_jax.host import paths
from mdlm_jax.training.state import TrainState

PyTree = Any


class _Marked(v1.training.preservation_policies.PreservationPolicy):
    """Keeps one checkpoint, which may change."""

    def __init__(self):
        self.step: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        del context
        return [checkpoint.step == self.step for checkpoint in checkpoints]


class Checkpointer(v1.training.Checkpointer):
    """Orbax's, which beside its policies keeps the checkpoint of a marked step."""

    def __init__(self, directory: epath.Path, keep: Sequence[Any]):
        self._marked = _Marked()
        super().__init__(
            directory,
            # The loop alone decides when to save; by default Orbax saves as often as it can.
            save_decision_policy=v1.training.save_decision_policies.SpecificStepsPolicy([]),
            preservation_policy=v1.training.preservation_policies.AnyPreservationPolicy(
                [*keep, self._marked]
            ),
            cleanup_tmp_directories=True,
        )

    def mark(self, step: int | None) -> None:
        """Keeps the checkpoint of `step` until another is marked. Every process must call it."""
        self._marked.step = step


@contextlib.contextmanager
def open_checkpoints(
    directory: str | Path, *, keep_last: int = 3, keep_every: int | None = None
) -> Iterator[Checkpointer]:
    """Opens a folder to save into. The `with` waits for the last save.

    Remains of interrupted saves are removed.

    Args:
      directory: made if it does not exist.
      keep_last: how many of the newest checkpoints to keep.
      keep_every: keeps, beside those, every checkpoint whose step is a multiple of it.

    Raises:
      ValueError: if a count is not positive.
      OSError: if the folder cannot be written; within or at the end of the `with`, if the system
        refuses to write: a full disk.
    """
    if keep_last < 1 or (keep_every is not None and keep_every < 1):
        raise ValueError(
            "keep_last and keep_every must be at least 1 (keep_every may be None), "
            f"not {keep_last!r} and {keep_every!r}"
        )
    policies = v1.training.preservation_policies
    keep = [policies.LatestN(keep_last)]
    if keep_every is not None:
        keep.append(policies.EveryNSteps(keep_every))
    with (
        _system_errors(directory),
        Checkpointer(_absolute(directory), keep) as checkpointer,
    ):
        folder = checkpointer.directory
        if paths.is_local(folder) and not os.access(
            folder, os.W_OK
        ):  # or only the first save said so
            raise PermissionError(errno.EACCES, "the folder cannot be written", str(folder))
        yield checkpointer


def save(checkpointer: Checkpointer, state: TrainState) -> None:
    """Starts saving `state` as the checkpoint of its step.

    It returns when the arrays are copied, so that the next step may donate them. An error in the
    background is raised by `check`, by the next save, by `checkpointer.wait()`, or on closing. A
    step that is already the newest checkpoint is not saved again.
    """
    step = int(state.step)
    if latest_step(checkpointer) != step:
        checkpointer.save_checkpointables_async(step, state._asdict(), force=True)


def check(checkpointer: Checkpointer) -> None:
    """Raises an error of the last save now rather than at the next save, without waiting.

    Raises:
      OSError: the last save failed in the background, or the folder is gone.
    """
    directory = checkpointer.directory
    if paths.is_local(directory) and not directory.is_dir():  # which Orbax would make anew
        why = "the folder is gone: deleted, or its file system no longer mounted"
        raise OSError(errno.ESTALE, why, str(directory))
    if not checkpointer.is_saving_in_progress():
        checkpointer.wait()


def read_back(checkpointer: Checkpointer, state: TrainState) -> None:
    """Waits for the checkpoint of `state` and reads its step, to see that it can be restored.

    Once in a run this is worth the wait: a folder or file system that spoils one checkpoint spoils
    all, and a run depends on them when it is stopped.

    Raises:
      OSError: it is missing, or cannot be read.
    """
    checkpointer.wait()
    step, directory = int(state.step), checkpointer.directory
    path = directory / str(step)
    if step in list_steps(directory):
        like = jax.ShapeDtypeStruct((), state.step.dtype, sharding=state.step.sharding)
        values, damage = _read(path, {"step": like}, ())
        damage = damage or (None if int(values["step"]) == step else f"step is {values['step']}")
    else:
        damage = "it is not there"
    if _anywhere(damage is not None):
        why = f"what was just saved cannot be read back ({damage or 'by another process'})"
        raise OSError(errno.EIO, why, str(path))


@contextlib.contextmanager
def rescuing(checkpointer: Checkpointer, state: Callable[[], TrainState]) -> Iterator[None]:
    """If the system refuses to write, saves the state into the folder for temporary files.

    This works in a job of one process; with several, none holds all of the state. The error is
    raised in any case, and the place is printed on stderr.

    Args:
      checkpointer: the one that could not save.
      state: returns the newest state.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) or _os_error_code(error):
            _rescue(checkpointer.directory, state())
        raise


def _rescue(directory: epath.Path, state: TrainState) -> None:
    if jax.process_count() > 1 or any(x.is_deleted() for x in jax.tree.leaves(state)):
        return
    step = int(state.step)
    try:
        folder = paths.literal(tempfile.mkdtemp(prefix=f"mdlm_jax-{directory.parent.name}-"))
        v1.save_checkpointables(folder / str(step), state._asdict())
    except Exception as error:  # of any kind: the first one is raised, and ends the run
        why = " ".join(str(error).split())[:160]
        print(f"warning: step {step} could not be saved elsewhere either: {why}", file=sys.stderr)
        return
    print(
        f"warning: step {step} is saved in {folder}: to go on from it, move {folder / str(step)} "
        f"into {directory}",
        file=sys.stderr,
    )


def latest_step(checkpointer: Checkpointer) -> int | None:
    """The step of the newest checkpoint, or None."""
    latest = checkpointer.latest
    return None if latest is None else latest.step


def restore(
    checkpointer: Checkpointer, abstract: TrainState, *, padded: Sequence[str] = ()
) -> TrainState:
    """Reads the newest checkpoint that is whole.

    Damaged newer ones are named on stderr and set aside as `<step>.damaged`. Training resumes from
    the returned state and saves their steps again.

    Args:
      checkpointer: from `open_checkpoints`.
      abstract: shapes, dtypes and shardings to restore into, from `abstract_state`. The mesh may
        differ from the one saved from.
      padded: ends of the paths of leaves that may be longer or shorter in the checkpoint. Missing
        values are zeros.

    Raises:
      FileNotFoundError: if there is no checkpoint.
      ValueError: if a leaf is missing, unknown or of another shape (it is named), or all
        checkpoints are damaged.
      OSError: if the system refuses to read them.
    """
    steps = saved_steps(checkpointer)
    values, step = _newest_whole(checkpointer.directory, steps, abstract._asdict(), padded)
    if step != steps[-1]:
        if jax.process_index() == 0:
            for damaged in steps[steps.index(step) + 1 :]:
                _set_aside(checkpointer.directory / str(damaged))
        _anywhere(False)  # all wait for process 0
        checkpointer.reload()
    return TrainState(**values)


def restore_params(
    directory: str | Path,
    abstract: PyTree,
    *,
    item: str = "ema",
    step: int | None = None,
    padded: Sequence[str] = (),
) -> tuple[PyTree, int]:
    """Reads only the parameters, from a folder that a run may still be writing.

    Args:
      directory: as in `open_checkpoints`, or from `save_params`.
      abstract: `jax.ShapeDtypeStruct`s with shardings; other dtypes are cast to theirs.
      item: "ema" or "params".
      step: which checkpoint; by default the newest that is whole, damaged ones named on stderr.
      padded: as in `restore`.

    Returns:
      The parameters and their step.

    Raises:
      FileNotFoundError: if there is no such checkpoint.
      ValueError: for another `item`, or as `restore` does.
      OSError: if the system refuses to read it.
    """
    if item not in ("ema", "params"):
        raise ValueError(f"item must be 'ema' or 'params', not {item!r}")
    directory = _absolute(directory)
    steps = list_steps(directory)
    if step is not None and step not in steps:
        raise FileNotFoundError(f"no checkpoint of step {step} in {directory}, but of {steps}")
    steps = steps if step is None else [step]
    values, step = _newest_whole(directory, steps, {item: abstract}, padded)
    return values[item], step


def save_params(directory: str | Path, params: PyTree, *, item: str, step: int) -> None:
    """Writes a checkpoint of only the parameters, which `restore_params` reads.

    Raises:
      OSError: if the system refuses to write.
    """
    with _system_errors(directory):
        v1.save_checkpointables(_absolute(directory) / str(step), {item: params})


def saved_steps(checkpointer: Checkpointer) -> list[int]:
    """The steps of its checkpoints, in order."""
    return [checkpoint.step for checkpoint in checkpointer.checkpoints]


def list_steps(directory: str | Path) -> list[int]:
    """The steps of the checkpoints in a folder, in order; none if there is no such folder."""
    directory = _absolute(directory)
    if not directory.is_dir():  # or Orbax would make it
        return []
    # A Checkpointer would wait for the other processes of the job.
    return sorted(utils.checkpoint_steps(directory))


def _newest_whole(
    directory: epath.Path,
    steps: Sequence[int],
    abstract: dict[str, PyTree],
    padded: Sequence[str],
) -> tuple[dict[str, PyTree], int]:
    """Items of the last checkpoint that can be read, and its step."""
    if not steps:
        raise FileNotFoundError(f"no checkpoint in {directory}")
    damaged = []
    for step in reversed(steps):
        path = directory / str(step)
        with _system_errors(path):
            values, damage = _read(path, abstract, padded)
        if _anywhere(damage is not None):
            damaged.append(f"checkpoint {path} is damaged ({damage or 'for another process'})")
            continue
        if jax.process_index() == 0:
            for line in damaged:
                print(f"warning: {line}: going back to step {step}", file=sys.stderr)
        return values, step
    raise ValueError(f"{'; '.join(damaged)}: there is none before it")


def _alone() -> v1.Context:
    """Within it, Orbax waits for no other process of the job."""
    context = v1.Context()
    context.multiprocessing.primary_host = jax.process_index()
    context.multiprocessing.active_processes = {jax.process_index()}
    return context


def _read(
    path: epath.Path, abstract: dict[str, PyTree], padded: Sequence[str]
) -> tuple[dict[str, PyTree] | None, str | None]:
    """Items of a checkpoint, or what is wrong with its files."""
    # Each process for itself: where one fails, none must wait for it within Orbax.
    context = _alone()
    context.array.loading.enable_padding_and_truncation = bool(padded)
    with _quiet(), context:
        try:
            saved = v1.checkpointables_metadata(path).metadata
        except Exception as error:  # Orbax has no type of its own for it
            return None, _damage(error)
        missing = [item for item in abstract if item not in saved]
        if missing and len(saved) == 1:
            (only,) = saved
            raise ValueError(f"checkpoint {path} was exported: it holds only {only!r}")
        if missing:
            return None, f"it has no {missing[0]!r}"
        for item, tree in abstract.items():
            if saved[item] is not None:  # or a file is damaged, perhaps one that is not needed
                where = f"checkpoint {path}, {item}"
                _check_shapes(where, _shapes(saved[item]), _shapes(tree), tuple(padded))
        try:
            return v1.load_checkpointables(path, abstract), None
        except Exception as error:
            return None, _damage(error)


# Errors of TensorStore that concern the machine or the network rather than a file.
_REFUSED = re.compile(
    r"os_error_code='(?!2')|(ABORTED|CANCELLED|DEADLINE_EXCEEDED|INTERNAL|PERMISSION_DENIED|"
    "RESOURCE_EXHAUSTED|UNAUTHENTICATED|UNAVAILABLE): "
)


def _damage(error: Exception) -> str:
    """What is wrong with the files that could not be read. Raises `error` if nothing is."""
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    of_files = (AttributeError, FileNotFoundError, LookupError, TypeError, ValueError)
    if not isinstance(cause, of_files) or _REFUSED.search(str(cause)):
        raise cause
    return f"{type(cause).__name__}: {' '.join(str(cause).split())[:160]}"


def _set_aside(path: epath.Path) -> None:
    names = (f"{path.name}.damaged{number or ''}" for number in itertools.count())
    path.rename(next(path.parent / name for name in names if not (path.parent / name).exists()))


def _anywhere(flag: bool) -> bool:
    """Whether any process of the job says so. All must call it."""
    if jax.process_count() == 1:
        return flag
    try:
        return bool(np.any(multihost_utils.process_allgather(np.array(flag))))
    except (
        ValueError
    ) as error:  # gloo raises it when a process died, which is no fault of a checkpoint
        raise RuntimeError(f"the processes of the job could not be asked: {error}") from error


@contextlib.contextmanager
def _system_errors(path: str | os.PathLike) -> Iterator[None]:
    """Raises as OSError what the system refused to TensorStore, whose errors hold it as text."""
    try:
        yield
    except Exception as error:
        code = _os_error_code(error)
        if code is None:
            raise
        raise OSError(code, os.strerror(code), str(path)) from error


def _os_error_code(error: Exception) -> int | None:
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return int(code[1]) if code else None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Orbax and its abandoned tasks from logging errors that are raised anyway."""
    loggers = [absl_logging.get_absl_logger(), logging.getLogger("asyncio")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "coroutine .* was never awaited")
            gc.collect()  # abandoned tasks complain when they go
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _check_shapes(
    where: str, saved: dict[str, tuple], wanted: dict[str, tuple], padded: tuple[str, ...]
) -> None:
    for name in sorted(saved.keys() | wanted.keys()):
        if name not in saved:
            raise ValueError(f"{where}: {name!r} is not in the checkpoint")
        if name not in wanted:
            raise ValueError(f"{where}: {name!r} is in the checkpoint but not in the model")
        if saved[name] != wanted[name] and not name.endswith(padded):
            raise ValueError(
                f"{where}: {name!r} has shape {saved[name]} in the checkpoint but {wanted[name]} "
                "in the model"
            )


def _shapes(tree: PyTree) -> dict[str, tuple]:
    """Shapes by path; Orbax knows tuples as lists, and their fields as keys of a dict."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def _absolute(directory: str | os.PathLike) -> epath.Path:
    path = paths.literal(directory)
    return path.absolute() if paths.is_local(path) else path
