"""N-gram cross-entropies: what counting reaches, in the units of the model's likelihood.

Both score every token of every packed row (separators too), the same tokens as the model, and treat
rows as independent, as it does: the first token of a row has no context.
"""

import numpy as np


def unigram_cross_entropy(train: np.ndarray, test: np.ndarray, vocab_size: int) -> float:
    """Cross-entropy of the add-one unigram `p(w) = (c(w) + 1) / (N + V)`.

    Args:
      train: token ids [N, L] that are counted.
      test: token ids [M, L'] that are scored.
      vocab_size: V; every id is below it.

    Returns:
      Nats per token of `test`.

    Raises:
      ValueError: rows are not a matrix, are empty, or hold an id outside [0, V).
    """
    train, test = _checked("train", train, vocab_size), _checked("test", test, vocab_size)
    return float(-np.log(_unigram(train, vocab_size)[test]).mean())


def bigram_cross_entropy(train: np.ndarray, test: np.ndarray, vocab_size: int) -> float:
    """Cross-entropy of the Witten-Bell bigram, interpolated with the add-one unigram.

    `p(w | v) = (c(v, w) + T(v) p(w)) / (c(v) + T(v))`, where c(v, w) counts the pair within rows,
    `c(v) = sum_w c(v, w)` and T(v) is the number of distinct successors of v; p(w) after a v that
    was never followed by anything, and for the first token of a row. Nothing is tuned.
    (Witten and Bell 1991; Chen and Goodman 1999, section 2.4.)

    Args:
      train: token ids [N, L] that are counted.
      test: token ids [M, L'] that are scored.
      vocab_size: V; every id is below it.

    Returns:
      Nats per token of `test`.

    Raises:
      ValueError: rows are not a matrix, are empty, or hold an id outside [0, V).
    """
    train, test = _checked("train", train, vocab_size), _checked("test", test, vocab_size)
    unigram = _unigram(train, vocab_size)
    pairs, pair_counts = np.unique(_pairs(train, vocab_size), return_counts=True)
    context_counts = np.bincount(train[:, :-1].ravel(), minlength=vocab_size)  # c(v)
    successors = np.bincount(pairs // vocab_size, minlength=vocab_size)  # T(v)

    probabilities = unigram[test]  # [M, L']
    context = test[:, :-1]
    backed_off = successors[context] * probabilities[:, 1:]
    seen = _counts_of(_pairs(test, vocab_size), pairs, pair_counts)
    total = context_counts[context] + successors[context]
    np.divide(seen + backed_off, total, out=probabilities[:, 1:], where=total > 0)
    return float(-np.log(probabilities).mean())


def _unigram(train: np.ndarray, vocab_size: int) -> np.ndarray:
    return (np.bincount(train.ravel(), minlength=vocab_size) + 1) / (train.size + vocab_size)


def _pairs(rows: np.ndarray, vocab_size: int) -> np.ndarray:
    """Neighbours (v, w) within rows as the single number `v V + w`: i64[N, L-1]."""
    return rows[:, :-1] * vocab_size + rows[:, 1:]


def _counts_of(wanted: np.ndarray, keys: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Counts of the wanted keys, 0 for those absent; `keys` is sorted."""
    if not keys.size:
        return np.zeros(wanted.shape, np.int64)
    at = np.minimum(np.searchsorted(keys, wanted), keys.size - 1)
    return np.where(keys[at] == wanted, counts[at], 0)


def _checked(name: str, rows: np.ndarray, vocab_size: int) -> np.ndarray:
    rows = np.asarray(rows, np.int64)
    if rows.ndim != 2 or not rows.size:
        raise ValueError(
            f"{name} must be a matrix of token ids that is not empty, got {rows.shape}"
        )
    if rows.min() < 0 or rows.max() >= vocab_size:
        raise ValueError(
            f"{name} holds ids from {rows.min()} to {rows.max()}, outside [0, {vocab_size})"
        )
    return rows
