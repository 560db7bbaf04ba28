"""Jobs are checked before they wait: a line that names the culprit and what is accepted."""

import math
from typing import Any

import jax
import numpy as np

from mdlm_jax.diffusion import noise
from mdlm_jax.serving.jobs import Job

_MOST = np.iinfo(np.int32).max


def check(job: Job, encoder: Any, *, padded: bool, in_blocks: bool) -> None:
    """Raises: ValueError: a value of the job that no row of such a model has.

    Args:
      job: of a length and a kind of strategy that there is.
      encoder: the config of the network.
      padded: whether the model's rows may have padding.
      in_blocks: whether it writes blocks after a cache.
    """
    _check_tokens(job, encoder, padded)
    noise.seed_words(job.seed)
    _within("choice", job.choice, 0, _MOST)
    _within("blocks", job.blocks, 1, _MOST)
    _within("steps", job.steps, job.blocks, _MOST)
    if job.top_k is not None:
        _within("top_k", job.top_k, 1, _MOST)
    numbers = jax.tree.leaves(job.strategy)
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"strategy has the numbers {numbers}, they must be finite")
    _real("temperature", job.temperature, job.temperature >= 0, "at least 0")
    _real("top_p", job.top_p, 0 < job.top_p <= 1, "above 0 and at most 1")
    _real("min_p", job.min_p, 0 <= job.min_p <= 1, "from 0 to 1")
    penalty = job.repetition_penalty
    _real("repetition_penalty", penalty, penalty > 0, "above 0")
    _check_ids(job, encoder)
    _check_label(job, encoder)
    if in_blocks:
        _check_in_blocks(job)


def _check_tokens(job: Job, encoder: Any, padded: bool) -> None:
    tokens = job.tokens
    if not np.issubdtype(tokens.dtype, np.integer) or tokens.ndim != 1:
        raise ValueError(
            f"tokens are {tokens.dtype}{list(tokens.shape)}, they must be integers [L]"
        )
    if tokens.min() < 0 or tokens.max() >= encoder.vocab_size:
        raise ValueError(f"tokens must be ids from 0 to {encoder.vocab_size - 1}")
    for name in ("fill", "valid", "maskable"):
        marked = getattr(job, name)
        if marked is not None and (marked.dtype != bool or marked.shape != tokens.shape):
            shape = list(marked.shape)
            raise ValueError(f"{name} is {marked.dtype}{shape}, it must be bool[{len(tokens)}]")
    if job.valid is None or job.valid.all():
        return
    if not padded:
        raise ValueError("valid: the rows of this model have no padding")
    if not job.valid[: job.valid.sum()].all():
        raise ValueError("valid: padding must be at the end of the row")


def _check_ids(job: Job, encoder: Any) -> None:
    size = encoder.vocab_size
    for name, ids in (("forbid", job.forbid), ("end_id", (job.end_id,)), ("pad_id", (job.pad_id,))):
        for token in ids:
            if token is not None and not 0 <= token < size:
                raise ValueError(f"{name} has the token {token}, it must be from 0 to {size - 1}")
            if name != "forbid" and token == encoder.mask_id:
                raise ValueError(f"{name} is the mask, {token}, it must be another token")
    if len({*job.forbid, encoder.mask_id}) >= size:
        raise ValueError("forbid: no token is left to write")
    if job.pad_id is not None and job.end_id is None:
        raise ValueError("pad_id is for what follows end_id, which is not given")


def _check_label(job: Job, encoder: Any) -> None:
    if not -1 <= job.label < max(encoder.classes, 0):
        known = f"from -1 to {encoder.classes - 1}" if encoder.classes else "-1, without classes"
        raise ValueError(f"label is {job.label}, it must be {known}")
    if job.guidance is not None:
        _real("guidance", job.guidance, True, "finite")
        if job.label < 0:
            raise ValueError("guidance needs a label, and the job has none")


def _check_in_blocks(job: Job) -> None:
    if job.blocks > 1:
        raise ValueError("blocks is for models of whole rows: this one writes its own blocks")


def _within(name: str, value: int, least: int, most: int) -> None:
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}, it must be a whole number")
    if not least <= value <= most:
        raise ValueError(f"{name} is {value}, it must be from {least} to {most}")


def _real(name: str, value: float, holds: bool, accepted: str) -> None:
    if not (math.isfinite(value) and holds):
        raise ValueError(f"{name} is {value}, it must be a finite number, {accepted}")
