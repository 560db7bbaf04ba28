import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mdlm_jax import data
from mdlm_jax.evaluation.samples import text_metrics


def rows_of(tokens, sizes=None):
    tokens = np.array(tokens, np.int32)
    sizes = None if sizes is None else np.array(sizes)
    return data.Rows(tokens, np.zeros(len(tokens), np.int32), sizes)


@st.composite
def rows(draw):
    """Rows of few different tokens, half of them padded."""
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 9)))
    tokens = draw(hnp.arrays(np.int32, shape, elements=st.integers(0, 3)))
    width = st.integers(1, shape[1])
    sizes = st.lists(width, min_size=shape[0], max_size=shape[0])
    return rows_of(tokens, draw(st.none() | sizes))


def texts(rows):
    """The rows without their padding, as tuples."""
    sizes = itertools.repeat(None) if rows.sizes is None else rows.sizes
    return [tuple(row[:size].tolist()) for row, size in zip(rows.tokens, sizes, strict=False)]


def ngrams_of(text, n):
    return [text[i : i + n] for i in range(len(text) - n + 1)]


def test_entropy_by_hand():
    entropy = text_metrics.unigram_entropy(rows_of([[0, 0, 1, 1], [2, 2, 2, 2], [0, 1, 2, 3]]))
    np.testing.assert_allclose(entropy, [math.log(2), 0, math.log(4)])
    assert not np.signbit(entropy).any()


def test_distinct_by_hand():
    # unigrams: {0, 1, 2} of 6; bigrams: 01 10, 01 12: {01, 10, 12} of 4, none across the rows.
    pair = rows_of([[0, 1, 0], [0, 1, 2]])
    assert text_metrics.distinct(pair, 1) == pytest.approx(3 / 6)
    assert text_metrics.distinct(pair, 2) == pytest.approx(3 / 4)
    assert text_metrics.distinct(pair, 3) == 1


def test_repetition_by_hand():
    # 01 12 20 01 12: two of five stand earlier; the second row repeats one bigram four times.
    told = text_metrics.repetition(rows_of([[0, 1, 2, 0, 1, 2], [5, 5, 5, 5, 5, 5]]), n=2)
    np.testing.assert_allclose(told, [2 / 5, 4 / 5])


def test_padding_does_not_count():
    padded = rows_of([[0, 1, 9, 9], [3, 9, 9, 9]], [2, 1])
    np.testing.assert_allclose(text_metrics.unigram_entropy(padded), [math.log(2), 0])
    assert text_metrics.distinct(padded, 1) == 1
    assert text_metrics.distinct(padded, 2) == 1
    np.testing.assert_array_equal(text_metrics.repetition(padded, n=2), [0, np.nan])


def test_rows_without_ngrams_are_undefined():
    assert np.isnan(text_metrics.distinct(rows_of([[0, 1]]), 3))
    assert np.isnan(text_metrics.repetition(rows_of([[0, 1]]), 4)).all()


@settings(deadline=None)
@given(rows(), st.integers(1, 4))
def test_metrics_are_the_plain_loops(rows, n):
    of_rows = [ngrams_of(text, n) for text in texts(rows)]
    every = [ngram for each in of_rows for ngram in each]
    expected = len(set(every)) / len(every) if every else np.nan
    np.testing.assert_allclose(text_metrics.distinct(rows, n), expected)
    expected = [1 - len(set(each)) / len(each) if each else np.nan for each in of_rows]
    np.testing.assert_allclose(text_metrics.repetition(rows, n), expected)
    shares = [np.array([text.count(w) / len(text) for w in set(text)]) for text in texts(rows)]
    expected = [-(share * np.log(share)).sum() for share in shares]
    np.testing.assert_allclose(text_metrics.unigram_entropy(rows), expected, atol=1e-12)


@settings(deadline=None)
@given(rows(), st.permutations(range(4)))
def test_names_of_the_tokens_do_not_matter(rows, names):
    renamed = data.Rows(np.array(names)[rows.tokens], rows.labels, rows.sizes)
    np.testing.assert_allclose(
        text_metrics.unigram_entropy(renamed), text_metrics.unigram_entropy(rows), atol=1e-12
    )
    np.testing.assert_allclose(text_metrics.distinct(renamed, 2), text_metrics.distinct(rows, 2))
    np.testing.assert_allclose(
        text_metrics.repetition(renamed, 2), text_metrics.repetition(rows, 2)
    )


@settings(deadline=None)
@given(rows())
def test_entropy_is_at_most_that_of_different_tokens(rows):
    entropy = text_metrics.unigram_entropy(rows)
    assert np.all(entropy >= 0)
    assert np.all(entropy <= [math.log(len(text)) + 1e-12 for text in texts(rows)])


def test_mean_and_its_error():
    value, error = text_metrics.mean(np.array([1.0, 3.0, np.nan, 5.0]))
    assert value == 3 and error == pytest.approx(2 / math.sqrt(3))
    assert np.isnan(text_metrics.mean(np.array([1.0])).error)
    assert np.isnan(text_metrics.mean(np.array([np.nan])).value)


def test_the_weighted_error_covers_the_true_ratio():
    """Of 1,000 draws as many as 95 % (+- 4 standard deviations) have it within 1.96 errors."""
    random = np.random.default_rng(0)
    inside = 0
    for _ in range(1000):
        sizes = random.integers(50, 150, 60)
        value, error = text_metrics.mean(2.0 * sizes + random.normal(size=60) * sizes, sizes)
        inside += abs(value - 2.0) < 1.96 * error
    assert abs(inside - 950) < 4 * math.sqrt(1000 * 0.95 * 0.05)


@pytest.mark.parametrize(
    ("tokens", "sizes", "message"),
    [
        ([0, 1], None, r"rows must be a matrix .* got \(2,\)"),
        (np.zeros((0, 3)), None, r"not empty, got \(0, 3\)"),
        ([[0, 1]], [0], "rows must have from 1 to 2 tokens, got 0 to 0"),
        ([[0, 1]], [3], "rows must have from 1 to 2 tokens, got 3 to 3"),
    ],
)
def test_wrong_rows_are_refused(tokens, sizes, message):
    with pytest.raises(ValueError, match=message):
        text_metrics.unigram_entropy(rows_of(tokens, sizes))


def test_an_ngram_has_a_token():
    with pytest.raises(ValueError, match="n is 0"):
        text_metrics.distinct(rows_of([[0, 1]]), 0)
