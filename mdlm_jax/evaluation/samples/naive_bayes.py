"""Naive Bayes: which class a row of tokens belongs to, by token counts of the training text."""

from typing import NamedTuple

import numpy as np

from mdlm_jax.data import Rows
from mdlm_jax.evaluation.bounds import ngrams

_CHUNK = 2**12  # rows that are counted at a time


class NaiveBayes(NamedTuple):
    """A multinomial naive Bayes classifier.

    Attributes:
      prior: f64[C], `log p(c)`.
      tokens: f64[C, V], `log p(w | c)`.
    """

    prior: np.ndarray
    tokens: np.ndarray


def fit(train: Rows, vocab_size: int, classes: int) -> NaiveBayes:
    """Counts the rows and tokens of each class, with one added to every count.

    `p(c) = (rows of c + 1) / (rows + C)` and `p(w | c) = (c(w, c) + 1) / (sum_w c(w, c) + V)`, with
    c(w, c) the number of times that w occurs in rows of class c. (Manning, Raghavan and Schuetze
    2008, "Introduction to Information Retrieval", section 13.2.)

    Args:
      train: rows with labels in [0, classes); if they hold more than 2**26 tokens, evenly spaced
        rows are counted.
      vocab_size: V; every id is below it.
      classes: C.
    """
    train = ngrams.evenly(train)
    counts = np.ones(classes * vocab_size)
    for first in range(0, len(train), _CHUNK):
        part = train[first : first + _CHUNK]
        numbers = np.asarray(part.labels, np.int64)[:, None] * vocab_size + part.tokens
        counts += np.bincount(numbers[part.text], minlength=classes * vocab_size)
    counts = counts.reshape(classes, vocab_size)
    number = np.bincount(train.labels, minlength=classes) + 1.0
    return NaiveBayes(
        np.log(number / number.sum()), np.log(counts / counts.sum(axis=1, keepdims=True))
    )


def classify(model: NaiveBayes, rows: Rows) -> np.ndarray:
    """The most likely class of each row, `argmax_c log p(c) + sum_i log p(w_i | c)`: i64[N].

    The first of equal classes. Padding is ignored.
    """
    text = rows.text
    scores = [np.where(text, of_class[rows.tokens], 0.0).sum(axis=1) for of_class in model.tokens]
    return np.argmax(model.prior[:, None] + np.stack(scores), axis=0)
