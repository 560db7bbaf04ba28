"""How many words and characters rows of tokens hold: units that compare between tokenizers."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from mdlm_jax import data

_ROWS = 256  # decoded at a time


class TextSize(NamedTuple):
    """The size of a text.

    Attributes:
      words: runs of characters other than white space.
      characters: Unicode code points; each separator counts as one.
    """

    words: int
    characters: int


def text_size(rows: data.Rows, tokenizer: Tokenizer) -> TextSize:
    """The size of the text that the tokens decode to.

    Packed rows are one stream: a word that continues in the next row counts once. If the tokenizer
    changes text (lower case, unknown characters), the changed text is counted. Of pairs only the
    response is counted.

    Args:
      rows: of a split, in order.
      tokenizer: of the rows.
    """
    separator = data.special_ids(tokenizer).sep
    words = characters = 0
    for document in _documents(rows, separator):
        text = data.decode(tokenizer, document)
        words += len(text.split())
        characters += len(text) + int(np.sum(document == separator))
    return TextSize(words, characters)


def _documents(rows: data.Rows, separator: int) -> Iterator[np.ndarray]:
    """The counted tokens of each document with its separator, or of each row that is not packed."""
    rest = np.zeros(0, np.int64)  # a document that may continue in the next rows
    for first in range(0, len(rows), _ROWS):
        part = rows[first : first + _ROWS]
        tokens = np.asarray(part.tokens)
        if part.sizes is not None:
            yield from (row[counts] for row, counts in zip(tokens, part.counted, strict=True))
            continue
        stream = np.concatenate([rest, tokens.reshape(-1)])
        *whole, rest = np.split(stream, np.flatnonzero(stream == separator) + 1)
        yield from whole
    yield rest
