"""What the host tells the device of each slot before a round: one array, so one transfer.

`pack` writes a job into the row of its slot, `unpack` reads it within the compiled program. Real
numbers and the words of a seed travel as their bits.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mdlm_jax.diffusion import noise
from mdlm_jax.serving.jobs import Job

Array = jax.Array

KEEP, ADMIT, STOP = 0, 1, 2  # what is to be done with a slot

_WHOLE = (
    *("action", "seed_high", "seed_low", "choice", "steps", "blocks"),
    *("end_id", "pad_id", "top_k", "label", "forbids"),
)
_REAL = ("temperature", "top_p", "min_p", "repetition_penalty", "guidance")
_FILL, _MASKABLE, _VALID = 1, 2, 4  # bits of a position


class Given(NamedTuple):
    """Of each slot; where nothing is admitted it means nothing.

    Attributes:
      action: i32[S], `KEEP`, `ADMIT` or `STOP`.
      keys: [S], of the row.
      tokens: i32[S, L].
      fill: bool[S, L].
      maskable: bool[S, L].
      valid: bool[S, L].
      numbers: of the strategy, f32[S] each.
      whole: i32[S] each: steps, blocks, end_id, pad_id, top_k, label, forbids.
      real: f32[S] each: temperature, top_p, min_p, repetition_penalty, guidance.
    """

    action: Array
    keys: Array
    tokens: Array
    fill: Array
    maskable: Array
    valid: Array
    numbers: tuple[Array, ...]
    whole: dict[str, Array]
    real: dict[str, Array]


def width(length: int, numbers: int) -> int:
    """Words of a slot with `length` tokens and so many numbers of a strategy."""
    return len(_WHOLE) + len(_REAL) + numbers + 2 * length


def nothing(slots: int, length: int, numbers: int) -> np.ndarray:
    """i32[S, width]: no slot changes."""
    return np.zeros((slots, width(length, numbers)), np.int32)


def pack(row: np.ndarray, job: Job, numbers: list[float]) -> None:
    """Writes a job that is to be admitted into the row of its slot, i32[width].

    Args:
      row: is written to.
      job: was checked.
      numbers: of its strategy.
    """
    high, low = noise.seed_words(job.seed).view(np.int32)
    end = -1 if job.end_id is None else job.end_id
    pad = end if job.pad_id is None else job.pad_id
    everything = np.iinfo(np.int32).max
    row[: len(_WHOLE)] = (
        *(ADMIT, high, low, job.choice, job.steps, job.blocks),
        *(end, pad, everything if job.top_k is None else job.top_k, job.label, bool(job.forbid)),
    )
    real = (
        *(job.temperature, job.top_p, job.min_p, job.repetition_penalty),
        1.0 if job.guidance is None else job.guidance,
    )
    at, length = len(_WHOLE) + len(_REAL) + len(numbers), len(job.tokens)
    row[len(_WHOLE) : at] = np.array([*real, *numbers], np.float32).view(np.int32)
    row[at : at + length] = job.tokens
    valid = _VALID if job.valid is None else _VALID * job.valid.astype(np.int32)
    seen = job.maskable if job.maskable is not None else job.valid
    maskable = _MASKABLE if seen is None else _MASKABLE * seen.astype(np.int32)
    row[at + length :] = _FILL * job.fill.astype(np.int32) + maskable + valid


def unpack(words: Array, length: int) -> Given:
    """What `pack` wrote, i32[S, width]."""
    whole = dict(zip(_WHOLE, words.T, strict=False))
    real = jax.lax.bitcast_convert_type(words[:, len(_WHOLE) : -2 * length], jnp.float32)
    seeds = jnp.stack([whole.pop("seed_high"), whole.pop("seed_low")], axis=1)
    # As `generate` makes the key of its sample `choice`.
    of_seed = noise.key_of_words(jax.lax.bitcast_convert_type(seeds, jnp.uint32))
    samples = noise.derive(of_seed, "samples")
    flags = words[:, -length:]
    return Given(
        action=whole.pop("action"),
        keys=noise.derive(samples, "row", whole.pop("choice")),
        tokens=words[:, -2 * length : -length],
        fill=flags & _FILL > 0,
        maskable=flags & _MASKABLE > 0,
        valid=flags & _VALID > 0,
        numbers=tuple(real.T[len(_REAL) :]),
        whole=whole,
        real=dict(zip(_REAL, real.T, strict=False)),
    )
