"""Tokenizers: WordPiece and byte-level BPE, trained and kept by Hugging Face `tokenizers`."""

import string
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # ids 0..4
KINDS = ("wordpiece", "bpe")

# Spaces that BERT's splitting at punctuation puts into text and ordinary writing does not have:
# after opening and before closing punctuation, around the hyphen of a compound and the apostrophe
# of a contraction, within a number.
_SPURIOUS_SPACE = (
    r"(?<=[(\[{$£€/]) | (?=[)\]},.;:!?%/])"
    r"|(?<=\w) (?=[-–] \w)|(?<=\w [-–]) (?=\w)"
    r"|(?<=\w) (?=['’] (?:s|t|d|m|re|ve|ll)\b)|(?<=\w ['’]) (?=(?:s|t|d|m|re|ve|ll)\b)"
    r"|(?<=\d [.,]) (?=\d)"
)


class SpecialIds(NamedTuple):
    """Ids of the special tokens."""

    pad: int
    unk: int
    cls: int
    sep: int
    mask: int


def train_tokenizer(
    texts: Sequence[str], *, kind: str, vocab_size: int, lowercase: bool
) -> Tokenizer:
    """Trains a tokenizer whose ids 0..4 are [PAD] [UNK] [CLS] [SEP] [MASK].

    The same texts give the same tokenizer in every process. A literal "[MASK]" in a text that is
    encoded is the mask, and so are the other four (`encode_documents` reads them as plain text).

    Args:
      texts: the training split, and nothing else.
      kind: 'wordpiece' (BERT's: split at spaces and punctuation) or 'bpe' (of bytes: no unknowns).
      vocab_size: the most entries that the vocabulary may have; a small corpus may give fewer.
      lowercase: whether case (and, for WordPiece, accents) is folded.

    Raises:
      ValueError: the kind is unknown, or the alphabet alone overflows `vocab_size`.
    """
    trainers_by_kind = {"wordpiece": _train_wordpiece, "bpe": _train_bpe}
    if kind not in trainers_by_kind:
        raise ValueError(f"tokenizer must be one of {', '.join(KINDS)}, got {kind!r}")
    tokenizer = trainers_by_kind[kind](texts, vocab_size, lowercase)
    least = tokenizer.get_vocab_size()
    if least > vocab_size:
        raise ValueError(
            f"vocab_size {vocab_size} is too small: the special tokens and the alphabet of this "
            f"corpus take {least} entries of a {kind} vocabulary"
        )
    return tokenizer


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Loads a `tokenizer.json` and checks that it has the special tokens.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a special token is missing.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no tokenizer at {path}")
    tokenizer = Tokenizer.from_file(str(path))
    try:
        special_ids(tokenizer)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return tokenizer


def special_ids(tokenizer: Tokenizer) -> SpecialIds:
    """Ids of the special tokens of any BERT-like tokenizer.

    Raises:
      ValueError: names the special tokens that the vocabulary lacks.
    """
    ids = {token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
    missing = [token for token, index in ids.items() if index is None]
    if missing:
        raise ValueError(f"the tokenizer has no {', '.join(missing)} in its vocabulary")
    return SpecialIds(*ids.values())


def encode_documents(tokenizer: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    """Token ids of each text, ended by [SEP]; the texts are encoded in parallel.

    Special tokens spelt out in a text are read as plain text, so a corpus holds no mask.

    Returns:
      One i64[tokens + 1] for each text.
    """
    literal = Tokenizer.from_str(tokenizer.to_str())
    literal.encode_special_tokens = True
    sep = special_ids(tokenizer).sep
    encodings = literal.encode_batch(texts, add_special_tokens=False)
    return [np.array([*encoding.ids, sep]) for encoding in encodings]


def decode(tokenizer: Tokenizer, ids: Sequence[int] | np.ndarray) -> str:
    """Text of a row of ids: [PAD] and [CLS] left out, a new line for [SEP], [MASK] shown."""
    special = special_ids(tokenizer)
    documents: list[list[int]] = [[]]
    for index in map(int, ids):
        if index == special.sep:
            documents.append([])
        elif index not in (special.pad, special.cls):
            documents[-1].append(index)
    texts = (tokenizer.decode(document, skip_special_tokens=False) for document in documents)
    return "\n".join(texts).strip()


def _special_tokens() -> list[AddedToken]:
    # A mask takes the space before it: what is filled in brings its own.
    return [AddedToken(t, special=True, lstrip=t == "[MASK]") for t in SPECIAL_TOKENS]


def _train_bpe(texts: Sequence[str], vocab_size: int, lowercase: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    if lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=_special_tokens(),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _train_wordpiece(texts: Sequence[str], vocab_size: int, lowercase: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()

    # The trainer numbers the "##" letters in the order of a randomly seeded hash map, so that every
    # process would get other ids. Named here, as if they were special, they come in our order.
    first, inner = _alphabet(tokenizer, texts, limit=min(max(vocab_size // 32, 64), 1000))
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL_TOKENS, *(f"##{letter}" for letter in inner)],
        initial_alphabet=first,
        limit_alphabet=len(first),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)

    trained = Tokenizer(models.WordPiece(tokenizer.get_vocab(), unk_token="[UNK]"))
    trained.normalizer = tokenizer.normalizer
    trained.pre_tokenizer = tokenizer.pre_tokenizer
    trained.decoder = decoders.Sequence(
        [
            decoders.WordPiece(cleanup=False),
            decoders.Fuse(),
            decoders.Replace(Regex(_SPURIOUS_SPACE), ""),
        ]
    )
    trained.add_special_tokens(_special_tokens())
    return trained


def _alphabet(
    tokenizer: Tokenizer, texts: Sequence[str], limit: int
) -> tuple[list[str], list[str]]:
    """Letters of the vocabulary, and those of them that it has within words too.

    All of ASCII, so that a prompt need not stay within what the corpus happens to use, then the
    most frequent others up to `limit` letters.
    """
    ascii_letters = set(tokenizer.normalizer.normalize_str(string.printable)) - {*string.whitespace}
    words = tokenizer.normalizer.normalize_str("\n".join(texts)).split()
    counts = Counter("".join(words))
    ranked = sorted(
        ascii_letters | counts.keys(), key=lambda c: (c not in ascii_letters, -counts[c], c)
    )
    letters = ranked[: max(limit, len(ascii_letters))]
    split = tokenizer.pre_tokenizer.pre_tokenize_str("\n".join(set(words)))
    inner = {letter for word, _ in split for letter in word[1:]}
    inner |= {letter for letter in ascii_letters if letter.isalnum()}
    return letters, [letter for letter in letters if letter in inner]
