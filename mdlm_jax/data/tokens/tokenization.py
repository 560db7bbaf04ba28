"""From text to ids and back, with any tokenizer that has a mask and a separator."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer, models

# What each role is called: BERT's name, RoBERTa's, and those of byte-level BPE models.
_MASKS = ("[MASK]", "<mask>", "<|mask|>")
_SEPARATORS = ("[SEP]", "</s>", "<|endoftext|>", "<eos>")
_PADS = ("[PAD]", "<pad>", "<|pad|>")
_UNKNOWNS = ("[UNK]", "<unk>")
_STARTS = ("[CLS]", "<s>")

# Characters that are encoded at a time, and of one piece of a longer document: the memory that
# encoding takes is some hundred times the first, the second keeps all cores busy with one document.
_CHUNK = 2**21
_PIECE = 2**14


class SpecialIds(NamedTuple):
    """Ids of the special tokens; None for a role that the tokenizer does not have."""

    pad: int
    unk: int | None
    cls: int | None
    sep: int
    mask: int


def special_ids(tokenizer: Tokenizer) -> SpecialIds:
    """Finds the special tokens by the names that are customary.

    mask: [MASK] <mask> <|mask|>; separator: [SEP] </s> <|endoftext|> <eos>; padding: [PAD] <pad>
    <|pad|>, else the separator; unknown: [UNK] <unk>; start: [CLS] <s>. The first that the
    vocabulary has is taken.

    Raises:
      ValueError: there is no mask or no separator.
    """
    sep = _first(tokenizer, _SEPARATORS)
    mask = _first(tokenizer, _MASKS)
    if mask is None:
        raise ValueError(
            f"the tokenizer has no mask, none of {' '.join(_MASKS)}: one can be added with "
            "tokenizer.add_special_tokens(['[MASK]'])"
        )
    if sep is None:
        raise ValueError(f"the tokenizer has no separator, none of {' '.join(_SEPARATORS)}")
    pad = _first(tokenizer, _PADS)
    return SpecialIds(
        pad=sep if pad is None else pad,
        unk=_first(tokenizer, _UNKNOWNS),
        cls=_first(tokenizer, _STARTS),
        sep=sep,
        mask=mask,
    )


def mask_token(tokenizer: Tokenizer) -> str:
    """How the mask is spelt: "[MASK]" for BERT, "<mask>" for RoBERTa."""
    return tokenizer.id_to_token(special_ids(tokenizer).mask)


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """The highest id, plus 1: added tokens may leave holes below it."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def literal(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer, by which special tokens that are spelt out in a text are plain text."""
    made = Tokenizer.from_str(tokenizer.to_str())
    made.encode_special_tokens = True
    return made


def encode_documents(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[np.ndarray]:
    """Token ids of each text, ended by the separator; encoded in parallel, some millions at a time.

    Special tokens spelt out in a text are read as plain text, so a corpus holds no mask. A text
    of more than 2**14 characters is encoded in pieces cut before a space (anywhere, where there is
    none), which costs at most a token or so a cut.

    Yields:
      One i64[tokens + 1] for each text.

    Raises:
      ValueError: a text holds the mask all the same, as it is none of the special tokens.
    """
    begun: list[np.ndarray] = []  # the pieces so far of a document
    for ids, is_last in encode_pieces(tokenizer, ((text, False) for text in texts)):
        begun.append(ids)
        if is_last:
            yield np.concatenate(begun)
            begun = []


def encode_pieces(
    tokenizer: Tokenizer, texts: Iterable[tuple[str, bool]]
) -> Iterator[tuple[np.ndarray, bool]]:
    """As `encode_documents`, of texts that are never whole in memory.

    Args:
      tokenizer: of them.
      texts: each with whether it is a piece of a text that goes on with the next. Where they are
        cut changes no token.

    Yields:
      Some i64[tokens] of a text, and whether they are its last, which the separator ends.

    Raises:
      ValueError: as `encode_documents`.
    """
    special = special_ids(tokenizer)
    end = np.array([special.sep])
    plain = literal(tokenizer)
    for chunk in _chunks(cut_pieces(texts)):
        encodings = plain.encode_batch_fast([piece for piece, _ in chunk], add_special_tokens=False)
        for encoding, (_, is_last) in zip(encodings, chunk, strict=True):
            ids = np.array(encoding.ids, np.int64)
            if (ids == special.mask).any():
                raise ValueError(
                    f"a document holds {mask_token(tokenizer)}, which this tokenizer must have as "
                    "a special token to read it as plain text"
                )
            yield (np.concatenate([ids, end]) if is_last else ids), is_last


def cut(text: str) -> Iterator[str]:
    """A text in pieces of at most 2**14 characters, cut before a space where there is one."""
    start = 0
    while len(text) - start > _PIECE:
        space = text.rfind(" ", start + 1, start + _PIECE)
        end = space if space > 0 else start + _PIECE
        yield text[start:end]
        start = end
    yield text[start:]


def cut_pieces(texts: Iterable[tuple[str, bool]]) -> Iterator[tuple[str, bool]]:
    """What `cut` makes of texts that come in pieces themselves.

    Args:
      texts: each with whether it goes on with the next.

    Yields:
      A piece, and whether it is its text's last.
    """
    begun = ""
    for text, more in texts:
        *done, begun = cut(begun + text)
        for piece in done:
            yield piece, False
        if not more:
            yield begun, True
            begun = ""


def decode(tokenizer: Tokenizer, ids: Sequence[int] | np.ndarray) -> str:
    """Text of a row of ids: padding and start left out, masks shown.

    A separator between two texts is a new line; before the first and behind the last there is no
    text to part, and they are nothing. White space of the tokens is text, at both ends too: what
    is only looked at may be stripped by who shows it.
    """
    special = special_ids(tokenizer)
    documents: list[list[int]] = [[]]
    for index in map(int, ids):
        if index == special.sep:
            documents.append([])
        elif index not in (special.pad, special.cls):
            documents[-1].append(index)
    filled = [place for place, document in enumerate(documents) if document]
    within = documents[filled[0] : filled[-1] + 1] if filled else []
    return "\n".join(_decode_document(tokenizer, document) for document in within)


def _decode_document(tokenizer: Tokenizer, ids: list[int]) -> str:
    text = tokenizer.decode(ids, skip_special_tokens=False)
    if isinstance(tokenizer.model, models.WordPiece):
        # A row may begin within a word, whose first piece then has no word to join.
        text = text.removeprefix(tokenizer.model.continuing_subword_prefix)
    return text


def token_pieces(tokenizer: Tokenizer, ids: Sequence[int] | np.ndarray) -> list[str]:
    """What each token contributes to the text: joined, the pieces are `decode(tokenizer, ids)`.

    A token that is part of a character has an empty piece but for the one that completes it; the
    space between two words belongs to the second. The time is quadratic in the number of tokens.
    """
    text = decode(tokenizer, ids)
    ends = [0]
    for i in range(1, len(ids) + 1):
        prefix = decode(tokenizer, ids[:i])
        ends.append(max(ends[-1], _common_prefix(prefix, text)))
    # A prefix may be written otherwise than the whole ("well -" and "well-known"), and then ends
    # too early; where that leaves a token nothing, ask where the rest begins.
    for i in range(1, len(ids)):
        if ends[i] == ends[i - 1]:
            rest = decode(tokenizer, ids[i:])
            begin = len(text) - _common_prefix(rest[::-1], text[::-1])
            if ends[i] < begin < ends[i + 1]:
                ends[i] = begin
    return [text[first:last] for first, last in itertools.pairwise(ends)]


def _common_prefix(first: str, second: str) -> int:
    """Characters at the start of both, by bisection."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[:middle] == second[:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _first(tokenizer: Tokenizer, names: Iterable[str]) -> int | None:
    found = (tokenizer.token_to_id(name) for name in names)
    return next((index for index in found if index is not None), None)


def _chunks(pieces: Iterable[tuple[str, bool]]) -> Iterator[list[tuple[str, bool]]]:
    """The pieces in lists of some `_CHUNK` characters."""
    chunk: list[tuple[str, bool]] = []
    size = 0
    for piece in pieces:
        chunk.append(piece)
        size += len(piece[0])
        if size >= _CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
