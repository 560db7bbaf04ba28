"""Strategies that choose positions before tokens and read out each once, when it is written."""

import math

import jax
import jax.numpy as jnp

from mdlm_jax.diffusion import noise
from mdlm_jax.diffusion.processes.masks import ranks
from mdlm_jax.diffusion.schedules import Schedule, check_schedule, linear
from mdlm_jax.diffusion.strategies.base import (
    Grid,
    Last,
    Proposal,
    Strategy,
    View,
    blanks_left,
    commit_all,
    no_state,
    noise_of,
    require_one_of,
)
from mdlm_jax.diffusion.values import Bound

Array = jax.Array


def exact_count(
    schedule: Schedule = linear(), *, grid: Grid = "uniform", last: Last = "drawn"
) -> Strategy:
    """Writes blanks in a uniformly random order, as evenly over the steps as they divide.

    With as many steps as blanks each step writes one token, and the samples follow exactly the
    joint law of the denoiser's conditionals (any-order autoregression: Hoogeboom et al. 2022, ARDM;
    Zheng et al. 2024, "Masked Diffusion Models are Secretly Time-Agnostic Masked Models"). One step
    draws from the product of the marginals, as BERT fills all masks at once.

    Args:
      schedule: turns the share of masks into the time.
      grid: "uniform", or "cosine": few tokens in the first steps, more in the last.
      last: "greedy" takes the most likely tokens in the last step: less entropy than the model's.

    Raises:
      ValueError: on another `grid` or `last`.
    """
    _require("exact_count", grid, last)
    check_schedule(schedule)
    return Strategy(_random_order, Bound(_ask_by_turn, (schedule, grid, last)), commit_all)


def _ask_by_turn(schedule: Schedule, grid: Grid, last: Last, state, keys, view: View):
    turn, _, blanks = state
    asked = view.blank & (turn >= _left_one_less(grid, blanks, view)[:, None])
    return Proposal(asked, schedule.rate_to_time(view.rate), noise_of(last, view)), state


def left_to_right(schedule: Schedule = linear(), *, last: Last = "drawn") -> Strategy:
    """Writes blanks in the order of reading, in each step as many as suffice.

    That is `ceil(blanks / steps)` of them. With as many steps as blanks, or more, each step writes
    one token, and the samples follow the chain rule from left to right: one order of the many that
    `exact_count` draws. A causal network writes so (`causal_denoiser`).

    Args:
      schedule: turns the share of masks into the time.
      last: "greedy" takes the most likely tokens in the last step: less entropy than the model's.

    Raises:
      ValueError: on another `last`.
    """
    _require("left_to_right", "uniform", last)
    check_schedule(schedule)
    return Strategy(_count_blanks, Bound(_ask_from_the_left, (schedule, last)), commit_all)


def _count_blanks(keys: Array, view: View) -> Array:
    del keys
    return view.blank.sum(axis=1)


def _ask_from_the_left(schedule: Schedule, last: Last, blanks: Array, keys, view: View):
    due = -(-blanks // view.steps)  # [B]
    asked = view.blank & (jnp.cumsum(view.blank, axis=1) <= due[:, None])
    return Proposal(asked, schedule.rate_to_time(view.rate), noise_of(last, view)), blanks


def first_hitting(schedule: Schedule = linear()) -> Strategy:
    """The reverse process in continuous time, from one write to the next (Zheng et al. 2024).

    Each token leaves the mask at a time of its own, at which the rate is uniform on [0, 1] for
    every schedule. So it draws these rates and writes the blanks from the highest down. The
    denoiser's time is that of the first one written in the step (that of the whole text, if more of
    it is masked or known). With as many steps as blanks this is the law of `ancestral` with
    infinitely many steps, also for denoisers that use the time. (The paper draws the next rate as
    `rate * u ** (1 / blanks)`, which is the same law, one order statistic at a time.)

    Args:
      schedule: turns the mask rate into the time.
    """
    check_schedule(schedule)
    return Strategy(_random_order, Bound(_ask_by_rate, (schedule,)), commit_all)


def _ask_by_rate(schedule: Schedule, state, keys, view: View):
    turn, rates, blanks = state
    asked = view.blank & (turn >= blanks_left("uniform", blanks, view)[:, None])
    first = jnp.max(jnp.where(asked, rates, 0.0), axis=1)
    return Proposal(asked, schedule.rate_to_time(view.rate_of_text(first))), state


def ancestral(
    schedule: Schedule = linear(), *, grid: Grid = "uniform", last: Last = "drawn"
) -> Strategy:
    """The reverse process on a grid of times (D3PM; MD4 eq. 7; MDLM eq. 7).

    From t to s each blank is written with probability `(alpha_s - alpha_t) / (1 - alpha_t)`,
    independently of the others. The positions are one draw and the tokens another. The last step
    (s = 0) writes all that is left. With blocks or gaps the process covers only these, and the
    denoiser's time is the one at which the whole text has as many masks.

    Args:
      schedule: of the masking process that is reversed.
      grid: of the times: `1 - i / steps` ("uniform"), or `cos(pi / 2 i / steps)` ("cosine", Shi et
        al. 2024, MD4, appendix), finer at the start.
      last: "greedy" takes the most likely tokens in the last step: less entropy than the model's.

    Raises:
      ValueError: on another `grid` or `last`.
    """
    _require("ancestral", grid, last)
    check_schedule(schedule)
    return Strategy(no_state, Bound(_ask_alone, (schedule, grid, last)), commit_all)


def _ask_alone(schedule: Schedule, grid: Grid, last: Last, state, keys, view: View):
    def time(i, steps):
        return 1.0 - i / steps if grid == "uniform" else jnp.cos(math.pi / 2 * (i / steps))

    t, s = time(view.index, view.steps), time(view.index + 1, view.steps)
    now = schedule.rate(t)
    stays = jnp.where(view.last, 0.0, schedule.rate(s) / now)  # [B]
    asked = view.blank & (noise.row_uniform(keys, view.canvas.shape[1]) >= stays[:, None])
    t = schedule.rate_to_time(view.rate_of_text(now))
    return Proposal(asked, t, noise_of(last, view)), state


def _random_order(keys: Array, view: View) -> tuple[Array, Array, Array]:
    """Scores `f32[B, L]` uniform at blanks, their ranks `i32[B, L]` first, the number of blanks."""
    scores = jnp.where(view.blank, noise.row_uniform(keys, view.canvas.shape[1]), jnp.inf)
    return ranks(scores), scores, view.blank.sum(axis=1)


def _left_one_less(grid: Grid, blanks: Array, view: View) -> Array:
    """As `blanks_left`, but the cosine grid writes at least one token in its first steps."""
    left = blanks_left(grid, blanks, view)
    return left if grid == "uniform" else jnp.minimum(left, view.blank.sum(axis=1) - 1)


def _require(strategy: str, grid: str, last: str) -> None:
    require_one_of(strategy, "grid", grid, ("uniform", "cosine"))
    require_one_of(strategy, "last", last, ("drawn", "greedy"))
