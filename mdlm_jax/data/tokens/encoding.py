"""Documents to token ids in a raw file on disk, streamed."""

import array
import collections
import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from mdlm_jax.data import progress
from mdlm_jax.data.corpora.documents import Document
from mdlm_jax.data.tokens import tokenization

COUNTS = ("documents", "tokens", "unknown_tokens", "characters", "bytes")


class Encoded(NamedTuple):
    """The tokens of a split.

    Attributes:
      path: raw file of their ids, document after document, each ended by the separator; a pair is
        its prompt and its response, each so ended.
      dtype: of the ids.
      sizes: i64[D], tokens of each document, its separators included.
      labels: i32[D], indices into `label_names`.
      label_names: names of the labels that came by name, in the order of their coming.
      counts: documents, tokens, unknown_tokens, characters and bytes.
      prompts: i32[D], of pairs the tokens of each prompt, its separator included; else empty.
    """

    path: Path
    dtype: np.dtype
    sizes: np.ndarray
    labels: np.ndarray
    label_names: tuple[str, ...]
    counts: dict[str, int]
    prompts: np.ndarray

    def tokens(self) -> np.ndarray:
        """The ids, mapped from disk."""
        if not self.sizes.size:
            return np.zeros(0, self.dtype)
        return np.memmap(self.path, self.dtype, mode="r")


# (folder, documents by split, tokenizer) -> the tokens of each split, in files of the folder.
Encode = Callable[[Path, Mapping[str, Iterable[Document]], Tokenizer], dict[str, Encoded]]


def encode_splits(
    folder: Path, splits: Mapping[str, Iterable[Document]], tokenizer: Tokenizer
) -> dict[str, Encoded]:
    """Encodes one split after the other in this process, each to `{split}.raw` in the folder."""
    return {
        split: write_tokens(folder / f"{split}.raw", documents, tokenizer, name=split)
        for split, documents in splits.items()
    }


def write_tokens(
    path: Path, documents: Iterable[Document], tokenizer: Tokenizer, *, name: str = ""
) -> Encoded:
    """Encodes documents and writes their ids to `path`; of them all, only sizes and labels stay.

    Args:
      path: the raw file.
      documents: iterated over once.
      tokenizer: of `tokenization`.
      name: of the split, for the progress bar; without one there is none.

    Raises:
      OSError: the disk is full.
    """
    dtype = dtype_of(tokenizer)
    unknown = tokenization.special_ids(tokenizer).unk
    sizes, labels, prompts = array.array("q"), array.array("i"), array.array("i")
    names: dict[str, int] = {}
    counts = dict.fromkeys(COUNTS, 0)
    total = len(documents) if isinstance(documents, Sized) else None

    with (
        path.open("wb", buffering=2**20) as file,
        _bar(name, total) as advance,
    ):
        of_pairs: collections.deque[bool] = collections.deque()  # of the documents under way

        def texts() -> Iterator[tuple[str, bool]]:
            within = False  # a text that comes in pieces
            for text, label, prompt, _, more in documents:
                if not within:
                    index = names.setdefault(label, len(names)) if isinstance(label, str) else label
                    labels.append(index)
                    of_pairs.append(prompt is not None)
                    counts["documents"] += 1
                parts = [text] if prompt is None else [prompt, text]
                size = sum(len(part.encode("utf-8")) for part in parts)
                counts["characters"] += sum(map(len, parts))
                counts["bytes"] += size
                advance(not within, MB=size / 1e6)
                within = more
                if prompt is not None:
                    yield prompt, False
                yield text, more

        size, is_prompt = 0, None  # of the document so far
        for ids, is_last in tokenization.encode_pieces(tokenizer, texts()):
            is_prompt = of_pairs[0] if is_prompt is None else is_prompt
            file.write(ids.astype(dtype).tobytes())
            size += len(ids)
            counts["tokens"] += len(ids)
            if unknown is not None:
                counts["unknown_tokens"] += int((ids == unknown).sum())
            if is_last and is_prompt:
                prompts.append(size)
                is_prompt = False
            elif is_last:
                sizes.append(size)
                of_pairs.popleft()
                size, is_prompt = 0, None

    return Encoded(
        path,
        dtype,
        np.array(sizes, np.int64),
        np.array(labels, np.int32),
        tuple(names),
        counts,
        np.array(prompts, np.int32),
    )


def dtype_of(tokenizer: Tokenizer) -> np.dtype:
    """Of ids in files: 16 bits where they suffice."""
    return np.dtype(np.uint16 if tokenization.vocabulary_size(tokenizer) <= 2**16 else np.int32)


def join(path: Path, pieces: Iterable[tuple[np.ndarray, Encoded]], tokenizer: Tokenizer) -> Encoded:
    """What `write_tokens` gives of all documents, from what it gave of consecutive ones.

    Args:
      path: the raw file to write.
      pieces: ids, and what is known of them, in the documents' order; iterated over once.
      tokenizer: which encoded them.
    """
    none = np.zeros(0, np.int32)
    sizes, labels, prompts = [np.zeros(0, np.int64)], [none], [none]
    names: dict[str, int] = {}
    counts = dict.fromkeys(COUNTS, 0)
    with path.open("wb", buffering=2**20) as file:
        for ids, piece in pieces:
            file.write(ids.tobytes())
            sizes.append(piece.sizes)
            prompts.append(piece.prompts)
            index = [names.setdefault(name, len(names)) for name in piece.label_names]
            labels.append(np.array(index, np.int32)[piece.labels] if index else piece.labels)
            counts = {name: counts[name] + piece.counts[name] for name in COUNTS}
    return Encoded(
        path,
        dtype_of(tokenizer),
        np.concatenate(sizes),
        np.concatenate(labels),
        tuple(names),
        counts,
        np.concatenate(prompts),
    )


def check_labels(names: Sequence[str], splits: Mapping[str, Encoded]) -> None:
    """Raises: ValueError: a label is none of the named ones (without names 0)."""
    classes = max(len(names), 1)
    for split, encoded in splits.items():
        wrong = encoded.labels[(encoded.labels < 0) | (encoded.labels >= classes)]
        if wrong.size:
            raise ValueError(
                f"{split}: a document has label {wrong[0]}, accepted are 0 to {classes - 1}"
            )


def sort_labels(splits: Mapping[str, Encoded]) -> tuple[tuple[str, ...], dict[str, Encoded]]:
    """All names of labels, sorted (as numbers, if they are), and the splits renumbered by them."""
    names = sorted({name for encoded in splits.values() for name in encoded.label_names})
    if all(re.fullmatch(r"-?[0-9]{1,4000}", name) for name in names):
        names.sort(key=int)
    renumbered = {}
    for split, encoded in splits.items():
        index = np.array([names.index(name) for name in encoded.label_names], np.int32)
        renumbered[split] = encoded._replace(labels=index[encoded.labels])
    return tuple(names), renumbered


def _bar(name: str, total: int | None) -> contextlib.AbstractContextManager:
    if name:
        return progress.bar(f"tokenizing {name}", total, "documents")
    return contextlib.nullcontext(lambda steps, **amounts: None)
