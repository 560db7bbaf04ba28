"""N-gram models of the training text: baselines in the units of the model's likelihood.

They score the same tokens as the model (`Rows.counted`): separators but not padding, and of pairs
the response, with the prompt as its context. Rows are independent, as they are for the model: the
first token of a row has no context, and the second token has a context of one.
"""

from typing import NamedTuple

import numpy as np

from mdlm_jax.data import Rows

# A longer text is counted in evenly spaced rows of so many tokens in all: at most a minute.
COUNTED = 2**26
_CHUNK = 2**22


class Counts(NamedTuple):
    """Counts of the n-grams of one order within rows; an n-gram is its ids as a number in base V.

    Attributes:
      ngrams: i64[G], the n-grams that occur, sorted.
      counts: i64[G], how often each occurs: c(h, w).
      contexts: i64[H], the first n - 1 tokens h of each, sorted and distinct.
      totals: i64[H], `c(h) = sum_w c(h, w)`.
      successors: i64[H], T(h), the number of distinct w that follow h.
    """

    ngrams: np.ndarray
    counts: np.ndarray
    contexts: np.ndarray
    totals: np.ndarray
    successors: np.ndarray


class NGram(NamedTuple):
    """An interpolated n-gram model.

    Attributes:
      unigram: f64[V], the add-one `p(w) = (c(w) + 1) / (N + V)`.
      orders: counts of the bigrams, trigrams, ... up to n.
    """

    unigram: np.ndarray
    orders: tuple[Counts, ...]


def fit(train: Rows, vocab_size: int, order: int) -> NGram:
    """Counts an n-gram model with Witten-Bell interpolation; it has no parameters to tune.

    `p(w | h) = (c(h, w) + T(h) p(w | h')) / (c(h) + T(h))`, where h is the n - 1 tokens before w in
    its row, and h' is h without its first token. Where h is never followed by a token, it is `p(w |
    h')`. The recursion ends in the add-one unigram. (Witten and Bell 1991; Chen and Goodman 1999,
    section 2.4.)

    Args:
      train: rows that are counted; if they hold more than 2**26 tokens, evenly spaced rows are.
      vocab_size: V; every id is below it.
      order: n, at least 1.

    Raises:
      ValueError: rows are not a matrix, are empty, or hold an id outside [0, V); or `order` is
        below 1, or so high that V^n exceeds 64 bits.
    """
    if order < 1 or vocab_size**order >= 2**63:
        raise ValueError(
            f"order is {order}: it must be at least 1, and {vocab_size}, the vocabulary, to that "
            "power below 2**63"
        )
    unigrams = np.ones(vocab_size, np.int64)
    found = [(np.zeros(0, np.int64), np.zeros(0, np.int64)) for _ in range(2, order + 1)]
    for part in evenly(train).chunks("train", _CHUNK, vocab_size):
        tokens, counted = np.asarray(part.tokens, np.int64), part.counted
        unigrams += np.bincount(tokens[counted], minlength=vocab_size)
        for i, n in enumerate(range(2, order + 1)):
            # The context of a counted token may hold tokens that are not counted.
            found[i] = _merge(*found[i], _ngrams(tokens, n, vocab_size)[counted[:, n - 1 :]])
    return NGram(unigrams / unigrams.sum(), tuple(_counts(*each, vocab_size) for each in found))


def token_nats(model: NGram, rows: Rows) -> np.ndarray:
    """`-log p` of every token given those before it in its row, 0 where it is not counted.

    Returns:
      f64[N, L], nats.

    Raises:
      ValueError: rows are not a matrix, are empty, or hold an id outside the vocabulary.
    """
    parts = rows.chunks("test", _CHUNK, len(model.unigram))
    return np.concatenate([_nats(model, part) for part in parts])


def evenly(rows: Rows) -> Rows:
    """Evenly spaced rows, of at most `COUNTED` tokens in all: rows may be sorted by label."""
    return rows[:: max(-(-rows.tokens.size // COUNTED), 1)]


def unigram_cross_entropy(train: Rows, test: Rows, vocab_size: int) -> float:
    """Cross-entropy of the add-one unigram, in nats per token of `test`.

    Args:
      train: rows that are counted, as `fit` counts them.
      test: rows that are scored.
      vocab_size: V; every id is below it.

    Raises:
      ValueError: as `fit`.
    """
    return _cross_entropy(fit(train, vocab_size, 1), test)


def bigram_cross_entropy(train: Rows, test: Rows, vocab_size: int) -> float:
    """Cross-entropy of the Witten-Bell bigram, in nats per token of `test`.

    Args: as for `unigram_cross_entropy`.

    Raises:
      ValueError: as `fit`.
    """
    return _cross_entropy(fit(train, vocab_size, 2), test)


def trigram_cross_entropy(train: Rows, test: Rows, vocab_size: int) -> float:
    """Cross-entropy of the Witten-Bell trigram, in nats per token of `test`.

    Args: as for `unigram_cross_entropy`.

    Raises:
      ValueError: as `fit`.
    """
    return _cross_entropy(fit(train, vocab_size, 3), test)


def _cross_entropy(model: NGram, test: Rows) -> float:
    parts = test.chunks("test", _CHUNK, len(model.unigram))
    return float(sum(_nats(model, part).sum() for part in parts) / test.counts.sum(dtype=np.int64))


def _nats(model: NGram, rows: Rows) -> np.ndarray:
    """`token_nats` of rows that are held in memory."""
    tokens, vocab_size = np.asarray(rows.tokens, np.int64), len(model.unigram)
    probabilities = model.unigram[tokens]
    for n, order in enumerate(model.orders, 2):
        ngrams = _ngrams(tokens, n, vocab_size)  # [n, L - n + 1]
        contexts = ngrams // vocab_size
        successors = _looked_up(contexts, order.contexts, order.successors)
        total = _looked_up(contexts, order.contexts, order.totals) + successors
        seen = _looked_up(ngrams, order.ngrams, order.counts)
        lower = probabilities[:, n - 1 :]
        np.divide(seen + successors * lower, total, out=lower, where=total > 0)
    return np.where(rows.counted, -np.log(probabilities), 0.0)


def _ngrams(tokens: np.ndarray, n: int, vocab_size: int) -> np.ndarray:
    """The n-grams within rows of tokens i64[N, L], as numbers: i64[N, max(L - n + 1, 0)]."""
    count = max(tokens.shape[1] - n + 1, 0)
    numbers = tokens[:, :count]
    for i in range(1, n):
        numbers = numbers * vocab_size + tokens[:, i : i + count]
    return numbers


def _merge(keys: np.ndarray, counts: np.ndarray, more: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct keys, sorted, and their counts, after adding the keys in `more`."""
    more, more_counts = np.unique(more, return_counts=True)
    keys, where = np.unique(np.concatenate([keys, more]), return_inverse=True)
    return keys, np.bincount(where, np.concatenate([counts, more_counts])).astype(np.int64)


def _counts(ngrams: np.ndarray, counts: np.ndarray, vocab_size: int) -> Counts:
    contexts, where, successors = np.unique(
        ngrams // vocab_size, return_inverse=True, return_counts=True
    )
    totals = np.bincount(where, counts, len(contexts)).astype(np.int64)
    return Counts(ngrams, counts, contexts, totals, successors)


def _looked_up(wanted: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The value of each wanted key, 0 where it is absent; `keys` is sorted."""
    if not keys.size:
        return np.zeros(wanted.shape, np.int64)
    at = np.minimum(np.searchsorted(keys, wanted), keys.size - 1)
    return np.where(keys[at] == wanted, values[at], 0)
