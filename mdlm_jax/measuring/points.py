"""The points of a frontier: measured rows of a model, for every combination of a grid."""

import dataclasses
import itertools
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mdlm_jax import data
from mdlm_jax.diffusion import Strategy, noise
from mdlm_jax.evaluation.samples.frontier import Judges, Point, describe
from mdlm_jax.host import parallel
from mdlm_jax.networks import bert
from mdlm_jax.runs.families import Blocks
from mdlm_jax.runs.sampler import Method, make_writer
from mdlm_jax.runs.shaping import Shaping

Array = jax.Array


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
    start_id: int | None = None,
    in_blocks: Blocks | None = None,
) -> Iterator[Point]:
    """Samples and measures every combination; one compiled program for each strategy.

    Sample i gets the label and the number of tokens of row i of the reference (from the first
    again, if there are fewer), so that the two differ only in who wrote them.

    Args:
      params: of the encoder.
      encoder: its config.
      strategies: by their names in the points.
      grid: what is varied.
      reference: rows of real text.
      judges: measure the samples.
      seed: of the noise, the same for every point.
      batch_size: rows sampled at a time, rounded up to what the mesh's devices share evenly.
      mesh: its devices share the rows and hold the parameters.
      start_id: for a causal network, the token before a row; None for one that fills masks.
      in_blocks: as of `Method`.

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
            method = Method(
                strategy,
                shaping,
                steps,
                guidance=weighed,
                start_id=start_id,
                in_blocks=in_blocks,
            )
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
            written = dataclasses.replace(asked, tokens=tokens[: grid.samples])
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
    """The shape, the labels and the prompts of rows of real text, on the mesh."""
    maskable = batch["maskable"]
    needed = {
        "tokens": np.where(maskable, np.int32(encoder.mask_id), batch["tokens"]),
        "fill": maskable,
        "maskable": maskable,
        "number": batch["rows"],
    }
    needed |= {"valid": batch["valid"]} if "valid" in batch else {}
    needed |= {"label": batch["label"]} if encoder.classes else {}
    return parallel.put_rows(needed, mesh)


def _told(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
