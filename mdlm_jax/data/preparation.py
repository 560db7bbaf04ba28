"""From a corpus to rows on disk, made once and found again by their inputs."""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from mdlm_jax.data import packing, progress
from mdlm_jax.data.cache import open_cache
from mdlm_jax.data.config import OF_HELD_OUT, TOKENIZERS, Config
from mdlm_jax.data.corpora import chat, text_files, tfds_datasets
from mdlm_jax.data.corpora.documents import Corpus, Document
from mdlm_jax.data.corpora.holding_out import hold_out, way
from mdlm_jax.data.corpora.sources import SOURCES
from mdlm_jax.data.prepared import CARD, Prepared, fingerprint, load_prepared
from mdlm_jax.data.tokens import encoding, tokenization, unknowns
from mdlm_jax.data.tokens.encoding import Encode, Encoded
from mdlm_jax.data.tokens.loading import load_tokenizer
from mdlm_jax.data.tokens.training import train_tokenizer

# Raise it whenever the code makes other rows from the same corpus and config.
_FORMAT = 2

# Fields that are newer than the format. At their defaults they are no part of the key, so that
# older prepared data are found again.
_LATER = ("prompt_field", "messages_field", "chat_template")

# A tokenizer is trained on this many first characters of the training split.
TRAINING_CHARACTERS = 2**28


def prepare(
    config: Config, cache_dir: str | Path | None = None, *, encode: Encode = encoding.encode_splits
) -> Prepared:
    """Reads and tokenizes the corpus and lays it out in rows, or loads the rows of an earlier call.

    The corpus is streamed, so memory does not grow with its text (except 8 bytes a document). Disk
    space is needed for its tokens twice, 2 bytes each (4 if ids exceed 16 bits). A prepared folder
    appears whole or not at all. One of all processes and machines that share `cache_dir` makes it,
    and the others wait. On a terminal, progress is shown on stderr.

    Args:
      config: what to prepare.
      cache_dir: where prepared data is kept, as `open_cache` takes it: a folder, perhaps one that
        several machines mount, or a bucket's, from which each copies what it needs into
        `paths.cache_folder()`; by default `paths.cache()`.
      encode: from documents to tokens; `beam_preparation.encoder` makes one that uses many
        machines, with the same bytes out.

    Raises:
      ModuleNotFoundError: a package that reads the corpus or the bucket is not installed.
      FileNotFoundError: there is no such tokenizer.
      ValueError: the corpus or the tokenizer does not exist, cannot be read, does not fit the rest
        of the config, or changes while it is read; or a split is shorter than a row.
      OSError: the disk is full, or the bucket cannot be used; unfinished files are removed.
    """
    corpus = _open_corpus(config)
    given = None if config.tokenizer in TOKENIZERS else load_tokenizer(config.tokenizer)
    source = config.source.replace("/", "_").replace(":", "_")

    def make(folder: Path) -> None:
        _write(folder, config, corpus, given, encode)
        if _open_corpus(config).version != corpus.version:
            raise ValueError(f"source {config.source!r} changed while it was read: prepare again")

    return load_prepared(
        open_cache(cache_dir).obtain(f"{source}-{_key(config, corpus, given)}", make)
    )


def find_prepared(fingerprint: str, cache_dir: str | Path | None = None) -> Prepared | None:
    """The prepared data with this fingerprint, of any origin; None if they are not here.

    Args:
      fingerprint: as in `Prepared`.
      cache_dir: where prepared data is kept, as in `prepare`.
    """
    cache = open_cache(cache_dir)
    for name, card in cache.names():
        if (card["format"], card["fingerprint"]) == (_FORMAT, fingerprint):
            return load_prepared(cache.obtain(name, make=_unmade))
    return None


def _unmade(folder: Path) -> None:
    raise FileNotFoundError(f"the prepared data at {folder.parent} vanished while they were read")


def _open_corpus(config: Config) -> Corpus:
    if config.source in SOURCES:
        return SOURCES[config.source]
    fields = {
        "text_field": config.text_field,
        "label_field": config.label_field,
        "prompt_field": config.prompt_field,
    }
    if config.source == "text_files":
        globs = {
            "files": config.files,
            "validation_files": config.validation_files,
            "test_files": config.test_files,
        }
        return text_files.open_text_files(
            globs,
            documents=config.documents,
            **fields,
            messages_field=config.messages_field,
            template=chat.load_template(config.chat_template) if config.messages_field else None,
        )
    return tfds_datasets.open_tfds(config.source, **fields)


def _key(config: Config, corpus: Corpus, given: Tokenizer | None) -> str:
    asked = dataclasses.asdict(config)
    made_of = {
        "format": _FORMAT,
        "corpus": corpus.version,
        "config": {name: value for name, value in asked.items() if value or name not in _LATER},
        "tokenizer": given and given.to_str(),
    }
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]


def _write(
    folder: Path, config: Config, corpus: Corpus, given: Tokenizer | None, encode: Encode
) -> None:
    """Writes the tokenizer, the rows of every split, and the card."""
    given_splits = corpus.read(folder.parent)
    if {"validation", "test"} <= given_splits.keys():
        config.refuse_idle(OF_HELD_OUT, f"source {config.source!r}, which has validation and test")
    split_by = way(given_splits, share=config.held_out, by=config.split_by)
    splits = hold_out(given_splits, share=config.held_out, by=split_by)
    tokenizer = given or train_tokenizer(
        _TrainingTexts(splits["train"]),
        kind=config.tokenizer,
        vocab_size=config.vocab_size,
        lowercase=config.lowercase,
    )
    text = tokenizer.to_str(pretty=True)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")

    encoded = encode(folder, splits, tokenizer)
    unknown = unknowns.measure(splits["train"], encoded["train"], tokenizer)
    label_names = corpus.label_names
    if label_names is None:
        label_names, encoded = encoding.sort_labels(encoded)
    encoding.check_labels(label_names, encoded)
    warning = unknowns.unknown_warning(
        {"unknown": unknown, "config": dataclasses.asdict(config)}, tokenizer
    )
    sizes = {}
    for split, each in encoded.items():
        advice = _advice(split, given_splits, config, split_by) + (
            f"; {warning}" if warning else ""
        )
        sizes[split] = _write_rows(folder, split, each, tokenizer, config, advice)
    done = dataclasses.replace(config, split_by=split_by)
    _write_card(folder, done, corpus, label_names, sizes, unknown)
    if split_by != config.split_by:
        held = " and ".join(name for name in ("validation", "test") if name not in given_splits)
        print(
            f"source {config.source!r} has too few documents to hold whole ones out: {held} come "
            f"from the end of its text, {config.held_out:.0%} each",
            file=sys.stderr,
        )
    for split, size in sizes.items():
        if dropped := size.get("dropped_documents"):
            print(
                f"{split}: {dropped:,} of {size['documents']:,} pairs are left out, their prompts "
                f"leave no room for a response in rows of length {config.length}",
                file=sys.stderr,
            )


def _advice(
    split: str, given: Mapping[str, Iterable[Document]], config: Config, split_by: str
) -> str:
    if {"validation", "test"} <= given.keys() or (split in given and split != "train"):
        return ""
    advice = f": held_out is {config.held_out}"
    if split_by == "documents":
        advice += " and split_by 'documents'; 'position' cuts within documents"
    return advice


class _TrainingTexts(NamedTuple):
    """The texts that a tokenizer is trained on, in pieces, read again in every iteration."""

    documents: Iterable[Document]

    def __iter__(self) -> Iterator[str]:
        with progress.bar("training the tokenizer", None, "documents") as advance:
            for piece, _ in tokenization.cut_pieces(self._texts(advance)):
                yield piece

    def _texts(self, advance: Callable[..., None]) -> Iterator[tuple[str, bool]]:
        left = TRAINING_CHARACTERS
        for document in self.documents:
            asked = [(document.prompt, False)] if document.prompt else []
            for text, more in (*asked, (document.text, document.more)):
                first = text[:left]
                left -= len(first)
                yield first, more and left > 0
                advance(0, MB=len(first) / 1e6)
            advance(not document.more)
            if not left:
                return


def _write_rows(
    folder: Path, split: str, encoded: Encoded, tokenizer: Tokenizer, config: Config, advice: str
) -> dict[str, int]:
    """Lays out the tokens of one split in rows, and returns its part of the card.

    The advice is for a split that is too small for a row.
    """
    rows = _lay_out(encoded, tokenizer, config)
    documents, tokens = encoded.counts["documents"], encoded.counts["tokens"]
    if not rows.count and config.pairs and documents:
        raise ValueError(
            f"the split {split!r} of {config.source!r} has {documents} pairs, and no prompt leaves "
            f"room for a response in a row of length {config.length}"
        )
    if not rows.count:
        raise ValueError(
            f"the split {split!r} of {config.source!r} has {documents} documents "
            f"of {tokens} tokens, fewer than one row of length {config.length}{advice}"
        )
    shape = rows.count, config.length
    _write_npy(folder / f"{split}-tokens.npy", encoded.dtype, shape, rows.chunks)
    _write_npy(folder / f"{split}-labels.npy", np.int32, shape[:1], [rows.labels])
    if rows.sizes is not None:
        _write_npy(folder / f"{split}-sizes.npy", np.int32, shape[:1], [rows.sizes])
    if rows.prompts is not None:
        _write_npy(folder / f"{split}-prompts.npy", np.int32, shape[:1], [rows.prompts])
    encoded.path.unlink()
    summary = {
        "rows": rows.count,
        "longest": int(encoded.sizes.max()),
        "cut_tokens": rows.cut_tokens,
    }
    dropped = {"dropped_documents": documents - rows.count} if config.pairs else {}
    return {**encoded.counts, **summary, **dropped}


def _lay_out(encoded: Encoded, tokenizer: Tokenizer, config: Config) -> packing.RowStream:
    tokens, sizes, labels = encoded.tokens(), encoded.sizes, encoded.labels
    special = tokenization.special_ids(tokenizer)
    if config.pairs:
        return packing.pair(tokens, sizes, encoded.prompts, labels, config.length, special.sep)
    if config.rows == "packed":
        return packing.pack(tokens, sizes, labels, config.length)
    return packing.pad(tokens, sizes, labels, config.length, special.pad)


def _write_npy(
    path: Path, dtype: np.typing.DTypeLike, shape: tuple[int, ...], chunks: Iterable[np.ndarray]
) -> None:
    """As `np.save`, for an array that is never whole in memory, with a full disk's own error."""
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "shape": shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {**header, "fortran_order": False})
        for chunk in chunks:
            file.write(np.ascontiguousarray(chunk, dtype).data)


def _write_card(
    folder: Path,
    config: Config,
    corpus: Corpus,
    label_names: tuple[str, ...],
    sizes: Mapping[str, Mapping[str, int]],
    unknown: Mapping[str, Any] | None,
) -> None:
    card = {
        "source": config.source,
        "version": corpus.version,
        "license": corpus.license,
        "fingerprint": fingerprint(folder),
        "format": _FORMAT,
        "config": dataclasses.asdict(config),
        "chat_template": corpus.chat_template,
        "label_names": list(label_names),
        "splits": sizes,
        "unknown": unknown,
    }
    text = json.dumps(card, indent=2, ensure_ascii=False) + "\n"
    (folder / CARD).write_text(text, encoding="utf-8")
