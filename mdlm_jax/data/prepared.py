"""A folder of prepared data: rows, tokenizer and card."""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from mdlm_jax.data.rows import Rows
from mdlm_jax.data.tokens import tokenization
from mdlm_jax.data.tokens.loading import load_tokenizer

# Written last.
CARD = "data.json"


class Prepared(NamedTuple):
    """Rows ready to train on, and what is needed to read them.

    Attributes:
      tokenizer: its `encode` reads a literal mask ("[MASK]") in a prompt as the mask.
      splits: rows by split; the tokens are mapped from disk, read-only.
      label_names: names of the rows' labels, () without labels.
      vocab_size: the tokenizer's highest id, plus 1.
      mask_id: id of the mask.
      pad_id: id of the padding: the separator's, where the tokenizer has none.
      sep_id: id of the separator.
      fingerprint: hash of the tokenizer and of every row, equal exactly for equal data.
      card: contents of `data.json`. `card["splits"][name]` has documents, tokens (separators and
        what is cut or dropped included), unknown_tokens, characters and bytes (of the raw text),
        rows, longest (tokens of the longest document, its separators included), cut_tokens (of
        documents longer than a padded row, those that are in no row; 0 of packed rows), and of
        pairs dropped_documents (whose prompts leave no room for a response).
        `card["unknown"]` is the result of `unknowns.measure` for the training text.
        `card["chat_template"]` is the text of the template that wrote out messages, '' without
        messages.
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


def load_prepared(path: str | Path) -> Prepared:
    """Loads a folder that `prepare` made. Rows stay on disk until they are read."""
    path = Path(path)
    card = read_card(path)
    tokenizer = load_tokenizer(path / "tokenizer.json")
    special = tokenization.special_ids(tokenizer)
    return Prepared(
        tokenizer=tokenizer,
        splits={name: _load_rows(path, name) for name in card["splits"]},
        label_names=tuple(card["label_names"]),
        vocab_size=tokenization.vocabulary_size(tokenizer),
        mask_id=special.mask,
        pad_id=special.pad,
        sep_id=special.sep,
        fingerprint=card["fingerprint"],
        card=card,
        path=path,
    )


def fingerprint(folder: Path) -> str:
    """Hash of the names and contents of a folder's files, without the card."""
    contents = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.name != CARD):
        contents.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(2**20):
                contents.update(block)
    return contents.hexdigest()


def read_card(folder: Path) -> dict[str, Any]:
    """The contents of `data.json`.

    Raises:
      ValueError: it is no card.
    """
    return parse_card((folder / CARD).read_bytes(), f"{folder / CARD}")


def parse_card(contents: bytes, place: str) -> dict[str, Any]:
    """The contents of a `data.json`; `place` is its name in messages."""
    try:
        card = json.loads(contents)
        if {"fingerprint", "format"} <= card.keys():
            return card
        problem = "it has no fingerprint or format"
    except (ValueError, AttributeError) as error:
        problem = f"{type(error).__name__}: {error}"
    raise ValueError(f"{place} is damaged ({problem}): remove its folder, and prepare it again")


def _load_rows(folder: Path, split: str) -> Rows:
    sizes, prompts = (folder / f"{split}-{name}.npy" for name in ("sizes", "prompts"))
    return Rows(
        tokens=np.load(folder / f"{split}-tokens.npy", mmap_mode="r"),
        labels=np.load(folder / f"{split}-labels.npy"),
        sizes=np.load(sizes) if sizes.exists() else None,
        prompts=np.load(prompts) if prompts.exists() else None,
    )
