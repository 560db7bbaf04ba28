import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import CANVASES, MASK, PLACES, STRINGS, L, V, chi_square_p, make_oracle
from scipy import stats

from mdlm_jax import Denoiser, Hidden, as_denoiser, sample, schedules, strategies

KEY = jax.random.key(0)
ROWS = 20000
ALARM = 1e-4  # false-alarm rate of each chi-square test; seeds are fixed
ALL = {
    "exact_count": strategies.exact_count(),
    "ancestral": strategies.ancestral(),
    "ancestral, cosine": strategies.ancestral(schedules.cosine()),
    "confidence": strategies.confidence(),
}


def string_counts(tokens):
    numbers = np.asarray(tokens) @ (V ** np.arange(L - 1, -1, -1))
    return np.bincount(numbers, minlength=len(STRINGS))


@pytest.fixture(scope="module")
def draw(oracle):
    """One compiled program a strategy, steps and canvas traced; readouts in chunks of 7,000."""
    programs = {
        name: jax.jit(
            lambda canvas, steps, key=KEY, strategy=strategy: sample(
                oracle.denoiser(), key, canvas, mask_id=MASK, steps=steps, strategy=strategy,
                chunk=7000, trace=True,
            )
        )
        for name, strategy in ALL.items()
    }  # fmt: skip

    def run(name, canvas, steps, **options):
        canvas = jnp.broadcast_to(jnp.asarray(canvas), (ROWS, L))
        return programs[name](canvas, steps, **options)

    return run


@pytest.mark.parametrize("canvas", [[MASK] * 4, [MASK, 1, 0, MASK], [MASK, MASK, 2, MASK]])
def test_exact_count_at_a_step_a_token_follows_the_joint(oracle, draw, canvas):
    tokens, _ = draw("exact_count", canvas, L)
    law = oracle.posterior(np.array(canvas))
    assert chi_square_p(string_counts(tokens), law) > ALARM


@pytest.mark.parametrize("name", ["exact_count", "ancestral", "confidence"])
def test_one_step_is_the_product_of_marginals(oracle, draw, name):
    tokens, _ = draw(name, [MASK] * 4, 1)
    marginals = oracle.conditionals[CANVASES[-1] @ PLACES]  # [L, V]
    law = np.prod(marginals[np.arange(L), STRINGS], axis=1)
    assert chi_square_p(string_counts(tokens), law) > ALARM


def two_step_law(oracle, first_sets):
    """The law of two parallel steps: `first_sets` gives each set of positions its probability."""
    law = np.zeros(len(STRINGS))
    marginals = oracle.conditionals[CANVASES[-1] @ PLACES]
    for first, probability in first_sets.items():
        first = np.array(first, bool)
        for i, string in enumerate(STRINGS):
            canvas = np.where(first, string, MASK)
            then = oracle.conditionals[canvas @ PLACES]
            p = np.where(first, marginals[np.arange(L), string], then[np.arange(L), string])
            law[i] += probability * p.prod()
    return law


@pytest.mark.parametrize(
    ("name", "first_rate"),
    [("exact_count", None), ("ancestral", 0.5), ("ancestral, cosine", 1 - np.sin(np.pi / 4))],
)
def test_two_steps_follow_their_own_law(oracle, draw, name, first_rate):
    """Half of the positions exactly, or each alone with (alpha_s - alpha_t) / (1 - alpha_t)."""
    sets = {tuple(bits): 0.0 for bits in np.ndindex(2, 2, 2, 2)}
    for bits in sets:
        k = sum(bits)
        if first_rate is None:
            sets[bits] = (k == 2) / 6
        else:
            sets[bits] = first_rate**k * (1 - first_rate) ** (L - k)
    tokens, _ = draw(name, [MASK] * 4, 2)
    assert chi_square_p(string_counts(tokens), two_step_law(oracle, sets)) > ALARM


@pytest.mark.parametrize("name", ALL)
def test_a_filled_canvas_comes_back_unchanged(draw, name):
    canvas = STRINGS[np.arange(ROWS) % len(STRINGS)]
    tokens, trace = draw(name, canvas, 3)
    assert np.array_equal(tokens, canvas)
    assert np.all(np.asarray(trace.step) == -1)
    assert np.all(np.asarray(trace.log_prob) == 0)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 9])
def test_every_blank_is_filled_and_nothing_else(draw, name, steps):
    canvas = CANVASES[np.arange(ROWS) % len(CANVASES)]
    tokens, trace = draw(name, canvas, steps)
    tokens, step = np.asarray(tokens), np.asarray(trace.step)
    blank = canvas == MASK
    assert np.array_equal(tokens[~blank], canvas[~blank])
    assert np.all(tokens < V)
    assert np.array_equal(step >= 0, blank)
    assert np.all(step < steps)
    if name == "exact_count":  # as evenly as they divide
        for s in range(steps):
            m = blank.sum(axis=1)
            due = m * (steps - s) // steps - m * (steps - 1 - s) // steps
            assert np.array_equal((step == s).sum(axis=1), due)


def test_trace_holds_the_log_probability_at_the_time_of_writing(oracle, draw):
    tokens, trace = draw("exact_count", [MASK] * 4, L)
    tokens, step = np.asarray(tokens)[:50], np.asarray(trace.step)[:50]
    for i in range(50):
        for s in range(L):
            canvas = np.where(step[i] < s, tokens[i], MASK)
            p = oracle.conditionals[canvas @ PLACES][step[i] == s, tokens[i][step[i] == s]]
            np.testing.assert_allclose(
                np.asarray(trace.log_prob)[i][step[i] == s], np.log(p), rtol=1e-4
            )


def test_confidence_without_noise_keeps_the_surest():
    """Position j is uniform over n_j tokens: whatever is drawn, log p = -log n_j ranks it."""
    choices = jnp.array([4, 1, 3, 2])
    logits = jnp.where(jnp.arange(5) < choices[:, None], 0.0, -jnp.inf)  # [4, 5]
    denoiser = as_denoiser(lambda tokens, t: jnp.broadcast_to(logits, (*tokens.shape, 5)), 4)
    _, trace = jax.jit(
        lambda key: sample(
            denoiser, key, jnp.full((50, 4), 4), mask_id=4, steps=4, trace=True,
            strategy=strategies.confidence(temperature=0),
        )
    )(KEY)  # fmt: skip
    # cos(pi/8, pi/4, 3pi/8) leaves 3, 2, 1 of four blanks: one token a step.
    assert np.array_equal(trace.step, [[3, 0, 2, 1]] * 50)
    np.testing.assert_allclose(trace.log_prob[0], -np.log([4, 1, 3, 2]), atol=1e-6)


def test_a_rows_tokens_do_not_depend_on_the_other_rows(oracle):
    canvas = jnp.full((6, L), MASK)
    others = jnp.asarray(STRINGS[:6]).at[2].set(MASK)
    rows = jnp.array([5, 1, 0, 3, 2, 4])
    for strategy in ALL.values():
        run = jax.jit(
            lambda canvas, rows, strategy=strategy: sample(
                oracle.denoiser(), KEY, canvas, mask_id=MASK, steps=3, strategy=strategy, rows=rows
            )
        )
        whole = run(canvas, jnp.arange(6))
        assert len(np.unique(whole, axis=0)) > 1
        assert np.array_equal(run(canvas, rows), whole[rows])
        assert np.array_equal(run(others, rows)[2], whole[0])


def test_padding_stays_and_the_time_is_the_share_of_blanks_among_the_text():
    """A denoiser that answers 0 where it is told the rate 3/3, 2/3, 1/3 of the maskable, else 1."""

    def logits(tokens, t):
        right = jnp.min(jnp.abs(t[:, None] * 3 - jnp.array([3.0, 2.0, 1.0])), axis=1) < 1e-5
        token = jnp.where(right, 0, 1)[:, None]
        return 50.0 * jax.nn.one_hot(jnp.broadcast_to(token, tokens.shape), 4)

    canvas = jnp.full((2, 5), MASK)
    maskable = jnp.array([True, True, True, False, False])
    tokens = jax.jit(
        lambda key: sample(
            as_denoiser(logits, MASK), key, canvas, mask_id=MASK, steps=3,
            strategy=strategies.exact_count(), maskable=jnp.broadcast_to(maskable, (2, 5)),
        )
    )(KEY)  # fmt: skip
    assert np.array_equal(tokens, [[0, 0, 0, MASK, MASK]] * 2)


def test_masks_that_are_not_wanted_stay_and_count_as_unknown_text():
    """A denoiser that answers 0 where it is told the share of masks it sees, else 1."""

    def logits(tokens, t):
        right = jnp.abs(t - (tokens == MASK).mean(axis=1)) < 1e-5
        token = jnp.where(right, 0, 1)[:, None]
        return 50.0 * jax.nn.one_hot(jnp.broadcast_to(token, tokens.shape), 4)

    canvas = jnp.full((2, 5), MASK).at[:, 1].set(2)
    fill = jnp.broadcast_to(jnp.array([True, True, True, False, False]), (2, 5))
    tokens = jax.jit(
        lambda key: sample(
            as_denoiser(logits, MASK), key, canvas, mask_id=MASK, steps=2,
            strategy=strategies.exact_count(), fill=fill,
        )
    )(KEY)  # fmt: skip
    assert np.array_equal(tokens, [[0, 2, 0, MASK, MASK]] * 2)


@pytest.mark.parametrize(
    ("name", "readouts"),
    [("exact_count", 16), ("ancestral", 16), ("confidence", 2 * (8 + 7 + 5 + 3))],
)
def test_only_the_positions_asked_for_are_read_out(name, readouts):
    """2 rows of 8 blanks in 4 steps, in chunks of one: each readout is one position.

    MaskGIT's cosine leaves 7, 5, 3 and 0 of 8 blanks, and reads out all that are left each time.
    """
    seen = []

    def readout(at, row):
        jax.debug.callback(lambda x: seen.append(len(x)), at)
        return jnp.zeros((len(at), 5))

    denoiser = Denoiser(lambda tokens, t: Hidden(at=jnp.zeros(tokens.shape)), readout)
    tokens = jax.jit(
        lambda key: sample(
            denoiser, key, jnp.full((2, 8), 4), mask_id=4, steps=4, strategy=ALL[name], chunk=1
        )
    )(KEY)
    jax.block_until_ready(tokens)
    jax.effects_barrier()
    assert sum(seen) == readouts


def test_tail_tokens_of_a_large_vocabulary_come_at_their_rate():
    """V = 50,000: one token has 0.9, the others 2e-6 each.

    Of 2,000 draws 200 +- 13 are from the tail (4.5 sigma: false alarm 7e-6), spread evenly over it.
    """
    vocab, draws = 50_000, 2000
    logits = np.full(vocab + 1, np.log(0.1 / (vocab - 1)), np.float32)
    logits[0] = np.log(0.9)

    def readout(at, row):
        return jnp.broadcast_to(jnp.asarray(logits), (len(at), vocab + 1))

    denoiser = Denoiser(lambda tokens, t: Hidden(at=jnp.zeros(tokens.shape)), readout)
    tokens = jax.jit(
        lambda key: sample(
            denoiser, key, jnp.full((20, draws // 20), vocab), mask_id=vocab, steps=1,
            strategy=strategies.ancestral(),
        )
    )(KEY)  # fmt: skip
    tail = np.asarray(tokens)[np.asarray(tokens) > 0]
    assert abs(len(tail) - 0.1 * draws) < 4.5 * np.sqrt(draws * 0.1 * 0.9)
    assert stats.chisquare(np.bincount(tail * 10 // vocab, minlength=10)).pvalue > ALARM


@settings(max_examples=15)
@given(st.integers(0, 2**31 - 1), st.integers(1, 12), st.sampled_from(sorted(ALL)))
def test_any_canvas_any_steps(seed, steps, name):
    canvas = CANVASES[np.random.default_rng(seed).integers(len(CANVASES), size=8)]
    tokens = np.asarray(PROGRAMS[name](jax.random.key(seed), canvas, steps))
    assert np.array_equal(np.where(canvas == MASK, tokens, canvas), tokens)
    assert tokens.max() < V


PROGRAMS = {
    name: jax.jit(
        lambda key, canvas, steps, strategy=strategy: sample(
            make_oracle(1).denoiser(), key, canvas, mask_id=MASK, steps=steps, strategy=strategy
        )
    )
    for name, strategy in ALL.items()
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"canvas": jnp.zeros((2, 4))}, r"integers \[B, L\], not float32\[2, 4\]"),
        ({"maskable": jnp.ones((2, 3), bool)}, r"maskable has shape \(2, 3\)"),
        ({"fill": jnp.ones(4, bool)}, r"fill has shape \(4,\), the canvas \(2, 4\)"),
    ],
)
def test_bad_input_is_named(oracle, change, message):
    arguments = {"canvas": jnp.full((2, L), MASK), "steps": 2} | change
    with pytest.raises(ValueError, match=message):
        sample(oracle.denoiser(), KEY, mask_id=MASK, strategy=strategies.exact_count(), **arguments)


def test_bad_temperature_is_named():
    with pytest.raises(ValueError, match="temperature is -1"):
        strategies.confidence(temperature=-1)
