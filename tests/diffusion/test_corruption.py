from fractions import Fraction
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mdlm_jax import corrupt, corrupt_mlm, schedules
from mdlm_jax.diffusion.processes.masks import bounded_counts, exact_counts, share_counts

MASK = 9
KEY = jax.random.key(0)
# Statistical tests: each p-value below is uniform if the code is right, so a false alarm has
# probability 1e-4 a test; seeds are fixed.
ALARM = 1e-4


def tokens_of(batch, width, seed=0):
    return jax.random.randint(jax.random.key(seed), (batch, width), 0, MASK)


@pytest.mark.parametrize("side", [0, 1])
def test_each_rows_count_is_uniform_given_the_row(side):
    """Over keys, not over rows: a row tied to its stratum would fail."""
    keys = jax.random.split(KEY, 8000)
    corrupted = jax.jit(
        jax.vmap(lambda key: corrupt(key, tokens_of(6, 5), mask_id=MASK).rate[2 + side])
    )(keys)
    counts = np.bincount(np.rint(np.asarray(corrupted) * 5).astype(int), minlength=6)
    assert counts[0] == 0
    assert stats.chisquare(counts[1:]).pvalue > ALARM


def test_the_masked_set_is_uniform_given_its_size_and_the_time_has_its_beta_law():
    tokens = jnp.zeros((20000, 4), jnp.int32)
    corrupted = jax.jit(lambda key: corrupt(key, tokens, mask_id=MASK))(KEY)
    masked = np.asarray(corrupted.canvas == MASK)
    count = masked.sum(axis=1)
    for k in (1, 2, 3):
        sets = masked[count == k] @ (2 ** np.arange(4))
        sizes = np.unique(sets, return_counts=True)[1]
        assert len(sizes) == [0, 4, 6, 4][k]
        assert stats.chisquare(sizes).pvalue > ALARM
    for k in (1, 2, 4):
        t = np.asarray(corrupted.t)[count == k]
        assert stats.kstest(t, stats.beta(k, 5 - k).cdf).pvalue > ALARM
    # ... independently of which set it is.
    first = masked[count == 2][:, 0]
    t = np.asarray(corrupted.t)[count == 2]
    assert stats.ks_2samp(t[first], t[~first]).pvalue > ALARM


@pytest.mark.parametrize("side", [0, 1])
def test_a_bound_on_the_rate_leaves_the_count_uniform_below_it(side):
    rate = np.float32(0.55)  # of 5 tokens: at most ceil(2.75) = 3
    keys = jax.random.split(KEY, 6000)
    counts = jax.jit(
        jax.vmap(
            lambda key, rate: corrupt(key, tokens_of(6, 5), mask_id=MASK, max_rate=rate).rate,
            in_axes=(0, None),
        )
    )(keys, rate)[:, 2 + side]
    counts = np.bincount(np.rint(np.asarray(counts) * 5).astype(int), minlength=6)
    assert counts[0] == 0 and not counts[4:].any()
    assert stats.chisquare(counts[1:4]).pvalue > ALARM


@settings(max_examples=30)
@given(
    st.integers(0, 2**31 - 1),
    st.integers(1, 64).map(lambda n: n / 64),
    st.lists(st.integers(0, 12), min_size=8, max_size=8),
)
def test_a_bound_on_the_rate_keeps_pairs_in_their_slots(seed, rate, lengths):
    lengths = np.array(lengths)
    maskable = np.arange(12) < lengths[:, None]
    out = bounded(jax.random.key(seed), maskable, np.float32(rate))
    counts = np.asarray(out.canvas == MASK).sum(axis=1)
    most = np.clip(np.ceil(np.float32(rate) * lengths.astype(np.float32)), 1, None)
    assert np.all(np.where(lengths > 0, (counts >= 1) & (counts <= most), counts == 0))
    pairs = lambda x: x.reshape(-1, 2)  # noqa: E731
    assert np.all(pairs(counts).sum(axis=1) <= pairs(np.minimum(most, lengths)).max(axis=1) + 1)
    assert np.sum(np.asarray(out.weights) > 0) == counts.sum()  # none dropped
    if lengths.any():
        np.testing.assert_allclose(np.asarray(out.weights).sum(), 1.0, rtol=1e-5)


def test_a_bound_of_1_is_none():
    maskable = np.arange(12) < np.array([12, 0, 7, 1, 5, 5, 11, 3])[:, None]
    plain = jax.jit(
        lambda key: corrupt(key, tokens_of(8, 12), mask_id=MASK, maskable=maskable, paired=True)
    )(KEY)
    jax.tree.map(np.testing.assert_array_equal, bounded(KEY, maskable, np.float32(1)), plain)


@jax.jit
def bounded(key, maskable, rate):
    tokens = tokens_of(8, 12)
    return corrupt(key, tokens, mask_id=MASK, maskable=maskable, max_rate=rate, paired=True)


@settings(max_examples=40)
@given(
    st.integers(0, 2**31 - 1),
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300)), min_size=1, max_size=20),
)
def test_pairs_fit_their_slots(seed, lengths):
    lengths = np.array(lengths)
    drawn = np.random.default_rng(seed).integers(2**24, size=len(lengths)) * np.float32(2.0**-24)
    for u in (drawn, np.zeros_like(drawn), np.full_like(drawn, 1 - 2.0**-24)):
        first = np.asarray(exact_counts(u, lengths[:, 0], np.zeros(len(u), int)))
        second = np.asarray(exact_counts(u, lengths[:, 1], np.ones(len(u), int)))
        for count, length in ((first, lengths[:, 0]), (second, lengths[:, 1])):
            assert np.all(np.where(length > 0, (count >= 1) & (count <= length), count == 0))
        assert np.all(first + second <= lengths.max(axis=1) + 1)


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize(
    ("corruption", "width"),
    [("exact", 7), ("exact", 2), ("bernoulli", 7)],  # of 2, half the pairs mask a whole row
)
def test_slots_hold_exactly_what_is_masked(paired, corruption, width):
    if paired and corruption == "bernoulli":
        with pytest.raises(ValueError, match="paired rows need exact counts"):
            corrupt(KEY, tokens_of(2, 4), mask_id=MASK, corruption=corruption, paired=True)
        return
    batch = 16
    tokens = tokens_of(batch, width)
    maskable = jax.random.bernoulli(jax.random.key(1), 0.7, (batch, width)).at[3].set(False)
    out = jax.jit(
        lambda key: corrupt(
            key, tokens, mask_id=MASK, maskable=maskable, corruption=corruption, paired=paired
        )
    )(KEY)
    masked = np.asarray(out.canvas == MASK)
    assert not np.any(masked & ~np.asarray(maskable))
    assert np.all(np.where(masked, MASK, tokens) == out.canvas)
    group = batch // out.positions.shape[0]
    assert out.positions.shape == (batch // group, width + 1 if paired else width)
    filled = np.asarray(out.weights) > 0
    for g in range(batch // group):
        positions = np.asarray(out.positions)[g][filled[g]]
        expected = np.flatnonzero(masked[group * g : group * (g + 1)].reshape(-1))
        assert sorted(positions) == list(expected)  # each once, none dropped
        flat = np.asarray(tokens)[group * g : group * (g + 1)].reshape(-1)
        assert np.all(np.asarray(out.targets)[g][filled[g]] == flat[positions])
    length = np.asarray(maskable).sum(axis=1)
    np.testing.assert_allclose(out.rate, masked.sum(axis=1) / np.maximum(length, 1), rtol=1e-6)
    if corruption == "exact":  # each row's weights sum to its share of the maskable tokens
        np.testing.assert_allclose(np.asarray(out.weights).sum(), 1.0, rtol=1e-5)


def test_noise_is_a_function_of_key_and_row():
    tokens = tokens_of(12, 6)
    whole = jax.jit(lambda: corrupt(KEY, tokens, mask_id=MASK))()
    for rows, slots in (([3], (1, 6)), ([4, 5, 6, 7], (2, 7)), ([11, 0, 5, 4], (4, 6))):
        rows = np.array(rows)
        part = jax.jit(lambda rows=rows: corrupt(KEY, tokens[rows], mask_id=MASK, rows=rows))()
        assert np.array_equal(part.canvas, whole.canvas[rows])
        assert np.array_equal(part.t, whole.t[rows])
        assert part.positions.shape == slots  # rows that are not neighbours have their own slots


def test_bernoulli_masks_each_token_alone_at_its_rate():
    tokens = jnp.zeros((20000, 3), jnp.int32)
    out = jax.jit(
        lambda key: corrupt(
            key, tokens, mask_id=MASK, corruption="bernoulli", schedule=schedules.polynomial(2)
        )
    )(KEY)
    masked = np.asarray(out.canvas == MASK)
    t = np.asarray(out.t)
    assert stats.kstest(t, "uniform").pvalue > ALARM
    for low in (0.2, 0.6):
        inside = (t >= low) & (t < low + 0.2)
        expected = np.array([np.mean(t[inside] ** 2**p) for p in range(3)])
        assert abs(masked[inside].mean() - expected[1]) < 4.5 / np.sqrt(3 * inside.sum())
        both = (masked[inside, 0] & masked[inside, 1]).mean()
        assert abs(both - expected[2]) < 4.5 / np.sqrt(inside.sum())


def test_mlm_selects_its_share_and_replaces_in_three_ways():
    tokens = jnp.full((4000, 20), 2, jnp.int32)
    out = jax.jit(lambda key: corrupt_mlm(key, tokens, mask_id=MASK, vocab_size=12))(KEY)
    assert out.positions.shape == (4000, 3)
    assert np.all(np.asarray(out.weights) > 0)
    np.testing.assert_allclose(np.asarray(out.weights).sum(), 1.0, rtol=1e-5)
    canvas = np.take_along_axis(np.asarray(out.canvas), np.asarray(out.positions), axis=1)
    law = np.full(12, 0.1 / 11)
    law[MASK], law[2] = 0.8, 0.1 + 0.1 / 11
    assert stats.chisquare(np.bincount(canvas.ravel(), minlength=12), law * 12000).pvalue > ALARM
    assert (np.asarray(out.canvas) != 2).sum() == (canvas != 2).sum()


# 28.5 and 10.5 tokens: float32 and float64 round their products to other sides; 10 tokens have 2
# masks, one more than 9 have.
@pytest.mark.parametrize(("width", "rate"), [(190, 0.15), (30, 0.35), (10, 0.15)])
def test_mlm_has_room_for_all_that_it_selects(width, rate):
    out = jax.jit(
        lambda key: corrupt_mlm(
            key, tokens_of(2, width), mask_id=MASK, vocab_size=10, rate=rate, mask_share=1.0,
            random_share=0.0,
        )
    )(KEY)  # fmt: skip
    masked = np.asarray(out.canvas == MASK).sum(axis=1)
    assert list(masked) == [round(Fraction(str(rate)) * width)] * 2
    np.testing.assert_allclose(np.asarray(out.weights).sum(), 1.0, rtol=1e-6)


@settings(max_examples=60)
@given(st.integers(1, 1000), st.sampled_from([100, 1000, 64, 7]), st.integers(1, 400))
def test_counts_of_a_rate_are_exact(part, of, width):
    rate = Fraction(min(part, of), of)
    lengths = np.arange(width + 1)
    most = np.asarray(most_of(np.float32(float(rate)), np.arange(401)))[: width + 1]
    assert most.tolist() == [0, *(max(1, -(-rate * n // 1)) for n in range(1, width + 1))]
    counts = share_counts(float(rate), width)
    expected = rate * lengths
    assert np.all((abs(counts - expected) <= 0.5 + 1e-9) | (counts == 1))
    assert counts[0] == 0 and counts[1:].min() == 1 and counts[-1] == counts.max()
    if of != 7:  # no decimal fraction
        assert counts[1:].tolist() == [max(1, round(rate * int(n))) for n in lengths[1:]]


most_of = jax.jit(bounded_counts)


def test_a_bound_on_the_rate_holds_in_long_rows_too():
    lengths = np.array([1, 100, 8192, 131_072, 2**21 - 1])
    most = np.asarray(most_of(np.float32(0.15), lengths))
    assert most.tolist() == [1, 15, 1229, 19661, 314573]
    assert np.array_equal(most_of(np.float32(1), lengths), lengths)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_a_row_without_anything_to_mask_is_at_the_last_time(name):
    maskable = jnp.ones((2, 3), bool).at[1].set(False)
    tokens, schedule = tokens_of(2, 3), getattr(schedules, name)()
    out = jax.jit(
        lambda key: corrupt(key, tokens, mask_id=MASK, maskable=maskable, schedule=schedule)
    )(KEY)
    assert 0 < out.t[0] <= 1 and out.t[1] == pytest.approx(1.0, abs=1e-3)
    assert out.rate[1] == 0


def test_mlm_selects_at_least_one_and_none_from_an_empty_row():
    tokens = tokens_of(3, 8)
    maskable = jnp.ones((3, 8), bool).at[1].set(False).at[2, 1:].set(False)
    out = corrupt_mlm(
        KEY,
        tokens,
        mask_id=MASK,
        vocab_size=10,
        maskable=maskable,
        rate=0.05,
        mask_share=1.0,
        random_share=0.0,
    )
    assert list((np.asarray(out.canvas) == MASK).sum(axis=1)) == [1, 0, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"corruption": "exakt"}, "'exakt'.*'exact' or 'bernoulli'"),
        ({"max_rate": 0.0}, r"max_rate is 0.0, it must be in \(0, 1\]"),
        ({"max_rate": 1.5}, "max_rate is 1.5"),
        ({"max_rate": 0.5, "corruption": "bernoulli"}, "max_rate bounds exact counts"),
        ({"maskable": jnp.ones((2, 3), bool)}, r"maskable has shape \(2, 3\)"),
        ({"rows": jnp.arange(3)}, r"rows has shape \(3,\)"),
        ({"tokens": jnp.zeros((2, 4))}, r"integers \[B, L\], not float32\[2, 4\]"),
    ],
)  # fmt: skip
def test_bad_input_is_named(change, message):
    arguments = {"tokens": tokens_of(2, 4), "mask_id": MASK} | change
    with pytest.raises(ValueError, match=message):
        corrupt(KEY, **arguments)


def test_the_mask_is_never_masked():
    """A mask among the tokens: refused where it is seen to be maskable, else left out."""
    tokens = tokens_of(2, 6).at[1, 4].set(MASK)
    every = jnp.ones((2, 6), bool)
    for draw in (corrupt, partial(corrupt_mlm, vocab_size=10)):
        with pytest.raises(ValueError, match=r"the mask, 9, .*\(row 1, position 4\)"):
            draw(KEY, tokens, mask_id=MASK, maskable=every)
        default = jax.jit(lambda draw=draw: draw(KEY, tokens, mask_id=MASK))()
        traced = jax.jit(
            lambda maskable, draw=draw: draw(KEY, tokens, mask_id=MASK, maskable=maskable)
        )(every)
        jax.tree.map(np.testing.assert_array_equal, traced, default)
        with pytest.raises(ValueError, match="mask_id is -1"):
            draw(KEY, tokens, mask_id=-1)
    with pytest.raises(ValueError, match="mask_id is 9, it must be below vocab_size, 9"):
        corrupt_mlm(KEY, tokens, mask_id=MASK, vocab_size=9)
