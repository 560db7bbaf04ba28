"""Packing: documents back to back in rows of one length."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Rows:
    """Packed rows; `len` is their number.

    Attributes:
      tokens: integers [N, L], every position a token of the text or a separator.
      labels: i32[N], the label of most of a row's tokens.
    """

    tokens: np.ndarray  # [N, L]
    labels: np.ndarray  # [N]

    def __len__(self) -> int:
        return len(self.tokens)


def pack(documents: Sequence[np.ndarray], labels: Sequence[int], length: int) -> Rows:
    """Packs documents back to back, ordered by label (stably), into rows of `length` tokens.

    Documents cross from row to row; only the last, partial row is dropped. A row across a border
    takes the label of most of its tokens, of equals the lowest.

    Args:
      documents: token ids of each document, its separator included.
      labels: label of each document.
      length: tokens in a row.

    Returns:
      Rows of i32[N, length] with `N = total tokens // length`, perhaps 0.
    """
    order = np.argsort(np.asarray(labels, np.int64), kind="stable")
    sizes = np.array([len(documents[i]) for i in order], np.int64)
    count = int(sizes.sum()) // length
    tokens = np.concatenate([np.zeros(0, np.int32), *(documents[i] for i in order)])
    token_labels = np.repeat(np.asarray(labels, np.int64)[order], sizes)

    row = np.repeat(np.arange(count), length)
    votes = np.zeros((count, max(labels, default=0) + 1), np.int64)
    np.add.at(votes, (row, token_labels[: count * length]), 1)
    return Rows(
        tokens=tokens[: count * length].reshape(count, length).astype(np.int32),
        labels=votes.argmax(axis=1).astype(np.int32),
    )
