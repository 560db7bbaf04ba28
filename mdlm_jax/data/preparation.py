"""From a corpus to packed rows on disk, made once and found again by what made them."""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from mdlm_jax.data import tokenization
from mdlm_jax.data.corpora import SOURCES, Corpus, Document
from mdlm_jax.data.packing import Rows, pack

# Raise it whenever the code makes other rows of the same corpus and configuration.
_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Config:
    """What text, and how it becomes rows.

    Attributes:
      source: a key of `SOURCES`.
      tokenizer: 'wordpiece' or 'bpe'.
      vocab_size: the most entries of the vocabulary.
      length: tokens in a row.
      lowercase: whether the tokenizer folds case.

    Raises:
      ValueError: a value is impossible.
    """

    source: str = "wikipedia_summaries"
    tokenizer: str = "wordpiece"
    vocab_size: int = 4096
    length: int = 128
    lowercase: bool = True

    def __post_init__(self):
        if self.source not in SOURCES:
            raise ValueError(f"source must be one of {', '.join(SOURCES)}, got {self.source!r}")
        if self.tokenizer not in tokenization.KINDS:
            raise ValueError(
                f"tokenizer must be one of {', '.join(tokenization.KINDS)}, got {self.tokenizer!r}"
            )
        specials = len(tokenization.SPECIAL_TOKENS)
        if self.vocab_size <= specials:
            raise ValueError(
                f"vocab_size must exceed the {specials} special tokens, got {self.vocab_size}"
            )
        if self.length < 2:
            raise ValueError(f"length must be at least 2 tokens, got {self.length}")


class Prepared(NamedTuple):
    """Rows ready to train on, and what is needed to read them.

    Attributes:
      tokenizer: its `encode` reads a literal "[MASK]" in a prompt as the mask.
      splits: rows by split; the arrays are mapped from disk, read-only.
      label_names: names of the rows' labels.
      vocab_size: entries of the tokenizer's vocabulary.
      fingerprint: hash of the tokenizer and of every row: equal exactly where the data are.
      card: contents of `data.json`. `card["splits"][name]` has documents, tokens (separators and
        the dropped tail included), unknown_tokens, characters and bytes (of the raw text), rows.
      path: the folder that holds all of it.
    """

    tokenizer: Tokenizer
    splits: dict[str, Rows]
    label_names: tuple[str, ...]
    vocab_size: int
    mask_id: int
    pad_id: int
    sep_id: int
    fingerprint: str
    card: dict[str, Any]
    path: Path


def default_cache_dir() -> Path:
    """$MDLM_JAX_CACHE, else `~/.cache/mdlm_jax`."""
    return Path(os.environ.get("MDLM_JAX_CACHE") or "~/.cache/mdlm_jax").expanduser()


def prepare(config: Config, cache_dir: str | Path | None = None) -> Prepared:
    """Reads, tokenizes and packs the corpus, or loads what an earlier call left.

    A prepared folder appears whole or not at all, and processes that share `cache_dir` wait for the
    one that makes it.

    Args:
      config: what to prepare.
      cache_dir: where prepared data is kept; `default_cache_dir()` unless given.

    Raises:
      ModuleNotFoundError: the package that holds the corpus is not installed.
      ValueError: the vocabulary is too small for the corpus, or a split is shorter than a row.
    """
    corpus = SOURCES[config.source]
    cache_dir = Path(cache_dir).expanduser() if cache_dir else default_cache_dir()
    path = cache_dir / f"{config.source}-{_key(config, corpus)}"
    if not path.is_dir():
        cache_dir.mkdir(parents=True, exist_ok=True)
        with _lock(cache_dir / "lock"):
            if not path.is_dir():  # Another process may have made it while this one waited.
                _prepare_into(path, config, corpus)
    return load_prepared(path)


def load_prepared(path: str | Path) -> Prepared:
    """Loads a folder that `prepare` made; rows stay on disk until they are read."""
    path = Path(path)
    card = json.loads((path / "data.json").read_text(encoding="utf-8"))
    tokenizer = tokenization.load_tokenizer(path / "tokenizer.json")
    special = tokenization.special_ids(tokenizer)
    return Prepared(
        tokenizer=tokenizer,
        splits={name: _load_rows(path, name) for name in card["splits"]},
        label_names=tuple(card["label_names"]),
        vocab_size=tokenizer.get_vocab_size(),
        mask_id=special.mask,
        pad_id=special.pad,
        sep_id=special.sep,
        fingerprint=card["fingerprint"],
        card=card,
        path=path,
    )


def _key(config: Config, corpus: Corpus) -> str:
    made_of = {
        "format": _FORMAT,
        "corpus": corpus.version,
        "config": dataclasses.asdict(config),
    }
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # The system lets go of it when the process ends.
        yield


def _prepare_into(path: Path, config: Config, corpus: Corpus) -> None:
    incomplete = path.with_name(path.name + ".incomplete")
    shutil.rmtree(incomplete, ignore_errors=True)  # Of a preparation that was killed.
    documents = corpus.read(path.parent)
    tokenizer = tokenization.train_tokenizer(
        [document.text for document in documents["train"]],
        kind=config.tokenizer,
        vocab_size=config.vocab_size,
        lowercase=config.lowercase,
    )
    incomplete.mkdir()
    tokenizer.save(str(incomplete / "tokenizer.json"))
    sizes = {
        split: _write_split(incomplete, split, documents[split], tokenizer, config)
        for split in documents
    }
    _write_card(incomplete, config, corpus, sizes)
    incomplete.rename(path)


def _write_split(
    folder: Path, split: str, documents: Sequence[Document], tokenizer: Tokenizer, config: Config
) -> dict[str, int]:
    """Writes the rows of one split and returns its sizes."""
    texts = [document.text for document in documents]
    encoded = tokenization.encode_documents(tokenizer, texts)
    rows = pack(encoded, [document.label for document in documents], config.length)
    tokens = sum(map(len, encoded))
    if not len(rows):
        raise ValueError(
            f"the split {split!r} of {config.source!r} has {tokens} tokens, fewer than one row of "
            f"length {config.length}"
        )
    dtype = np.uint16 if tokenizer.get_vocab_size() <= 2**16 else np.int32
    np.save(folder / f"{split}-tokens.npy", rows.tokens.astype(dtype))
    np.save(folder / f"{split}-labels.npy", rows.labels)
    unknown = tokenization.special_ids(tokenizer).unk
    return {
        "documents": len(documents),
        "tokens": tokens,
        "unknown_tokens": int(sum((ids == unknown).sum() for ids in encoded)),
        "characters": sum(map(len, texts)),
        "bytes": sum(len(text.encode("utf-8")) for text in texts),
        "rows": len(rows),
    }


def _load_rows(folder: Path, split: str) -> Rows:
    return Rows(
        tokens=np.load(folder / f"{split}-tokens.npy", mmap_mode="r"),
        labels=np.load(folder / f"{split}-labels.npy"),
    )


def _write_card(
    folder: Path, config: Config, corpus: Corpus, sizes: Mapping[str, Mapping[str, int]]
) -> None:
    contents = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        contents.update(file.name.encode() + file.read_bytes())
    card = {
        "source": config.source,
        "version": corpus.version,
        "license": corpus.license,
        "fingerprint": contents.hexdigest(),
        "format": _FORMAT,
        "config": dataclasses.asdict(config),
        "label_names": list(corpus.label_names),
        "splits": sizes,
    }
    text = json.dumps(card, indent=2, ensure_ascii=False) + "\n"
    (folder / "data.json").write_text(text, encoding="utf-8")
