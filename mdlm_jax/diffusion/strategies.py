"""Strategies: which positions a sampler writes, and when.

A strategy sees the canvas at each step and says which positions it asks for, before the network
is read out there, and which of the drawn tokens stay, after. Position-first strategies keep all
they asked for, so only those positions are ever projected to the vocabulary; strategies that score
candidates ask for every blank and keep the best.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mdlm_jax.diffusion import noise
from mdlm_jax.diffusion.masks import ranks
from mdlm_jax.diffusion.readouts import Candidates
from mdlm_jax.diffusion.schedules import Schedule, linear

Array = jax.Array
State = Any


class View(NamedTuple):
    """What a strategy sees.

    Attributes:
      canvas: i32[B, L].
      blank: bool[B, L], what is still to be filled.
      rate: f32[B], the share of the text that is masked, to be filled or not.
      index: i32[], the step, from 0.
      steps: i32[], how many there are.
    """

    canvas: Array
    blank: Array
    rate: Array
    index: Array
    steps: Array


class Strategy(NamedTuple):
    """Pure functions with carried state; `keys` are one a row, fresh at every call.

    Attributes:
      init: `(keys [B], view) -> state`.
      propose: `(state, keys [B], view) -> (asked bool[B, L], t f32[B], state)`: which positions may
        be written in this step, and the time that the denoiser is told.
      commit: `(state, keys [B], view, asked bool[B, L], candidates) -> (canvas i32[B, L], state)`.
    """

    init: Callable[[Array, View], State]
    propose: Callable[[State, Array, View], tuple[Array, Array, State]]
    commit: Callable[[State, Array, View, Array, Candidates], tuple[Array, State]]


def exact_count(schedule: Schedule = linear()) -> Strategy:
    """Writes blanks in a uniformly random order, as evenly over the steps as they divide.

    With as many steps as blanks each step writes one token, and the samples follow the joint law of
    the denoiser's conditionals exactly (any-order autoregression: Hoogeboom et al. 2022, ARDM;
    Zheng et al. 2024, "Masked Diffusion Models are Secretly Time-Agnostic Masked Models"). One step
    is the product of the marginals: BERT filling all masks at once.

    Args:
      schedule: turns the share of masks into the time.
    """

    def init(keys, view):
        scores = noise.row_uniform(keys, view.canvas.shape[1])
        return ranks(jnp.where(view.blank, scores, jnp.inf)), view.blank.sum(axis=1)

    def propose(state, keys, view):
        turn, blanks = state
        left = blanks * (view.steps - 1 - view.index) // view.steps  # [B], after this step
        return view.blank & (turn >= left[:, None]), schedule.rate_to_time(view.rate), state

    return Strategy(init, propose, _commit_all)


def ancestral(schedule: Schedule = linear()) -> Strategy:
    """The reverse process on a uniform grid of times (D3PM; MD4 eq. 7; MDLM eq. 7).

    From t to s each blank is written with probability `(alpha_s - alpha_t) / (1 - alpha_t)`, alone:
    which positions is one draw, which tokens another. The last step (s = 0) writes all that is
    left.

    Args:
      schedule: of the masking process that is reversed.
    """

    def propose(state, keys, view):
        t = 1.0 - view.index / view.steps
        s = 1.0 - (view.index + 1) / view.steps
        stays = schedule.rate(s) / schedule.rate(t)
        stays = jnp.where(view.index + 1 == view.steps, 0.0, stays)
        asked = view.blank & (noise.row_uniform(keys, view.canvas.shape[1]) >= stays)
        return asked, jnp.full(view.canvas.shape[:1], t), state

    return Strategy(lambda keys, view: (), propose, _commit_all)


def confidence(temperature: float = 1.0, schedule: Schedule = linear()) -> Strategy:
    """MaskGIT's parallel decoding (Chang et al. 2022, section 3.2 and algorithm in its appendix).

    Each step draws a token for every blank and keeps the most confident: those with the highest
    `log p(token) + temperature (1 - (i + 1) / steps) Gumbel`, so many that after step i a share of
    `cos(pi / 2 (i + 1) / steps)` of the blanks is left, and at least one. It follows no
    exact law: confident tokens first makes text plainer than the data.

    Args:
      temperature: of the annealed noise on the choice of positions; 0 ranks by confidence alone.
      schedule: turns the share of masks into the time.

    Raises:
      ValueError: if the temperature is negative.
    """
    if temperature < 0:
        raise ValueError(f"confidence: temperature is {temperature}, it must not be negative")

    def init(keys, view):
        return view.blank.sum(axis=1)

    def propose(state, keys, view):
        return view.blank, schedule.rate_to_time(view.rate), state

    def commit(state, keys, view, asked, candidates):
        done = (view.index + 1) / view.steps
        blanks = view.blank.sum(axis=1)
        left = jnp.floor(state * jnp.cos(math.pi / 2 * done)).astype(jnp.int32)
        left = jnp.clip(jnp.minimum(left, blanks - 1), 0)
        left = jnp.where(view.index + 1 == view.steps, 0, left)
        score = candidates.log_prob + temperature * (1.0 - done) * noise.row_gumbel(
            keys, asked.shape[1]
        )
        rank = ranks(jnp.where(asked, -score, jnp.inf))
        kept = asked & (rank < (blanks - left)[:, None])
        return jnp.where(kept, candidates.tokens, view.canvas), state

    return Strategy(init, propose, commit)


def _commit_all(state, keys, view, asked, candidates):
    return jnp.where(asked, candidates.tokens, view.canvas), state
