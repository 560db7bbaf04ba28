"""The frontier: what samples are worth and what they cost, for strategies, steps and temperatures.

Every point is rows that the model wrote, beside as many rows of real text: how plain they are to
another model (nats), how diverse they are (entropy, distinct-n, repetition), and the network
evaluations and seconds that they took. The frontier of nats and entropy, and not either of them
alone, compares samplers (Pynadath et al. 2026, "Generative Frontiers"): lower temperature buys nats
with entropy at any quality.
"""

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from mdlm_jax import data, parallel
from mdlm_jax.decoding import Shaping
from mdlm_jax.diffusion import Strategy, noise
from mdlm_jax.evaluation import memorisation, naive_bayes, text_metrics
from mdlm_jax.evaluation.scorers import Scorer
from mdlm_jax.networks import bert
from mdlm_jax.sampler import Method, make_writer

Array = jax.Array
Point = dict[str, Any]

_DISTINCT = (1, 2, 3)  # the n of distinct-n
_REPEATED = 4  # the n of repetition


@dataclasses.dataclass(frozen=True)
class Grid:
    """What is varied: every strategy is measured at every combination.

    Attributes:
      samples: rows of each point.
      steps: network evaluations at most.
      temperatures: 1 draws from the model, 0 takes the most likely.
      guidance: weights of classifier-free guidance; empty without guidance.

    Raises:
      ValueError: nothing to measure, or an impossible value; it is named.
    """

    samples: int = 64
    steps: tuple[int, ...] = (4, 16, 64)
    temperatures: tuple[float, ...] = (1.0,)
    guidance: tuple[float, ...] = ()

    def __post_init__(self):
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, not {self.samples}")
        for name in ("steps", "temperatures"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty: give at least one value")
        if min(self.steps) < 1:
            raise ValueError(f"steps must be at least 1, not {min(self.steps)}")
        if not all(0 <= value < math.inf for value in self.temperatures):
            raise ValueError(f"temperatures must be 0 or more, not {_told(self.temperatures)}")
        if not all(map(math.isfinite, self.guidance)):
            raise ValueError(f"guidance must be finite weights, not {_told(self.guidance)}")


class Judges(NamedTuple):
    """What rows are measured by, beside themselves.

    Attributes:
      scorer: nats of each row under another model.
      train: the training split, whose runs of tokens samples may repeat.
      classifier: of models with classes, else None.
      mauve: of rows, against real text; None where no encoder reads them.
    """

    scorer: Scorer
    train: data.Rows
    classifier: naive_bayes.NaiveBayes | None = None
    mauve: Callable[[data.Rows], float] | None = None


def check_guidance(encoder: bert.Config) -> None:
    """Whether a model can be guided.

    Raises:
      ValueError: it has no classes, or never saw a row without its class.
    """
    if not encoder.classes:
        raise ValueError("guidance is for models with classes: this one was trained without")
    if not encoder.class_dropout:
        raise ValueError(
            "guidance needs a model that also saw rows without their class: this one was trained "
            "with model.class_dropout=0"
        )


def reference_rows(rows: data.Rows, count: int) -> data.Rows:
    """Rows of real text to compare with: evenly spaced, and as evenly of all labels as there are.

    Args:
      rows: a split.
      count: how many are wanted; all are taken where there are fewer.
    """
    turn = np.empty(len(rows))
    for label in np.unique(rows.labels):
        of_label = np.flatnonzero(rows.labels == label)
        # Any first so many of these are spread over the label's rows.
        turn[of_label] = np.argsort(np.argsort(_spread(len(of_label)), kind="stable"))
    chosen = np.sort(np.argsort(turn, kind="stable")[:count])
    return data.Rows(
        np.asarray(rows.tokens[chosen]),
        np.asarray(rows.labels[chosen]),
        None if rows.sizes is None else np.asarray(rows.sizes[chosen]),
    )


def describe(rows: data.Rows, judges: Judges) -> Point:
    """The metrics of rows, samples or real text; errors are standard errors over rows.

    Returns:
      rows, tokens; nats (per token of the rows, by the scorer), nats_error; entropy, entropy_error;
      distinct_1, distinct_2, distinct_3; repetition; memorised (the longest run of tokens of a row
      that stands in the training split, the mean over rows), memorised_error, memorised_longest;
      with an encoder mauve; and with a classifier class_accuracy (the share of rows that it gives
      their label), class_accuracy_error. None where it is undefined.
    """
    sizes = np.full(len(rows), rows.tokens.shape[1]) if rows.sizes is None else rows.sizes
    nats = text_metrics.mean(judges.scorer(rows), sizes)
    entropy = text_metrics.mean(text_metrics.unigram_entropy(rows))
    told = {
        "rows": len(rows),
        "tokens": int(sizes.sum()),
        "nats": nats.value,
        "nats_error": nats.error,
        "entropy": entropy.value,
        "entropy_error": entropy.error,
        **{f"distinct_{n}": text_metrics.distinct(rows, n) for n in _DISTINCT},
        "repetition": text_metrics.mean(text_metrics.repetition(rows, _REPEATED)).value,
    }
    overlaps = memorisation.longest_overlaps(rows, judges.train)
    memorised = text_metrics.mean(overlaps.astype(float))
    told |= {
        "memorised": memorised.value,
        "memorised_error": memorised.error,
        "memorised_longest": int(overlaps.max()),
    }
    if judges.mauve is not None:
        told["mauve"] = judges.mauve(rows)
    if judges.classifier is not None:
        right = naive_bayes.classify(judges.classifier, rows) == rows.labels
        accuracy = text_metrics.mean(right.astype(float))
        told |= {"class_accuracy": accuracy.value, "class_accuracy_error": accuracy.error}
    return {name: None if value != value else value for name, value in told.items()}


def measure(
    params: Any,
    encoder: bert.Config,
    strategies: Mapping[str, Strategy],
    grid: Grid,
    reference: data.Rows,
    judges: Judges,
    *,
    seed: int,
    batch_size: int,
    mesh: Mesh,
) -> Iterator[Point]:
    """Samples and measures every combination; one compiled program for each strategy.

    Sample i is asked for what row i of the reference is (of fewer, again from the first): its
    label and its number of tokens, so that the two differ in nothing but who wrote them.

    Args:
      params: of the encoder.
      encoder: what they are the parameters of.
      strategies: by the names that the points bear.
      grid: what is varied.
      reference: rows of real text.
      judges: what the samples are measured by.
      seed: of the noise; every point has the same.
      batch_size: rows sampled at a time, rounded up to what the mesh's devices share evenly.
      mesh: whose devices share the rows; the parameters lie on it.

    Yields:
      For each point `strategy`, `steps`, `temperature`, `guidance` (None without), the metrics of
      `describe`, `evaluations` (of the network, the mean over rows; a guided step takes two) and
      `seconds` (of all samples, compilation excluded).

    Raises:
      ValueError: guidance for a model that cannot be guided.
    """
    if grid.guidance:
        check_guidance(encoder)
    asked = reference[np.arange(grid.samples) % len(reference)]
    shards = parallel.row_shards(mesh)
    size = -(-min(batch_size, grid.samples) // shards) * shards
    batches = [_canvas(b, encoder, mesh) for b in data.eval_batches(asked, batch_size=size)]
    key = noise.derive(noise.seed_key(seed), "samples")
    for name, strategy in strategies.items():
        for number, (temperature, weight, steps) in enumerate(
            itertools.product(grid.temperatures, grid.guidance or (None,), grid.steps)
        ):
            weighed = None if weight is None else float(weight)
            shaping = Shaping(temperature=float(temperature))
            method = Method(strategy, shaping, steps, guidance=weighed)
            write = make_writer(encoder, mesh, method)
            strengths = method.strengths()
            if not number:
                jax.block_until_ready(write(params, key, batches[0], 1, strengths))  # compiles
            start = time.perf_counter()
            parts = [write(params, key, batch, steps, strengths) for batch in batches]
            tokens, evaluations = (
                np.concatenate(leaves)
                for leaves in zip(
                    *((tokens, trace.evaluations) for tokens, trace in jax.device_get(parts)),
                    strict=True,
                )
            )
            evaluations = evaluations * (1 if weight is None else 2)
            seconds = time.perf_counter() - start
            written = data.Rows(tokens[: grid.samples], asked.labels, asked.sizes)
            yield {
                "strategy": name,
                "steps": steps,
                "temperature": temperature,
                "guidance": weight,
                **describe(written, judges),
                "evaluations": float(evaluations[: grid.samples].mean()),
                "seconds": seconds,
            }


def _canvas(batch: dict[str, np.ndarray], encoder: bert.Config, mesh: Mesh) -> dict[str, Array]:
    """Of rows of real text nothing but their shape, their labels and their prompts, on the mesh."""
    maskable = batch["maskable"]
    told = {
        "tokens": np.where(maskable, np.int32(encoder.mask_id), batch["tokens"]),
        "fill": maskable,
        "maskable": maskable,
        "number": batch["rows"],
    }
    told |= {"valid": batch["valid"]} if "valid" in batch else {}
    told |= {"label": batch["label"]} if encoder.classes else {}
    return parallel.put_rows(told, mesh)


def _spread(count: int) -> np.ndarray:
    """Numbers in [0, 1) whose order visits 0..count-1 so that any beginning is spread out."""
    bits = max(count - 1, 1).bit_length()
    places = np.arange(count)
    return sum(((places >> i) & 1) / 2.0 ** (i + 1) for i in range(bits))


def _told(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
