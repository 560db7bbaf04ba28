import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import MASK, STRINGS, L
from scipy import stats

from mdlm_jax import as_denoiser, nelbo, sample, schedules
from mdlm_jax.diffusion.denoisers import Denoiser, Hidden
from mdlm_jax.diffusion.likelihood import Likelihood
from mdlm_jax.diffusion.strategies import exact_count

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


@pytest.mark.parametrize("steps, begun", [(1, [4]), (2, [4, 2]), (3, [4, 2, 1]), (4, [4, 3, 2, 1])])
def test_a_likelihood_in_steps_agrees_with_enumeration(steps, begun, oracle):
    """`begun`: masks before each step."""
    string = STRINGS[np.argmax(oracle.joint)]
    nats = {masks: [] for masks in range(L + 1)}
    for positions, each in oracle.set_nats(string):
        nats[len(positions)].append(each)
    left = [*begun[1:], 0]
    expected = sum(
        (now - then) * np.mean(nats[now]) / now for now, then in zip(begun, left, strict=True)
    )
    likelihood = jax.jit(
        lambda key: nelbo(
            oracle.denoiser(), key, repeated(string, 4000), mask_id=MASK, draws=4, steps=steps
        )
    )(KEY)
    found = np.asarray(likelihood.nats, np.float64)
    error = found.std(ddof=1) / np.sqrt(4000)
    assert abs(found.mean() - expected) < 4 * error + 1e-5 * expected
    if steps == 1:  # nothing is drawn that matters
        assert error < 1e-6


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_a_likelihood_in_steps_bounds_what_the_sampler_writes(steps, oracle):
    rows = 20_000
    blank = jnp.full((rows, L), MASK)
    written = jax.jit(
        lambda key: sample(
            oracle.denoiser(), key, blank, mask_id=MASK, steps=steps, strategy=exact_count()
        )
    )(KEY)
    counts = np.bincount(np.asarray(written) @ (3 ** np.arange(L - 1, -1, -1)), minlength=81)
    bound = jax.jit(
        lambda key: nelbo(
            oracle.denoiser(), key, jnp.asarray(STRINGS), mask_id=MASK, draws=64, steps=steps
        )
    )(KEY)
    law = counts / rows
    possible = np.isfinite(bound.nats)
    surely = np.exp(-(bound.nats + 5 * np.sqrt(bound.mc_variance))[possible])
    most = (law + 5 * np.sqrt(law.clip(1 / rows) / rows))[possible]
    assert np.all(surely < most) and np.any(surely > 0.5 * most)
    total = np.exp(-np.asarray(bound.nats, np.float64)).sum()
    assert total == pytest.approx(1, abs=1e-5) if steps == 1 else total < 1.01


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


def test_one_draw_and_no_step_are_refused(oracle):
    with pytest.raises(ValueError, match="draws is 1, at least 2"):
        nelbo(oracle.denoiser(), KEY, repeated([0, 0, 0, 0], 2), mask_id=MASK, draws=1)
    with pytest.raises(ValueError, match="steps is 0, it must be at least 1"):
        nelbo(oracle.denoiser(), KEY, repeated(STRINGS[5], 1), mask_id=MASK, steps=0)


def test_two_draws_share_the_slots_of_one(oracle):
    """k and L + 1 - k masks: L + 1 slots, filled up to a multiple of 8, instead of 2 L."""
    width, read = 64, []

    def readout(at, row):
        read.append(at.shape[0])
        return jnp.zeros((at.shape[0], 5)) + at[:, :1]

    denoiser = Denoiser(lambda tokens, t: Hidden(tokens[..., None] * 1.0), readout)
    tokens = jnp.zeros((1, width), jnp.int32)
    for draws, slots in ((8, 72), (6, 64)):  # of 6 there are 3 strata, which have no pairs
        read.clear()
        jax.eval_shape(lambda draws=draws: nelbo(denoiser, KEY, tokens, mask_id=4, draws=draws))
        assert max(read) == slots


def test_pairs_of_draws_have_opposite_counts_and_rows_their_own_conditions():
    """A recording denoiser, told of each row: of two neighbouring evaluations L + 1 masks."""
    seen = []

    def logits(tokens, t):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), tokens, ordered=True)
        own = jnp.arange(3)[:, None, None] == jnp.arange(4)  # row i knows that it is all i
        return jnp.broadcast_to(50.0 * own, (*tokens.shape, 4))

    tokens = jnp.broadcast_to(jnp.arange(3)[:, None], (3, 10))
    likelihood = jax.jit(lambda: nelbo(as_denoiser(logits, 3), KEY, tokens, mask_id=3, draws=8))()
    jax.effects_barrier()
    assert likelihood.nats.max() < 1e-6
    masked = np.array([(each == 3).sum(axis=1) for each in seen])  # [8, 3]
    assert np.all(masked.reshape(4, 2, 3).sum(axis=1) == 11)
    assert np.all(masked >= 1) and len(np.unique(masked[:, 0])) > 2


def test_it_takes_8_draws_by_default(oracle):
    told = jax.jit(lambda: nelbo(oracle.denoiser(), KEY, repeated([0, 1, 0, 2], 3), mask_id=MASK))()
    eight = jax.jit(
        lambda: nelbo(oracle.denoiser(), KEY, repeated([0, 1, 0, 2], 3), mask_id=MASK, draws=8)
    )()
    np.testing.assert_array_equal(told.nats, eight.nats)


def test_the_likelihood_of_nothing_is_nothing(oracle):
    nothing = jax.jit(
        lambda: nelbo(
            oracle.denoiser(), KEY, repeated([0, 0, 0, 0], 2), mask_id=MASK, draws=2,
            maskable=jnp.zeros((2, L), bool),
        )
    )()  # fmt: skip
    assert nothing.nats_per_token == 0 and nothing.mc_error == 0
    assert np.isnan(nothing.text_error) and np.all(nothing.nats == 0)


def test_a_likelihood_is_shown_as_a_sentence():
    told = Likelihood(
        jnp.array([9.0, 11.0, 0.0]), jnp.array([0.02, 0.02, 0.0]), jnp.array([2500, 2500, 0])
    )
    assert repr(told) == (
        "0.004 nats per token +- 4e-05 (masks) +- 0.0004 (text), 5,000 tokens of 2 rows"
    )
    one = Likelihood(np.array([12.5], np.float32), np.zeros(1, np.float32), np.array([3]))
    assert repr(one) == "4.167 nats per token, 3 tokens of 1 row"  # exact, and of no other text


def test_what_cannot_be_read_now_is_shown_as_a_tuple():
    """Within jit, of shapes, and of what a tree's map made of it."""
    told = Likelihood(jnp.ones(2), jnp.ones(2), jnp.ones(2, jnp.int32))
    shown = []
    jax.jit(lambda x: shown.append(repr(x)) or x.nats)(told)
    shown.append(repr(jax.eval_shape(lambda: told)))
    shown.append(repr(jax.tree.map(lambda _: "leaf", told)))
    shown.append(repr(jax.tree.map(lambda x: x[None], told)))
    assert len(shown) == 4
    for each in shown:
        assert each.startswith("Likelihood(nats=") and "nats per token" not in each
    assert str(told) == repr(told) and "per token" in repr(told)


def test_a_single_row_tells_no_error_over_texts():
    """Its residual is not quite 0 where the division rounds."""
    for nats in np.random.default_rng(0).uniform(1, 99, 20).astype(np.float32):
        one = Likelihood(jnp.array([nats]), jnp.ones(1), jnp.array([11]))
        assert np.isnan(one.text_error) and "(text)" not in repr(one)
