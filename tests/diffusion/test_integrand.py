"""The integrand at one rate against enumeration, and the confidence of what is predicted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import MASK, STRINGS, L

from mdlm_jax import as_denoiser, at_rate, schedules
from mdlm_jax.diffusion.integrand import CONFIDENCE_BINS

KEY = jax.random.key(0)


@pytest.mark.parametrize("masked", [1, 2, 4])
def test_nats_agree_with_the_sets_of_that_size(oracle, masked):
    string = STRINGS[np.argmax(oracle.joint)]
    tokens = jnp.broadcast_to(jnp.asarray(string), (4000, L))
    told = jax.jit(lambda: at_rate(oracle.denoiser(), KEY, tokens, mask_id=MASK, rate=masked / L))()
    nats = np.asarray(told.nats, np.float64)
    expected = np.mean([nats for at, nats in oracle.set_nats(string) if len(at) == masked])
    assert abs(nats.mean() - expected) <= 4 * nats.std(ddof=1) / np.sqrt(4000) + 1e-6  # alarm: 6e-5
    assert np.all(told.masked == masked) and told.binned.sum() == 4000 * masked


def test_rates_of_all_counts_average_to_the_nelbo(oracle):
    """`L mean_k S_k / k`: what ties the curve to the bound."""
    string = STRINGS[np.argmax(oracle.joint)]
    tokens = jnp.broadcast_to(jnp.asarray(string), (4000, L))

    @jax.jit
    def of_counts():
        rates = [(k, k / L) for k in range(1, L + 1)]
        told = [
            (k, at_rate(oracle.denoiser(), KEY, tokens, mask_id=MASK, rate=r)) for k, r in rates
        ]
        return jnp.stack([each.nats / k for k, each in told])

    nats = L * np.asarray(of_counts(), np.float64).mean(axis=0)
    error = nats.std(ddof=1) / np.sqrt(4000)
    assert abs(nats.mean() - oracle.exact_count_nelbo(string)) < 4 * error  # alarm: 6e-5


def sure(probability, correct):
    """A denoiser whose most likely token, of that probability, is right in rows of `correct`."""

    def logits(tokens, t):
        rest = (1 - probability) / 3
        p = jnp.full((*tokens.shape, 5), rest).at[..., 4].set(0)  # the mask is 4
        best = jnp.where(correct, 1, 2)[:, None, None] == jnp.arange(5)
        return jnp.log(jnp.where(best, probability, p))

    return as_denoiser(logits, 4)


@jax.jit
def half_masked(probability, correct):
    tokens = jnp.ones((6, 8), jnp.int32)
    return at_rate(sure(probability, correct), KEY, tokens, mask_id=4, rate=0.5)


@settings(max_examples=30)
@given(probability=st.floats(0.35, 0.97), right=st.integers(0, 6))
def test_confidence_is_the_probability_of_the_most_likely_token(probability, right):
    told = half_masked(probability, np.arange(6) < right)
    masked = 6 * 4
    assert told.confidence.sum() / masked == pytest.approx(probability, rel=1e-4)
    assert told.correct.sum() == 4 * right
    for bin_ in np.flatnonzero(told.binned):  # on a border both, by rounding
        assert bin_ / CONFIDENCE_BINS - 1e-6 < probability <= (bin_ + 1) / CONFIDENCE_BINS + 1e-6


def test_empty_rows_and_padding_are_in_no_sum():
    maskable = jnp.arange(8) < jnp.array([8, 3, 0])[:, None]
    tokens = jnp.ones((3, 8), jnp.int32)
    denoiser = sure(0.8, jnp.ones(3, bool))
    told = jax.jit(lambda: at_rate(denoiser, KEY, tokens, mask_id=4, rate=1.0, maskable=maskable))()
    assert told.masked.tolist() == [8, 3, 0] and told.binned.sum() == told.correct.sum() == 11
    assert told.nats[2] == 0 and told.confidence.sum() == pytest.approx(11 * 0.8, rel=1e-5)


# Half a token more or less, by the precision in which the product is rounded.
@pytest.mark.parametrize(
    ("rate", "width"), [(0.15, 10), (0.15, 70), (0.45, 30), (0.01, 10), (1, 9)]
)
def test_every_mask_has_a_slot(rate, width):
    tokens = jnp.ones((1, width), jnp.int32)
    denoiser = sure(0.8, jnp.ones(1, bool))
    told = jax.jit(lambda: at_rate(denoiser, KEY, tokens, mask_id=4, rate=rate))()
    assert told.binned.sum() == told.masked.sum() >= 1


def test_the_time_is_the_schedules():
    tokens = jnp.ones((1, 10), jnp.int32)

    def logits(tokens, t):
        return jnp.broadcast_to(t[:, None, None] * jnp.array([0.0, 1.0, 0.0]), (*tokens.shape, 3))

    denoiser = as_denoiser(logits, 2)
    for schedule in (schedules.linear(), schedules.cosine()):
        told = jax.jit(
            lambda s=schedule: at_rate(denoiser, KEY, tokens, mask_id=2, rate=0.3, schedule=s)
        )()
        t = float(schedule.rate_to_time(jnp.float32(0.3)))
        expected = np.log(1 + np.exp(t)) - t
        assert told.nats.sum() / told.masked.sum() == pytest.approx(expected, rel=1e-5)


def test_a_rate_out_of_range_is_refused():
    with pytest.raises(ValueError, match="rate is 0"):
        at_rate(sure(0.8, jnp.ones(1, bool)), KEY, jnp.ones((1, 4), jnp.int32), mask_id=4, rate=0)
