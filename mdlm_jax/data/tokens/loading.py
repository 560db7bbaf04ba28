"""Tokenizers that were made elsewhere: a tokenizer.json, BERT's vocab.txt, or one of the hub."""

from pathlib import Path

from tokenizers import Tokenizer, normalizers

from mdlm_jax.data import hub, json_text, reading
from mdlm_jax.data.config import TOKENIZERS
from mdlm_jax.data.tokens.tokenization import special_ids
from mdlm_jax.data.tokens.training import wordpiece

# Of a tokenizer_config.json: what they are to the normalizer, and without the key.
_FOLDING = {
    "do_lower_case": ("lowercase", True),
    "strip_accents": ("strip_accents", None),
    "tokenize_chinese_chars": ("handle_chinese_chars", True),
}

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
    path = reading.path(name)
    if path.is_dir():
        tokenizer = _from_folder(path)
    elif path.is_file():
        tokenizer = read_file(path)
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
        return read_file(folder / "tokenizer.json")
    if (folder / "vocab.txt").is_file():
        return _from_vocabulary(folder)
    raise FileNotFoundError(f"no tokenizer in {folder}: it has no tokenizer.json and no vocab.txt")


def read_file(path: Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json, as it is.

    Raises:
      ValueError: the file is none.
    """
    text = reading.text(path)
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # The type that `tokenizers` raises.
        raise ValueError(f"{path} is no tokenizer.json: {error}") from None


def _from_vocabulary(folder: Path) -> Tokenizer:
    path = folder / "vocab.txt"
    tokens = reading.text(path).removesuffix("\n").split("\n")
    vocab = {token: i for i, token in enumerate(tokens)}
    missing = [token for token in ("[UNK]", "[SEP]", "[MASK]") if token not in vocab]
    if missing:
        raise ValueError(f"{path} has no {', '.join(missing)}: it is not BERT's")
    return wordpiece(vocab, normalizers.BertNormalizer(**_folding(folder)))


def _folding(folder: Path) -> dict[str, bool | None]:
    """What the tokenizer_config.json says of case, accents and Chinese characters."""
    path = folder / "tokenizer_config.json"
    config = json_text.load(path) if path.is_file() else {}
    folding = {}
    for key, (argument, default) in _FOLDING.items():
        value = config.get(key, default)
        if not isinstance(value, bool) and value is not default:
            accepted = "true or false" if default else "true, false or null"
            raise ValueError(f"{path}: {key} must be {accepted}, got {json_text.shown(value)}")
        folding[argument] = value
    return folding


def _may_be_of_hub(name: str) -> bool:
    owner, slash, rest = name.partition("/")
    return bool(owner.strip(".~") and slash and rest and "/" not in rest) and not rest.endswith(
        (".json", ".txt")
    )


def _from_hub(name: str) -> Tokenizer:
    with hub.asked(f"tokenizer {name!r} is no path here", _ACCEPTED):
        return Tokenizer.from_pretrained(name)
