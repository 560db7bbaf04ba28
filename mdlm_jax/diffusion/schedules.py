"""Masking schedules: how likely a token is still there at time `t`.

The forward process keeps each token with probability `alpha(t)`, from 1 at t=0 to 0 at t=1, and
masks it otherwise (Austin et al. 2021, D3PM, absorbing state; Shi et al. 2024, MD4, section 2).
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mdlm_jax.diffusion import checks

Array = jax.Array


class Schedule(NamedTuple):
    """Functions of `t` in [0, 1], elementwise, float32.

    Attributes:
      alpha: probability that a token is kept.
      dalpha: `d alpha / d t`, never positive.
      rate: `1 - alpha`, the mask rate, written so that nothing cancels near t=0.
      rate_to_time: the inverse of `rate`.
      weight: `-alpha'(t) / (1 - alpha(t))`, what the continuous-time NELBO weighs the summed
        cross-entropy of the masked tokens with (MD4 eq. 5; MDLM, Sahoo et al. 2024, eq. 10).
    """

    alpha: Callable[[Array], Array]
    dalpha: Callable[[Array], Array]
    rate: Callable[[Array], Array]
    rate_to_time: Callable[[Array], Array]
    weight: Callable[[Array], Array]


@functools.cache
def polynomial(exponent: float) -> Schedule:
    """`alpha(t) = 1 - t ** exponent` (MD4, table 4).

    Raises:
      ValueError: if the exponent is not positive.
    """
    if not exponent > 0:
        raise ValueError(f"polynomial schedule: exponent is {exponent}, it must be positive")
    return Schedule(
        alpha=lambda t: 1.0 - t**exponent,
        dalpha=lambda t: -exponent * t ** (exponent - 1),
        rate=lambda t: t**exponent,
        rate_to_time=lambda r: r ** (1 / exponent),
        weight=lambda t: exponent / t,
    )


def linear() -> Schedule:
    """`alpha(t) = 1 - t`: the mask rate is the time."""
    return polynomial(1)


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
    """Raises: TypeError: the value is not a `Schedule`; of `cosine` it says to call it."""
    checks.check_kind("schedule", value, Schedule, "schedules.linear()")
