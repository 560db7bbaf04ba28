"""From a request to the sampler's input: rows, labels and a method, all checked."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mdlm_jax import data
from mdlm_jax.diffusion import caching
from mdlm_jax.runs.experiment import SCHEDULES
from mdlm_jax.runs.families import Blocks, Cache, network_of
from mdlm_jax.runs.models import Model
from mdlm_jax.runs.sampler import Method
from mdlm_jax.runs.shaping import Shaping
from mdlm_jax.writing import canvases, decoding, prompts

STEPS = 64  # where a request names none


@dataclasses.dataclass(frozen=True)
class Options:
    """How text is written; the defaults are those of `generate`.

    A causal model writes from left to right, one token an evaluation, so it takes neither steps nor
    strategy nor blocks nor a cache. A model of blocks spreads the steps over its own blocks evenly,
    rounded up. It takes neither blocks nor a cache.

    Attributes:
      steps: the most network evaluations, by default 64; with 1, BERT fills all masks at once.
      strategy: decides what each step writes: a name or a call such as `threshold(0.9)`; by default
        `exact_count`.
      temperature: below 1 takes likely tokens more often, 0 the most likely only.
      top_k: draws among this many most likely tokens; None for all.
      top_p: draws among the fewest tokens that hold this much probability.
      min_p: draws among tokens at least this many times as likely as the likeliest.
      repetition_penalty: above 1 makes tokens that stand in the row less likely.
      forbid: tokens that are never written, as text.
      blocks: parts of a row that are filled one after the other, left to right; by default one.
      guidance: weight of classifier-free guidance by the label; None for none.
      end_of_text: whether the separator between texts ends a text; None: if a prompt is answered.
      length: tokens of a row; None for as many as in training. A model of blocks with rotary
        positions writes any length: each block then sees the tokens before it that it saw at most
        in training.
      cache: 'dual', 'prefix' or 'vicinity': keys and values are kept from step to step, which is
        faster and an approximation (`bert.cached_denoiser`); None for none.
      refresh: of a cache, steps from one look at the whole row to the next, by default 8; 1 is
        exact.
      around: of 'vicinity', positions on both sides of a block that are computed with it, by
        default 16.
    """

    steps: int | None = None
    strategy: str | None = None
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    forbid: Sequence[str] = ()
    blocks: int | None = None
    guidance: float | None = None
    end_of_text: bool | None = None
    length: int | None = None
    cache: str | None = None
    refresh: int | None = None
    around: int | None = None


class Request(NamedTuple):
    """The sampler's input.

    Attributes:
      canvas: a row of each prompt.
      labels: i32[N], the index of each prompt's label, -1 for none.
      method: how the canvas is filled.
      strategy: its name.
    """

    canvas: canvases.Canvas
    labels: np.ndarray
    method: Method
    strategy: str


def plan(
    model: Model,
    asked: Sequence[prompts.Prompt],
    options: Options,
    *,
    asking: prompts.Asking | None,
    label_names: Sequence[str] = (),
) -> Request:
    """Checks a request, before anything is compiled.

    Args:
      model: from `models.load`.
      asked: N prompts.
      options: how they are filled.
      asking: for a run that was trained on pairs, which answers prompts without a gap.
      label_names: for a model with classes, in their order.

    Raises:
      ValueError: the model cannot take an option or a prompt; it is named.
    """
    causal = model.family.is_causal
    if causal:
        _check_causal(options)
    in_blocks = _in_blocks(model, options)
    labels = _labels(model, asked, label_names)
    _check_guidance(model, labels, options.guidance)
    length = _length(model, options.length)
    if model.framed:
        length = max(length - canvases.frame_size(model.tokenizer), 1)
    canvas = canvases.lay_out(asked, model.tokenizer, length, asking)
    if model.framed:
        canvas = canvases.as_framed(canvas, model.tokenizer)
    if causal:
        canvases.require_open_ends(canvas, asked)
    if model.padded:
        canvas = canvases.as_whole_rows(canvas, model.tokenizer)
    if model.objective.keep:
        canvas = canvases.as_kept(canvas, model.tokenizer)
    shaping = _shaping(model, options)
    ends = _ends(model, shaping, asking is not None and any(map(asking.answers, asked)), options)
    steps = _whole("steps", STEPS if options.steps is None else options.steps)
    strategy = (options.strategy or "exact_count").strip()
    if causal:  # as many steps as a row has tokens: whatever the other prompts are
        ends["start_id"] = data.special_ids(model.tokenizer).sep
        steps, strategy = canvas.tokens.shape[1], "left_to_right"
    method = Method(
        strategy=decoding.strategy(strategy, SCHEDULES[model.objective.schedule]()),
        shaping=shaping,
        steps=steps,
        blocks=_whole("blocks", 1 if options.blocks is None else options.blocks),
        guidance=options.guidance,
        cache=_cache(model, options, canvas),
        in_blocks=in_blocks,
        **ends,
    )
    return Request(canvas, labels, method, strategy)


def _check_causal(options: Options) -> None:
    for name in ("strategy", "steps", "blocks", "cache"):
        if getattr(options, name) is not None:
            raise ValueError(
                f"{name} is for models that fill masks: this run was trained autoregressively, "
                "it writes from left to right, a token an evaluation"
            )


def _cache(model: Model, options: Options, canvas: canvases.Canvas) -> Cache | None:
    """The cache of rows whose blanks are known."""
    if options.cache is None:
        for name in ("refresh", "around"):
            if getattr(options, name) is not None:
                raise ValueError(f"{name} is of a cache, and none is asked for: cache=dual")
        return None
    around = 16 if options.cache == "vicinity" else 0
    cache = Cache(
        options.cache,
        width=1,
        refresh=8 if options.refresh is None else options.refresh,
        around=around if options.around is None else options.around,
    )
    network_of(model.encoder).check_cache(model.encoder, cache)
    blocks = _whole("blocks", 1 if options.blocks is None else options.blocks)
    wanted = canvas.fill & (canvas.tokens == model.encoder.mask_id)
    cache = cache._replace(width=caching.widest(wanted, blocks, to_end=options.cache == "prefix"))
    window, length = cache.width + 2 * cache.around, wanted.shape[1]
    if window >= length:
        raise ValueError(
            f"cache={cache.kind} computes {window} positions of rows of {length}, and saves "
            "nothing: give more blocks, fewer around, or for prefix a prompt"
        )
    return cache


def _in_blocks(model: Model, options: Options) -> Blocks | None:
    """The blocks of the model, for rows of the length that is asked for."""
    own = model.blocks_for(options.length or model.length)
    if own is None:
        return None
    for name in ("blocks", "cache"):
        if getattr(options, name) is not None:
            raise ValueError(
                f"{name} is for models of whole rows: this run was trained in blocks of "
                f"{own.size}, which it writes one after the other, after a cache"
            )
    return own


def _ends(model: Model, shaping: Shaping, answers: bool, options: Options) -> dict[str, Any]:
    if not (answers if options.end_of_text is None else options.end_of_text):
        return {}
    special = data.special_ids(model.tokenizer)
    if special.sep in shaping.forbid:
        raise ValueError("forbid and end_of_text exclude each other: no text would end")
    # Behind an answer its model knows separators.
    return {"end_id": special.sep, "pad_id": special.sep if answers else special.pad}


def _length(model: Model, length: int | None) -> int:
    longest = model.encoder.max_length
    if length is None:
        return model.length
    own = model.family.blocks(model.objective)
    if length > longest and own is not None:
        _check_longer(model, length, own)
        return length
    if not 1 <= length <= longest:
        raise ValueError(f"length must be from 1 to {longest}, the model's rows, not {length}")
    return length


def _check_longer(model: Model, length: int, own: Blocks) -> None:
    if model.encoder.positions == "learned":
        raise ValueError(
            f"length must be from 1 to {model.encoder.max_length}, not {length}: learned positions "
            "end there, and rotary ones (model.positions=rope) go on"
        )
    if model.length <= own.size:
        raise ValueError(
            f"length must be from 1 to {model.length}, not {length}: this run was trained on rows "
            "of one block, which never follows another"
        )


def _labels(
    model: Model, asked: Sequence[prompts.Prompt], label_names: Sequence[str]
) -> np.ndarray:
    """i32[N], the index of each prompt's label, -1 for none."""
    if model.encoder.classes:
        return prompts.label_indices(asked, label_names)
    if any(prompt.label is not None for prompt in asked):
        raise ValueError("a label is for models with classes: this one was trained without")
    return np.full(len(asked), -1, np.int32)


def _check_guidance(model: Model, labels: np.ndarray, guidance: float | None) -> None:
    if guidance is None:
        return
    if not model.encoder.classes:
        raise ValueError("guidance is for models with classes: this one was trained without")
    if np.any(labels < 0):
        raise ValueError("guidance needs a label of every prompt: give one")


def _shaping(model: Model, options: Options) -> Shaping:
    return Shaping(
        forbid=_forbidden(model, options.forbid),
        repetition_penalty=options.repetition_penalty,
        temperature=options.temperature,
        min_p=options.min_p,
        top_k=options.top_k,
        top_p=options.top_p,
    )


def _forbidden(model: Model, forbid: Sequence[str]) -> tuple[int, ...]:
    if isinstance(forbid, str):
        raise ValueError(f"forbid: it must be a list of tokens, such as [{forbid!r}]")
    try:
        ids = tuple(prompts.token_id(text, model.tokenizer) for text in forbid)
    except ValueError as error:
        raise ValueError(f"forbid: {error}") from None
    if len({*ids, model.encoder.mask_id}) >= model.encoder.vocab_size:
        raise ValueError("forbid: no token is left to write")
    return ids


def _whole(name: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value!r}")
    return value
