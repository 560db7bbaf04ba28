"""Strategies that may take back what they wrote."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mdlm_jax.diffusion import checks, noise
from mdlm_jax.diffusion.processes.masks import ranks
from mdlm_jax.diffusion.schedules import Schedule, check_schedule, linear
from mdlm_jax.diffusion.strategies.base import (
    ALL_BLANKS,
    Grid,
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
Kind = Literal["cap", "rescale", "confidence", "loop"]

_KINDS = ("cap", "rescale", "confidence", "loop")


def remask(
    kind: Kind,
    eta: float | Array,
    *,
    schedule: Schedule = linear(),
    t_on: float | Array = 0.55,
    t_off: float | Array = 0.05,
    alpha_on: float | Array = 0.9,
) -> Strategy:
    """The reverse process that may mask a token again (ReMDM, Wang et al. 2025).

    From t to s a token that was written is masked with probability sigma, and a blank is written
    with probability `(alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t)`. So at every time as much is
    written as by `ancestral`. sigma is at most `sigma_max = min(1, (1 - alpha_s) / alpha_t)`, hence
    0 in the last step. By `kind`:

    | kind | sigma |
    |---|---|
    | "cap" | `min(eta, sigma_max)` |
    | "rescale" | `eta sigma_max` |
    | "confidence" | `eta sigma_max softmax(-p)` over the row's written tokens, p the probability |
    | | that each was written with: the unlikely ones go first |
    | "loop" | as "cap", but only while `t_off < t <= t_on`, where alpha stands at `alpha_on`; |
    | | before and after it alpha runs straight, from 0 and to 1 |

    Args:
      kind: see above.
      eta: strength, in [0, 1]; 0 is `ancestral` ("loop": on its own alpha).
      schedule: of the masking process that is reversed; "loop" only turns rates into times by it.
      t_on: for "loop", when remasking begins.
      t_off: for "loop", when it ends.
      alpha_on: for "loop", the share of tokens that is written meanwhile, below 1.

    Raises:
      ValueError: on another kind, or a number outside its range.
    """
    require_one_of("remask", "kind", kind, _KINDS)
    require_within("remask", "eta", eta, 0.0, 1.0)
    shares = [checks.known(x) for x in (t_off, t_on, alpha_on)]
    if not any(x is None for x in shares) and not _in_order(*shares):
        raise ValueError(
            f"remask: t_off={t_off}, t_on={t_on}, alpha_on={alpha_on} must be within "
            "0 < t_off < t_on < 1 and 0 < alpha_on < 1"
        )

    check_schedule(schedule)
    rate = schedule.rate if kind != "loop" else Bound(_rate_of_loop, (t_on, t_off, alpha_on))
    sigma = Bound(_sigma, (kind, eta, t_on, t_off))
    return Strategy(
        _certain,
        Bound(_ask_what_is_due, (schedule.rate_to_time, rate, sigma)),
        Bound(_write_and_take_back, (rate, sigma)),
        remasks=True,
    )


def _in_order(t_off, t_on, alpha_on) -> bool:
    return bool(np.all((t_off > 0) & (t_off < t_on) & (t_on < 1) & (alpha_on > 0) & (alpha_on < 1)))


def _certain(keys, view: View):
    return jnp.ones(view.canvas.shape)  # the probability that each token was written with


def _ask_what_is_due(rate_to_time, rate, sigma, state, keys, view: View):
    now = _step(rate, view)
    kept = column(now.rate_s / now.rate_t)
    stays = kept - sigma(now, state, view) * column(1.0 / now.rate_t - 1.0)
    stays = jnp.where(view.last[:, None], 0.0, stays)
    asked = view.blank & (noise.row_uniform(keys, view.canvas.shape[1]) >= stays)
    return Proposal(asked, rate_to_time(view.rate_of_text(now.rate_t))), state


def _write_and_take_back(rate, sigma, state, keys, view: View, asked, candidates):
    written = view.wanted & ~view.blank
    probability = sigma(_step(rate, view), state, view)
    taken_back = written & (noise.row_uniform(keys, view.canvas.shape[1]) < probability)
    canvas = jnp.where(asked, candidates.tokens, view.canvas)
    state = jnp.where(asked, jnp.exp(candidates.log_prob), state)
    return jnp.where(taken_back, view.mask_id, canvas), state


def _rate_of_loop(t_on, t_off, alpha_on, t):
    before = 1.0 - alpha_on * (1.0 - t) / (1.0 - t_on)
    after = (1.0 - alpha_on) * t / t_off
    return jnp.where(t > t_on, before, jnp.minimum(1.0 - alpha_on, after))


def _sigma(kind: Kind, eta, t_on, t_off, now: "_Step", probability: Array, view: View) -> Array:
    """The probability that a written token is masked: `f32[B, 1]`, or `[B, L]` and 0 at blanks."""
    if kind == "rescale":
        return column(eta * now.sigma_max)
    if kind == "cap":
        return column(jnp.minimum(eta, now.sigma_max))
    if kind == "loop":
        remasks = (now.t <= t_on) & (now.t > t_off)
        return column(jnp.where(remasks, jnp.minimum(eta, now.sigma_max), 0.0))
    written = view.wanted & ~view.blank
    weights = jnp.where(written, jnp.exp(-probability), 0.0)
    total = weights.sum(axis=1, keepdims=True)
    return column(eta * now.sigma_max) * weights / jnp.where(total > 0, total, 1.0)


class _Step(NamedTuple):
    """A step of each row from t down to s on the uniform grid, in mask rates `1 - alpha`: [B]."""

    t: Array
    rate_t: Array
    rate_s: Array

    @property
    def sigma_max(self) -> Array:
        alpha_t = jnp.maximum(1.0 - self.rate_t, jnp.finfo(jnp.float32).tiny)
        return jnp.minimum(1.0, self.rate_s / alpha_t)


def _step(rate: Callable[[Array], Array], view: View) -> _Step:
    t = 1.0 - view.index / view.steps
    s = jnp.where(view.last, 0.0, 1.0 - (view.index + 1) / view.steps)
    return _Step(t, rate(t), rate(s))


def path_planning(
    eta: float | Array = 1.0, *, grid: Grid = "uniform", schedule: Schedule = linear()
) -> Strategy:
    """Keeps the most probable of the written and the drawn tokens (P2, Peng et al. 2025).

    This is self-planning. Each step draws a token for every blank and scores all wanted positions
    by the network's own `log p`: at a blank that of the drawn token, elsewhere `eta` times that of
    the token that stands there. The lowest are masked, as many as the grid leaves, whether or not
    they were masked before.

    Args:
      eta: readiness to take tokens back: 0 never, 1 weighs both alike, more prefers new ones.
      grid: "uniform" or "cosine", of the number of masks.
      schedule: turns the share of masks into the time.

    Raises:
      ValueError: on another grid, or a negative `eta`.
    """
    require_one_of("path_planning", "grid", grid, ("uniform", "cosine"))
    require_within("path_planning", "eta", eta, 0.0)
    check_schedule(schedule)
    return Strategy(
        no_state,
        Bound(_ask_all_wanted, (schedule,)),
        Bound(_keep_most_probable, (eta, grid)),
        remasks=True,
        chunk=ALL_BLANKS,
    )


def _ask_all_wanted(schedule: Schedule, state, keys, view: View):
    return Proposal(view.wanted, schedule.rate_to_time(view.rate)), state


def _keep_most_probable(eta, grid: Grid, state, keys, view: View, asked, candidates):
    left = blanks_left(grid, view.wanted.sum(axis=1), view)
    score = jnp.maximum(candidates.score, jnp.finfo(jnp.float32).min)  # 0 * inf is no number
    score = jnp.where(view.blank, score, column(eta) * score)
    rank = ranks(jnp.where(asked, score, jnp.inf))  # the lowest first
    masked = asked & (rank < left[:, None])
    canvas = jnp.where(view.blank & asked, candidates.tokens, view.canvas)
    return jnp.where(masked, view.mask_id, canvas), state
