"""Splits that a corpus lacks, held out of its training documents."""

import bisect
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mdlm_jax.data.corpora.documents import Document, parts_of, whole, without_blank


def hold_out(
    splits: Mapping[str, Iterable[Document]], *, share: float, by: str
) -> dict[str, Iterable[Document]]:
    """Adds the validation and test splits that are missing, taken out of 'train'.

    Args:
      splits: documents by split, at least 'train'.
      share: the share of the training text that each of them takes: of the documents (in
        expectation), or of the characters (rounded).
      by: 'documents': a hash of a document's text (for a pair, of prompt and response) decides, so
        that equal documents stay together and adding others moves none. 'position': test is the end
        of the text, and validation the part before it.

    Returns:
      The splits 'train', 'validation' and 'test', streamed as those given.
    """
    missing = [name for name in ("validation", "test") if name not in splits]
    if not missing:
        return dict(splits)
    train = splits["train"]
    kind = _by_hash if by == "documents" else _by_position
    parts = kind(train, share, len(missing))
    return {**splits, **dict(zip(["train", *missing], parts, strict=True))}


def way(splits: Mapping[str, Iterable[Document]], *, share: float, by: str) -> str:
    """The way to hold documents out, as in `hold_out`: the requested one, if it is possible.

    With few documents a hash leaves a split without one; a single book fills only one split. Such
    text is cut by position. Pairs are not, because half a response answers nothing.

    Args:
      splits: documents by split; read until every split has one.
      share: as in `hold_out`.
      by: the requested way.
    """
    missing = [name for name in ("validation", "test") if name not in splits]
    if not missing or by != "documents":
        return by
    wanted = {*range(len(missing) + 1)}
    borders = [1 - share * left for left in range(len(missing), 0, -1)]
    hashed = None
    for document in splits["train"]:
        if document.prompt is not None:
            return by
        hashed = _update(hashed, document)
        if document.more:
            continue
        wanted.discard(bisect.bisect_right(borders, _share(hashed)))
        hashed = None
        if not wanted:
            return by
    return "position"


@dataclass(frozen=True)
class _OfHash:
    """The documents whose hash, a number in [0, 1), lies in [low, high)."""

    documents: Iterable[Document]
    low: float
    high: float

    def __iter__(self) -> Iterator[Document]:
        return (each for each in whole(self.documents) if self.low <= _hash(each) < self.high)

    def parts(self) -> list[Iterable[Document]]:
        return [_OfHash(part, self.low, self.high) for part in parts_of(self.documents)]


def _by_hash(documents: Iterable[Document], share: float, count: int) -> list[_OfHash]:
    borders = [0.0, *(1 - share * left for left in range(count, -1, -1))]
    return [_OfHash(documents, *pair) for pair in itertools.pairwise(borders)]


def _hash(document: Document) -> float:
    return _share(_update(None, document))


def _update(hashed: Any, document: Document) -> Any:
    """The hash with one more piece; None is the hash of nothing."""
    hashed = hashlib.sha256() if hashed is None else hashed
    text = document.text if document.prompt is None else f"{document.prompt}\n{document.text}"
    hashed.update(text.encode("utf-8"))
    return hashed


def _share(hashed: Any) -> float:
    return int.from_bytes(hashed.digest()[:4], "big") / 2**32


@dataclass(frozen=True)
class _OfCharacters:
    """Characters [first, last) of the documents end to end."""

    documents: Iterable[Document]
    first: int
    last: int

    def __iter__(self) -> Iterator[Document]:
        return without_blank(self._cut())

    def _cut(self) -> Iterator[Document]:
        start = 0
        for document in self.documents:
            if start >= self.last:
                return
            text = document.text[max(self.first - start, 0) : self.last - start]
            start += len(document.text)
            yield document._replace(text=text, more=document.more and start < self.last)


def _by_position(documents: Iterable[Document], share: float, count: int) -> list[_OfCharacters]:
    total = sum(len(document.text) for document in documents)
    held = round(total * share)
    borders = [0, *(total - held * left for left in range(count, -1, -1))]
    return [_OfCharacters(documents, *pair) for pair in itertools.pairwise(borders)]
