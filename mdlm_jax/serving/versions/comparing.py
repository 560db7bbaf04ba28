"""Two versions on the same prompts: what they write, how likely the references are, and the time.

    planned = comparing.plan(a, b, wanted)
    record, of_prompts = comparing.compare(planned, seed=0, samples=1, draws=32, batch_size=32)

Both write with the same noise, prompt for prompt, and their batches take turns. Each figure is a
mean over prompts, and the differences are paired.
"""

import dataclasses
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mdlm_jax import data
from mdlm_jax.diffusion import strategies
from mdlm_jax.evaluation.bounds import likelihoods
from mdlm_jax.evaluation.samples import answers, paired
from mdlm_jax.runs.experiment import SCHEDULES
from mdlm_jax.serving.digests import Version, set_options
from mdlm_jax.writing import filling, prompts, requests
from mdlm_jax.writing import model as models
from mdlm_jax.writing import wanted as references

OfPrompts = dict[str, list[np.ndarray]]  # by the name of a figure f64[N] of each of the two


class Side(NamedTuple):
    """One of the two.

    Attributes:
      name: as the user gave it.
      version: what decides its text.
      model: the model in the dtype of the version.
    """

    name: str
    version: Version
    model: models.Model


class Planned(NamedTuple):
    """A side with its prompts laid out.

    Attributes:
      side: the side.
      request: rows and method.
      wanted: i32[N, L], the rows with the references in them.
      ends: bool[N], whether the row is an answer, which ends at a separator.
    """

    side: Side
    request: requests.Request
    wanted: np.ndarray
    ends: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Rows of which any places count, as the likelihood of a family takes them.

    Attributes:
      tokens: i32[N, L].
      labels: i32[N].
      maskable: bool[N, L], the places that are predicted.
      valid: bool[N, L], what the network sees; None for all.
      counts: i32[N], tokens that count.
    """

    tokens: np.ndarray
    labels: np.ndarray
    maskable: np.ndarray
    valid: np.ndarray | None
    counts: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, which: np.ndarray) -> "_Rows":
        parts = (getattr(self, field.name) for field in dataclasses.fields(self))
        return _Rows(*(None if part is None else part[which] for part in parts))


def plan(a: Side, b: Side, wanted: references.Wanted) -> tuple[Planned, Planned]:
    """Lays out the prompts for both, before anything is compiled.

    Args:
      a: what is there.
      b: what may replace it.
      wanted: prompts with their references.

    Raises:
      ValueError: a prompt or a reference does not fit a model, or the tokenizers differ.
    """
    if a.model.tokenizer.to_str() != b.model.tokenizer.to_str():
        raise ValueError(
            f"{a.name} and {b.name} have different tokenizers: tokens and nats per token of one "
            "say nothing beside those of the other"
        )
    return _plan(a, wanted), _plan(b, wanted)


def compare(
    planned: tuple[Planned, Planned], *, seed: int, samples: int, draws: int, batch_size: int
) -> tuple[dict[str, Any], OfPrompts]:
    """Compares two versions.

    Args:
      planned: from `plan`.
      seed: of what is written, of the masks, and of the resamples.
      samples: texts of each prompt; a prompt's figure is their mean.
      draws: masks of each row whose likelihood is estimated, at least 2.
      batch_size: rows at a time.

    Returns:
      The record and the figures of the prompts. The record has "a" and "b", what was compared;
      "prompts", "samples", "seed", "draws", "batch_size", "device"; "differences": by the name of
      the figure the fields of `paired.Difference`; "left_out": by the name of a figure why it is
      not among them.
    """
    written, milliseconds = _write(planned, samples, batch_size, seed)
    scored = [_scores(side, rows, samples) for side, rows in zip(planned, written, strict=True)]
    of_prompts: OfPrompts = {name: [each[name] for each in scored] for name in scored[0]}
    nats, left_out = _nats(planned, written, samples, seed, draws, batch_size)
    of_prompts |= nats
    evaluations = [np.array([row.evaluations for row in rows]) for rows in written]
    of_prompts["evaluations"] = [_by_prompt(each, samples) for each in evaluations]
    compared = {**of_prompts, "milliseconds": milliseconds}
    record = {
        "a": _told(planned[0].side),
        "b": _told(planned[1].side),
        "prompts": len(planned[0].wanted),
        "samples": samples,
        "seed": seed,
        "draws": draws,
        "batch_size": batch_size,
        "device": jax.devices()[0].device_kind,
        "differences": {
            name: paired.difference(*figures, seed=seed)._asdict()
            for name, figures in compared.items()
        },
        "left_out": left_out,
    }
    return record, of_prompts


def as_json(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with None where an interval does not exist."""
    differences = {
        name: {field: value if math.isfinite(value) else None for field, value in each.items()}
        for name, each in record["differences"].items()
    }
    return {**record, "differences": differences}


def _told(side: Side) -> dict[str, Any]:
    options, version = set_options(side.version.defaults), side.version
    return {"name": side.name, **options, "dtype": version.dtype, "digest": version.digest}


def _plan(side: Side, wanted: references.Wanted) -> Planned:
    """Checks all, before anything is compiled."""
    card, model = side.model.card, side.model.model
    asking = prompts.asking(card, model.tokenizer)
    request = requests.plan(
        model,
        wanted.asked,
        side.version.defaults,
        asking=asking,
        label_names=card.get("label_names", ()),
    )
    ends = [asking is not None and asking.answers(prompt) for prompt in wanted.asked]
    rows = references.lay_out(request.canvas, wanted, model.tokenizer, asking)
    return Planned(side, request, rows, np.array(ends, bool))


def _write(
    sides: Sequence[Planned], samples: int, batch_size: int, seed: int
) -> tuple[list[list[filling.Filled]], list[np.ndarray]]:
    """All samples of each side, and of each its milliseconds a row, batch by batch."""

    def fill(side: Planned) -> Iterator[list[filling.Filled]]:
        return filling.fill(
            side.side.model.params,
            side.side.model.encoder,
            side.side.model.mesh,
            side.request.method,
            side.request.canvas,
            labels=side.request.labels,
            samples=samples,
            batch_size=batch_size,
            seed=seed,
        )

    for side in sides:
        next(fill(side))  # compiles
    running = [fill(side) for side in sides]
    written: list[list[filling.Filled]] = [[], []]
    taken: list[list[float]] = [[], []]
    total = len(sides[0].wanted) * samples
    while len(written[0]) < total:
        # One first, then the other, so that a machine that slows down slows both.
        for which in (0, 1) if len(taken[0]) % 2 == 0 else (1, 0):
            begun = time.perf_counter()
            batch = next(running[which])
            taken[which].append(1000 * (time.perf_counter() - begun) / len(batch))
            written[which] += batch
    return written, [np.array(each) for each in taken]


def _scores(
    side: Planned, written: Sequence[filling.Filled], samples: int
) -> dict[str, np.ndarray]:
    """Exactness and token F1 of each prompt, of the tokens that were wanted."""
    separator = data.special_ids(side.side.model.tokenizer).sep
    which = np.arange(len(written)) // samples
    fill, ends = side.request.canvas.fill[which], side.ends[which]
    ours = _gathered(np.stack([row.tokens for row in written]), fill, ends, separator)
    theirs = _gathered(side.wanted[which], fill, ends, separator)
    return {
        "exact": _by_prompt(answers.exact_match(ours, theirs), samples),
        "token_f1": _by_prompt(answers.token_f1(ours, theirs, separator), samples),
    }


def _gathered(tokens: np.ndarray, fill: np.ndarray, ends: np.ndarray, separator: int) -> data.Rows:
    """The wanted tokens of each row, separators behind them; an answer up to its first one."""
    width = int(fill.sum(axis=1).max())
    rows = np.full((len(tokens), width), separator, np.int32)
    sizes = fill.sum(axis=1).astype(np.int32)
    for number, (row, where, end) in enumerate(zip(tokens, fill, ends, strict=True)):
        ids = row[where]
        if end:
            ids = ids[: int(np.argmax(np.append(ids, separator) == separator))]
        rows[number, : len(ids)] = ids
    return data.Rows(rows, np.zeros(len(rows), np.int32), sizes)


def _nats(
    sides: Sequence[Planned],
    written: Sequence[Sequence[filling.Filled]],
    samples: int,
    seed: int,
    draws: int,
    batch_size: int,
) -> tuple[OfPrompts, dict[str, str]]:
    """Nats per token of each prompt, and why some are left out."""
    found: OfPrompts = {}
    left_out: dict[str, str] = {}

    def measured(judge: Planned, rows: _Rows, steps: int | None = None) -> np.ndarray:
        likelihood = _likelihood(judge, seed, draws, steps)
        nats = likelihood(judge.side.model.params, rows, batch_size).nats
        return np.asarray(nats, float) / np.maximum(rows.counts, 1)

    first, second = (_rows(side, side.wanted) for side in sides)
    own = measured(sides[0], first)
    same = _are_same(*sides)
    found["reference_nats"] = [own, own if same else measured(sides[1], second)]
    if why := next(filter(None, map(_without_law, sides)), None):
        left_out["reference_nats_in_steps"] = why
    else:
        found["reference_nats_in_steps"] = [
            measured(side, rows, side.request.method.steps)
            for side, rows in zip(sides, (first, second), strict=True)
        ]
    canvases = [side.request.canvas.tokens for side in sides]
    if not (np.array_equal(first.tokens, second.tokens) and np.array_equal(*canvases)):
        left_out["written_nats"] = "the two lay out the prompts differently"
        return found, left_out
    found["written_nats"] = [
        _by_prompt(measured(sides[0], _rows(side, _tokens(rows), samples)), samples)
        for side, rows in zip(sides, written, strict=True)
    ]
    return found, left_out


def _rows(side: Planned, tokens: np.ndarray, samples: int = 1) -> _Rows:
    """Rows with the tokens, of which those count that were wanted, and of an answer its end."""
    canvas = side.request.canvas
    which = np.arange(len(tokens)) // samples
    fill = canvas.fill[which]
    separator = data.special_ids(side.side.model.tokenizer).sep
    ended = np.cumsum(fill & (tokens == separator), axis=1)
    behind = side.ends[which][:, None] & ((ended > 1) | ((ended == 1) & (tokens != separator)))
    return _Rows(
        tokens=tokens,
        labels=side.request.labels[which],
        maskable=fill & (tokens != side.side.model.encoder.mask_id),
        valid=None if canvas.valid is None else canvas.valid[which],
        counts=(fill & ~behind).sum(axis=1).astype(np.int32),
    )


def _tokens(rows: Sequence[filling.Filled]) -> np.ndarray:
    return np.stack([row.tokens for row in rows])


def _likelihood(judge: Planned, seed: int, draws: int, steps: int | None) -> likelihoods.OfRows:
    """Of the model, or of what it writes in so many steps."""
    model = judge.side.model
    objective, encoder = model.model.objective, model.encoder
    if steps is None:
        return model.model.family.make_likelihood(
            objective,
            encoder,
            start_id=data.special_ids(model.tokenizer).sep,
            seed=seed,
            draws=draws,
            mesh=model.mesh,
        )
    return likelihoods.make_nelbo(
        likelihoods.denoiser_of(encoder),
        mask_id=encoder.mask_id,
        seed=seed,
        draws=draws,
        schedule=SCHEDULES[objective.schedule](),
        mesh=model.mesh,
        steps=steps,
    )


def _without_law(side: Planned) -> str | None:
    """Why what it writes in its steps has no likelihood that is computed here; None if it has."""
    method, model = side.request.method, side.side.model.model
    name, schedule = side.side.name, SCHEDULES[model.objective.schedule]()
    if model.family.is_causal or method.in_blocks is not None or method.blocks > 1:
        return f"{name} does not write the whole row at a time"
    if method.strategy != strategies.exact_count(schedule):
        return f"{name} writes by {side.request.strategy}, not in the random order of exact_count"
    changed = {*method.shaping.changed()} | ({"guidance"} if method.guidance is not None else set())
    if changed:
        return f"{name} draws from another law than its model's: {', '.join(sorted(changed))}"
    if method.cache is not None:
        return f"{name} writes with a cache, which is an approximation"
    if model.encoder.time_conditioning:
        return f"{name} is told the time, which is not that of a row with a prompt"
    if side.ends.any():
        return "answers end at their first separator"
    return None


def _are_same(one: Planned, other: Planned) -> bool:
    """Whether both have the same likelihood of the references, to the bit."""
    first, second = (side.side.model for side in (one, other))
    ones, others = (jax.tree.leaves(model.params) for model in (first, second))
    same = len(ones) == len(others) and all(x is y for x, y in zip(ones, others, strict=True))
    return same and first.encoder == second.encoder and np.array_equal(one.wanted, other.wanted)


def _by_prompt(values: np.ndarray, samples: int) -> np.ndarray:
    return np.asarray(values, float).reshape(-1, samples).mean(axis=1)
