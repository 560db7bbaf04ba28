"""Strategies: what they see, what they ask for, and how many blanks a step leaves."""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mdlm_jax.diffusion.reading.draws import Score, probability
from mdlm_jax.diffusion.reading.readouts import Candidates
from mdlm_jax.diffusion.values import holds_values

Array = jax.Array
State = Any
Grid = Literal["uniform", "cosine"]
Last = Literal["drawn", "greedy"]


class View(NamedTuple):
    """What a strategy sees of each row's block that is being filled (of all, if there is one).

    Every row has its own clock: rows of one batch may stand at different steps of different
    numbers of steps. So what is compared with `[B, L]` is written `view.last[:, None]`.

    Attributes:
      canvas: i32[B, L].
      wanted: bool[B, L], the positions to be written: the masks that the block began with.
      blank: bool[B, L], those of them that are masked now.
      rate: f32[B], the share of the whole text that is masked, to be filled or not.
      outside: f32[B], the share of the whole text that is masked and not wanted: other blocks, and
        what is not to be filled.
      share: f32[B], the share of the whole text that is wanted.
      index: i32[B], the step of the block, from 0.
      steps: i32[B], how many there are.
      mask_id: i32[].
    """

    canvas: Array
    wanted: Array
    blank: Array
    rate: Array
    outside: Array
    share: Array
    index: Array  # type: ignore[assignment]  # a tuple's own `index` is not used
    steps: Array
    mask_id: Array

    @property
    def last(self) -> Array:
        """bool[B]: this is the last step, after which no blank may be left."""
        return self.index + 1 == self.steps

    def rate_of_text(self, rate: Array | float) -> Array:
        """The share of the whole text that is masked while `rate f32[B]` of the wanted is: f32[B].

        A network with time conditioning gets the time of the row that it sees, which may be longer
        than what is being filled. The result is `rate` itself where all text is wanted.
        """
        return jnp.minimum(self.outside + self.share * rate, 1.0)  # the sum may round up


class Proposal(NamedTuple):
    """What a strategy asks for in one step.

    Attributes:
      asked: bool[B, L], the positions to read out. Where the canvas holds a token, that token is
        scored and none is drawn.
      t: f32[B], the denoiser's time, from a mask rate of the whole text: `view.rate` or
        `view.rate_of_text(...)`.
      noise: f32[] or f32[B], scale of the draw's Gumbel noise: 1 draws from the model, 0 takes the
        most likely token.
    """

    asked: Array
    t: Array
    noise: Array | float = 1.0


@holds_values
class Strategy(NamedTuple):
    """Pure functions with carried state; `keys` are one a row, fresh at every call.

    Every leaf of the state leads with the rows, `[B, ...]`, and so does every number that is bound
    (`Bound`): the functions get it as `[B]`, one a row, whether all rows were given the same or
    not. `column` makes it `[B, 1]`.

    Two strategies of this package with the same kind and values are equal and hash alike, so a
    strategy may be a static argument of a jitted function. It may be a traced argument too; then
    its numbers vary and all else is static. Strategies of your own are equal if their functions are
    the same objects, or `Bound`.

    Attributes:
      init: `(keys [B], view) -> state`.
      propose: `(state, keys [B], view) -> (Proposal, state)`.
      commit: `(state, keys [B], view, asked bool[B, L], candidates) -> (canvas i32[B, L], state)`.
        It writes only where `view.wanted`. A step in which no row asks for anything skips the
        network; the candidates then mean nothing.
      score: computes `candidates.score` from the distribution and the token at a position.
      remasks: whether tokens that were written may be masked again. Sampling then does not stop
        when all is filled.
      chunk: positions read out at a time by default: few, or as many as all blanks.
    """

    init: Callable[[Array, View], State]
    propose: Callable[[State, Array, View], tuple[Proposal, State]]
    commit: Callable[[State, Array, View, Array, Candidates], tuple[Array, State]]
    score: Score = probability
    remasks: bool = False
    chunk: int = 512


ALL_BLANKS = 2048  # `Strategy.chunk` of strategies that read out every blank in each step


def commit_all(state: State, keys: Array, view: View, asked: Array, candidates: Candidates):
    """Writes everything that was asked for."""
    return jnp.where(asked, candidates.tokens, view.canvas), state


def no_state(keys: Array, view: View) -> tuple:
    """The empty state of a strategy that remembers nothing."""
    return ()


def blanks_left(grid: Grid, blanks: Array, view: View) -> Array:
    """How many of `blanks i32[B]` are left after this step: `i32[B]`, 0 after the last.

    A share of `1 - x` ("uniform", in exact integers) or `cos(pi / 2 x)` ("cosine": few first,
    Chang et al. 2022, MaskGIT, section 3.2), with x = (index + 1) / steps.
    """
    if grid == "uniform":
        return blanks * (view.steps - 1 - view.index) // view.steps
    done = (view.index + 1) / view.steps
    left = jnp.floor(blanks.astype(jnp.float32) * jnp.cos(math.pi / 2 * done)).astype(jnp.int32)
    return jnp.where(view.last, 0, left)


def column(value: Array | float) -> Array:
    """A number a row, `[B]`, to be compared with `[B, L]`: `[B, 1]`; one number as `[1, 1]`."""
    return jnp.asarray(value, jnp.float32).reshape(-1, 1)


def noise_of(last: Last, view: View) -> Array | float:
    """`Proposal.noise` of a strategy whose last step is drawn, or greedy."""
    return 1.0 if last == "drawn" else jnp.where(view.last, 0.0, 1.0)


def require_one_of(strategy: str, name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raises: ValueError: the value is not allowed."""
    if value not in allowed:
        raise ValueError(f"{strategy}: {name} is {value!r}, it must be {' or '.join(allowed)}")


def require_within(
    strategy: str, name: str, value: float | Array, low: float, high: float = math.inf
) -> None:
    """Raises: ValueError: the value is known and is not a number in [low, high]."""
    if isinstance(value, jax.core.Tracer):
        return
    values = np.asarray(value)
    if not np.all((low <= values) & (values <= high)):
        accepted = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
        raise ValueError(f"{strategy}: {name} is {value}, it must be {accepted}")
