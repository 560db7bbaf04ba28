"""Tokenizers of Hugging Face folders, with their mask, which is added if there is none."""

import json
from pathlib import Path
from typing import NamedTuple

from tokenizers import AddedToken, Tokenizer, processors

from mdlm_jax import data
from mdlm_jax.data.tokens.loading import read_file
from mdlm_jax.networks import bert

_FILES = ("tokenizer.json", "vocab.txt")
_MASK = "[MASK]"
# Mask ids of published vocabularies by their size: BERT's four, and RoBERTa's.
_PUBLISHED = {30522: 103, 28996: 103, 119547: 103, 105879: 103, 21128: 103, 50265: 50264}


class Vocabulary(NamedTuple):
    """A tokenizer, or None, and its mask; `notes` are lines for the user."""

    tokenizer: Tokenizer | None
    mask_id: int
    notes: tuple[str, ...] = ()


def read(folder: Path, vocab_size: int, told: int | None = None) -> Vocabulary:
    """Reads the tokenizer of a folder and finds its mask.

    A tokenizer that has no mask gets one, `[MASK]`, behind its last token: in a spare row of the
    model's table, or else in a new one, so that `mask_id` may be `vocab_size`.

    Args:
      folder: with tokenizer.json or vocab.txt, or without.
      vocab_size: rows of the model's table.
      told: the mask that config.json or the caller gives, if any.

    Raises:
      ValueError: the tokenizer is damaged, has more tokens than the model, lacks a separator, or
        has another mask than `told`.
    """
    if not any((folder / name).is_file() for name in _FILES):
        return _without_tokenizer(folder, vocab_size, told)
    tokenizer, added = _tokenizer(folder)
    size, mask_id = data.vocabulary_size(tokenizer), data.special_ids(tokenizer).mask
    if size - added > vocab_size:
        raise ValueError(
            f"{folder}: the tokenizer has {size - added} tokens, the model {vocab_size}: it must "
            "have as many or more"
        )
    if told is not None and told != mask_id:
        raise ValueError(
            f"{folder}: the mask was given as {told}, but it is {mask_id} "
            f"({tokenizer.id_to_token(mask_id)}) in the tokenizer: they must agree"
        )
    row = "a new row of the embeddings" if mask_id == vocab_size else "a spare row"
    note = f"the tokenizer had no mask: {_MASK} was added to it, id {mask_id}, {row}"
    return Vocabulary(tokenizer, mask_id, (note,) if added else ())


def write(folder: Path, tokenizer: Tokenizer, config: bert.Config) -> None:
    """Writes tokenizer.json and the tokenizer_config.json by which transformers opens it."""
    ids = data.special_ids(tokenizer)
    tokens = {f"{role}_token": i for role, i in ids._asdict().items() if i is not None}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.max_length,
        "clean_up_tokenization_spaces": False,
        "model_input_names": [
            "input_ids",
            *(["token_type_ids"] if config.token_types else []),
            "attention_mask",
        ],
        **{role: tokenizer.id_to_token(i) for role, i in tokens.items()},
    }
    tokenizer.save(str(folder / "tokenizer.json"))
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _without_tokenizer(folder: Path, vocab_size: int, told: int | None) -> Vocabulary:
    lacking = "no tokenizer.json and no vocab.txt there"
    if (folder / "vocab.json").is_file():
        lacking += " (a vocab.json alone is not read)"
    if told is None:
        mask_id = _PUBLISHED.get(vocab_size, vocab_size - 1)
        note = f"{lacking}: tokenizer is None, and the mask taken to be {mask_id} (mask_id= to say)"
        return Vocabulary(None, mask_id, (note,))
    return Vocabulary(None, told)


def _tokenizer(folder: Path) -> tuple[Tokenizer, int]:
    """The tokenizer, and the number of tokens added to it: 0, or 1 for the mask."""
    if not (folder / "tokenizer.json").is_file():
        tokenizer = data.load_tokenizer(folder)
        ids = data.special_ids(tokenizer)
        if ids.cls is not None:
            names = tuple((tokenizer.id_to_token(i), i) for i in (ids.sep, ids.cls))
            tokenizer.post_processor = processors.BertProcessing(*names)
        return tokenizer, 0
    try:
        return data.load_tokenizer(folder), 0
    except ValueError as error:
        if "has no mask" not in str(error):
            raise
    tokenizer = read_file(folder / "tokenizer.json")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.add_special_tokens([AddedToken(_MASK, special=True, lstrip=True)])
    try:
        data.special_ids(tokenizer)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    return tokenizer, 1
