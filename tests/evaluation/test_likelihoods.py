"""Figures of a split, on denoisers whose cross-entropy is known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax import as_denoiser, data
from mdlm_jax.evaluation import likelihoods
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


def cost(token, k):
    return np.log(2 + np.exp(k)) - (k if token == 0 else 0)


def test_rate_curve_has_the_mean_and_the_error_of_the_batches():
    curve = likelihoods.rate_curve(
        of_count, 1.0, ROWS, mask_id=MASK, seed=0, batch_size=2, rates=(0.25, 1.0)
    )
    for point, k in zip(curve, (2, 8), strict=True):
        zero, one = cost(0, k), cost(1, k)
        batches = np.array([zero + one, one + zero, one])  # summed over their 2, 2 and 1 rows
        mean = batches.sum() / 5
        assert point["nats"] == pytest.approx(mean, rel=1e-5)
        assert point["accuracy"] == pytest.approx(2 / 5)  # 0 is always the likeliest
        residual = batches - mean * np.array([2, 2, 1])
        assert point["error"] == pytest.approx(np.sqrt(1.5 * (residual**2).sum()) / 5, rel=1e-4)


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


def test_what_lies_in_the_padding_changes_nothing():
    encoder = bert.Config(
        vocab_size=12, mask_id=MASK, max_length=WIDTH, layers=2, width=16, heads=2, mlp_width=16
    )
    params = bert.init(jax.random.key(0), encoder)
    sizes = np.array([3, WIDTH, 1, 5, 2], np.int32)
    text = np.random.default_rng(0).integers(4, 12, (5, WIDTH))
    valid = np.arange(WIDTH) < sizes[:, None]
    of_rows = likelihoods.make_nelbo(
        likelihoods.denoiser_of(encoder), mask_id=MASK, seed=0, draws=2
    )
    first, second = (
        of_rows(params, data.Rows(np.where(valid, text, pad), np.zeros(5, np.int32), sizes), 3)
        for pad in (0, 7)
    )
    told = likelihoods.summary(first)
    assert told["tokens"] == sizes.sum() and told["rows"] == 5
    assert np.isfinite(told["nats_per_token"]) and np.isfinite(told["mc_error"])
    np.testing.assert_allclose(first.nats, second.nats, rtol=1e-5)
