"""Prompts with the texts that are wanted of them, and these laid out on the prompts' canvases."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from mdlm_jax import data
from mdlm_jax.data import json_text, reading
from mdlm_jax.writing import prompts
from mdlm_jax.writing.canvases import Canvas
from mdlm_jax.writing.prompts import Asking, Fields, Prompt, short

REFERENCE = "reference"


class Wanted(NamedTuple):
    """Prompts of a file, each with a text.

    Attributes:
      asked: the prompts.
      texts: of a prompt with gaps the whole text without them; else the response.
    """

    asked: list[Prompt]
    texts: list[str]


def read(path: str | Path, fields: Fields, response: str = "") -> Wanted:
    """The prompts of a file, as `prompts.read` reads them, and the texts that are wanted.

    A line has the text "reference", which for a prompt with gaps is the whole text, and otherwise
    the response.

    Args:
      path: of a file .jsonl.
      fields: the names of prompts in the run's own data.
      response: the name of a response there, which will do for "reference"; "" for none.

    Raises:
      ValueError: another kind of file, or a line without such a text; and as `prompts.read`.
      OSError: the file cannot be read.
    """
    file = reading.locate(path)
    if reading.kind(file.path) != "jsonl":
        raise ValueError(f'{file.name} must be .jsonl, a line a prompt with its "{REFERENCE}"')
    asked = prompts.read(path, fields)
    names = dict.fromkeys(filter(None, (response, REFERENCE)))
    texts = []
    for place, record in json_text.records(file):
        text = next((record[name] for name in names if name in record), None)
        if not isinstance(text, str):
            known = " or ".join(f'"{name}"' for name in names)
            raise ValueError(f"{place} has no text {known}: what is wanted of the prompt")
        texts.append(json_text.check_characters(text, f"{place}: the text that is wanted"))
    return Wanted(asked, texts)


def lay_out(
    canvas: Canvas, wanted: Wanted, tokenizer: Tokenizer, asking: Asking | None
) -> np.ndarray:
    """The canvas with the wanted texts where text is wanted: i32[N, L].

    A response ends with a separator, and separators follow it to the row's end, as in training.

    Args:
      canvas: of the prompts, from `requests.plan`.
      wanted: the texts.
      tokenizer: of the model.
      asking: of a run of pairs; None answers nothing.

    Raises:
      ValueError: a text does not fit its prompt; the prompt is named.
    """
    tokens = canvas.tokens.copy()
    for row, (prompt, text) in enumerate(zip(*wanted, strict=True)):
        fill, shown = canvas.fill[row], canvas.shown[row]
        if asking is not None and asking.answers(prompt):
            tokens[row, fill] = _response(text, int(fill.sum()), prompt, tokenizer)
        else:
            known = ~fill[shown]
            tokens[row, shown] = _whole(text, tokens[row, shown], known, prompt, tokenizer)
    return tokens


def _response(text: str, room: int, prompt: Prompt, tokenizer: Tokenizer) -> np.ndarray:
    (ids,) = data.encode_documents(tokenizer, [text])  # with its separator
    if len(ids) > room:
        raise ValueError(
            f"prompt {short(prompt.text)}: its reference has {len(ids)} tokens with the end, and "
            f"the row has room for {room}"
        )
    response = np.full(room, data.special_ids(tokenizer).sep, np.int32)
    response[: len(ids)] = ids
    return response


def _whole(
    text: str, own: np.ndarray, known: np.ndarray, prompt: Prompt, tokenizer: Tokenizer
) -> np.ndarray:
    """The tokens of a text, whose known ones are those of the prompt."""
    if not prompt.text:
        raise ValueError("a prompt is empty: nothing can be wanted of a whole row")
    ids = np.array(tokenizer.encode(text, add_special_tokens=False).ids, np.int32)
    if len(ids) != len(own):
        raise ValueError(
            f"prompt {short(prompt.text)}: its reference must be the whole text, and has "
            f"{len(ids)} tokens where the prompt has {len(own)} with its gaps"
        )
    if strange := np.flatnonzero(known & (ids != own)).tolist():
        places = (
            tokenizer.id_to_token(int(own[strange[0]])),
            tokenizer.id_to_token(int(ids[strange[0]])),
        )
        raise ValueError(
            f"prompt {short(prompt.text)}: its reference is another text outside of the gaps, "
            f"{places[1]!r} for {places[0]!r}"
        )
    return ids
