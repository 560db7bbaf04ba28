"""Prompts from flags and files: text with gaps, or text to be answered."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from mdlm_jax import data
from mdlm_jax.data import json_text, reading

GAPS = re.compile(r"\{mask:([^}]*)\}")


class Prompt(NamedTuple):
    """A prompt.

    Attributes:
      text: with gaps, or empty for a whole row; or, for a run trained on pairs, to be answered.
      label: what the text is about.
      messages: a conversation to be answered; its last message is the text.
      plain: whether what is spelt like a gap is text, so that the prompt is answered.
    """

    text: str
    label: str | None = None
    messages: Sequence[Mapping[str, Any]] | None = None
    plain: bool = False


class Fields(NamedTuple):
    """The names of the fields of the run's own data, which a line of a file may use; '' for none.

    Attributes:
      prompt: the prompt's, beside "prompt".
      messages: that of a conversation, beside "messages".
      label: the label's, beside "label".
    """

    prompt: str = ""
    messages: str = ""
    label: str = ""


_USUAL = Fields()


class Asking(NamedTuple):
    """How prompts of a run that was trained on pairs are written.

    Attributes:
      template: the template of messages; None if a prompt is a text.
      mask_token: how the tokenizer spells the mask.
    """

    template: data.ChatTemplate | None
    mask_token: str

    def answers(self, prompt: Prompt) -> bool:
        """Whether the prompt is answered: it has no gap to be filled instead."""
        asked = prompt.plain or prompt.messages is not None
        return asked or not has_gaps(prompt.text, self.mask_token)

    def text(self, prompt: Prompt) -> str:
        """The prompt as in training; a text alone is one message of the user.

        Raises:
          ValueError: the messages end with the assistant's, the template refuses them, or the run
            was trained on texts.
        """
        if self.template is None:
            if prompt.messages is not None:
                raise without_messages(prompt)
            return prompt.text
        messages = prompt.messages or [{"role": "user", "content": prompt.text}]
        if messages[-1]["role"] == "assistant":
            raise ValueError(
                f"prompt {short(prompt.text)}: the last message is the assistant's, and that is "
                "what would be written"
            )
        return self.template.prompt(messages, f"prompt {short(prompt.text)}")


def has_gaps(text: str, mask_token: str) -> bool:
    """Whether a text has gaps to be filled.

    Args:
      text: a prompt.
      mask_token: how the tokenizer spells the mask.
    """
    return "[MASK]" in text or mask_token in text or GAPS.search(text) is not None


def asking(card: Mapping[str, Any], tokenizer: Tokenizer) -> Asking | None:
    """How prompts of a run with this card are written; None if it was not trained on pairs.

    Args:
      card: contents of the run's `data.json`.
      tokenizer: of the run.
    """
    config = card.get("config", {})
    mask_token = data.mask_token(tokenizer)
    if config.get("messages_field"):
        template = data.ChatTemplate(card["chat_template"], "the run's chat template")
        return Asking(template, mask_token)
    return Asking(None, mask_token) if config.get("prompt_field") else None


def fields(card: Mapping[str, Any], *, labels: bool) -> Fields:
    """The names by which lines of the run's own data hold a prompt.

    Args:
      card: contents of the run's `data.json`.
      labels: whether the model takes labels; otherwise those of the data are ignored.
    """
    config = card.get("config", {})
    return Fields(
        prompt=config.get("prompt_field", ""),
        messages=config.get("messages_field", ""),
        label=config.get("label_field", "") if labels else "",
    )


def asked(
    texts: Sequence[str],
    path: str | Path | None,
    asking: Asking | None,
    fields: Fields = _USUAL,
) -> list[Prompt]:
    """The prompts: those of a file, else the texts, else one for a whole row.

    Raises:
      ValueError: nothing is asked of a run that was trained on pairs; or as `read`.
    """
    if path:
        return read(path, fields)
    if not texts and asking is not None:
        raise ValueError(
            "the run was trained on pairs of a prompt and a response: ask it by --prompt, or by "
            "--prompts=FILE"
        )
    return [Prompt(text) for text in texts or [""]]


def read(path: str | Path, fields: Fields = _USUAL) -> list[Prompt]:
    """The prompts of a file, a line each.

    In `.jsonl` (`.ndjson`, `.json`) a line is an object with the text "prompt", which may be empty,
    or with "messages", a list of objects with the texts "role" and "content"; and optionally with
    "label", a text or an integer. Other fields are ignored. In other files the line is the prompt.
    Lines of white space are skipped.

    Args:
      path: of the file.
      fields: the names in the run's data. If a line has such a field, that one counts.

    Raises:
      ValueError: a line holds no prompt (it is named), or the file holds none.
      OSError: the file cannot be read.
    """
    file = reading.locate(path)
    if reading.kind(file.path) == "jsonl":
        asked = [_prompt_of(record, place, fields) for place, record in json_text.records(file)]
    else:
        asked = [_prompt_in(line, place, fields) for place, line in reading.numbered(file)]
    if not asked:
        raise ValueError(f"{file.name} holds no prompt")
    return asked


def _prompt_in(line: str, place: str, fields: Fields) -> Prompt:
    if line.lstrip().startswith("{") and _is_record(line, fields):
        raise ValueError(f"{place} is JSON: a file of such lines must end in .jsonl")
    return Prompt(line)


def _is_record(line: str, fields: Fields) -> bool:
    try:
        return not {"prompt", "messages", *fields[:2]}.isdisjoint(json_text.parse(line, ""))
    except ValueError:
        return False


def _prompt_of(record: dict[str, Any], place: str, fields: Fields) -> Prompt:
    labelled = fields.label if fields.label in record else "label"
    label = record.get(labelled)
    if label is not None:
        label = json_text.label(label, f'{place}: "{labelled}"')
    name, is_talk = _asks_by(record, place, fields)
    if is_talk:
        talk = data.check_messages(record[name], f'{place}: "{name}"')
        return Prompt(talk[-1]["content"], label, talk)
    if not isinstance(record.get(name), str):
        raise _no_prompt(record, place, name, fields)
    return Prompt(json_text.check_characters(record[name], f'{place}: "{name}"'), label)


def _asks_by(record: dict[str, Any], place: str, fields: Fields) -> tuple[str, bool]:
    """The field that holds the prompt, and whether it is a conversation; the run's own first."""
    usual = {("prompt", False), ("messages", True)}
    for own in ((fields.prompt, False), (fields.messages, True)):
        if own[0] and own not in usual and own[0] in record:
            return own
    if usual_ones := sorted(each for each in usual if each[0] in record):
        if len(usual_ones) > 1:
            raise ValueError(f'{place}: "prompt" and "messages" exclude each other')
        return usual_ones[0]
    return "prompt", False


def _no_prompt(record: dict[str, Any], place: str, name: str, fields: Fields) -> ValueError:
    got = f'"{name}" {json_text.shown(record[name])}' if name in record else "neither"
    texts = dict.fromkeys(filter(None, (fields.prompt, "prompt")))
    talks = dict.fromkeys(filter(None, (fields.messages, "messages")))
    quoted = [" or ".join(f'"{each}"' for each in names) for names in (texts, talks)]
    example = f'{{"{next(iter(texts))}": "a [MASK] gap"}}'
    return ValueError(
        f"{place} has no text {quoted[0]} and no {quoted[1]} but {got}: a line is {example} or "
        f'{{"{next(iter(talks))}": [{{"role": "user", "content": "a text"}}]}}'
    )


def label_indices(prompts: Sequence[Prompt], names: Sequence[str]) -> np.ndarray:
    """i32[N], the index of each prompt's label among the names, -1 for none.

    Raises:
      ValueError: a label is another.
    """
    if strange := sorted({p.label for p in prompts} - {None, *names}):
        raise ValueError(f"a label must be one of {', '.join(names)}, not {strange[0]!r}")
    return np.array([-1 if p.label is None else names.index(p.label) for p in prompts], np.int32)


def token_id(text: str, tokenizer: Tokenizer) -> int:
    """The one token with this spelling in the vocabulary, or else the one that writes the text.

    Raises:
      ValueError: there is none.
    """
    spelt = tokenizer.token_to_id(text)
    if spelt is not None:
        return spelt
    encoding = tokenizer.encode(text, add_special_tokens=False)
    if len(encoding.ids) > 1:
        raise ValueError(
            f"{text!r} is not one token of the model's tokenizer but {len(encoding.ids)}: "
            + " ".join(encoding.tokens)
        )
    if not encoding.ids or encoding.ids[0] == data.special_ids(tokenizer).unk:
        raise ValueError(f"{text!r} is no token of the model's tokenizer")
    return encoding.ids[0]


def without_messages(prompt: Prompt) -> ValueError:
    """The error of messages for a run that was trained on texts."""
    return ValueError(
        f"prompt {short(prompt.text)} has messages: they are for runs that were trained on "
        "messages (data.messages_field)"
    )


def short(prompt: str) -> str:
    """A prompt as messages quote it."""
    return repr(prompt if len(prompt) <= 60 else prompt[:57] + "...")
