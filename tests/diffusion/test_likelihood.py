import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import MASK, STRINGS, L
from scipy import stats

from mdlm_jax import nelbo, schedules
from mdlm_jax.diffusion.likelihood import Likelihood

KEY = jax.random.key(0)


def repeated(string, rows):
    return jnp.broadcast_to(jnp.asarray(string), (rows, L))


@pytest.mark.parametrize("drift", [0.0, 0.5])
def test_nelbo_agrees_with_enumeration_and_its_error_is_right(oracle, drift):
    string = STRINGS[np.argmax(oracle.joint)]
    options = {"schedule": schedules.cosine()} if drift else {}
    expected = oracle.schedule_nelbo(string, options.get("schedule", schedules.linear()), drift)
    likelihood = jax.jit(
        lambda key: nelbo(
            oracle.denoiser(drift), key, repeated(string, 4000), mask_id=MASK, draws=8, **options
        )
    )(KEY)
    nats = np.asarray(likelihood.nats, np.float64)
    assert abs(nats.mean() - expected) < 4 * nats.std(ddof=1) / np.sqrt(4000)  # alarm: 6e-5
    # The rows are independent estimates of one number, so their spread is the error's true size.
    assert likelihood.mc_variance.mean() == pytest.approx(nats.var(ddof=1), rel=0.1)
    assert likelihood.mc_error == pytest.approx(nats.std() / np.sqrt(4000) / L, rel=0.1)


def test_naive_error_of_stratified_draws_is_too_large(oracle):
    """Why the error comes from replicates: the draws' own spread ignores the stratification."""
    string = STRINGS[np.argmax(oracle.joint)]
    draws = 16
    likelihood = jax.jit(
        lambda key: nelbo(oracle.denoiser(), key, repeated(string, 2000), mask_id=MASK, draws=draws)
    )(KEY)
    independent = jax.jit(
        jax.vmap(
            lambda key: nelbo(
                oracle.denoiser(), key, repeated(string, 1), mask_id=MASK, draws=2
            ).nats[0]
        )
    )(jax.random.split(KEY, 4000))
    naive = 2 * independent.var() / draws  # what 16 unstratified draws would have
    assert likelihood.mc_variance.mean() < 0.9 * naive


def test_padding_neither_counts_nor_changes_the_rest(oracle):
    strings = jnp.asarray(STRINGS[[5, 40]])
    maskable = jnp.array([[True, True, True, False], [False] * 4])
    likelihood = jax.jit(
        lambda key: nelbo(oracle.denoiser(), key, strings, mask_id=MASK, draws=4, maskable=maskable)
    )(KEY)
    assert list(likelihood.tokens) == [3, 0]
    assert likelihood.nats[1] == 0
    assert likelihood.nats_per_token == pytest.approx(float(likelihood.nats[0]) / 3)


def test_a_rows_estimate_does_not_depend_on_the_batch(oracle):
    strings = jnp.asarray(STRINGS[oracle.joint > 0][:6])
    run = jax.jit(
        lambda tokens, rows: (
            nelbo(oracle.denoiser(), KEY, tokens, mask_id=MASK, draws=4, rows=rows).nats
        )
    )
    whole = run(strings, jnp.arange(6))
    for row in (0, 3, 5):
        np.testing.assert_allclose(
            run(strings[row : row + 1], jnp.array([row]))[0], whole[row], rtol=1e-6
        )


def test_text_error_covers_the_mean_of_the_texts():
    """Of 95 % intervals from synthetic rows of unequal length, 95 % cover (false alarm: 1e-4)."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(1000):
        tokens = rng.integers(5, 60, size=200)
        nats = tokens * 3.0 + rng.normal(size=200) * np.sqrt(tokens)
        likelihood = Likelihood(jnp.asarray(nats), jnp.zeros(200), jnp.asarray(tokens))
        hits += abs(likelihood.nats_per_token - 3.0) < 1.96 * likelihood.text_error
    low, high = stats.binom.interval(1 - 1e-4, 1000, 0.95)
    assert low - 5 <= hits <= high  # 1.96 is for infinitely many rows


def test_one_draw_is_refused(oracle):
    with pytest.raises(ValueError, match="draws is 1, at least 2"):
        nelbo(oracle.denoiser(), KEY, repeated([0, 0, 0, 0], 2), mask_id=MASK, draws=1)
