"""The chain rule: exact with the true conditionals, and nothing of the future is seen."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks.tiny import BASE, params_of
from oracle import MASK, PLACES, STRINGS, L, V, chi_square_p

from mdlm_jax import (
    as_denoiser,
    causal_denoiser,
    causal_likelihood,
    corrupt_causal,
    corrupted_loss,
    sample,
    strategies,
)
from mdlm_jax.diffusion.objectives import slot_nats
from mdlm_jax.networks import bert

START = 0


def chain(oracle):
    """`p(x_i | x_1, ..., x_{i-1})` of the oracle, from a canvas that is the text one later."""
    table = jnp.asarray(oracle.conditionals, jnp.float32)

    def logits(canvas, t):
        def at(i):
            known = jnp.where(jnp.arange(L) < i, jnp.roll(canvas, -1, axis=1), MASK)
            return jnp.log(table[known @ jnp.asarray(PLACES)][:, i])

        own = jnp.stack([at(i) for i in range(L)], axis=1)
        return jnp.pad(own, ((0, 0), (0, 0), (0, 1)), constant_values=-jnp.inf)  # the mask's

    return as_denoiser(logits)


def test_true_conditionals_give_the_exact_log_probability_of_every_string(oracle):
    likelihood = jax.jit(lambda tokens: causal_likelihood(chain(oracle), tokens, start_id=START))(
        jnp.asarray(STRINGS)
    )
    with np.errstate(divide="ignore"):
        expected = -np.log(oracle.joint)
    np.testing.assert_allclose(likelihood.nats, expected, rtol=2e-5)
    assert likelihood.mc_error == 0 and np.all(likelihood.tokens == L)


def test_a_causal_network_writes_its_own_law_left_to_right(oracle):
    """Behind a prompt, too; what follows a blank is not seen. False alarms: 1e-4 a law."""
    rows = 8000
    canvases = np.array([[MASK] * L, [1, MASK, MASK, MASK]])
    tokens = jax.jit(
        lambda key: sample(
            causal_denoiser(chain(oracle), start_id=START), key,
            jnp.repeat(canvases, rows, axis=0), mask_id=MASK, steps=L,
            strategy=strategies.left_to_right(), chunk=2 * rows,
        )
    )(jax.random.key(0))  # fmt: skip
    for canvas, drawn in zip(canvases, np.asarray(tokens).reshape(2, rows, L), strict=True):
        counts = np.bincount(drawn @ V ** np.arange(L - 1, -1, -1), minlength=len(STRINGS))
        assert chi_square_p(counts, oracle.posterior(canvas)) > 1e-4


def test_a_part_that_counts_is_conditioned_on_all_before_it(oracle):
    """Tokens that may not be predicted are a prompt: `-log p(x_3, x_4 | x_1, x_2)`."""
    maskable = jnp.broadcast_to(jnp.arange(L) >= 2, STRINGS.shape)
    likelihood = jax.jit(
        lambda tokens: causal_likelihood(chain(oracle), tokens, start_id=START, maskable=maskable)
    )(jnp.asarray(STRINGS))
    prompt = np.array(
        [oracle.joint[np.all(STRINGS[:, :2] == s[:2], axis=1)].sum() for s in STRINGS]
    )
    possible = oracle.joint > 0
    expected = -np.log(oracle.joint[possible] / prompt[possible])
    np.testing.assert_allclose(likelihood.nats[possible], expected, rtol=2e-5)
    assert np.all(likelihood.tokens == 2)


def test_the_loss_is_the_mean_over_all_tokens_that_count():
    tokens = jnp.asarray([[4, 5, 6], [7, 8, 9]])
    maskable = jnp.asarray([[True, True, True], [True, False, False]])
    corrupted = corrupt_causal(tokens, start_id=2, maskable=maskable)
    assert corrupted.canvas.tolist() == [[2, 4, 5], [2, 7, 8]]

    def uniform(canvas, t):
        return jnp.zeros((*canvas.shape, 11))

    loss, aux = corrupted_loss(as_denoiser(uniform), corrupted)
    assert loss == pytest.approx(np.log(11), rel=1e-6)
    assert aux.masked.sum() == 4
    one = corrupt_causal(tokens, start_id=2, maskable=maskable & (tokens == 7))
    assert corrupted_loss(as_denoiser(uniform), one)[0] == pytest.approx(np.log(11), rel=1e-6)


CAUSAL = dataclasses.replace(BASE, attention="causal", scan=False)


@functools.partial(jax.jit, static_argnums=0)
def token_nats(config, tokens, valid):
    denoiser = bert.denoiser(params_of(config), config, valid=valid)
    corrupted = corrupt_causal(tokens, start_id=2, maskable=valid)
    return slot_nats(denoiser, corrupted, mask_id=None).nats


TEXT = np.int32([[5, 1, 7, 2, 9, 11, 4, 6]])
EVERYWHERE = np.ones(TEXT.shape, bool)


@settings(max_examples=20)
@given(place=st.integers(0, 7), token=st.sampled_from([0, 8, 10, 12]))
def test_no_token_is_told_itself_or_what_follows(place, token):
    changed = TEXT.copy()
    changed[0, place] = token
    before, after = (token_nats(CAUSAL, tokens, EVERYWHERE)[0] for tokens in (TEXT, changed))
    np.testing.assert_array_equal(before[:place], after[:place])
    assert np.all(np.abs(before - after)[place:] > 1e-6)  # its own target, and all that see it


def test_an_encoder_that_is_not_causal_would_be_told():
    changed = TEXT.copy()
    changed[0, 6] = 0
    full = dataclasses.replace(CAUSAL, attention="full")
    before, after = (token_nats(full, tokens, EVERYWHERE)[0] for tokens in (TEXT, changed))
    assert np.all(np.abs(before - after)[:6] > 1e-6)


def test_padding_neither_counts_nor_changes_the_rest():
    valid = np.arange(8)[None] < 5
    first, second = (
        token_nats(CAUSAL, np.where(valid, TEXT, filler), valid)[0] for filler in (0, 7)
    )
    np.testing.assert_array_equal(first, second)
    assert np.all(first[5:] == 0)
    np.testing.assert_allclose(first[:5], token_nats(CAUSAL, TEXT, EVERYWHERE)[0, :5], rtol=1e-5)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="must be integers"):
        corrupt_causal(jnp.zeros((2, 3)), start_id=0)
    with pytest.raises(ValueError, match="maskable has shape"):
        corrupt_causal(jnp.zeros((2, 3), jnp.int32), start_id=0, maskable=jnp.ones((2, 2), bool))


def test_a_causal_denoiser_is_equal_by_value(oracle):
    own = chain(oracle)
    assert causal_denoiser(own, start_id=0) == causal_denoiser(own, start_id=0)
    assert causal_denoiser(own, start_id=0) != causal_denoiser(own, start_id=1)


def test_a_causal_denoiser_is_given_the_time_of_its_training():
    times = as_denoiser(lambda tokens, t: jnp.broadcast_to(t[:, None, None], (*tokens.shape, 4)))
    own = causal_denoiser(times, start_id=0)
    hidden = own.encode(jnp.zeros((2, 3), jnp.int32), jnp.array([0.2, 0.7]))
    np.testing.assert_array_equal(hidden.at, 1.0)
