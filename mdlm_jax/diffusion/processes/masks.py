"""Which tokens of a row are masked: one draw for exact counts and for Bernoulli masking.

Exact counts. For a row of `L` maskable tokens the continuous-time NELBO is

    L * E_{k ~ U{1..L}} [ S_k / k ],

with `S_k` the expected summed cross-entropy when a uniformly random set of k tokens is masked:
integrate the binomial, `int_0^1 Bin(k; L, r) / r dr = 1 / k`, for every schedule. So k is drawn
instead of t. There is no epsilon, and the variance is finite. The Bernoulli estimator's variance
diverges logarithmically at t -> 0 for schedules that are linear there (the second moment of its
integrand is `weight(t)^2 E[masked^2] ~ 1 / t`).

One draw. Give each token an independent uniform score and mask the k lowest. The set is uniform,
and the k-th lowest score has the law `Beta(k, L + 1 - k)` of the mask rate given k, independently
of the set. Bernoulli masking at rate r masks the scores below r.
"""

from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mdlm_jax.diffusion import checks, noise
from mdlm_jax.diffusion.schedules import Schedule

Array = jax.Array


class Masks(NamedTuple):
    """The masks of each row.

    Attributes:
      order: i32[B, L], all positions in a random order, those that cannot be masked last.
      count: i32[B], how many of the first in that order are masked.
      length: i32[B], how many are maskable.
      t: f32[B], the denoiser's time.
      weight: f32[B], the weight of a masked token's cross-entropy in the row's NELBO.
    """

    order: Array
    count: Array  # type: ignore[assignment]  # a tuple's own `count` is not used
    length: Array
    t: Array
    weight: Array

    @property
    def selected(self) -> Array:
        """bool[B, L], position by position."""
        return _inverse(self.order) < self.count[:, None]


def maskable_of(tokens: Array, mask_id: int | Array, maskable: Array | None) -> Array:
    """Which tokens may be masked, `bool[B, L]`: those that `maskable` has, but never the mask.

    The mask is no clean token: its probability is 0 and its loss infinite. If the arrays are
    traced, a mask among the maskable tokens is left out and does not count.

    Args:
      tokens: i32[B, L], clean.
      mask_id: the mask token.
      maskable: bool[B, L]; default all but `mask_id`.

    Raises:
      TypeError, ValueError: on arguments that do not fit; and, if they are known, on a negative
        `mask_id` and on a mask among the maskable tokens.
    """
    checks.check_text("tokens", tokens)
    checks.check_whole("mask_id", mask_id)
    the_mask = checks.known(mask_id)
    if the_mask is not None and the_mask < 0:
        raise ValueError(f"mask_id is {mask_id}, it must be a token's number, from 0 up")
    clean = tokens != mask_id
    if maskable is None:
        return clean
    checks.check_maskable("maskable", maskable, tokens.shape)
    seen_clean, asked = checks.known(clean), checks.known(maskable)
    if seen_clean is not None and asked is not None and np.any(~seen_clean & asked):
        row, position = np.argwhere(~seen_clean & asked)[0]
        raise ValueError(
            f"tokens hold the mask, {mask_id}, where maskable is true (row {row}, position "
            f"{position}): it cannot be predicted, pass maskable & (tokens != mask_id)"
        )
    return maskable & clean


def exact_masks(
    keys: Array,
    u: Array,
    side: Array,
    *,
    maskable: Array,
    schedule: Schedule,
    max_rate: Array | float = 1.0,
) -> Masks:
    """Exactly `exact_counts(u, K, side)` masks a row, in a uniformly random place.

    Args:
      keys: [B], one a row.
      u: f32[B] on [0, 1), uniform.
      side: i32[B], see `exact_counts`.
      maskable: bool[B, L].
      schedule: turns the mask rate into the time.
      max_rate: r in (0, 1], which bounds the counts, see `bounded_counts`.
    """
    order, scores, length = _random_order(keys, maskable)
    count = exact_counts(u, bounded_counts(max_rate, length), side)
    rate = jnp.take_along_axis(scores, jnp.maximum(count - 1, 0)[:, None], axis=1)[:, 0]
    t = schedule.rate_to_time(jnp.minimum(rate, 1.0))  # 1 where there is nothing to mask
    return Masks(order, count, length, t, length / jnp.maximum(count, 1))


def whole_steps(masks: Masks, steps: int, schedule: Schedule) -> Masks:
    """The masks with which the step begins that writes the last one of them.

    Of steps that write as many tokens each as divide evenly, in a random order, as `exact_count`
    does: before step i of s, `L (s - i) // s` of L tokens are masked. More steps than tokens change
    nothing.

    Args:
      masks: with counts of 1 to L.
      steps: at least 1.
      schedule: turns the mask rate into the time, which is that of the step.
    """
    length = jnp.maximum(masks.length, 1)
    even = jnp.minimum(steps, length)
    left = -(-masks.count * even // length)  # steps that are left, with the one at hand
    count = length * left // even
    t = schedule.rate_to_time(count / length)
    weight = length / jnp.maximum(count, 1)
    return masks._replace(count=jnp.where(masks.length > 0, count, 0), t=t, weight=weight)


def bernoulli_masks(keys: Array, t: Array, *, maskable: Array, schedule: Schedule) -> Masks:
    """Masks each token alone with probability `1 - alpha(t)`, `t f32[B]` in (0, 1]."""
    order, scores, length = _random_order(keys, maskable)
    count = jnp.sum(scores < schedule.rate(t)[:, None], axis=1, dtype=jnp.int32)
    return Masks(order, count, length, t, schedule.weight(t))


def share_masks(keys: Array, rate: float, *, maskable: Array) -> Masks:
    """`share_counts` masks a row, each of weight 1: BERT's one mask rate."""
    order, _, length = _random_order(keys, maskable)
    count = jnp.asarray(share_counts(rate, maskable.shape[1]))[length]
    ones = jnp.ones(length.shape, jnp.float32)
    return Masks(order, count, length, rate * ones, ones)


def share_counts(rate: float, width: int) -> np.ndarray:
    """`max(1, round(rate L))` of each L from 0 to `width`, 0 of 0: `i32[width + 1]`.

    The code that masks and the code that makes room for it read the same table; its last entry is
    the largest. It is exact: the rate is taken as the decimal fraction that it is written as, and
    halves go to the even neighbour.
    """
    exact = Fraction(repr(float(rate)))
    return np.array([0] + [max(1, round(exact * n)) for n in range(1, width + 1)], np.int32)


def bounded_counts(max_rate: Array | float, length: Array) -> Array:
    """`K = max(1, ceil(r L))`, 0 of 0, with r a float32 that may be traced: `i32[B]`.

    Float32 rounds 0.15 up, so 0.15 * 100 would exceed 15. Therefore r is taken as the least number
    that rounds to its float32, and multiplied in integers. K is right wherever `r L` is whole, or
    above a whole number by more than `L / 2^24`.
    """
    units = (jnp.asarray(max_rate, jnp.float32) * 2.0**30).astype(jnp.int32)  # of 2^-30
    least = jnp.maximum(units - (units >> 24) - 1, 0)
    most = jnp.zeros_like(length)
    for shift in (0, 10, 20):  # long multiplication, rounded up; fits int32 up to L = 2^21
        most = ((least >> shift & 1023) * length + most + 1023) >> 10
    return jnp.clip(most, jnp.minimum(1, length), length)


def exact_counts(u: Array, length: Array, side: Array) -> Array:
    """Counts on {1..L}, uniform if `u` is on [0, 1): `i32[B]`, 0 where `L` is 0.

    Two rows with one u and opposite sides take `ceil(u L_a)` and `L_b + 1 - ceil(u L_b)`, with u in
    (0, 1] there. Each count is uniform, and together they are at most `max(L_a, L_b) + 1`, for any
    bounds L_a and L_b.
    """
    below = jnp.minimum(
        (u * length.astype(jnp.float32)).astype(jnp.int32), length - 1
    )  # the product may round up
    count = jnp.where(side % 2 == 0, below + 1, length - below)
    return jnp.where(length > 0, count, 0)


def ranks(scores: Array) -> Array:
    """Each position's place in the ascending order of `scores [B, L]`: `i32[B, L]`."""
    return _inverse(jnp.argsort(scores, axis=1))


def _inverse(order: Array) -> Array:
    """The inverse of each row's permutation, `i32[B, L]`."""
    places = jnp.arange(order.shape[1], dtype=order.dtype)
    # Row by row, so that rows on several devices stay where they are.
    return jax.vmap(lambda row: jnp.zeros_like(row).at[row].set(places, unique_indices=True))(order)


def _random_order(keys: Array, maskable: Array) -> tuple[Array, Array, Array]:
    """Positions by ascending score `i32[B, L]`, those scores `f32[B, L]`, the lengths `i32[B]`."""
    scores = jnp.where(maskable, noise.row_uniform(keys, maskable.shape[1]), jnp.inf)
    order = jnp.argsort(scores, axis=1).astype(jnp.int32)
    length = maskable.sum(axis=1, dtype=jnp.int32)
    return order, jnp.take_along_axis(scores, order, axis=1), length
