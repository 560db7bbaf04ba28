"""What is asked of an engine, and what it tells: rows to be written, and events.

A job is one row. Everything in it is an argument of the compiled programs, so that no value
compiles anew; only the length of the row and the kind of its strategy choose the program.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from mdlm_jax.diffusion import Strategy


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """A row to be written.

    Attributes:
      tokens: i32[L], with the mask where text is wanted. L is one of the engine's buckets.
      fill: bool[L], the masks that are wanted. The others stay, as unknown text.
      strategy: decides what each step writes; its kind is one that the deployment offers.
      steps: the most network evaluations.
      seed: of all noise of the request.
      choice: the row's number among the choices of the request, from 0. The noise of a row is a
        function of (seed, choice), as that of sample `choice` of `generate --seed`.
      deadline: `time.monotonic()` after which the row is given up.
      valid: bool[L], False at padding, which the network does not see; None if there is none.
      maskable: bool[L], what may be masked in training; None for all that is valid.
      blocks: parts that are filled one after the other.
      temperature: of the draws; 0 takes the most likely token.
      top_k: how many of the most likely tokens it is drawn among; None for all.
      top_p: the probability that the tokens hold among which it is drawn.
      min_p: drops tokens less than this many times as likely as the best.
      repetition_penalty: above 1 makes tokens of the row less likely.
      forbid: ids that are never written.
      guidance: weight of classifier-free guidance; None for none.
      label: of models with classes; -1 for none.
      end_id: the token that ends the text; None if none does.
      pad_id: the token that stands behind it.
      priority: lower goes first; 0 is a user's request.
      progress: whether `Written` comes on the way, or once, when the row is done.
      every: seconds from one such event to the next, at least; 0 for one after each round.
    """

    tokens: np.ndarray
    fill: np.ndarray
    strategy: Strategy
    steps: int
    seed: int
    choice: int = 0
    deadline: float = float("inf")
    valid: np.ndarray | None = None
    maskable: np.ndarray | None = None
    blocks: int = 1
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    forbid: tuple[int, ...] = ()
    guidance: float | None = None
    label: int = -1
    end_id: int | None = None
    pad_id: int | None = None
    priority: int = 0
    progress: bool = True
    every: float = 0.03


@dataclasses.dataclass(frozen=True, eq=False)
class Written:
    """How far a row has come.

    Attributes:
      tokens: i32[L], with the mask where nothing is written yet.
      step: i32[L], the step that last wrote the position; -1 where none did.
      log_prob: f32[L], the token's log-probability then, in nats, by the model's own logits.
      evaluations: network evaluations of the row so far.
      done: whether the row is finished: the last event of its job.
    """

    tokens: np.ndarray
    step: np.ndarray
    log_prob: np.ndarray
    evaluations: int
    done: bool


@dataclasses.dataclass(frozen=True)
class Failed:
    """Why a row will not be finished: the last event of its job.

    Attributes:
      reason: 'deadline', 'cancelled', 'failed' (its tick raised) or 'stopped' (the engine ends).
      message: a line for the user.
    """

    reason: str
    message: str


Event = Written | Failed
Listener = Callable[[Event], None]


class NotTaken(Exception):
    """A job that the engine did not take. Nothing was begun."""


class Full(NotTaken):
    """The queue is full.

    Attributes:
      retry_after: seconds after which a place may be free.
    """

    def __init__(self, message: str, retry_after: float):
        super().__init__(message)
        self.retry_after = retry_after


class Stopping(NotTaken):
    """The engine takes no new jobs: it is drained, or it has failed."""


class Unknown(NotTaken):
    """No such deployment, bucket or kind of strategy."""
