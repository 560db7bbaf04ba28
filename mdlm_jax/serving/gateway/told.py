"""What a client was told of a stream, so that another region can go on with it.

A request that is repeated with its seed gives the same text. Of the repeated stream the client gets
what goes beyond: characters of each choice's text, entries of its log-probabilities, its role and
its end. What was told before must come again letter for letter.
"""

import dataclasses
import json
from typing import Any

Chunk = dict[str, Any]


class Garbage(ValueError):
    """A region sent what no region may send."""


class OtherVersion(Exception):
    """A stream of another version than the one that began: it must not go into the same text."""


def read_chunk(data: str) -> Chunk:
    """The JSON object of an event.

    Raises:
      Garbage: it is none, or a chunk without what the contract asks for.
    """
    try:
        chunk = json.loads(data)
    except (ValueError, RecursionError):
        raise Garbage("a chunk that is no JSON") from None
    if not isinstance(chunk, dict):
        raise Garbage("a chunk that is no JSON object")
    if "error" in chunk:
        return chunk
    fingerprint = chunk.get("system_fingerprint")
    if not isinstance(fingerprint, str) or not fingerprint:
        raise Garbage("a chunk without system_fingerprint")
    choices = chunk.get("choices")
    if not isinstance(choices, list) or not all(map(_is_choice, choices)):
        raise Garbage("a chunk whose choices cannot be read")
    return chunk


def has_text(chunk: Chunk) -> bool:
    """Whether a chunk has text, or the end of one."""
    for choice in chunk["choices"]:
        holder, name = _text_place(choice)
        if holder.get(name) or choice.get("finish_reason") is not None:
            return True
    return False


def _is_choice(choice: Any) -> bool:
    if not isinstance(choice, dict) or type(choice.get("index")) is not int:
        return False
    holder, name = _text_place(choice)
    return isinstance(holder, dict) and isinstance(holder.get(name), str | None)


def _text_place(choice: Chunk) -> tuple[Any, str]:
    """Where the text of a choice stands: `choice['text']` or `choice['delta']['content']`."""
    return (choice.get("delta"), "content") if "delta" in choice else (choice, "text")


@dataclasses.dataclass
class _Choice:
    """Of one choice: what was told in all, and how far the present try has come."""

    text: str = ""
    entries: int = 0  # of log-probabilities
    role: bool = False
    finished: bool = False
    at: int = 0
    at_entries: int = 0
    at_end: bool = False


class Told:
    """What was told of one stream, over all its tries.

    Attributes:
      fingerprint: of the version that writes it; None before the first chunk.
      policy: what the first chunk says that a policy gave the request; {} if it says nothing.
      tries: how many have begun.
    """

    def __init__(self) -> None:
        self.fingerprint: str | None = None
        self.policy: Chunk = {}
        self.tries = 0
        self._head: Chunk = {}
        self._usage = False
        self._choices: dict[int, _Choice] = {}

    @property
    def characters(self) -> int:
        """Of all choices."""
        return sum(len(choice.text) for choice in self._choices.values())

    def begin(self) -> None:
        """A try begins: its stream starts from the first letter."""
        self.tries += 1
        for choice in self._choices.values():
            choice.at = choice.at_entries = 0
            choice.at_end = False

    def take(self, chunk: Chunk) -> Chunk | None:
        """What of a chunk is new to the client; None if nothing is.

        Raises:
          OtherVersion: its fingerprint is another. The chunk was not taken.
          Garbage: it contradicts what was told. The chunk was not taken.
        """
        fingerprint = chunk["system_fingerprint"]
        if self.fingerprint not in (None, fingerprint):
            raise OtherVersion(fingerprint)
        before = {index: dataclasses.replace(each) for index, each in self._choices.items()}
        try:
            choices = [self._new(choice) for choice in chunk["choices"]]
        except Garbage:
            self._choices = before  # what the client does not get was not told
            raise
        if self.fingerprint is None:
            self.fingerprint = fingerprint
            self._head = {key: chunk[key] for key in ("id", "created") if key in chunk}
            self.policy = chunk["policy"] if isinstance(chunk.get("policy"), dict) else {}
        usage = bool(chunk.get("usage")) and not self._usage
        self._usage |= usage
        if self.tries <= 1:
            return chunk
        kept = [choice for choice in choices if choice is not None]
        return {**chunk, **self._head, "choices": kept} if kept or usage else None

    def check_end(self) -> None:
        """The stream says that it is done.

        Raises:
          Garbage: a choice has no end yet.
        """
        if not self._choices or not all(choice.at_end for choice in self._choices.values()):
            raise Garbage("a stream that is done before its text")

    def _new(self, choice: Chunk) -> Chunk | None:
        seen = self._choices.setdefault(choice["index"], _Choice())
        new, tells = dict(choice), False
        if isinstance(choice.get("delta"), dict):
            new["delta"] = dict(choice["delta"])
            if new["delta"].get("role"):
                if seen.role:
                    del new["delta"]["role"]
                tells = not seen.role
                seen.role = True
        holder, name = _text_place(new)
        if text := holder.get(name):
            if seen.at_end:
                raise Garbage("a choice that goes on after its end")
            holder[name] = self._new_text(seen, text)
            tells |= bool(holder[name])
        if isinstance(choice.get("logprobs"), dict):
            entries = seen.entries
            new["logprobs"] = _new_entries(seen, choice["logprobs"])
            tells |= seen.entries > entries
        if choice.get("finish_reason") is not None:
            if seen.at < len(seen.text):
                raise Garbage("a text that is shorter than what was told of it")
            tells |= not seen.finished
            seen.finished = seen.at_end = True
        return new if tells else None

    @staticmethod
    def _new_text(seen: _Choice, text: str) -> str:
        again = seen.text[seen.at : seen.at + len(text)]
        if not text.startswith(again):
            raise Garbage("another text than what was told of it")
        seen.at += len(text)
        new = text[len(again) :]
        seen.text += new
        return new


def _new_entries(seen: _Choice, logprobs: Chunk) -> Chunk:
    """The entries that were not told: `content` of a chat, or the parallel lists of completions."""
    lengths = [len(value) for value in logprobs.values() if isinstance(value, list)]
    length = max(lengths, default=0)
    skip = min(max(seen.entries - seen.at_entries, 0), length)
    seen.at_entries += length
    seen.entries = max(seen.entries, seen.at_entries)
    return {
        key: value[skip:] if isinstance(value, list) else value for key, value in logprobs.items()
    }
