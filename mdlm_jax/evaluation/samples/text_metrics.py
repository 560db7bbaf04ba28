"""Diversity of rows of tokens, counted from the tokens alone: no model, no reference text.

Every metric counts separators but not padding. Every metric depends on the length of the rows, and
`distinct` on their number: compare only rows of the same length and number.
"""

from typing import NamedTuple

import numpy as np

from mdlm_jax.data import Rows


class Mean(NamedTuple):
    """A mean over rows and its standard error; the error of a single row is nan."""

    value: float
    error: float


def unigram_entropy(rows: Rows) -> np.ndarray:
    """Entropy of the tokens of each row, `-sum_w c(w) / L log(c(w) / L)`: f64[N], nats.

    It is taken of each sample and then averaged over samples, as papers on masked diffusion report
    it beside generative perplexity (Zheng et al. 2025, "Masked Diffusion Models are Secretly
    Time-Agnostic Masked Models"; earlier Dieleman et al. 2022, CDCD). At most log L.

    Args:
      rows: N rows, none empty.

    Raises:
      ValueError: rows are no matrix, or there is an empty one.
    """
    index, ngrams = _ngrams(rows, 1)
    pairs, counts = np.unique(np.column_stack([index, ngrams]), axis=0, return_counts=True)
    share = counts / rows.lengths[pairs[:, 0]]
    return np.bincount(pairs[:, 0], -share * np.log(share), len(rows)) + 0.0  # no -0.0


def distinct(rows: Rows, n: int) -> float:
    """Distinct n-grams over all n-grams, of all rows together (Li et al. 2016, distinct-n).

    In (0, 1]. It falls with the amount of text: compare equally many rows. Li et al. divide by the
    number of tokens; here 1 means that no n-gram occurs twice. nan if no row has n tokens.

    Args:
      rows: N rows.
      n: tokens of an n-gram. An n-gram lies within one row.

    Raises:
      ValueError: rows are no matrix, or there is an empty one; n < 1.
    """
    _, ngrams = _ngrams(rows, n)
    return len(np.unique(ngrams, axis=0)) / len(ngrams) if len(ngrams) else np.nan


def repetition(rows: Rows, n: int = 4) -> np.ndarray:
    """The share of each row's n-grams that occurred earlier in it, `1 - distinct / all`: f64[N].

    seq-rep-n of Welleck et al. 2020, "Neural Text Generation with Unlikelihood Training". In
    [0, 1); nan of a row with fewer than n tokens.

    Args:
      rows: N rows.
      n: tokens of an n-gram.

    Raises:
      ValueError: rows are no matrix, or there is an empty one; n < 1.
    """
    index, ngrams = _ngrams(rows, n)
    of_rows = np.unique(np.column_stack([index, ngrams]), axis=0)[:, 0]
    every = np.bincount(index, minlength=len(rows))
    different = np.bincount(of_rows, minlength=len(rows))
    return np.where(every > 0, 1.0 - different / np.maximum(every, 1), np.nan)


def mean(values: np.ndarray, weights: np.ndarray | None = None) -> Mean:
    """Mean over rows with its standard error, for independent rows.

    With weights it is the ratio `sum(values) / sum(weights)`, such as nats of rows over their
    tokens. The error is then that of the residuals `values - ratio * weights`: longer rows count
    more.

    Args:
      values: f[N]; nan is ignored.
      weights: f[N], positive; 1 by default.

    Returns:
      (nan, nan) if no value is left.
    """
    there = ~np.isnan(values)
    values = np.asarray(values, np.float64)[there]
    weights = np.ones(len(values)) if weights is None else np.asarray(weights)[there]
    if not len(values):
        return Mean(np.nan, np.nan)
    ratio = values.sum() / weights.sum()
    if len(values) == 1:
        return Mean(float(ratio), np.nan)
    spread = np.sqrt(np.sum((values - ratio * weights) ** 2) * len(values) / (len(values) - 1))
    return Mean(float(ratio), float(spread / weights.sum()))


def _ngrams(rows: Rows, n: int) -> tuple[np.ndarray, np.ndarray]:
    """All n-grams within rows: the row of each, i64[M], and its tokens, [M, n]."""
    if n < 1:
        raise ValueError(f"n is {n}: an n-gram has at least 1 token")
    rows.check("rows")
    tokens = np.asarray(rows.tokens)
    if tokens.shape[1] < n:
        return np.zeros(0, np.int64), np.zeros((0, n), tokens.dtype)
    windows = np.lib.stride_tricks.sliding_window_view(tokens, n, axis=1)  # [N, L - n + 1, n]
    index, first = np.nonzero(np.arange(windows.shape[1]) <= rows.lengths[:, None] - n)
    return index, windows[index, first]
