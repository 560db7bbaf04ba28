"""Strategies that draw a token for every blank, score them, and keep the best."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from mdlm_jax.diffusion import noise
from mdlm_jax.diffusion.processes.masks import ranks
from mdlm_jax.diffusion.reading.draws import entropy, margin, probability
from mdlm_jax.diffusion.schedules import Schedule, check_schedule, linear
from mdlm_jax.diffusion.strategies.base import (
    ALL_BLANKS,
    Grid,
    Last,
    Proposal,
    Strategy,
    View,
    blanks_left,
    column,
    no_state,
    require_one_of,
    require_within,
)
from mdlm_jax.diffusion.values import Bound

Array = jax.Array
ScoreName = Literal["probability", "margin", "entropy"]

_SCORES = {"probability": probability, "margin": margin, "entropy": entropy}


def confidence(
    score: ScoreName = "probability",
    *,
    temperature: float | Array = 1.0,
    grid: Grid = "cosine",
    schedule: Schedule = linear(),
) -> Strategy:
    """Keeps the most confident of all candidates (MaskGIT, Chang et al. 2022, section 3.2).

    Each step draws a token for every blank and keeps those with the highest
    `score + temperature (1 - (i + 1) / steps) Gumbel`, so many that after step i a share of
    `cos(pi / 2 (i + 1) / steps)` of the blanks is left, and at least one.

    With "probability" the choice depends on the drawn tokens, so it follows no exact law: confident
    tokens first make text plainer than the data. With "margin" or "entropy" (Dream, Ye et al. 2025)
    it depends on the canvas alone, so at one token a step the samples follow the model's joint law.

    Args:
      score: "probability", the drawn token's `log p`; "margin", the difference between the two
        highest probabilities; "entropy", the negative entropy of the position.
      temperature: of the annealed noise on the choice of positions; 0 ranks by score alone.
      grid: "cosine", or "uniform": as many tokens in each step (LLaDA, Nie et al. 2025).
      schedule: turns the share of masks into the time.

    Raises:
      ValueError: on another score or grid, or a negative temperature.
    """
    _require("confidence", score, grid)
    require_within("confidence", "temperature", temperature, 0.0)
    return _surest(score, temperature, grid, schedule, tokens="drawn")


def greedy(
    score: ScoreName = "probability", *, grid: Grid = "uniform", schedule: Schedule = linear()
) -> Strategy:
    """Keeps the most likely token at the most confident positions: the same text for any key.

    LLaDA's low-confidence remasking at temperature 0 (Nie et al. 2025). Ties go to
    the first position and the lowest id.

    Args: as `confidence`.

    Raises:
      ValueError: on another score or grid.
    """
    _require("greedy", score, grid)
    return _surest(score, 0.0, grid, schedule, tokens="greedy")


def _surest(score, temperature, grid, schedule, tokens: Last) -> Strategy:
    check_schedule(schedule)
    return Strategy(
        _count_blanks,
        Bound(_ask_every_blank, (schedule, tokens)),
        Bound(_keep_surest, (temperature, grid)),
        score=_SCORES[score],
        chunk=ALL_BLANKS,
    )


def _count_blanks(keys, view: View):
    return view.blank.sum(axis=1)


def _ask_every_blank(schedule: Schedule, tokens: Last, state, keys, view: View):
    scale = 1.0 if tokens == "drawn" else 0.0
    return Proposal(view.blank, schedule.rate_to_time(view.rate), scale), state


def _keep_surest(temperature, grid: Grid, state, keys, view: View, asked, candidates):
    done = (view.index + 1) / view.steps
    blanks = view.blank.sum(axis=1)
    left = jnp.clip(jnp.minimum(blanks_left(grid, state, view), blanks - 1), 0)
    jitter = column(temperature * (1.0 - done)) * noise.row_gumbel(keys, asked.shape[1])
    rank = ranks(jnp.where(asked, -(candidates.score + jitter), jnp.inf))
    kept = asked & (rank < (blanks - left)[:, None])
    return jnp.where(kept, candidates.tokens, view.canvas), state


def threshold(tau: float | Array, schedule: Schedule = linear()) -> Strategy:
    """Keeps every candidate of probability `tau` or more, and the best (Fast-dLLM, Wu et al. 2025).

    See section 3.3 there. It is adaptive: it takes as many steps as it needs, at most `steps`, and
    the last step writes all that is left.

    Args:
      tau: in [0, 1]; 0 writes everything at once, 1 nearly a token a step.
      schedule: turns the share of masks into the time.

    Raises:
      ValueError: if `tau` is outside [0, 1].
    """
    require_within("threshold", "tau", tau, 0.0, 1.0)
    return _adaptive(Bound(_above, (tau,)), probability, schedule)


def _above(tau, score, rank):
    return jnp.exp(score) >= column(tau)


def factor(value: float | Array, schedule: Schedule = linear()) -> Strategy:
    """Keeps the n most probable candidates while `(n + 1) (1 - p_n) <= value`, and the best.

    A variant of `threshold`: the more tokens a step writes, the surer they must be (Fast-dLLM, Wu
    et al. 2025, section 3.3, theorem 1).

    Args:
      value: f, not negative; larger values write more tokens a step.
      schedule: turns the share of masks into the time.

    Raises:
      ValueError: if the value is negative.
    """
    require_within("factor", "value", value, 0.0)
    return _adaptive(Bound(_sure_together, (value,)), probability, schedule)


def _sure_together(value, score, rank):
    confidence = (rank + 2).astype(jnp.float32) * -jnp.expm1(score)  # n = rank + 1
    enough = confidence <= column(value)
    return _all_before(enough, rank)


def entropy_bounded(gamma: float | Array, schedule: Schedule = linear()) -> Strategy:
    """Keeps the positions of least entropy while these do not add up (Ben-Hamu et al. 2025).

    This is the EB-sampler: by ascending entropy H, the longest set U with
    `sum_U H - max_U H <= gamma`. That bounds the loss of drawing the tokens of U independently. At
    0 it writes one uncertain token a step, with all certain ones, and follows the model's joint
    law. It is adaptive: it takes as many steps as it needs, at most `steps`, and the last step
    writes all that is left.

    Args:
      gamma: nats, not negative.
      schedule: turns the share of masks into the time.

    Raises:
      ValueError: if `gamma` is negative.
    """
    require_within("entropy_bounded", "gamma", gamma, 0.0)
    return _adaptive(Bound(_within_entropy, (gamma,)), entropy, schedule)


def _within_entropy(gamma, score, rank):
    nats = jnp.where(jnp.isfinite(score), jnp.maximum(-score, 0.0), 0.0)  # [B, L]
    order = jnp.argsort(rank, axis=1)
    ascending = jnp.take_along_axis(nats, order, axis=1)
    before = jnp.cumsum(ascending, axis=1) - ascending  # of the more certain ones
    return jnp.take_along_axis(before, rank, axis=1) <= column(gamma)


def _adaptive(sure: Callable[[Array, Array], Array], score, schedule: Schedule) -> Strategy:
    """Keeps the positions that are `sure(score f32[B, L], rank i32[B, L])`, and always the best.

    `rank` is the place by descending score. Positions not asked for have the score -inf.
    """
    check_schedule(schedule)
    propose = Bound(_ask_every_blank, (schedule, "drawn"))
    return Strategy(no_state, propose, Bound(_keep_sure, (sure,)), score=score, chunk=ALL_BLANKS)


def _keep_sure(sure, state, keys, view: View, asked, candidates):
    scores = jnp.where(asked, candidates.score, -jnp.inf)
    rank = ranks(-scores)
    kept = asked & (sure(scores, rank) | (rank == 0) | view.last[:, None])
    return jnp.where(kept, candidates.tokens, view.canvas), state


def _all_before(enough: Array, rank: Array) -> Array:
    """Where `enough` holds at a position and at all of lower rank but 0: `bool[B, L]`."""
    order = jnp.argsort(rank, axis=1)
    ascending = jnp.take_along_axis(enough, order, axis=1).at[:, 0].set(True)
    return jnp.take_along_axis(jnp.cumprod(ascending, axis=1), rank, axis=1) > 0


def _require(strategy: str, score: str, grid: str) -> None:
    require_one_of(strategy, "score", score, tuple(_SCORES))
    require_one_of(strategy, "grid", grid, ("uniform", "cosine"))
