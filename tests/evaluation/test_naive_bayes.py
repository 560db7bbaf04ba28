import math

import numpy as np
import pytest
from scipy import stats

from mdlm_jax import data
from mdlm_jax.evaluation.bounds import ngrams
from mdlm_jax.evaluation.samples import naive_bayes

TRAIN = data.Rows(
    np.array([[0, 0, 1], [0, 1, 9], [2, 2, 1]]), np.array([0, 0, 1]), np.array([3, 2, 3])
)


def test_probabilities_by_hand():
    model = naive_bayes.fit(TRAIN, vocab_size=10, classes=2)
    np.testing.assert_allclose(np.exp(model.prior), [3 / 5, 2 / 5])
    # Class 0 has 0 thrice and 1 twice (the 9 is padding), class 1 has 2 twice and 1 once.
    np.testing.assert_allclose(np.exp(model.tokens[0, [0, 1, 2, 9]]), np.array([4, 3, 1, 1]) / 15)
    np.testing.assert_allclose(np.exp(model.tokens[1, [0, 1, 2, 9]]), np.array([1, 2, 3, 1]) / 13)


def test_the_class_with_the_higher_posterior_is_taken():
    model = naive_bayes.fit(TRAIN, vocab_size=10, classes=2)
    rows = data.Rows(
        np.array([[1, 2, 9], [1, 9, 9], [2, 9, 9]]), np.zeros(3, int), np.array([3, 1, 1])
    )
    first = [
        math.log(3 / 5 * (3 * 1 * 1) / 15**3) > math.log(2 / 5 * (2 * 3 * 1) / 13**3),
        3 / 5 * 3 / 15 > 2 / 5 * 2 / 13,
        3 / 5 * 1 / 15 > 2 / 5 * 3 / 13,
    ]
    assert naive_bayes.classify(model, rows).tolist() == [int(not each) for each in first]


def test_it_is_as_good_as_knowing_the_law():
    """Two classes of known token laws: the share of errors is Bayes's, up to 4 standard errors."""
    random = np.random.default_rng(0)
    laws = np.array([[0.6, 0.4], [0.4, 0.6]])

    def draw(count):
        labels = random.integers(0, 2, count)
        return data.Rows((random.random((count, 9)) < laws[labels, 1:]).astype(int), labels)

    model = naive_bayes.fit(draw(4000), vocab_size=2, classes=2)
    test = draw(4000)
    wrong = np.mean(naive_bayes.classify(model, test) != test.labels)
    best = stats.binom.cdf(4, 9, 0.6)  # the majority is of the other class
    assert abs(wrong - best) < 4 * math.sqrt(best * (1 - best) / 4000)


def test_a_class_without_rows_is_possible_but_unlikely():
    model = naive_bayes.fit(TRAIN, vocab_size=10, classes=3)
    assert np.isfinite(model.prior).all() and np.isfinite(model.tokens).all()
    assert naive_bayes.classify(model, TRAIN[:1]).tolist() == [0]


def test_long_text_is_counted_in_evenly_spaced_rows(monkeypatch):
    monkeypatch.setattr(ngrams, "COUNTED", 6)
    train = data.Rows(np.array([[0, 0], [1, 1]] * 3), np.array([0, 1] * 3))
    model = naive_bayes.fit(train, vocab_size=2, classes=2)
    np.testing.assert_allclose(np.exp(model.prior), [4 / 5, 1 / 5])
    assert np.exp(model.tokens[0, 0]) == pytest.approx(7 / 8)
