"""Masking schedules: the probability that a token is still there at time `t`.

The forward process keeps each token with probability `alpha(t)`, from 1 at t=0 to 0 at t=1, and
masks it otherwise (Austin et al. 2021, D3PM, absorbing state; Shi et al. 2024, MD4, section 2).
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mdlm_jax.diffusion import checks
from mdlm_jax.diffusion.values import Bound, holds_values

Array = jax.Array


@holds_values
class Schedule(NamedTuple):
    """Functions of `t` in [0, 1], elementwise, float32.

    Two schedules of this module with the same kind and exponent are equal and hash alike, so a
    schedule may be a static argument of a jitted function. It may be a traced argument too; then
    the exponent varies. Schedules of your own are equal if their functions are the same objects.

    Attributes:
      alpha: probability that a token is kept.
      dalpha: `d alpha / d t`, never positive.
      rate: `1 - alpha`, the mask rate, written so that nothing cancels near t=0.
      rate_to_time: the inverse of `rate`.
      weight: `-alpha'(t) / (1 - alpha(t))`, the weight of the masked tokens' summed cross-entropy
        in the continuous-time NELBO (MD4 eq. 5; MDLM, Sahoo et al. 2024, eq. 10).
    """

    alpha: Callable[[Array], Array]
    dalpha: Callable[[Array], Array]
    rate: Callable[[Array], Array]
    rate_to_time: Callable[[Array], Array]
    weight: Callable[[Array], Array]


def polynomial(exponent: float | Array) -> Schedule:
    """`alpha(t) = 1 - t ** exponent` (MD4, table 4).

    Args:
      exponent: positive; it may be traced, and one a row where the times are. A known 1 is
        `linear()`, another kind of schedule.

    Raises:
      ValueError: if the exponent is known and not positive.
    """
    if not isinstance(exponent, jax.core.Tracer):
        if not np.all(np.asarray(exponent) > 0):
            raise ValueError(f"polynomial schedule: exponent is {exponent}, it must be positive")
        if np.ndim(exponent) == 0 and exponent == 1:
            return linear()
    return Schedule(*(Bound(f, (exponent,)) for f in (_alpha, _dalpha, _rate, _time, _weight)))


def _alpha(exponent, t):
    return 1.0 - t**exponent


def _dalpha(exponent, t):
    return -exponent * t ** (exponent - 1)


def _rate(exponent, t):
    return t**exponent


def _time(exponent, r):
    return r ** (1 / exponent)


def _weight(exponent, t):
    return exponent / t


@functools.cache
def linear() -> Schedule:
    """`alpha(t) = 1 - t`: the mask rate is the time."""
    return Schedule(
        alpha=lambda t: 1.0 - t,
        dalpha=lambda t: -jnp.ones_like(t),
        rate=lambda t: t,
        rate_to_time=lambda r: r,
        weight=lambda t: 1.0 / t,
    )


@functools.cache
def cosine() -> Schedule:
    """`alpha(t) = 1 - cos(pi / 2 (1 - t))` (MD4, table 4), hence `rate(t) = sin(pi / 2 t)`."""
    half_pi = math.pi / 2
    return Schedule(
        alpha=lambda t: 2.0 * jnp.sin(half_pi / 2 * (1.0 - t)) ** 2,  # 1 - cos x = 2 sin^2(x / 2)
        dalpha=lambda t: -half_pi * jnp.sin(half_pi * (1.0 - t)),
        rate=lambda t: jnp.sin(half_pi * t),
        rate_to_time=lambda r: jnp.arcsin(r) / half_pi,
        weight=lambda t: half_pi * jnp.sin(half_pi * (1.0 - t)) / jnp.sin(half_pi * t),
    )


def check_schedule(value: Any) -> None:
    """Raises: TypeError: the value is not a `Schedule`, or is `cosine` without a call."""
    checks.check_kind("schedule", value, Schedule, "schedules.linear()")
