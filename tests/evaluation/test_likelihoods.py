"""Figures of a split, on denoisers whose cross-entropy is known in closed form."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax import as_denoiser, data, schedules
from mdlm_jax.evaluation.bounds import likelihoods
from mdlm_jax.networks import bert

MASK, WIDTH = 3, 8
# Five rows in batches of two: the last batch is filled up with a row that must not count.
ROWS = data.Rows(np.repeat([[0], [1], [1], [0], [1]], WIDTH, axis=1), np.zeros(5, np.int32))


def of_count(params, batch):
    """With k masks in its row a masked 0 costs `log(2 + e^k) - k` nats, a 1 `log(2 + e^k)`."""

    def logits(tokens, t):
        k = jnp.sum(tokens == MASK, axis=1)[:, None, None]
        return params * k * jax.nn.one_hot(jnp.zeros_like(tokens), 4)

    return as_denoiser(logits, MASK)


def test_nelbo_of_a_split_counts_every_row_once():
    """With k ignored (params 0) every masked token costs log 3, so the bound is exact."""
    of_rows = likelihoods.make_nelbo(of_count, mask_id=MASK, seed=0, draws=2)
    told = likelihoods.summary(of_rows(0.0, ROWS, 2))
    assert told["tokens"] == 5 * WIDTH and told["rows"] == 5
    assert told["nats_per_token"] == pytest.approx(np.log(3), rel=1e-5)
    assert told["bits_per_token"] == pytest.approx(np.log2(3), rel=1e-5)
    assert told["perplexity"] == pytest.approx(3, rel=1e-5)
    assert told["mc_error"] == pytest.approx(0, abs=1e-6)
    low, high = told["interval"]
    assert high - low == pytest.approx(2 * 1.96 * told["text_error"], rel=1e-4, abs=1e-6)


def test_a_batch_is_no_larger_than_all_rows_are():
    seen = []

    def of_seen(params, batch):
        seen.append(batch["tokens"].shape)
        return of_count(params, batch)

    of_rows = likelihoods.make_nelbo(of_seen, mask_id=MASK, seed=0, draws=2)
    told = []
    few = of_rows(1.0, ROWS, 2, told.append).nats_per_token
    many = of_rows(1.0, ROWS, 100_000).nats_per_token
    assert told == [2, 2, 1]
    assert {*seen} == {(2, WIDTH), (5, WIDTH)} and float(few) == pytest.approx(
        float(many), rel=1e-6
    )


def test_a_single_row_has_no_error_of_text():
    told = likelihoods.summary(
        likelihoods.make_nelbo(of_count, mask_id=MASK, seed=0, draws=2)(0.0, ROWS[:1], 2)
    )
    assert told["text_error"] is None and told["interval"] is None and told["rows"] == 1


def test_a_network_that_is_told_the_time_is_told_the_schedules():
    """It costs `log(2 + e^t) - t`; the mean over all rates differs by schedule."""

    def of_time(params, batch):
        def logits(tokens, t):
            return t[:, None, None] * jax.nn.one_hot(jnp.zeros_like(tokens), 4)

        return as_denoiser(logits, MASK)

    zeros = data.Rows(np.zeros((200, WIDTH), np.int32), np.zeros(200, np.int32))
    u = (np.arange(4000) + 0.5) / 4000
    for schedule in (schedules.linear(), schedules.cosine()):
        of_rows = likelihoods.make_nelbo(of_time, mask_id=MASK, seed=0, draws=16, schedule=schedule)
        told = likelihoods.summary(of_rows(None, zeros, 200))
        # A mean over k of a mean over the rate given k is a mean over a uniform rate.
        t = np.asarray(schedule.rate_to_time(jnp.asarray(u)), np.float64)
        expected = np.mean(np.log(2 + np.exp(t)) - t)
        assert abs(told["nats_per_token"] - expected) < 4 * told["text_error"]  # alarm: 6e-5
        assert told["text_error"] < 0.01 * abs(expected)


ENCODER = bert.Config(
    vocab_size=12, mask_id=MASK, max_length=WIDTH, layers=2, width=16, heads=2, mlp_width=16
)


def of_both(encoder):
    """The bound, and the chain rule, each as `(params, rows, batch_size) -> Likelihood`."""
    causal = likelihoods.denoiser_of(dataclasses.replace(encoder, attention="causal"))
    yield likelihoods.make_nelbo(likelihoods.denoiser_of(encoder), mask_id=MASK, seed=0, draws=2)
    yield likelihoods.make_causal_likelihood(causal, start_id=2)


def test_what_lies_in_the_padding_changes_nothing():
    params = bert.init(jax.random.key(0), ENCODER)
    sizes = np.array([3, WIDTH, 1, 5, 2], np.int32)
    text = np.random.default_rng(0).integers(4, 12, (5, WIDTH))
    valid = np.arange(WIDTH) < sizes[:, None]
    for of_rows in of_both(ENCODER):
        first, second = (
            of_rows(params, data.Rows(np.where(valid, text, pad), np.zeros(5, np.int32), sizes), 3)
            for pad in (0, 7)
        )
        told = likelihoods.summary(first)
        assert told["tokens"] == sizes.sum() and told["rows"] == 5
        assert np.isfinite(told["nats_per_token"]) and np.isfinite(told["mc_error"])
        np.testing.assert_allclose(first.nats, second.nats, rtol=1e-5)


def test_the_chain_rule_counts_the_tokens_of_the_bound_and_draws_nothing():
    params = bert.init(jax.random.key(0), ENCODER)
    text = np.random.default_rng(0).integers(4, 12, (5, WIDTH)).astype(np.int32)
    rows = data.Rows(text, np.zeros(5, np.int32))
    bound, exact = (of_rows(params, rows, 2) for of_rows in of_both(ENCODER))
    assert exact.tokens.tolist() == bound.tokens.tolist() == [WIDTH] * 5
    assert likelihoods.summary(exact)["mc_error"] == 0 < likelihoods.summary(bound)["mc_error"]
