"""Prompts: text with gaps, from flags and files, and the canvases that they become."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from mdlm_jax import data

_GAPS = re.compile(r"\{mask:([^}]*)\}")


class Prompt(NamedTuple):
    """A text with gaps; empty for a whole row of them. `label` is what the text is to be about."""

    text: str
    label: str | None = None


class Canvas(NamedTuple):
    """Rows for the sampler.

    Attributes:
      tokens: i32[B, L], the prompt, then masks.
      fill: bool[B, L], the masks that are wanted: the prompt's, or all of an empty prompt.
      shown: bool[B, L], what is text in the end: the prompt, or all of an empty prompt.
    """

    tokens: np.ndarray
    fill: np.ndarray
    shown: np.ndarray


def read(path: str | Path) -> list[Prompt]:
    """The prompts of a file, a line each.

    Of `.jsonl` a line is an object with the text "prompt", which may be empty, and perhaps the
    text "label"; other fields are left alone. Else the line is the prompt. Lines of nothing but
    white space are none.

    Raises:
      ValueError: a line holds no prompt, or there is none; the line is named.
      OSError: the file cannot be read.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: byte {error.start}") from None
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise ValueError(f"{path} holds no prompt")
    if path.suffix != ".jsonl":
        return [Prompt(line) for _, line in numbered]
    return [_prompt_of(line, f"{path}, line {number}") for number, line in numbered]


def _prompt_of(line: str, where: str) -> Prompt:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where} is not JSON ({error})") from None
    if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
        raise ValueError(f'{where} has no text "prompt": a line is {{"prompt": "a [MASK] gap"}}')
    label = record.get("label")
    if not isinstance(label, str | None):
        raise ValueError(f'{where}: "label" is {label!r}, it must be the text of a label')
    return Prompt(record["prompt"], label)


def canvas(texts: Sequence[str], tokenizer: Tokenizer, length: int) -> Canvas:
    """Rows of `length` tokens; what follows a prompt is masked, for it is unknown.

    A gap is written `[MASK]`, or `{mask:12}` for twelve of them; special tokens may be spelt out.

    Raises:
      ValueError: a prompt is longer than a row, has no gap, or text without a token.
    """
    mask_id, unknown = data.special_ids(tokenizer).mask, data.special_ids(tokenizer).unk
    mask_token = data.mask_token(tokenizer)
    rows = Canvas(
        tokens=np.full((len(texts), length), mask_id, np.int32),
        fill=np.zeros((len(texts), length), bool),
        shown=np.zeros((len(texts), length), bool),
    )
    for row, prompt in enumerate(texts):
        if not prompt:
            rows.fill[row] = rows.shown[row] = True
            continue
        text = _with_masks(prompt, mask_token, length)
        encoding = tokenizer.encode(text, add_special_tokens=False)
        ids = np.array(encoding.ids, np.int32)
        if len(ids) > length:
            raise _too_long(prompt, len(ids), length)
        if mask_id not in ids:
            raise ValueError(
                f"prompt {_short(prompt)} has nothing to fill: mark gaps by [MASK] or {{mask:12}}"
            )
        if unknown is not None and unknown in ids:
            where = [encoding.offsets[place] for place in np.flatnonzero(ids == unknown)]
            strange = list(dict.fromkeys(text[first:last] for first, last in where))
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
    """The one token that is spelt so in the vocabulary, or else that writes the text.

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
        if not gap[1].isdecimal() or int(gap[1]) < 1:
            raise ValueError(
                f"prompt {_short(prompt)}: {gap[0]} is no gap, the number of masks must be at "
                "least 1, as in {mask:12}"
            )
        if int(gap[1]) > length:
            raise _too_long(prompt, int(gap[1]), length)
        return mask_token * int(gap[1])

    return _GAPS.sub(masks, prompt.replace("[MASK]", mask_token))


def _too_long(prompt: str, tokens: int, length: int) -> ValueError:
    return ValueError(f"prompt {_short(prompt)} has {tokens} tokens, a row has {length}")


def _short(prompt: str) -> str:
    return repr(prompt if len(prompt) <= 60 else prompt[:57] + "...")
