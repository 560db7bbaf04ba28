"""MAUVE: how similar two distributions of texts are.

    written = features.of_rows(params, encoder, samples)  # f32[N, D]
    mauve.score(features.of_rows(params, encoder, test), written).score

(Pillutla et al. 2021, "MAUVE: Measuring the Gap Between Neural Text and Human Text using Divergence
Frontiers"; Pillutla et al. 2023, "MAUVE Scores for Generative Models: Theory and Practice".)

The score depends on the features, the number of rows and the number of clusters: compare scores
only where all three are equal. Report the score of other real text against the same real text too:
a model need not exceed that. The paper takes 5,000 rows. With a few hundred the score separates
broken text from sound text, and little more.

The clusters are found as the authors' package `mauve-text` finds them (rows of unit length, the
principal components that hold 90 % of the variance, k-means from random points, the best of 5
starts), by scikit-learn instead of faiss.
"""

import importlib.util
from typing import NamedTuple

import numpy as np

_SCALE = 5.0  # c of the paper
_WEIGHTS = np.linspace(1e-6, 1 - 1e-6, 25)  # of the mixtures; the curve's ends are added exactly
_EXPLAINED = 0.9  # share of the variance that is kept
_STARTS = 5
_ITERATIONS = 500  # at most; the assignment settles long before
_ROWS_PER_CLUSTER = 10


class Mauve(NamedTuple):
    """The divergence frontier of two histograms.

    Attributes:
      score: the area under the frontier, in (0, 1]; 1 where the two agree.
      frontier: f64[M, 2], `exp(-c KL(Q | R))` and `exp(-c KL(P | R))`, from (1, 0) to (0, 1). The
        first falls where Q writes what P does not, the second where Q misses what P writes.
      p: f64[K], the share of P's rows in each cluster.
      q: f64[K], the share of Q's rows.
    """

    score: float
    frontier: np.ndarray
    p: np.ndarray
    q: np.ndarray


def check_installed() -> None:
    """Checks that `score` has the library that it needs.

    Raises:
      ImportError: scikit-learn is not installed.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise ImportError("MAUVE needs scikit-learn: pip install 'mdlm_jax[mauve]'")


def score(
    p_features: np.ndarray, q_features: np.ndarray, *, clusters: int | None = None, seed: int = 0
) -> Mauve:
    """MAUVE of two sets of texts: their features are clustered together, and histograms compared.

    `of_histograms` compares the histograms.

    Args:
      p_features: f[N, D], of real text.
      q_features: f[M, D], of samples. Exchanging the two changes the score only through the
        clusters that k-means finds.
      clusters: K; by default a tenth of the smaller set, at least 2.
      seed: of k-means.

    Raises:
      ImportError: scikit-learn is not installed.
      ValueError: the features are not matrices of equal width, are empty or not finite, or there
        are fewer rows than clusters.
    """
    check_installed()
    p_features, q_features = _checked("p_features", p_features), _checked("q_features", q_features)
    if p_features.shape[1] != q_features.shape[1]:
        raise ValueError(
            f"p_features have width {p_features.shape[1]} and q_features {q_features.shape[1]}: "
            "both must come from the same encoder"
        )
    rows = len(p_features) + len(q_features)
    if clusters is None:
        clusters = max(2, round(min(len(p_features), len(q_features)) / _ROWS_PER_CLUSTER))
    if not 2 <= clusters <= rows:
        raise ValueError(f"clusters is {clusters}: it must be from 2 to {rows}, the number of rows")
    labels = _clusters(np.concatenate([p_features, q_features]), clusters, seed)
    counts = [np.bincount(part, minlength=clusters) for part in np.split(labels, [len(p_features)])]
    return of_histograms(*(each / each.sum() for each in counts))


def of_histograms(p: np.ndarray, q: np.ndarray) -> Mauve:
    """The frontier of two distributions over the same K clusters, and the area under it.

    With `R_w = w P + (1 - w) Q` the frontier is the curve of
    `(exp(-c KL(Q | R_w)), exp(-c KL(P | R_w)))` for w in (0, 1), with its ends (1, 0) and (0, 1);
    c = 5 (Pillutla et al. 2021, equation 1). The area under it is computed by the trapezoidal rule.

    Args:
      p: f[K], not negative, sums to 1.
      q: f[K], likewise.

    Raises:
      ValueError: they are not two distributions over the same number of clusters.
    """
    p, q = np.asarray(p, np.float64), np.asarray(q, np.float64)
    if p.ndim != 1 or p.shape != q.shape:
        raise ValueError(f"p and q have shapes {p.shape} and {q.shape}: both must be [K]")
    for name, each in (("p", p), ("q", q)):
        if not (each >= 0).all() or not np.isclose(each.sum(), 1.0):
            raise ValueError(f"{name} must be shares that sum to 1, got the sum {each.sum():g}")
    mixtures = _WEIGHTS[:, None] * p + (1 - _WEIGHTS[:, None]) * q  # [M, K]
    curve = np.exp(-_SCALE * np.stack([_divergences(q, mixtures), _divergences(p, mixtures)], 1))
    frontier = np.concatenate([[[1.0, 0.0]], curve, [[0.0, 1.0]]])
    return Mauve(-float(np.trapezoid(frontier[:, 1], frontier[:, 0])), frontier, p, q)


def _divergences(p: np.ndarray, mixtures: np.ndarray) -> np.ndarray:
    """`KL(p | r)` for each row r of `mixtures`, f64[M, K], positive wherever p is: f64[M], nats."""
    there = p > 0
    return (p[there] * np.log(p[there] / mixtures[:, there])).sum(axis=1)


def _checked(name: str, features: np.ndarray) -> np.ndarray:
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or not features.size:
        raise ValueError(f"{name} must be a matrix that is not empty, got {features.shape}")
    if not np.isfinite(features).all():
        raise ValueError(f"{name} must be finite: there are nan or inf among them")
    return features


def _clusters(features: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """The cluster of each row, i[N]; equal rows leave fewer clusters than were asked for."""
    from sklearn.cluster import KMeans  # a second, and of an extra
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import normalize

    features = normalize(features)
    different = len(np.unique(features, axis=0))
    if different == 1:
        return np.zeros(len(features), int)  # no variance to explain
    # Random starts, as the authors take them. k-means++ separates P and Q a little better, and gave
    # scores about 0.006 lower than theirs on the same features.
    k_means = KMeans(
        min(clusters, different),
        init="random",
        n_init=_STARTS,
        max_iter=_ITERATIONS,
        tol=0.0,
        random_state=seed,
    )
    return k_means.fit_predict(PCA(_EXPLAINED, svd_solver="full").fit_transform(features))
