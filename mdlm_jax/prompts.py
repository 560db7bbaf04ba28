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


def read(path: str | Path) -> list[str]:
    """The prompts of a file: of `.jsonl` the field "prompt" of each line, else the lines.

    Raises:
      ValueError: a line holds no prompt, or there is none; the line is named.
      OSError: the file cannot be read.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: byte {error.start}") from None
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise ValueError(f"{path} holds no prompt")
    if path.suffix != ".jsonl":
        return [line for _, line in numbered]
    return [_prompt_of(line, f"{path}, line {number}") for number, line in numbered]


def _prompt_of(line: str, where: str) -> str:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where} is not JSON ({error})") from None
    if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
        raise ValueError(f'{where} has no text "prompt": a line is {{"prompt": "a [MASK] gap"}}')
    return record["prompt"]


def canvas(prompts: Sequence[str], tokenizer: Tokenizer, length: int) -> Canvas:
    """Rows of `length` tokens; what follows a prompt is masked, for it is unknown.

    A gap is written `[MASK]`, or `{mask:12}` for twelve of them.

    Raises:
      ValueError: a prompt is longer than a row, has no gap, or a character without a token.
    """
    mask_id, unknown = data.special_ids(tokenizer).mask, data.special_ids(tokenizer).unk
    rows = Canvas(
        tokens=np.full((len(prompts), length), mask_id, np.int32),
        fill=np.zeros((len(prompts), length), bool),
        shown=np.zeros((len(prompts), length), bool),
    )
    for row, prompt in enumerate(prompts):
        if not prompt:
            rows.fill[row] = rows.shown[row] = True
            continue
        text = _with_masks(prompt, data.mask_token(tokenizer))
        ids = np.array(tokenizer.encode(text, add_special_tokens=False).ids)
        if len(ids) > length:
            raise ValueError(f"prompt {_short(prompt)} has {len(ids)} tokens, a row has {length}")
        if mask_id not in ids:
            raise ValueError(
                f"prompt {_short(prompt)} has nothing to fill: mark gaps by [MASK] or {{mask:12}}"
            )
        if unknown is not None and unknown in ids:
            strange = [c for c in dict.fromkeys(prompt) if _is_unknown(tokenizer, c, unknown)]
            raise ValueError(
                f"prompt {_short(prompt)} has characters that the model's tokenizer does not know"
                + (f": {' '.join(strange[:5])}" if strange else "")
            )
        rows.tokens[row, : len(ids)] = ids
        rows.fill[row, : len(ids)] = ids == mask_id
        rows.shown[row, : len(ids)] = True
    return rows


def _with_masks(prompt: str, mask_token: str) -> str:
    def masks(gap: re.Match[str]) -> str:
        if not gap[1].isdecimal() or int(gap[1]) < 1:
            raise ValueError(
                f"prompt {_short(prompt)}: {gap[0]} is no gap, the number of masks must be at "
                "least 1, as in {mask:12}"
            )
        return mask_token * int(gap[1])

    return _GAPS.sub(masks, prompt.replace("[MASK]", mask_token))


def _is_unknown(tokenizer: Tokenizer, character: str, unknown: int) -> bool:
    return unknown in tokenizer.encode(character, add_special_tokens=False).ids


def _short(prompt: str) -> str:
    return repr(prompt if len(prompt) <= 60 else prompt[:57] + "...")
