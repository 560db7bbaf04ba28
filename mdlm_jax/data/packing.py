"""Rows of one length: documents back to back (packed), or one document or pair each (padded)."""

import dataclasses
from collections.abc import Iterator

import numpy as np

# Tokens that are held at a time.
_CHUNK = 2**22


@dataclasses.dataclass(frozen=True)
class RowStream:
    """Rows that are too many to be held.

    Attributes:
      count: N.
      chunks: their tokens in order, one pass: any shapes, N * L in all.
      labels: i32[N].
      sizes: i32[N] of padded rows, None of packed ones.
      prompts: i32[N] of pairs, else None.
      cut_tokens: of documents longer than a padded row, those that are in no row.
    """

    count: int
    chunks: Iterator[np.ndarray]
    labels: np.ndarray
    sizes: np.ndarray | None = None
    prompts: np.ndarray | None = None
    cut_tokens: int = 0


def pack(tokens: np.ndarray, sizes: np.ndarray, labels: np.ndarray, length: int) -> RowStream:
    """Packs documents back to back, ordered by label (stably), into rows of `length` tokens.

    Documents cross from row to row, and only the last, partial row is dropped. A row with several
    labels takes the label of most of its tokens, the lowest of equals.

    Args:
      tokens: ids of all documents end to end, separators included; perhaps mapped from disk.
      sizes: tokens of each document.
      labels: label of each document.
      length: tokens in a row, L.

    Returns:
      N = `len(tokens) // length` rows, perhaps 0.
    """
    order = None
    if labels.size and labels.min() != labels.max():
        order = np.argsort(labels, kind="stable")
        sizes, labels, starts = sizes[order], labels[order], _starts(sizes)[order]
    count = int(sizes.sum(dtype=np.int64)) // length
    chunks = _slices(tokens) if order is None else _gathered(tokens, starts, sizes)
    return RowStream(count, _first(chunks, count * length), _row_labels(sizes, labels, length))


def pad(
    tokens: np.ndarray, sizes: np.ndarray, labels: np.ndarray, length: int, pad_id: int
) -> RowStream:
    """One document a row, in order, cut after `length` tokens or filled up with `pad_id`.

    A document that is cut loses its separator with its end.

    Args:
      tokens: ids of all documents end to end, with separators; may be mapped from disk.
      sizes: tokens of each document.
      labels: label of each document.
      length: tokens in a row, L.
      pad_id: fills up a row.
    """
    return _one_a_row(tokens, _starts(sizes), sizes, labels, length, pad_id)


def pair(
    tokens: np.ndarray,
    sizes: np.ndarray,
    prompts: np.ndarray,
    labels: np.ndarray,
    length: int,
    sep_id: int,
) -> RowStream:
    """One pair a row: prompt, separator, response, and separators to the row's end.

    So a response's length is learned like its text, and generation's canvas (the prompt, and masks
    to the row's end) is as in training (Nie et al. 2025, LLaDA). A response that does not fit is
    cut and then has no separator. A pair whose prompt leaves no room for one token of a response is
    left out.

    Args:
      tokens: ids of all pairs end to end, the separators behind prompt and response included;
        perhaps mapped from disk.
      sizes: tokens of each pair.
      prompts: those of them that are the prompt, its separator included.
      labels: label of each pair.
      length: tokens in a row, L.
      sep_id: the separator.
    """
    fits = prompts < length
    rows = _one_a_row(tokens, _starts(sizes)[fits], sizes[fits], labels[fits], length, sep_id)
    return dataclasses.replace(rows, prompts=prompts[fits].astype(np.int32))


def _one_a_row(
    tokens: np.ndarray,
    starts: np.ndarray,
    sizes: np.ndarray,
    labels: np.ndarray,
    length: int,
    fill_id: int,
) -> RowStream:
    """Documents at `starts`, cut after `length` tokens or filled up."""
    kept = np.minimum(sizes, length).astype(np.int32)

    def chunks() -> Iterator[np.ndarray]:
        step = max(_CHUNK // length, 1)
        for first in range(0, len(kept), step):
            rows = slice(first, first + step)
            real = np.arange(length) < kept[rows, None]
            filled = np.full(real.shape, fill_id, tokens.dtype)
            filled[real] = tokens[_positions(starts[rows], kept[rows])]
            yield filled

    cut = int((sizes.astype(np.int64) - kept).sum())
    return RowStream(len(kept), chunks(), labels.astype(np.int32), kept, cut_tokens=cut)


def _slices(tokens: np.ndarray) -> Iterator[np.ndarray]:
    return (tokens[first : first + _CHUNK] for first in range(0, len(tokens), _CHUNK))


def _gathered(tokens: np.ndarray, starts: np.ndarray, sizes: np.ndarray) -> Iterator[np.ndarray]:
    """Documents at `starts`, end to end, in chunks that end with a document."""
    ends = np.cumsum(sizes, dtype=np.int64)
    first = 0
    while first < len(sizes):
        before = ends[first] - sizes[first]
        last = max(int(np.searchsorted(ends, before + _CHUNK, side="right")), first + 1)
        yield tokens[_positions(starts[first:last], sizes[first:last])]
        first = last


def _first(chunks: Iterator[np.ndarray], count: int) -> Iterator[np.ndarray]:
    for chunk in chunks:
        yield chunk[:count]
        count -= len(chunk[:count])


def _starts(sizes: np.ndarray) -> np.ndarray:
    return np.cumsum(sizes, dtype=np.int64) - sizes


def _positions(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """`[starts[0], starts[0] + 1, ...]` for each document's size, end to end."""
    return np.arange(sizes.sum(dtype=np.int64)) + np.repeat(starts - _starts(sizes), sizes)


def _row_labels(sizes: np.ndarray, labels: np.ndarray, length: int) -> np.ndarray:
    """The label of most tokens of each row of documents that are sorted by label."""
    count = int(sizes.sum(dtype=np.int64)) // length
    chosen = np.zeros(count, np.int32)
    most = np.zeros(count, np.int64)
    last = 0
    for label in np.unique(labels):
        first, last = last, last + int(sizes[labels == label].sum(dtype=np.int64))
        rows = np.arange(first // length, min(-(-last // length), count))
        votes = np.minimum(last, (rows + 1) * length) - np.maximum(first, rows * length)
        wins = votes > most[rows]
        chosen[rows[wins]], most[rows[wins]] = label, votes[wins]
    return chosen
