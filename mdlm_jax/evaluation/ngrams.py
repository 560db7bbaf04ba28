"""N-gram cross-entropies: what counting reaches, in the units of the model's likelihood.

Both score the tokens that the model does (separators too, padding not), and treat rows as
independent, as it does: the first token of a row has no context.
"""

from collections.abc import Iterator

import numpy as np

from mdlm_jax.data import Rows

# Tokens that are counted: of a longer text, those of evenly spaced rows. A minute, at most.
COUNTED = 2**26
_CHUNK = 2**22


def unigram_cross_entropy(train: Rows, test: Rows, vocab_size: int) -> float:
    """Cross-entropy of the add-one unigram `p(w) = (c(w) + 1) / (N + V)`.

    Args:
      train: rows that are counted; of more than 2**26 tokens, evenly spaced rows of so many.
      test: rows that are scored.
      vocab_size: V; every id is below it.

    Returns:
      Nats per token of `test`.

    Raises:
      ValueError: rows are not a matrix, are empty, or hold an id outside [0, V).
    """
    unigram = _unigram(train, vocab_size)
    nats, tokens = 0.0, 0
    for rows, valid in _chunks("test", test, vocab_size):
        nats -= np.log(unigram[rows[valid]]).sum()
        tokens += int(valid.sum())
    return float(nats / tokens)


def bigram_cross_entropy(train: Rows, test: Rows, vocab_size: int) -> float:
    """Cross-entropy of the Witten-Bell bigram, interpolated with the add-one unigram.

    `p(w | v) = (c(v, w) + T(v) p(w)) / (c(v) + T(v))`, where c(v, w) counts the pair within rows,
    `c(v) = sum_w c(v, w)` and T(v) is the number of distinct successors of v; p(w) after a v that
    was never followed by anything, and for the first token of a row. Nothing is tuned.
    (Witten and Bell 1991; Chen and Goodman 1999, section 2.4.)

    Args:
      train: rows that are counted; of more than 2**26 tokens, evenly spaced rows of so many.
      test: rows that are scored.
      vocab_size: V; every id is below it.

    Returns:
      Nats per token of `test`.

    Raises:
      ValueError: rows are not a matrix, are empty, or hold an id outside [0, V).
    """
    unigram = _unigram(train, vocab_size)
    pairs, pair_counts = _count_pairs(train, vocab_size)
    first = pairs // vocab_size
    context_counts = np.bincount(first, pair_counts, vocab_size)  # c(v)
    successors = np.bincount(first, minlength=vocab_size)  # T(v)

    nats, tokens = 0.0, 0
    for rows, valid in _chunks("test", test, vocab_size):
        probabilities = unigram[rows]  # [M, L']
        context = rows[:, :-1]
        backed_off = successors[context] * probabilities[:, 1:]
        seen = _counts_of(_pairs(rows, vocab_size), pairs, pair_counts)
        total = context_counts[context] + successors[context]
        np.divide(seen + backed_off, total, out=probabilities[:, 1:], where=total > 0)
        nats -= np.log(probabilities[valid]).sum()
        tokens += int(valid.sum())
    return float(nats / tokens)


def _unigram(train: Rows, vocab_size: int) -> np.ndarray:
    counts = np.ones(vocab_size, np.int64)
    for rows, valid in _chunks("train", _evenly(train), vocab_size):
        counts += np.bincount(rows[valid], minlength=vocab_size)
    return counts / counts.sum()


def _count_pairs(train: Rows, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of `_pairs` that occur, sorted, and how often."""
    pairs, counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for rows, valid in _chunks("train", _evenly(train), vocab_size):
        both = valid[:, 1:]  # A valid token has a valid one before it.
        more, more_counts = np.unique(_pairs(rows, vocab_size)[both], return_counts=True)
        pairs, where = np.unique(np.concatenate([pairs, more]), return_inverse=True)
        counts = np.bincount(where, np.concatenate([counts, more_counts])).astype(np.int64)
    return pairs, counts


def _pairs(rows: np.ndarray, vocab_size: int) -> np.ndarray:
    """Neighbours (v, w) within rows as the single number `v V + w`: i64[N, L-1]."""
    return rows[:, :-1] * vocab_size + rows[:, 1:]


def _counts_of(wanted: np.ndarray, keys: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Counts of the wanted keys, 0 for those absent; `keys` is sorted."""
    if not keys.size:
        return np.zeros(wanted.shape, np.int64)
    at = np.minimum(np.searchsorted(keys, wanted), keys.size - 1)
    return np.where(keys[at] == wanted, counts[at], 0)


def _evenly(rows: Rows) -> Rows:
    """Rows of at most `COUNTED` tokens, evenly spaced: they may be sorted by label."""
    return rows[:: max(-(-rows.tokens.size // COUNTED), 1)]


def _chunks(name: str, rows: Rows, vocab_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Some rows at a time: their tokens i64[n, L], and which of these are text, bool[n, L].

    Raises:
      ValueError: they are no matrix, are empty, or hold an id outside [0, V).
    """
    shape = rows.tokens.shape
    if len(shape) != 2 or not rows.tokens.size:
        raise ValueError(f"{name} must be a matrix of token ids that is not empty, got {shape}")
    step = max(_CHUNK // shape[1], 1)
    for first in range(0, len(rows), step):
        part = rows[first : first + step]
        tokens = np.asarray(part.tokens, np.int64)
        if tokens.min() < 0 or tokens.max() >= vocab_size:
            raise ValueError(
                f"{name} holds ids from {tokens.min()} to {tokens.max()}, outside [0, {vocab_size})"
            )
        sizes = shape[1] if part.sizes is None else part.sizes[:, None]
        yield tokens, np.broadcast_to(np.arange(shape[1]) < sizes, tokens.shape)
