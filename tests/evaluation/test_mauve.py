import math
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from mdlm_jax.evaluation.samples import mauve

CENTRES = np.random.default_rng(7).normal(size=(12, 8))
histograms = (
    st.lists(st.integers(0, 5), min_size=4, max_size=4)
    .filter(any)
    .map(lambda counts: np.array(counts) / sum(counts))
)


def texts(seed, counts, spread=0.05):
    """Features around CENTRES, so many of each."""
    random = np.random.default_rng(seed)
    around = np.repeat(CENTRES, counts, axis=0)
    return around + spread * random.normal(size=around.shape)


def exact_area(p, q, c=5.0):
    """The area under the frontier by quadrature over the weight w, of p and q without zeros."""

    def divergence(a, r):
        return float(np.sum(a * np.log(a / r)))

    def integrand(w):
        r = w * p + (1 - w) * q
        slope = c * np.sum(q * (p - q) / r)  # of log x, where x = exp(-c KL(q | r))
        return -math.exp(-c * divergence(p, r)) * math.exp(-c * divergence(q, r)) * slope

    # The curve ends at (exp(-c KL(q | p)), 1), from where it goes straight to (0, 1).
    return quad(integrand, 0, 1)[0] + math.exp(-c * divergence(q, p))


def test_the_frontier_by_hand():
    p, q = np.array([0.5, 0.5]), np.array([0.25, 0.75])
    told = mauve.of_histograms(p, q)
    assert told.frontier.shape == (27, 2)
    np.testing.assert_array_equal(told.frontier[[0, -1]], [[1, 0], [0, 1]])
    # The middle one of 25 weights is a half: R = (0.375, 0.625).
    kl_q = 0.25 * math.log(0.25 / 0.375) + 0.75 * math.log(0.75 / 0.625)
    kl_p = 0.5 * math.log(0.5 / 0.375) + 0.5 * math.log(0.5 / 0.625)
    np.testing.assert_allclose(told.frontier[13], [math.exp(-5 * kl_q), math.exp(-5 * kl_p)])


@pytest.mark.parametrize(
    ("p", "q"), [([0.5, 0.5], [0.25, 0.75]), ([0.1, 0.6, 0.3], [0.3, 0.3, 0.4])]
)
def test_the_score_is_the_area(p, q):
    p, q = np.array(p), np.array(q)
    assert mauve.of_histograms(p, q).score == pytest.approx(exact_area(p, q), abs=1e-3)


@given(histograms, histograms)
def test_the_score_is_symmetric_and_at_most_one(p, q):
    told = mauve.of_histograms(p, q)
    assert 0 < told.score < 1 + 1e-9
    assert told.score == pytest.approx(mauve.of_histograms(q, p).score)
    assert (np.diff(told.frontier[:, 0]) < 1e-12).all()
    assert (np.diff(told.frontier[:, 1]) > -1e-12).all()


def test_the_extremes():
    p = np.array([0.2, 0.8, 0.0, 0.0])
    assert mauve.of_histograms(p, p).score == pytest.approx(1)
    assert mauve.of_histograms(p, p[::-1]).score < 0.01


def test_clusters_are_found():
    p, q = texts(0, [30, 10] + [0] * 10), texts(1, [12, 48] + [0] * 10)
    told = mauve.score(p, q, clusters=2)
    assert {*zip(told.p, told.q, strict=True)} == {(0.75, 0.2), (0.25, 0.8)}
    by_hand = mauve.of_histograms([0.75, 0.25], [0.2, 0.8])
    assert told.score == pytest.approx(by_hand.score)


def test_the_seed_is_all_that_decides():
    p, q = texts(0, np.full(12, 10), spread=0.5), texts(1, np.arange(4, 16), spread=0.5)
    told = [mauve.score(p, q, seed=seed).score for seed in (0, 0, 1)]
    assert told[0] == told[1] != told[2]


def test_worse_text_scores_less():
    real = texts(0, np.full(12, 20))
    alike, half, one = (
        mauve.score(real, texts(1, counts)).score
        for counts in (np.full(12, 20), [40] * 6 + [0] * 6, [240] + [0] * 11)
    )
    assert alike > 0.95 > 0.8 > half > 0.1 > one


def test_rows_that_are_written_again_and_again_make_fewer_clusters_and_no_warning():
    real, written = texts(0, np.full(12, 5)), np.repeat(CENTRES[:2], 30, axis=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        told = mauve.score(real, written)
        again = mauve.score(written, written)
    assert told.p.shape == again.p.shape == (6,)
    assert told.score < 0.5 and again.score == pytest.approx(1)
    assert sorted(again.p) == [0, 0, 0, 0, 0.5, 0.5]


def test_a_score_without_scikit_learn_tells_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"scikit-learn: pip install 'mdlm_jax\[mauve\]'"):
        mauve.score(CENTRES, CENTRES)


def test_features_that_do_not_differ():
    """Nor has their principal component any variance to explain."""
    same = np.ones((30, 4))
    assert mauve.score(same, same).score == pytest.approx(1)
    assert mauve.score(np.zeros((30, 4)), same).score < 0.01


@pytest.mark.parametrize(
    ("p", "q", "clusters", "message"),
    [
        (np.ones(3), np.ones((3, 1)), None, r"p_features must be a matrix .* got \(3,\)"),
        (np.ones((3, 2)), np.ones((0, 2)), None, r"q_features must be a matrix .* got \(0, 2\)"),
        (np.ones((3, 2)), np.ones((3, 4)), None, "width 2 and q_features 4: .* the same encoder"),
        (np.ones((3, 2)), np.full((3, 2), np.nan), None, "q_features must be finite"),
        (np.ones((3, 2)), np.ones((3, 2)), 7, "clusters is 7: it must be from 2 to 6"),
        (np.ones((3, 2)), np.ones((3, 2)), 1, "clusters is 1: it must be from 2 to 6"),
    ],
)
def test_wrong_features_are_refused(p, q, clusters, message):
    with pytest.raises(ValueError, match=message):
        mauve.score(p, q, clusters=clusters)


@pytest.mark.parametrize(
    ("p", "q", "message"),
    [
        ([0.5, 0.5], [1.0], r"shapes \(2,\) and \(1,\)"),
        ([0.5, 0.6], [0.5, 0.5], "p must be shares that sum to 1, got the sum 1.1"),
        ([0.5, 0.5], [1.5, -0.5], "q must be shares"),
    ],
)
def test_wrong_histograms_are_refused(p, q, message):
    with pytest.raises(ValueError, match=message):
        mauve.of_histograms(p, q)


@pytest.fixture(scope="module")
def theirs():
    """The authors' package (`pip install mauve-text faiss-cpu`)."""
    return pytest.importorskip("mauve.compute_mauve")


def test_the_frontier_is_the_authors(theirs):
    random = np.random.default_rng(0)
    for _ in range(20):
        p, q = random.dirichlet(np.full(9, 0.5), 2)
        p = np.where(p < 0.05, 0, p) / p[p >= 0.05].sum()  # some clusters have none of P
        told = mauve.of_histograms(p, q)
        weights = np.linspace(1e-6, 1 - 1e-6, 25)
        curve = theirs.get_divergence_curve_for_multinomials(p, q, weights, 5)
        np.testing.assert_allclose(told.frontier, curve, atol=1e-12)


def test_the_score_is_the_authors_on_the_same_features(theirs):
    p, q = texts(0, [30, 10] + [0] * 10), texts(1, [12, 48] + [0] * 10)
    told = theirs.compute_mauve(p_features=p, q_features=q, num_buckets=2)
    assert mauve.score(p, q, clusters=2).score == pytest.approx(told.mauve, abs=1e-6)


def test_the_score_is_the_authors_where_clusters_overlap(theirs):
    # Each finds other clusters, as two seeds of either do: differences of 0.04, whose mean over 40
    # has a standard error of 0.007.
    differences = []
    for i in range(20):
        random = np.random.default_rng(i)
        p = texts(2 * i, random.multinomial(200, random.dirichlet(np.ones(12))), spread=0.5)
        q = texts(2 * i + 1, random.multinomial(200, random.dirichlet(np.full(12, 9))), spread=0.5)
        for seed in range(2):
            told = theirs.compute_mauve(p_features=p, q_features=q, seed=seed).mauve
            differences.append(mauve.score(p, q, seed=seed).score - told)
    assert np.mean(differences) == pytest.approx(0, abs=0.03)
