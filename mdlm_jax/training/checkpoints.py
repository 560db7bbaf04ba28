"""Checkpoints by Orbax: the one file that imports it.

A checkpoint is the folder `<directory>/<step>`, written under another name and renamed when whole,
so a half-written one is never seen. Each field of the state is an item of its own in it, so that
generation and evaluation read the parameters alone.
"""

import contextlib
import gc
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from absl import logging as absl_logging
from orbax.checkpoint import v1

from mdlm_jax.training.state import TrainState

PyTree = Any
Checkpointer = v1.training.Checkpointer


def _is_worth_telling(record: logging.LogRecord) -> bool:
    if "orbax" not in Path(record.pathname).parts:
        return True
    return record.levelno >= logging.WARNING and not record.exc_info


# Orbax tells a page about each save at level INFO, which commands show, and of each error that it
# raises many pages more.
absl_logging.get_absl_logger().addFilter(_is_worth_telling)


@contextlib.contextmanager
def open_checkpoints(
    directory: str | Path, *, keep_last: int = 3, keep_every: int | None = None
) -> Iterator[Checkpointer]:
    """Opens a folder to save into; the `with` waits for the last save.

    Leftovers of interrupted saves are removed.

    Args:
      directory: made if it does not exist.
      keep_last: how many of the newest checkpoints to keep.
      keep_every: keeps, beside those, every checkpoint whose step is a multiple of it.

    Raises:
      ValueError: if a count is not positive.
      OSError: within or at the end of the `with`, if the system refuses to write: a full disk.
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
    try:
        with Checkpointer(
            _absolute(directory),
            # The loop alone decides when to save; by default Orbax saves as often as it can.
            save_decision_policy=v1.training.save_decision_policies.SpecificStepsPolicy([]),
            preservation_policy=policies.AnyPreservationPolicy(keep),
            cleanup_tmp_directories=True,
        ) as checkpointer:
            yield checkpointer
    except Exception as error:
        code = re.search(r"os_error_code='(\d+)'", str(error))
        if code is None:
            raise
        # TensorStore has the system's error in its text only.
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(directory)) from error


def save(checkpointer: Checkpointer, state: TrainState) -> None:
    """Starts saving `state` as the checkpoint of its step.

    Returns when the arrays are copied, so that the next step may donate them; an error in the
    background is raised by the next save, by `checkpointer.wait()`, or on closing. A step that is
    already the newest checkpoint is not saved again.
    """
    step = int(state.step)
    if latest_step(checkpointer) != step:
        checkpointer.save_checkpointables_async(step, state._asdict(), force=True)


def latest_step(checkpointer: Checkpointer) -> int | None:
    """The step of the newest checkpoint, None where there is none."""
    latest = checkpointer.latest
    return None if latest is None else latest.step


def restore(checkpointer: Checkpointer, abstract: TrainState) -> TrainState:
    """Reads the newest checkpoint.

    Args:
      checkpointer: from `open_checkpoints`.
      abstract: shapes, dtypes and shardings to restore into, from `abstract_state`. The mesh may
        differ from the one saved from.

    Raises:
      FileNotFoundError: if there is no checkpoint.
      ValueError: if a leaf is missing, unknown or of another shape (it is named), or the checkpoint
        is damaged.
    """
    return TrainState(**_load(checkpointer, None, abstract._asdict()))


def restore_params(
    directory: str | Path, abstract: PyTree, *, item: str = "ema", step: int | None = None
) -> PyTree:
    """Reads the parameters alone, from a folder that a run may still be writing.

    Args:
      directory: as in `open_checkpoints`.
      abstract: `jax.ShapeDtypeStruct`s with shardings; another dtype is cast to.
      item: "ema" or "params".
      step: which checkpoint; the newest by default.

    Raises:
      FileNotFoundError: if there is no such checkpoint.
      ValueError: for another `item`, or as `restore` does.
    """
    if item not in ("ema", "params"):
        raise ValueError(f"item must be 'ema' or 'params', not {item!r}")
    with _open_to_read(directory) as checkpointer:
        return _load(checkpointer, step, {item: abstract})[item]


def list_steps(directory: str | Path) -> list[int]:
    """The steps of the checkpoints in a folder, in order; none if there is no such folder."""
    if not Path(directory).is_dir():
        return []
    with _open_to_read(directory) as checkpointer:
        return [checkpoint.step for checkpoint in checkpointer.checkpoints]


def _load(checkpointer: Checkpointer, step: int | None, abstract: dict[str, PyTree]) -> dict:
    steps = [checkpoint.step for checkpoint in checkpointer.checkpoints]
    if not steps or step not in (None, *steps):
        wanted = "no checkpoint" if step is None else f"no checkpoint of step {step}"
        raise FileNotFoundError(f"{wanted} in {checkpointer.directory} (steps there: {steps})")
    step = steps[-1] if step is None else step
    where = f"checkpoint {checkpointer.directory / str(step)}"
    older = [each for each in steps if each < step]
    with _quiet():
        try:
            saved = checkpointer.checkpointables_metadata(step).metadata
            damaged = "its metadata cannot be read" if None in saved.values() else None
        except Exception as error:  # Orbax has no type of its own for it
            damaged = _first_line(error)
        if damaged is None:
            for item, tree in abstract.items():
                _check_shapes(f"{where}, {item}", _shapes(saved[item]), _shapes(tree))
            try:
                return checkpointer.load_checkpointables(step, abstract)
            except Exception as error:
                damaged = _first_line(error)
    way_out = f"remove it to go on from step {older[-1]}" if older else "there is none before it"
    raise ValueError(f"{where} is damaged ({damaged}): {way_out}")


def _first_line(error: Exception) -> str:
    text = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {text[:160]}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Orbax, and the tasks that it abandons, from logging what is raised anyway."""
    loggers = [absl_logging.get_absl_logger(), logging.getLogger("asyncio")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        gc.collect()  # abandoned tasks complain when they go
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _check_shapes(where: str, saved: dict[str, tuple], wanted: dict[str, tuple]) -> None:
    for name in sorted(saved.keys() | wanted.keys()):
        if name not in saved:
            raise ValueError(f"{where}: {name!r} is not in the checkpoint")
        if name not in wanted:
            raise ValueError(f"{where}: {name!r} is in the checkpoint but not in the model")
        if saved[name] != wanted[name]:
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


def _open_to_read(directory: str | Path) -> Checkpointer:
    if not Path(directory).is_dir():  # or Orbax would make it
        raise FileNotFoundError(f"no checkpoint in {directory}: there is no such folder")
    return Checkpointer(_absolute(directory))


def _absolute(directory: str | Path) -> Path:
    return Path(directory).absolute()
