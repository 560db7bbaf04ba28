"""How much of a text a tokenizer does not know, for a warning before training."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models

from mdlm_jax.data.config import TOKENIZERS
from mdlm_jax.data.corpora.documents import Document, whole
from mdlm_jax.data.tokens import tokenization
from mdlm_jax.data.tokens.encoding import Encoded

# Above this share of the characters a line warns.
_WORTH_TELLING = 0.01

# Documents that are inspected, evenly spread among those with unknown tokens, and how much of each.
_DOCUMENTS = 64
_CHARACTERS = 2**18


def measure(
    documents: Iterable[Document], encoded: Encoded, tokenizer: Tokenizer
) -> dict[str, Any] | None:
    """The unknown part of a split. An unknown word is one token, however long it is.

    The unknown tokens are counted. The number of characters that they stand for is estimated by the
    mean in `_DOCUMENTS` documents, which are all documents of a smaller corpus.

    Args:
      documents: of the split, read once more if there are unknown tokens.
      encoded: the same documents.
      tokenizer: of them.

    Returns:
      "share" of the characters, and of the longest unknown word that was met the "word" (its
      beginning), its "characters" and its "place"; None where every token is known.
    """
    unknown = tokenization.special_ids(tokenizer).unk
    if unknown is None or not encoded.counts["unknown_tokens"]:
        return None
    chosen = _chosen(encoded, unknown)
    literal = tokenization.literal(tokenizer)
    longest, place, total, count = "", "", 0, 0
    for document in _at(documents, chosen):
        for word in _unknown_words(document, literal, unknown):
            total, count = total + len(word), count + 1
            if len(word) > len(longest):
                longest, place = word, document.place
    if not count:
        return None
    characters = encoded.counts["unknown_tokens"] * total / count
    return {
        "share": min(characters / encoded.counts["characters"], 1.0),
        "word": longest[:20],
        "characters": len(longest),
        "place": place,
    }


def unknown_warning(card: Mapping[str, Any], tokenizer: Tokenizer) -> str | None:
    """A line if a noticeable share of the training text is unknown, with advice.

    Args:
      card: of `data.Prepared`.
      tokenizer: of the same.
    """
    found = card.get("unknown")
    if not found or found["share"] < _WORTH_TELLING:
        return None
    word = f"{found['word']!r}"
    if found["characters"] > len(found["word"]):
        word = f"{word[:-1]}…' ({found['characters']} characters)"
    place = f" of {found['place']}" if found["place"] else ""
    longest = getattr(tokenizer.model, "max_input_chars_per_word", None)
    is_long = isinstance(tokenizer.model, models.WordPiece) and found["characters"] > longest
    why = (
        f"WordPiece knows no word of more than {longest} characters, and text without spaces is "
        "such words: "
        if is_long
        else ""
    )
    return (
        f"{found['share']:.1%} of the training text is unknown to the tokenizer, and is trained on "
        f"as [UNK], such as {word}{place}: {why}{_cure(card['config'], is_long)}"
    )


def _cure(config: Mapping[str, Any], is_long: bool) -> str:
    """What to change, by what was requested."""
    bytes_ = "data.tokenizer=bpe, by which nothing is unknown"
    if config["tokenizer"] not in TOKENIZERS:
        return f"take a tokenizer that knows it, or {bytes_}"
    if is_long:
        return f"take {bytes_}, or data.tokenizer=characters"
    return f"take {bytes_}, or a data.vocab_size above {config['vocab_size']}"


def _chosen(encoded: Encoded, unknown: int) -> set[int]:
    """Indices of documents with unknown tokens."""
    ends = np.cumsum(encoded.sizes, dtype=np.int64)
    tokens = encoded.tokens()
    found: list[np.ndarray] = []
    for first in range(0, len(tokens), 2**22):
        places = np.flatnonzero(tokens[first : first + 2**22] == unknown) + first
        found.append(np.unique(np.searchsorted(ends, places, side="right")))
    every = np.unique(np.concatenate(found))
    spread = np.linspace(0, len(every) - 1, min(_DOCUMENTS, len(every))).round().astype(int)
    return {*every[spread].tolist()}


def _at(documents: Iterable[Document], chosen: set[int]) -> Iterator[Document]:
    upto = itertools.islice(whole(documents, most=_CHARACTERS), max(chosen) + 1)
    return (document for number, document in enumerate(upto) if number in chosen)


def _unknown_words(document: Document, literal: Tokenizer, unknown: int) -> Iterator[str]:
    for text in (document.prompt or "", document.text):
        for piece in tokenization.cut(text[:_CHARACTERS]):
            encoding = literal.encode(piece, add_special_tokens=False)
            for index, (first, last) in zip(encoding.ids, encoding.offsets, strict=True):
                if index == unknown:
                    yield piece[first:last]
