"""Draws in two stages against the softmax, and scores against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mdlm_jax import as_denoiser
from mdlm_jax.diffusion.reading.draws import distribution, draw, entropy, margin, probability
from mdlm_jax.diffusion.reading.readouts import draw_tokens

DRAWS = 20_000


def random_logits(seed, rows, size):
    """Logits over three orders of magnitude, some impossible, at least two possible."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (rows, size)).astype(np.float32)
    logits[:, 2:][rng.random((rows, size - 2)) < 0.2] = -np.inf
    return logits


@pytest.mark.parametrize("noise", [1.0, 0.5])
@pytest.mark.parametrize("size", [5, 128, 300])
def test_draws_follow_the_softmax(size, noise):
    """Chi-square, false alarms 1e-3 each."""
    logits = random_logits(size, 1, size)
    keys = jax.random.split(jax.random.key(size), DRAWS)
    of = jax.tree.map(lambda x: jnp.repeat(x, DRAWS, axis=0), distribution(jnp.asarray(logits)))
    drawn = np.bincount(jax.jit(draw)(keys, of, noise), minlength=size)
    p = np.exp((logits[0] - logits.max()) / noise).astype(np.float64)
    expected = DRAWS * p / p.sum()
    assert drawn[expected == 0].sum() == 0
    common = expected > 5
    rest = DRAWS - drawn[common].sum(), DRAWS - expected[common].sum()
    observed = [*drawn[common], *([rest[0]] if rest[1] > 1 else [])]
    wanted = [*expected[common], *([rest[1]] if rest[1] > 1 else [])]
    wanted = np.array(wanted) * np.sum(observed) / np.sum(wanted)
    assert stats.chisquare(observed, wanted).pvalue > 1e-3


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.sampled_from([2, 127, 128, 129, 300]))
def test_without_noise_the_first_of_the_most_likely(seed, size):
    logits = np.round(random_logits(seed, 4, size))  # with ties
    keys = jax.random.split(jax.random.key(0), 4)
    for noise in (0.0, jnp.float32(0.0)):  # a number, and what may be traced
        got = draw(keys, distribution(jnp.asarray(logits)), noise)
        np.testing.assert_array_equal(got, logits.argmax(axis=-1))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.sampled_from([2, 127, 128, 129, 300]))
def test_scores_are_their_formulas(seed, size):
    logits = random_logits(seed, 4, size)
    tokens = jnp.asarray(np.random.default_rng(seed).integers(0, 2, 4), jnp.int32)
    log_p = jax.nn.log_softmax(jnp.asarray(logits), axis=-1)
    p = np.sort(np.exp(np.asarray(log_p, np.float64)), axis=-1)
    of = distribution(jnp.asarray(logits))
    close = {"rtol": 1e-4, "atol": 1e-6}
    np.testing.assert_allclose(probability(of, tokens), log_p[np.arange(4), tokens], **close)
    np.testing.assert_allclose(margin(of, tokens), p[:, -1] - p[:, -2], **close)
    expected = -stats.entropy(p, axis=-1)
    np.testing.assert_allclose(entropy(of, tokens), expected, rtol=1e-4, atol=1e-5)


def test_equal_best_tokens_have_no_margin():
    logits = jnp.zeros((1, 300)).at[0, 1].set(5.0).at[0, 299].set(5.0)
    assert margin(distribution(logits), jnp.zeros(1, jnp.int32))[0] == 0.0


def test_devices_with_less_to_read_wait_for_those_with_more(monkeypatch):
    """Each compacts its own rows; with two groups of rows as with one, and in chunks of two."""
    table = jax.random.normal(jax.random.key(0), (4, 7, 5))
    denoiser = as_denoiser(lambda tokens, t: table, 4)
    asked = jnp.arange(7) < jnp.array([1, 0, 7, 5])[:, None]
    canvas = jnp.where(asked, 4, 1)
    hidden = denoiser.encode(canvas, jnp.ones(4))

    def drawn(chunk):
        keys = jax.random.split(jax.random.key(1), 4)
        return draw_tokens(denoiser, hidden, canvas, asked, keys, mask_id=4, chunk=chunk)

    whole = drawn(28)
    two = jax.sharding.AbstractMesh((2,), ("data",))
    monkeypatch.setattr(jax.sharding, "get_abstract_mesh", lambda: two)
    parts = drawn(2)
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(np.where(asked, one, 0), np.where(asked, other, 0), rtol=1e-6)


def test_a_position_is_blank_whatever_the_canvas_holds_there():
    """As where noise is other than masks: what stands at a blank is drawn anew, else scored."""
    table = jax.random.normal(jax.random.key(0), (2, 3, 5))
    denoiser = as_denoiser(lambda tokens, t: table, 4)
    canvas = jnp.array([[1, 1, 1], [2, 4, 2]])
    blank = jnp.array([[True, False, True], [False, True, False]])
    hidden = denoiser.encode(canvas, jnp.ones(2))
    keys = jax.random.split(jax.random.key(1), 2)
    asked = jnp.ones((2, 3), bool)
    drawn = draw_tokens(
        denoiser, hidden, canvas, asked, keys, mask_id=4, chunk=6, blank=blank, noise=0.0
    )
    best = jnp.argmax(table.at[..., 4].set(-jnp.inf), axis=-1)
    np.testing.assert_array_equal(drawn.tokens, jnp.where(blank, best, canvas))
