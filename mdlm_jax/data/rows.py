"""Rows of tokens, and which of their tokens count for what: nothing else decides that.

Of N rows of L tokens, each as `bool[N, L]`:

|            | which tokens                        | packed | padded   | pairs               |
|------------|-------------------------------------|--------|----------|---------------------|
| `text`     | texts and the separators after them | all    | its text | prompt and response |
| `counted`  | those that a likelihood counts      | all    | its text | response            |
| `maskable` | those that training masks           | all    | its text | all but the prompt  |
| `valid`    | those that the network sees         | all    | its text | all                 |

What follows a response in its row are separators. They are certain given the first one, so a
likelihood need not count them. The network learns from them where a response ends.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of tokens; `len` is their number, and a slice is rows too.

    Attributes:
      tokens: integers [N, L].
      labels: i32[N]: of a packed row, the label of most of its tokens.
      sizes: i32[N], tokens of each padded row, its separators included: the rest is padding, or of
        pairs separators again. None of packed rows: every position is a token of the text or a
        separator.
      prompts: i32[N], of pairs the tokens of the prompt at the row's start, its separator included;
        else None.
    """

    tokens: np.ndarray  # [N, L]
    labels: np.ndarray  # [N]
    sizes: np.ndarray | None = None  # [N]
    prompts: np.ndarray | None = None  # [N]

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, which: slice | np.ndarray) -> "Rows":
        sizes = None if self.sizes is None else self.sizes[which]
        prompts = None if self.prompts is None else self.prompts[which]
        return Rows(self.tokens[which], self.labels[which], sizes, prompts)

    def spread(self, count: int) -> "Rows":
        """So many of the rows, evenly spaced; all of them where there are no more.

        Rows are sorted by label: the first ones are of the first labels alone.
        """
        if count >= len(self):
            return self
        return self[(2 * np.arange(count) + 1) * len(self) // (2 * count)]

    def chunks(self, name: str, size: int, vocab_size: int | None = None) -> Iterator["Rows"]:
        """The rows in order, some `size` tokens at a time, each checked as `check` does."""
        _check_matrix(name, self.tokens)
        step = max(size // self.tokens.shape[1], 1)
        for first in range(0, len(self), step):
            part = self[first : first + step]
            part.check(name, vocab_size)
            yield part

    def check(self, name: str, vocab_size: int | None = None) -> None:
        """Refuses what is no rows of text.

        Args:
          name: what the message calls them.
          vocab_size: V.

        Raises:
          ValueError: they are no matrix, are empty, have a row without tokens or with more than
            fit, or hold an id below 0, or one that is not below V.
        """
        _check_matrix(name, self.tokens)
        low, high = int(self.tokens.min()), int(self.tokens.max())
        if low < 0:
            raise ValueError(f"{name} must hold ids of 0 or more, got {low}")
        if vocab_size is not None and high >= vocab_size:
            raise ValueError(
                f"{name} must hold ids below {vocab_size}, the size of the vocabulary, got {high}"
            )
        shortest, longest = int(self.lengths.min()), int(self.lengths.max())
        if shortest < 1 or longest > self.tokens.shape[1]:
            raise ValueError(
                f"{name} must have from 1 to {self.tokens.shape[1]} tokens, got {shortest} to "
                f"{longest}"
            )

    @property
    def lengths(self) -> np.ndarray:
        """i64[N], how many tokens of each row are `text`."""
        length = self.tokens.shape[1]
        return np.full(len(self), length) if self.sizes is None else np.asarray(self.sizes, int)

    @property
    def text(self) -> np.ndarray:
        """bool[N, L], the tokens that are text or a separator that ends one."""
        return self._between(None, self.sizes)

    def texts(self) -> Iterator[np.ndarray]:
        """Of each row the tokens that are `text`."""
        return (row[:n] for row, n in zip(np.asarray(self.tokens), self.lengths, strict=True))

    @property
    def counted(self) -> np.ndarray:
        """bool[N, L], the tokens that a likelihood counts."""
        return self._between(self.prompts, self.sizes)

    @property
    def counts(self) -> np.ndarray:
        """i32[N], how many tokens of each row are `counted`."""
        return (self.lengths - (0 if self.prompts is None else self.prompts)).astype(np.int32)

    @property
    def maskable(self) -> np.ndarray:
        """bool[N, L], the tokens that training masks, and that a sampler fills."""
        return self.text if self.prompts is None else self._between(self.prompts, None)

    @property
    def valid(self) -> np.ndarray | None:
        """bool[N, L], the tokens that the network sees; None where it sees all."""
        return None if self.sizes is None or self.prompts is not None else self.text

    def _between(self, first: np.ndarray | None, last: np.ndarray | None) -> np.ndarray:
        """bool[N, L]: from the position `first` of each row to the one before `last`."""
        places = np.arange(self.tokens.shape[1])
        chosen = np.ones(self.tokens.shape, bool)
        if first is not None:
            chosen &= places >= first[:, None]
        if last is not None:
            chosen &= places < last[:, None]
        return chosen


def _check_matrix(name: str, tokens: np.ndarray) -> None:
    if tokens.ndim != 2 or not tokens.size:
        raise ValueError(
            f"{name} must be a matrix of token ids that is not empty, got {tokens.shape}"
        )
