"""From the tokens of a row back to text: what is final already, and what each token adds to it.

A row is written in any order. What is told of it is the text up to the first place that is still
open, and only characters that nothing which follows can change: told piece by piece, it is the text
that is told at the end.
"""

import functools
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from mdlm_jax import data
from mdlm_jax.serving.jobs import Job, Written
from mdlm_jax.writing import sample_files
from mdlm_jax.writing.filling import Filled

# Decoders that append: what they made of some tokens stays when more tokens follow.
_APPENDING = {"ByteLevel", "Fuse", "Metaspace", "Sequence"}
# Tokens behind a place that can still change how others write it ("well - known" is "well-known").
_LOOKS_AHEAD = 4
_UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # for bytes that are no character yet


class Extent(NamedTuple):
    """What of a row is its text.

    Attributes:
      shown: bool[L], the tokens that are text, asked for or given.
      before: how the given text ahead may be written, the user's own writing first; it is left out
        of the answer. () where all of the row is the answer.
      after: the same of the text behind the gap; () for none.
      echo: whether the text ahead is part of the answer all the same.
      stops: the answer ends before the first of these.
      opens: whether the text goes on until something ends it, so that it may be cut.
      given: tokens of the prompt.
      prompt: its number in the request.
    """

    shown: np.ndarray
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    echo: bool = False
    stops: tuple[str, ...] = ()
    opens: bool = False
    given: int = 0
    prompt: int = 0


class Row(NamedTuple):
    """A row that is asked for: of the engine, and of its text."""

    job: Job
    extent: Extent


class Read(NamedTuple):
    """What a row says so far.

    Attributes:
      text: the answer as far as it is final.
      reason: why it ends there, 'stop' or 'length'; None while it goes on.
      first: where the answer begins in the text of the row.
    """

    text: str
    reason: str | None
    first: int = 0


class Token(NamedTuple):
    """A token of an answer.

    Attributes:
      piece: what it adds to the text.
      id: its number in the vocabulary.
      offset: where the piece begins in the answer.
      log_prob: of a token that was written, in nats; None of a given one.
    """

    piece: str
    id: int
    offset: int
    log_prob: float | None


def read(row: Row, written: Written, tokenizer: Tokenizer, mask_id: int) -> Read:
    """The answer of a row as far as it is final; all of it when the row is done."""
    job, extent = row
    places = final_places(row, written, mask_id)
    if written.done:
        whole = data.decode(tokenizer, written.tokens[places])
    else:
        if extent.after:  # known from the start, and no part of the answer
            places = places[places <= np.flatnonzero(job.fill)[-1]]
        whole = _settled(tokenizer, written.tokens[places])
    first = _first(whole, extent.before, written.done)
    if first is None:
        return Read("", None)
    answer = whole[first : _last(whole, extent.after, first) if written.done else None]
    told = whole[:first] if extent.echo else ""
    begins = 0 if extent.echo else first
    stopped = first_stop(answer, extent.stops)
    if stopped is not None:
        return Read(told + answer[:stopped], "stop", begins)
    if not written.done:
        held = _held(answer, extent.stops)
        return Read(told + answer[: len(answer) - held], None, begins)
    ended = job.end_id is not None and job.end_id in written.tokens[places[job.fill[places]]]
    return Read(told + answer, "length" if extent.opens and not ended else "stop", begins)


def fresh(told: str, made: Read) -> str:
    """What is to be told next.

    Args:
      told: all that was told before.
      made: of the row now. While it is written, less may be final by what is known of it alone than
        was before; that stays final.

    Raises:
      RuntimeError: the text does not begin with what was told: the tokenizer's decoder changes
        text further back than was thought.
    """
    if made.text.startswith(told):
        return made.text[len(told) :]
    if made.reason is None and told.startswith(made.text):
        return ""
    raise RuntimeError("a text does not begin with what was told of it")


def tokens_of(row: Row, written: Written, made: Read, tokenizer: Tokenizer) -> list[Token]:
    """The tokens of an answer; their pieces, joined, are its text.

    Args:
      row: that was asked for.
      written: of the row, at the end or when a stop ended the answer.
      made: what `read` made of it, with a reason.
      tokenizer: of the model.
    """
    places = final_places(row, written, data.special_ids(tokenizer).mask)
    pieces = data.token_pieces(tokenizer, written.tokens[places])
    low, high = made.first, made.first + len(made.text)
    tokens, begin = [], 0
    for place, piece in zip(places.tolist(), pieces, strict=True):
        end = begin + len(piece)
        cut = piece[max(low - begin, 0) : max(high - begin, 0)]
        if cut or (not piece and low <= begin < high):
            log_prob = float(written.log_prob[place]) if row.job.fill[place] else None
            offset = max(begin, low) - low
            tokens.append(Token(cut, int(written.tokens[place]), offset, log_prob))
        begin = end
    return tokens


def count(row: Row, written: Written, tokens: Sequence[Token] | None, mask_id: int) -> int:
    """How many tokens of an answer were written.

    Args:
      row, written: as in `tokens_of`.
      tokens: of the answer; None where nothing cut it.
      mask_id: of the tokenizer.
    """
    if tokens is not None:
        return sum(token.log_prob is not None for token in tokens)
    places = final_places(row, written, mask_id)
    places = places[row.job.fill[places]]
    return int((written.tokens[places] != row.job.end_id).sum())


def canvas_of(row: Row, written: Written, tokenizer: Tokenizer) -> dict[str, Any]:
    """What is written of a row, anywhere, and may still be taken back; for JSON.

    Returns:
      "tokens", for each token that is text its piece (None where nothing is written), the step that
      wrote it (-1 for a given one) and its log-probability; and "written", the ids of all wanted
      positions, None where nothing is written.
    """
    mask_id = data.special_ids(tokenizer).mask
    places = np.flatnonzero(row.extent.shown)
    if written.done:
        places = final_places(row, written, mask_id)
    ids = written.tokens[places]
    blank = row.job.fill[places] & (ids == mask_id)
    pieces = data.token_pieces(tokenizer, ids)
    told = zip(pieces, written.step[places], written.log_prob[places], blank, strict=True)
    wanted = written.tokens[row.job.fill].tolist()
    return {
        "tokens": [
            [None if masked else piece, int(step), round(float(log_prob), 4)]
            for piece, step, log_prob, masked in told
        ],
        "written": [None if token == mask_id else token for token in wanted],
    }


def final_places(row: Row, written: Written, mask_id: int) -> np.ndarray:
    """i32[n], the places of the text, in order, up to the first that may still change."""
    job, shown = row.job, row.extent.shown
    if written.done:
        filled = Filled(job.choice, written.tokens, written.step, written.log_prob, 0)
        return np.flatnonzero(sample_files.text_places(filled, job.fill, shown))
    open_ = job.fill & (True if job.strategy.remasks else written.tokens == mask_id)
    ahead = np.cumsum(open_) == 0
    if job.end_id is not None:  # what was written behind an end is dropped
        ends = job.fill & (written.tokens == job.end_id)
        ahead &= ~(job.fill & (np.cumsum(ends) - ends > 0))
    return np.flatnonzero(shown & ahead)


def first_stop(text: str, stops: Sequence[str]) -> int | None:
    """Where the stop begins that is whole first, as the text grows; None without one."""
    found = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    return min(found)[1] if found else None


def _settled(tokenizer: Tokenizer, ids: np.ndarray) -> str:
    """The text of the ids that is a beginning of the text of any ids which begin with them."""
    text = data.decode(tokenizer, ids)
    ahead = looks_ahead(tokenizer)
    if ahead:
        text = text[: common(data.decode(tokenizer, ids[:-ahead]), text)]
    return text.rstrip(_UNFINISHED)


def looks_ahead(tokenizer: Tokenizer) -> int:
    """The tokens behind a place that its text may depend on."""
    if tokenizer.decoder is None:
        return 0
    return _looks_ahead(tokenizer.decoder.__getstate__())


@functools.lru_cache(maxsize=64)
def _looks_ahead(decoder: bytes) -> int:
    told = json.loads(decoder)
    parts = [told, *told.get("decoders", ())]
    return 0 if {part["type"] for part in parts} <= _APPENDING else _LOOKS_AHEAD


def common(one: str, other: str) -> int:
    """Characters at the start of both."""
    size = min(len(one), len(other))
    return next((i for i in range(size) if one[i] != other[i]), size)


def _first(whole: str, before: Sequence[str], done: bool) -> int | None:
    """Where the answer begins; None where too little of the text is known."""
    for given in before:
        if whole.startswith(given):
            return len(given)
        if not done and given.startswith(whole):
            return None
    return common(before[-1], whole) if before else 0


def _last(whole: str, after: Sequence[str], first: int) -> int:
    """Where the answer ends."""
    for given in after:
        if whole.endswith(given):
            return max(len(whole) - len(given), first)
    behind = common(after[-1][::-1], whole[::-1]) if after else 0
    return max(len(whole) - behind, first)


def _held(text: str, stops: Sequence[str]) -> int:
    """Characters at the end that may be the beginning of a stop."""
    sizes = (size for stop in stops for size in range(len(stop) - 1, 0, -1))
    return max((size for size in sizes if text.endswith(tuple(s[:size] for s in stops))), default=0)
