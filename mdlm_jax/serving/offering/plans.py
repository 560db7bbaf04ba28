"""From a request to rows of the engine: text with gaps, an open end, a gap before a suffix, talk.

Rows are laid out as `generate` lays them out, and checked as there. The same prompt, options and
seed give the same row, whatever else the request or the server has to write.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mdlm_jax import data
from mdlm_jax.data import json_text
from mdlm_jax.diffusion import Strategy
from mdlm_jax.runs.models import Model
from mdlm_jax.serving.jobs import Job
from mdlm_jax.serving.offering.offers import Offer
from mdlm_jax.serving.offering.texts import Extent, Row
from mdlm_jax.writing import canvases, decoding, prompts, requests

FOREVER = 1e9  # seconds
OPEN_END = 16  # tokens of an open end whose length is not given, as in OpenAI's API


class Wanted(NamedTuple):
    """What is wanted of each prompt of a request.

    Attributes:
      seed: of all noise.
      n: answers to each prompt.
      options: how they are written, fields of `requests.Options`; what is missing is as the model
        has it. `length` is that of the row, which is chosen where there is none.
      max_tokens: of an open end, of a gap before the suffix, or the most of an answer.
      label: for a model with classes.
      suffix: text behind the gap; None for an open end.
      echo: whether the prompt is part of the answer.
      stops: the answer ends before the first of these.
      deadline: by `time.monotonic()`.
    """

    seed: int
    n: int = 1
    options: Mapping[str, Any] = {}
    max_tokens: int | None = None
    label: str | None = None
    suffix: str | None = None
    echo: bool = False
    stops: tuple[str, ...] = ()
    deadline: float = float("inf")


def completions(offer: Offer, texts: Sequence[str], wanted: Wanted) -> list[Row]:
    """`n` rows of every text; the rows of text i are the choices `i * n` to `i * n + n - 1`.

    A text with gaps is filled. One without is answered by a model of pairs, and goes on by
    `max_tokens` otherwise, or up to the suffix.

    Raises:
      ValueError: the model cannot take a text or an option; it is named.
    """
    made = [_completion(offer, text, wanted) for text in texts]
    return _choices(made, wanted.n)


def answers(offer: Offer, messages: Any, wanted: Wanted) -> list[Row]:
    """`n` answers to a conversation. Gaps and special tokens that are spelt out in it are text.

    Raises:
      ValueError: the model was not trained on pairs, or as `completions`.
    """
    if offer.asking is None:
        raise ValueError(
            f"model {offer.name} was not trained on pairs of a prompt and a response: it has no "
            "chat, it writes texts on at /v1/completions"
        )
    talk = data.check_messages(messages, "messages")
    prompt = prompts.Prompt(talk[-1]["content"], wanted.label, talk, plain=True)
    if offer.asking.template is None and len(talk) == 1 and talk[0]["role"] == "user":
        prompt = prompt._replace(messages=None)  # a run of texts and their responses
    return _choices([_answer(offer, prompt, wanted)], wanted.n)


class Place(NamedTuple):
    """A place of a written text, to be written anew.

    Attributes:
      job: with this one gap, in one step, without noise.
      shown: bool[L], the tokens that are text.
      chosen: the token that stands there.
    """

    job: Job
    shown: np.ndarray
    chosen: int


def place(offer: Offer, text: str, written: Sequence[int], position: int, wanted: Wanted) -> Place:
    """The place of a text that was written for a prompt.

    Args:
      offer: the model.
      text: the prompt.
      written: the ids of all tokens that were wanted.
      position: which of them.
      wanted: as when it was written.

    Raises:
      ValueError: as `completions`, or `written` has another number of tokens.
    """
    row = _completion(offer, text, wanted)
    places = np.flatnonzero(row.job.fill)
    size = offer.model.encoder.vocab_size
    if len(written) != len(places):
        raise ValueError(f"written has {len(written)} tokens, of this prompt {len(places)} are")
    if not all(0 <= token < size for token in written):
        raise ValueError(f"written must hold tokens from 0 to {size - 1}")
    if not 0 <= position < len(places):
        raise ValueError(f"position is {position}, it must be from 0 to {len(places) - 1}")
    tokens, fill = row.job.tokens.copy(), np.zeros(len(row.job.fill), bool)
    tokens[places] = written
    tokens[places[position]], fill[places[position]] = offer.mask_id, True
    job = Job(
        tokens=tokens,
        fill=fill,
        strategy=row.job.strategy,
        steps=1,
        seed=0,
        deadline=wanted.deadline,
        valid=row.job.valid,
        maskable=row.job.maskable,
        temperature=0.0,
        label=row.job.label,
    )
    return Place(job, row.extent.shown, int(written[position]))


def _completion(offer: Offer, text: str, wanted: Wanted) -> Row:
    mask_token = data.mask_token(offer.model.tokenizer)
    json_text.check_characters(text, "prompt")
    if wanted.suffix is not None:
        json_text.check_characters(wanted.suffix, "suffix")
        for name, part in (("prompt", text), ("suffix", wanted.suffix)):
            if prompts.has_gaps(part, mask_token):
                raise ValueError(
                    f"{name}: a suffix makes the gap between it and the prompt, so neither may "
                    "have gaps of its own"
                )
    elif prompts.has_gaps(text, mask_token):
        return _filled(offer, text, wanted)
    elif offer.asking is not None:
        return _answer(offer, prompts.Prompt(text, wanted.label), wanted)
    return _written_on(offer, text, wanted)


def _filled(offer: Offer, text: str, wanted: Wanted) -> Row:
    """A text whose gaps are filled; the answer is all of it."""
    for name, given in (("max_tokens", wanted.max_tokens), ("stop", wanted.stops)):
        if given:
            raise ValueError(
                f"{name} is for a prompt that is written on, and this one has gaps: a gap has as "
                "many tokens as it says, {mask:12} twelve"
            )
    job, canvas = _row(offer, prompts.Prompt(text, wanted.label), wanted)
    return Row(job, Extent(canvas.shown[0], given=_given(canvas)))


def _written_on(offer: Offer, text: str, wanted: Wanted) -> Row:
    """A text that goes on, or up to the suffix."""
    behind = wanted.suffix or ""

    def of(masks: int) -> tuple[Job, canvases.Canvas]:
        prompt = prompts.Prompt(f"{text}{{mask:{masks}}}{behind}", wanted.label)
        return _row(offer, prompt, wanted)

    masks = OPEN_END if wanted.max_tokens is None else wanted.max_tokens
    room = offer.lengths[-1]
    try:
        job, canvas = of(min(masks, room))
    except ValueError:
        # Either the prompt is wrong, which the shortest gap shows, or there is too little room.
        try:
            used = int(of(1)[1].shown.sum()) - 1
        except ValueError as error:
            raise ValueError(str(error).replace("{mask:1}", "")) from None
        room = _room(offer, used)
        if wanted.max_tokens is None:
            job, canvas = of(room)
    if masks > room and wanted.max_tokens is not None:
        raise ValueError(
            f"max_tokens is {masks}: with this prompt a row of model {offer.name} has room for "
            f"{room} tokens"
        )
    first, last = np.flatnonzero(job.fill)[[0, -1]]

    def writings(given: str, where: slice) -> tuple[str, ...]:
        shown = canvas.shown[0, where]
        return given, data.decode(offer.model.tokenizer, job.tokens[where][shown])

    extent = Extent(
        canvas.shown[0],
        before=writings(text, slice(None, first)),
        after=writings(behind, slice(last + 1, None)) if behind else (),
        echo=wanted.echo,
        stops=wanted.stops,
        opens=True,
        given=_given(canvas),
    )
    return Row(job, extent)


def _room(offer: Offer, used: int) -> int:
    """How many tokens the longest row has beside the text."""
    model, longest = offer.model, offer.lengths[-1]
    return longest - used - (canvases.frame_size(model.tokenizer) if model.framed else 0)


def _answer(offer: Offer, prompt: prompts.Prompt, wanted: Wanted) -> Row:
    """A prompt that is answered; the answer has a row of its own to end in, or `max_tokens`."""
    if wanted.echo:
        raise ValueError("echo is for a prompt that is written on, and this one is answered")
    job, canvas = _row(offer, prompt, wanted)
    fill, shown = job.fill, canvas.shown[0]
    if wanted.max_tokens is not None:
        fill = fill & (np.cumsum(fill) <= wanted.max_tokens)
        shown = shown & fill
        job = dataclasses.replace(job, fill=fill)
    given = int(np.argmax(job.fill))
    return Row(job, Extent(shown, stops=wanted.stops, opens=True, given=given))


def _given(canvas: canvases.Canvas) -> int:
    return int((canvas.shown[0] & ~canvas.fill[0]).sum())


def _choices(rows: Sequence[Row], n: int) -> list[Row]:
    return [
        Row(
            dataclasses.replace(row.job, choice=place * n + number),
            row.extent._replace(prompt=place),
        )
        for place, row in enumerate(rows)
        for number in range(n)
    ]


def _row(offer: Offer, prompt: prompts.Prompt, wanted: Wanted) -> tuple[Job, canvases.Canvas]:
    """The job of a prompt, in the row that it is written in."""
    longest = _planned(offer, prompt, wanted, offer.lengths[-1])
    length = _length(offer, longest.canvas, wanted)
    request = longest
    if length != offer.lengths[-1]:
        request = _planned(offer, prompt, wanted, length)
    canvas = _as_long(request.canvas, length, offer.model)
    method, shaping = request.method, request.method.shaping
    _check_kind(offer, method.strategy, request.strategy)
    job = Job(
        tokens=canvas.tokens[0],
        fill=canvas.fill[0],
        strategy=method.strategy,
        steps=method.steps,
        seed=wanted.seed,
        deadline=wanted.deadline,
        valid=None if canvas.valid is None else canvas.valid[0],
        maskable=None if canvas.maskable is None else canvas.maskable[0],
        blocks=method.blocks,
        temperature=shaping.temperature,
        top_k=shaping.top_k,
        top_p=shaping.top_p,
        min_p=shaping.min_p,
        repetition_penalty=shaping.repetition_penalty,
        forbid=shaping.forbid,
        guidance=method.guidance,
        label=int(request.labels[0]),
        end_id=method.end_id,
        pad_id=method.pad_id,
    )
    return job, canvas


def _check_kind(offer: Offer, strategy: Strategy, name: str) -> None:
    """Raises: ValueError: no program was compiled for strategies of this kind."""
    schedule = requests.SCHEDULES[offer.model.objective.schedule]()
    if offer.model.family.is_causal:  # which has but one
        return
    offered = [decoding.strategy(each, schedule) for each in offer.strategies]
    kinds: list[Any] = [jax.tree.structure(each) for each in (*offered, strategy)]
    if kinds[-1] not in kinds[:-1]:
        raise ValueError(
            f"strategy {name!r} is of a kind that this server does not offer: it has "
            f"{', '.join(offer.strategies)}, with any numbers"
        )


def _planned(offer: Offer, prompt: prompts.Prompt, wanted: Wanted, length: int) -> requests.Request:
    return requests.plan(
        offer.model,
        [prompt],
        dataclasses.replace(offer.defaults, **{**wanted.options, "length": length}),
        asking=offer.asking,
        label_names=offer.label_names,
    )


def _length(offer: Offer, canvas: canvases.Canvas, wanted: Wanted) -> int:
    """The length of the row, from the request alone.

    That of the training where the text fits: the model knows rows of no other length. Where padding
    fills a row up, the shortest into which the text fits.
    """
    lengths, own = offer.lengths, offer.model.length
    asked = wanted.options.get("length", offer.defaults.length)
    if asked is not None:
        if asked not in lengths:
            listed = ", ".join(map(str, lengths))
            raise ValueError(f"length is {asked}: this server has rows of {listed}")
        return asked
    needed = _needed(canvas, wanted)
    fitting = [length for length in lengths if length >= needed]
    padded = offer.model.padded or offer.model.framed
    return own if own in fitting and not padded else fitting[0]


def _needed(canvas: canvases.Canvas, wanted: Wanted) -> int:
    """Tokens up to the end of what is asked for and given."""
    if canvas.valid is not None:
        return int(canvas.valid.sum())
    if not canvas.shown[0, 0]:  # an answer behind its prompt
        room = int(canvas.fill.sum())
        return int(np.argmax(canvas.fill[0])) + min(wanted.max_tokens or 1, room)
    return int(np.flatnonzero(canvas.shown[0] | canvas.fill[0])[-1]) + 1


def _as_long(canvas: canvases.Canvas, length: int, model: Model) -> canvases.Canvas:
    """The canvas with padding up to the length, or without some of it."""
    if canvas.tokens.shape[1] == length:
        return canvas

    def long(x: np.ndarray, padding: int) -> np.ndarray:
        missing = max(length - x.shape[1], 0)
        return np.pad(x[:, :length], ((0, 0), (0, missing)), constant_values=padding)

    return canvases.Canvas(
        tokens=long(canvas.tokens, data.special_ids(model.tokenizer).pad),
        fill=long(canvas.fill, False),
        shown=long(canvas.shown, False),
        valid=None if canvas.valid is None else long(canvas.valid, False),
        maskable=None if canvas.maskable is None else long(canvas.maskable, False),
    )
