"""Prompts from flags and files (text with gaps, or text to be answered), and their canvases."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Encoding, Tokenizer

from mdlm_jax import data
from mdlm_jax.data import json_text, reading

_GAPS = re.compile(r"\{mask:([^}]*)\}")


class Prompt(NamedTuple):
    """A prompt.

    Attributes:
      text: with gaps, or empty for a whole row; or, for a run trained on pairs, to be answered.
      label: what the text is about.
      messages: a conversation to be answered; its last message is the text.
    """

    text: str
    label: str | None = None
    messages: Sequence[Mapping[str, Any]] | None = None


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


class Canvas(NamedTuple):
    """Rows for the sampler.

    Attributes:
      tokens: i32[B, L], the prompt, then masks.
      fill: bool[B, L], the masks that are wanted: the prompt's, or all of an empty prompt, or those
        of an answer.
      shown: bool[B, L], the tokens that are shown as text: the prompt, or all of an empty prompt,
        or the answer.
      valid: bool[B, L], False at padding, which the model does not see; None without padding.
      maskable: bool[B, L], what training masks in such rows; None if it is all that is valid.
    """

    tokens: np.ndarray
    fill: np.ndarray
    shown: np.ndarray
    valid: np.ndarray | None = None
    maskable: np.ndarray | None = None


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
        gaps = "[MASK]" in prompt.text or self.mask_token in prompt.text
        return prompt.messages is not None or not (gaps or _GAPS.search(prompt.text))

    def text(self, prompt: Prompt) -> str:
        """The prompt as in training; a text alone is one message of the user.

        Raises:
          ValueError: the messages end with the assistant's, the template refuses them, or the run
            was trained on texts.
        """
        if self.template is None:
            if prompt.messages is not None:
                raise _without_messages(prompt)
            return prompt.text
        messages = prompt.messages or [{"role": "user", "content": prompt.text}]
        if messages[-1]["role"] == "assistant":
            raise ValueError(
                f"prompt {_short(prompt.text)}: the last message is the assistant's, and that is "
                "what would be written"
            )
        return self.template.prompt(messages, f"prompt {_short(prompt.text)}")


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


def lay_out(
    prompts: Sequence[Prompt], tokenizer: Tokenizer, length: int, asking: Asking | None
) -> Canvas:
    """Rows of `length` tokens: gaps as in `canvas`, and prompts to be answered as in training.

    A row with a prompt to be answered is the prompt, a separator, and masks to its end, all of
    which are wanted. Special tokens that are spelt out in its prompt are plain text, as in
    training.

    Args:
      prompts: B of them.
      tokenizer: of the run.
      length: tokens of a row, L.
      asking: for a run that was trained on pairs; None answers nothing.

    Raises:
      ValueError: as `canvas` and `Asking.text`; or a prompt leaves no room for an answer, or has
        messages where the run was trained without.
    """
    for prompt in prompts:  # of the command line, too
        json_text.check_characters(prompt.text, f"prompt {_short(prompt.text)}")
    if asking is None:
        if strange := [prompt for prompt in prompts if prompt.messages is not None]:
            raise _without_messages(strange[0])
        return canvas([prompt.text for prompt in prompts], tokenizer, length)
    kinds = {True: (_answers, asking.text), False: (canvas, lambda prompt: prompt.text)}
    rows = _blank(len(prompts), length, tokenizer)
    for is_answered, (make, text_of) in kinds.items():
        which = [i for i, prompt in enumerate(prompts) if asking.answers(prompt) == is_answered]
        made = make([text_of(prompts[i]) for i in which], tokenizer, length)
        for name, part in made._asdict().items():
            if part is not None:
                getattr(rows, name)[which] = part
    return rows


def as_whole_rows(canvas: Canvas, tokenizer: Tokenizer) -> Canvas:
    """The canvas of a run of padded rows: a text is a whole row of its own.

    The text ends with a separator, if the row has room for one, as in training. Padding follows,
    which the model does not see.

    Args:
      canvas: of texts with gaps, as `canvas` lays them out.
      tokenizer: of the run.
    """
    special = data.special_ids(tokenizer)
    place, size = np.arange(canvas.tokens.shape[1]), canvas.shown.sum(axis=1)[:, None]
    valid = place <= size
    tokens = np.where(place == size, special.sep, np.where(valid, canvas.tokens, special.pad))
    # The network's time counts the masks of the text alone, as in training.
    maskable = valid if canvas.maskable is None else canvas.maskable & valid
    return canvas._replace(tokens=tokens.astype(np.int32), valid=valid, maskable=maskable)


def frame_size(tokenizer: Tokenizer) -> int:
    """Tokens that `as_framed` puts around a text."""
    return 1 if data.special_ids(tokenizer).cls is None else 2


def as_framed(canvas: Canvas, tokenizer: Tokenizer) -> Canvas:
    """The canvas of a checkpoint of BERT's kind: `[CLS]`, the text, `[SEP]`, and padding.

    Args:
      canvas: of texts with gaps, as `canvas` lays them out, `frame_size` shorter than a row.
      tokenizer: of the checkpoint; `[CLS]` is left out where it has none.

    Returns:
      Rows as long as the longest needs, rounded up to a power of two where the model takes that.
    """
    special = data.special_ids(tokenizer)
    front = frame_size(tokenizer) - 1
    inner = canvas.tokens.shape[1]
    place = np.arange(inner + front + 1)
    end = front + canvas.shown.sum(axis=1)[:, None]

    def moved(x: np.ndarray) -> np.ndarray:
        return np.pad(x, ((0, 0), (front, 1)))

    tokens = np.where(place < end, moved(canvas.tokens), special.pad)
    tokens = np.where(place == end, special.sep, tokens)
    if front:
        tokens[:, 0] = special.cls
    longest = min(1 << int(end.max(initial=1)).bit_length(), len(place))
    framed = Canvas(
        tokens=tokens.astype(np.int32),
        fill=moved(canvas.fill),
        shown=moved(canvas.shown),
        valid=place <= end,
        maskable=(place >= front) & (place < end),
    )
    return Canvas(*(part[:, :longest] for part in framed))


def require_open_ends(canvas: Canvas, prompts: Sequence[Prompt]) -> None:
    """Refuses text behind a gap, which a causal model cannot see.

    Args:
      canvas: B rows.
      prompts: B, for the message.

    Raises:
      ValueError: a row has such text; its prompt is named.
    """
    behind_a_gap = np.cumsum(canvas.fill, axis=1) > 0
    unseen = np.any(behind_a_gap & canvas.shown & ~canvas.fill, axis=1)
    if unseen.any():
        text = prompts[int(np.argmax(unseen))].text
        raise ValueError(
            f"prompt {_short(text)} has text behind a gap, which a run that was trained "
            "autoregressively does not see: let the gap end the prompt"
        )


def as_kept(canvas: Canvas, tokenizer: Tokenizer) -> Canvas:
    """The canvas of a run whose training keeps parts of its rows, `objective.keep`.

    Such a network gets the masked share of the tokens that are not kept, so it must be the same for
    a prompt.

    Args:
      canvas: of any texts, of padded rows after `as_whole_rows`.
      tokenizer: of the run.
    """
    return canvas._replace(maskable=canvas.tokens == data.special_ids(tokenizer).mask)


def _answers(texts: Sequence[str], tokenizer: Tokenizer, length: int) -> Canvas:
    """Rows of plain prompts that are to be answered."""
    rows = _blank(len(texts), length, tokenizer)
    for row, ids in enumerate(data.encode_documents(tokenizer, texts)):  # a separator at the end
        if len(ids) >= length:
            raise ValueError(
                f"prompt {_short(texts[row])} has {len(ids)} tokens with its separator, which "
                f"leaves no room for an answer in a row of {length}"
            )
        rows.tokens[row, : len(ids)] = ids
        rows.fill[row, len(ids) :] = rows.shown[row, len(ids) :] = True
    rows.maskable[:] = rows.fill
    return rows


def _blank(count: int, length: int, tokenizer: Tokenizer) -> Canvas:
    """Rows of masks, with none wanted or shown."""
    return Canvas(
        tokens=np.full((count, length), data.special_ids(tokenizer).mask, np.int32),
        fill=np.zeros((count, length), bool),
        shown=np.zeros((count, length), bool),
        maskable=np.ones((count, length), bool),
    )


def canvas(texts: Sequence[str], tokenizer: Tokenizer, length: int) -> Canvas:
    """Rows of `length` tokens. What follows a prompt is unknown, and so is masked.

    A gap is written `[MASK]`, or `{mask:12}` for twelve of them; special tokens may be spelt out.

    Raises:
      ValueError: a prompt is longer than a row, has no gap, or text without a token.
    """
    mask_id, unknown = data.special_ids(tokenizer).mask, data.special_ids(tokenizer).unk
    mask_token = data.mask_token(tokenizer)
    rows = _blank(len(texts), length, tokenizer)
    for row, prompt in enumerate(texts):
        if not prompt:
            rows.fill[row] = rows.shown[row] = True
            continue
        text = _with_masks(prompt, mask_token, length)
        encoding = tokenizer.encode(text, add_special_tokens=False)
        ids = _with_space(encoding, text, mask_token, tokenizer)
        if len(ids) > length:
            raise _too_long(prompt, len(ids), length)
        if mask_id not in ids:
            raise ValueError(
                f"prompt {_short(prompt)} has nothing to fill: mark gaps by [MASK] or {{mask:12}}"
            )
        if unknown is not None and unknown in ids:
            read = zip(encoding.ids, encoding.offsets, strict=True)
            where = [offsets for index, offsets in read if index == unknown]
            strange = list(dict.fromkeys(repr(text[first:last]) for first, last in where))
            raise ValueError(
                f"prompt {_short(prompt)} has text that the model's tokenizer does not know: "
                + " ".join(strange[:5])
            )
        rows.tokens[row, : len(ids)] = ids
        rows.fill[row, : len(ids)] = ids == mask_id
        rows.shown[row, : len(ids)] = True
    return rows


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


def _with_masks(prompt: str, mask_token: str, length: int) -> str:
    def masks(gap: re.Match[str]) -> str:
        digits = gap[1].lstrip("0")
        if not re.fullmatch("[0-9]+", digits):
            raise ValueError(
                f"prompt {_short(prompt)}: {gap[0]} is no gap, the number of masks must be at "
                "least 1, as in {mask:12}"
            )
        if len(digits) > len(str(length)) or int(digits) > length:
            raise _too_long(prompt, digits if len(digits) <= 20 else "too many", length)
        return mask_token * int(digits)

    return _GAPS.sub(masks, prompt.replace("[MASK]", mask_token))


def _with_space(encoding: Encoding, text: str, mask_token: str, tokenizer: Tokenizer) -> np.ndarray:
    """i32[n], the ids, with white space restored that a mask took beyond one space.

    A mask takes the one space before it, because the filled token brings its own. Tokenizers take
    all white space, so a gap would lose its line and its indentation.
    """
    mask_id = tokenizer.token_to_id(mask_token)
    ids: list[int] = []
    for index, (first, last) in zip(encoding.ids, encoding.offsets, strict=True):
        if index == mask_id:
            taken = text[first:last].partition(mask_token)[0].removesuffix(" ")
            ids += tokenizer.encode(taken, add_special_tokens=False).ids if taken else []
        ids.append(index)
    return np.array(ids, np.int32)


def _without_messages(prompt: Prompt) -> ValueError:
    return ValueError(
        f"prompt {_short(prompt.text)} has messages: they are for runs that were trained on "
        "messages (data.messages_field)"
    )


def _too_long(prompt: str, tokens: int | str, length: int) -> ValueError:
    return ValueError(f"prompt {_short(prompt)} has {tokens} tokens, a row has {length}")


def _short(prompt: str) -> str:
    return repr(prompt if len(prompt) <= 60 else prompt[:57] + "...")
