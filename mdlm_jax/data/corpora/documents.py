"""What a corpus is: documents in named splits, streamed."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple


class Document(NamedTuple):
    """One text and its label; for a supervised pair the response, and its prompt.

    A long text may come in pieces, one after the other, so that it is never whole in memory.

    Attributes:
      text: not empty.
      label: index into the corpus' `label_names`; or, if that is None, the label's name.
      prompt: for a pair, may be empty; None if there is only the text.
      place: the source in messages: a file, perhaps with the line.
      more: whether this is a piece of a text, and the next document is the piece that follows it.
        What is said here of a text holds for the pieces together.
    """

    text: str
    label: int | str
    prompt: str | None = None
    place: str = ""
    more: bool = False


class Corpus(NamedTuple):
    """Documents, read only when they are wanted and never all at once.

    Attributes:
      version: must change whenever the documents do, because prepared data is found by it.
      license: terms and attribution of the text, kept beside everything made of it.
      label_names: names of the labels 0, 1, ...; () without labels (then every label is 0); None
        where the documents bring their labels' names.
      read: `cache_dir -> {split: documents}` with at least the split 'train'. Documents are
        iterated over several times, in the same order each time; a `len` is shown as progress.
        If they have `parts()`, a list of documents that can be pickled and together are all of
        them, many machines can read them at once.
      chat_template: the template that wrote their prompts and responses out of messages; '' where
        there were none.
    """

    version: str
    license: str
    label_names: tuple[str, ...] | None
    read: Callable[[Path], Mapping[str, Iterable[Document]]]
    chat_template: str = ""


def parts_of(documents: Iterable[Document]) -> list[Iterable[Document]]:
    """Documents in parts that can be read at once, or in one part."""
    return documents.parts() if hasattr(documents, "parts") else [documents]


def whole(documents: Iterable[Document], *, most: int | None = None) -> Iterator[Document]:
    """The documents with their pieces joined, of such a text the first `most` characters."""
    pieces: list[str] = []
    size, within = 0, False
    for document in documents:
        if not (within or document.more):
            yield document
            continue
        if most is None or size < most:
            pieces.append(document.text)
            size += len(document.text)
        within = document.more
        if not within:
            yield document._replace(text="".join(pieces)[:most])
            pieces, size = [], 0


def without_blank(documents: Iterable[Document]) -> Iterator[Document]:
    """The documents that are more than white space; pieces stay pieces."""
    blank, has_text = "", False
    for document in documents:
        if not (has_text or document.text.strip()):
            blank = blank + document.text if document.more else ""
            continue
        yield document._replace(text=blank + document.text) if blank else document
        blank, has_text = "", document.more
