"""What a corpus is: labelled documents in named splits, and where they come from."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mdlm_jax.data import wikipedia


class Document(NamedTuple):
    """One text and the index of its label in the corpus' `label_names`."""

    text: str
    label: int


class Corpus(NamedTuple):
    """Labelled documents, read only when they are wanted.

    Attributes:
      version: must change whenever the documents do: prepared data is found again by it.
      license: terms and attribution of the text, kept beside everything made of it.
      label_names: names of the labels 0, 1, ...
      read: `cache_dir -> {split: documents}` with at least the split 'train'; the order of the
        documents must be the same in every call.
    """

    version: str
    license: str
    label_names: tuple[str, ...]
    read: Callable[[Path], Mapping[str, Sequence[Document]]]


def _read_wikipedia_summaries(cache_dir: Path) -> dict[str, list[Document]]:
    splits = wikipedia.read_splits(cache_dir / "tfds")
    return {name: [Document(*pair) for pair in pairs] for name, pairs in splits.items()}


# A corpus of one's own is one more entry: `data.SOURCES["mine"] = data.Corpus(...)`.
SOURCES: dict[str, Corpus] = {
    "wikipedia_summaries": Corpus(
        version=wikipedia.VERSION,
        license=wikipedia.LICENSE,
        label_names=wikipedia.TOPICS,
        read=_read_wikipedia_summaries,
    ),
}
