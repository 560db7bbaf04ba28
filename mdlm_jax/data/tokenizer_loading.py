"""Tokenizers that were made elsewhere: a tokenizer.json, BERT's vocab.txt, or one of the hub."""

import json
from pathlib import Path

from etils import epath
from tokenizers import Tokenizer, normalizers

from mdlm_jax.data.config import TOKENIZERS
from mdlm_jax.data.tokenization import special_ids
from mdlm_jax.data.tokenizer_training import wordpiece

_ACCEPTED = (
    f"accepted are {', '.join(TOKENIZERS)}, the path of a tokenizer.json, a folder that holds one "
    "or BERT's vocab.txt, or a name of the Hugging Face hub"
)


def load_tokenizer(name: str | Path) -> Tokenizer:
    """Loads a tokenizer and checks that it has a mask and a separator.

    Args:
      name: path of a tokenizer.json; a folder that holds one, or BERT's vocab.txt (perhaps with a
        tokenizer_config.json, whose `do_lower_case`, `strip_accents` and `tokenize_chinese_chars`
        are followed); or, where nothing lies there, a name of the Hugging Face hub with a '/'.

    Returns:
      The tokenizer, which neither truncates nor pads.

    Raises:
      FileNotFoundError: there is no such file, and the name is none of the hub.
      ValueError: the file is no tokenizer, the hub does not give it, or it lacks a special token.
    """
    path = epath.Path(name).expanduser()
    if path.is_dir():
        tokenizer = _from_folder(path)
    elif path.is_file():
        tokenizer = _from_file(path)
    elif _may_be_of_hub(str(name)):
        tokenizer = _from_hub(str(name))
    else:
        raise FileNotFoundError(f"no tokenizer at {name}: {_ACCEPTED}")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    try:
        special_ids(tokenizer)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return tokenizer


def _from_folder(folder: Path) -> Tokenizer:
    if (folder / "tokenizer.json").is_file():
        return _from_file(folder / "tokenizer.json")
    if (folder / "vocab.txt").is_file():
        return _from_vocabulary(folder)
    raise FileNotFoundError(f"no tokenizer in {folder}: it has no tokenizer.json and no vocab.txt")


def _from_file(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # The type that `tokenizers` raises.
        raise ValueError(f"{path} is no tokenizer.json: {error}") from None


def _from_vocabulary(folder: Path) -> Tokenizer:
    path = folder / "vocab.txt"
    tokens = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    vocab = {token: i for i, token in enumerate(tokens)}
    missing = [token for token in ("[UNK]", "[SEP]", "[MASK]") if token not in vocab]
    if missing:
        raise ValueError(f"{path} has no {', '.join(missing)}: it is not BERT's")
    beside = folder / "tokenizer_config.json"
    config = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
    return wordpiece(
        vocab,
        normalizers.BertNormalizer(
            lowercase=config.get("do_lower_case", True),
            strip_accents=config.get("strip_accents"),
            handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        ),
    )


def _may_be_of_hub(name: str) -> bool:
    owner, slash, rest = name.partition("/")
    return bool(owner.strip(".~") and slash and rest and "/" not in rest) and not rest.endswith(
        (".json", ".txt")
    )


def _from_hub(name: str) -> Tokenizer:
    from huggingface_hub.utils import logging  # Part of `tokenizers`; it takes a moment.

    before = logging.get_verbosity()
    logging.set_verbosity_error()  # It would tell every retry.
    try:
        return Tokenizer.from_pretrained(name)
    except (
        Exception
    ) as error:  # Of the network, of the hub, or of `tokenizers`: all are its answer.
        told = " ".join(str(error).split()).partition(". ")[0]
        raise ValueError(
            f"tokenizer {name!r} is no path here, and the Hugging Face hub does not give it "
            f"({type(error).__name__}: {told}): {_ACCEPTED}"
        ) from None
    finally:
        logging.set_verbosity(before)
