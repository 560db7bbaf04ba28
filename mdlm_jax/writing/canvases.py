"""Canvases: prompts laid out as the rows that a sampler fills."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from tokenizers import Encoding, Tokenizer

from mdlm_jax import data
from mdlm_jax.data import json_text
from mdlm_jax.writing.prompts import GAPS, Asking, Prompt, short, without_messages


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
        json_text.check_characters(prompt.text, f"prompt {short(prompt.text)}")
    if asking is None:
        if strange := [prompt for prompt in prompts if prompt.messages is not None]:
            raise without_messages(strange[0])
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
            f"prompt {short(text)} has text behind a gap, which a run that was trained "
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
                f"prompt {short(texts[row])} has {len(ids)} tokens with its separator, which "
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
                f"prompt {short(prompt)} has nothing to fill: mark gaps by [MASK] or {{mask:12}}"
            )
        if unknown is not None and unknown in ids:
            read = zip(encoding.ids, encoding.offsets, strict=True)
            where = [offsets for index, offsets in read if index == unknown]
            strange = list(dict.fromkeys(repr(text[first:last]) for first, last in where))
            raise ValueError(
                f"prompt {short(prompt)} has text that the model's tokenizer does not know: "
                + " ".join(strange[:5])
            )
        rows.tokens[row, : len(ids)] = ids
        rows.fill[row, : len(ids)] = ids == mask_id
        rows.shown[row, : len(ids)] = True
    return rows


def _with_masks(prompt: str, mask_token: str, length: int) -> str:
    def masks(gap: re.Match[str]) -> str:
        digits = gap[1].lstrip("0")
        if not re.fullmatch("[0-9]+", digits):
            raise ValueError(
                f"prompt {short(prompt)}: {gap[0]} is no gap, the number of masks must be at "
                "least 1, as in {mask:12}"
            )
        if len(digits) > len(str(length)) or int(digits) > length:
            raise _too_long(prompt, digits if len(digits) <= 20 else "too many", length)
        return mask_token * int(digits)

    return GAPS.sub(masks, prompt.replace("[MASK]", mask_token))


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


def _too_long(prompt: str, tokens: int | str, length: int) -> ValueError:
    return ValueError(f"prompt {short(prompt)} has {tokens} tokens, a row has {length}")
