"""Tokenizers trained on a corpus: WordPiece, byte-level BPE and characters."""

import string
from collections import Counter
from collections.abc import Iterable, Iterator

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

from mdlm_jax.data.config import SPECIAL_TOKENS, TOKENIZERS

# Spaces that BERT's splitting at punctuation puts into text and ordinary writing does not have:
# after opening and before closing punctuation, around the hyphen of a compound and the apostrophe
# of a contraction, within a number.
_SPURIOUS_SPACE = (
    r"(?<=[(\[{$£€/]) | (?=[)\]},.;:!?%/])"
    r"|(?<=\w) (?=[-–] \w)|(?<=\w [-–]) (?=\w)"
    r"|(?<=\w) (?=['’] (?:s|t|d|m|re|ve|ll)\b)|(?<=\w ['’]) (?=(?:s|t|d|m|re|ve|ll)\b)"
    r"|(?<=\d [.,]) (?=\d)"
)


def train_tokenizer(
    texts: Iterable[str], *, kind: str, vocab_size: int, lowercase: bool
) -> Tokenizer:
    """Trains a tokenizer whose ids 0..4 are [PAD] [UNK] [CLS] [SEP] [MASK].

    The same texts give the same tokenizer in every process. A literal "[MASK]" in a text that is
    encoded is the mask, and so are the other four (`encode_documents` reads them as plain text).

    Args:
      texts: of the training split, and nothing else; iterated over twice, never held together.
      kind: 'wordpiece' (BERT's: split at spaces and punctuation), 'bpe' (of bytes: no unknowns) or
        'characters' (one token a character; the most frequent are known, in code point order).
      vocab_size: the most entries that the vocabulary may have; a small corpus may give fewer.
      lowercase: whether case (and, for WordPiece, accents) is folded.

    Raises:
      ValueError: the kind is unknown, or the alphabet alone overflows `vocab_size`.
    """
    trainers_by_kind = {
        "wordpiece": _train_wordpiece,
        "bpe": _train_bpe,
        "characters": _train_characters,
    }
    if kind not in trainers_by_kind:
        raise ValueError(f"tokenizer must be one of {', '.join(TOKENIZERS)}, got {kind!r}")
    tokenizer = trainers_by_kind[kind](texts, vocab_size, lowercase)
    least = tokenizer.get_vocab_size()
    if least > vocab_size:
        raise ValueError(
            f"vocab_size {vocab_size} is too small: the special tokens and the alphabet of this "
            f"corpus take {least} entries of a {kind} vocabulary"
        )
    return tokenizer


def wordpiece(vocab: dict[str, int], normalizer: normalizers.Normalizer) -> Tokenizer:
    """BERT's tokenizer, whose decoder writes punctuation as people do."""
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.WordPiece(cleanup=False),
            decoders.Fuse(),
            decoders.Replace(Regex(_SPURIOUS_SPACE), ""),
        ]
    )
    tokenizer.add_special_tokens(_special_tokens())
    return tokenizer


def _special_tokens() -> list[AddedToken]:
    # A mask takes the space before it: what is filled in brings its own.
    return [AddedToken(t, special=True, lstrip=t == "[MASK]") for t in SPECIAL_TOKENS]


def _train_characters(texts: Iterable[str], vocab_size: int, lowercase: bool) -> Tokenizer:
    normalizer = normalizers.Sequence([normalizers.Lowercase()] if lowercase else [])
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(normalizer.normalize_str(text))
    known = sorted(counts, key=lambda c: (-counts[c], c))[: vocab_size - len(SPECIAL_TOKENS)]
    vocab = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *sorted(known)])}

    # BPE without a merge is the fastest way to single characters.
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.Fuse()
    # A space is a token like any other here, so the mask leaves the one before it alone.
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in SPECIAL_TOKENS])
    return tokenizer


def _train_bpe(texts: Iterable[str], vocab_size: int, lowercase: bool) -> Tokenizer:
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


def _train_wordpiece(texts: Iterable[str], vocab_size: int, lowercase: bool) -> Tokenizer:
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
    return wordpiece(tokenizer.get_vocab(), tokenizer.normalizer)


def _alphabet(
    tokenizer: Tokenizer, texts: Iterable[str], limit: int
) -> tuple[list[str], list[str]]:
    """Letters of the vocabulary, and those of them that it has within words too.

    All of ASCII, so that a prompt need not stay within what the corpus happens to use, then the
    most frequent others up to `limit` letters.
    """
    ascii_letters = set(tokenizer.normalizer.normalize_str(string.printable)) - {*string.whitespace}
    words: Counter[str] = Counter()
    for text in texts:
        words.update(tokenizer.normalizer.normalize_str(text).split())
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for letter in word:
            counts[letter] += count
    ranked = sorted(
        ascii_letters | counts.keys(), key=lambda c: (c not in ascii_letters, -counts[c], c)
    )
    letters = ranked[: max(limit, len(ascii_letters))]
    inner = {letter for word in _split(tokenizer, words) for letter in word[1:]}
    inner |= {letter for letter in ascii_letters if letter.isalnum()}
    return letters, [letter for letter in letters if letter in inner]


def _split(tokenizer: Tokenizer, words: Iterable[str]) -> Iterator[str]:
    """Words as they are split at punctuation."""
    return (part for word in words for part, _ in tokenizer.pre_tokenizer.pre_tokenize_str(word))
