"""Fills canvases with a trained model, batch by batch, on any mesh."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mdlm_jax import parallel
from mdlm_jax.decoding import Shaping
from mdlm_jax.diffusion import Denoiser, Strategy, Trace, sample, transforms
from mdlm_jax.networks import bert
from mdlm_jax.prompts import Canvas

Array = jax.Array
PyTree = Any


@dataclasses.dataclass(frozen=True)
class Method:
    """How canvases are filled.

    Attributes:
      strategy: from `decoding.strategy`.
      shaping: of the denoiser.
      steps: network evaluations of a row, at least one a block.
      blocks: parts of a row that are filled one after the other, left to right.
      guidance: weight of classifier-free guidance by the rows' labels; None for none.
      end_id: token that ends a text; None where nothing does.
      pad_id: token that fills up a row behind it.

    Raises:
      ValueError: fewer steps than blocks, or a guidance that is no number.
    """

    strategy: Strategy
    shaping: Shaping
    steps: int
    blocks: int = 1
    guidance: float | None = None
    end_id: int | None = None
    pad_id: int | None = None

    def __post_init__(self):
        if self.steps < self.blocks:
            raise ValueError(
                f"steps is {self.steps}, blocks {self.blocks}: each block needs a step"
            )
        if self.guidance is not None and not math.isfinite(self.guidance):
            raise ValueError(f"guidance is {self.guidance}, it must be a finite number")

    def strengths(self) -> dict[str, float]:
        """What is traced beside the steps: another value is not another program."""
        weight = {} if self.guidance is None else {"guidance": self.guidance}
        return {**self.shaping.strengths(), **weight}


def make_mesh(sizes: str) -> Mesh:
    """The mesh of `fsdp=4,tensor=2`, data taking the rest, of all devices of all processes.

    Raises:
      ValueError: it is no list of sizes of the axes, or the devices cannot be arranged so.
    """
    parts = [part.strip().partition("=")[::2] for part in sizes.split(",")]
    axes = {axis for axis, _ in parts}
    numbers = all(size.removeprefix("-").isdecimal() for _, size in parts)
    if not numbers or not axes <= {*parallel.AXES} or len(axes) < len(parts):
        raise ValueError(
            f"mesh {sizes!r}: it must be sizes of {', '.join(parallel.AXES)}, such as "
            "fsdp=4,tensor=2"
        )
    return parallel.make_mesh(**{axis: int(size) for axis, size in parts})


class Filled(NamedTuple):
    """A row that was filled.

    Attributes:
      number: of the row in the whole job.
      tokens: i32[L].
      step: i32[L], that wrote the token; -1 where none did.
      log_prob: f32[L], of the token then.
      evaluations: steps in which the row needed the network.
    """

    number: int
    tokens: np.ndarray
    step: np.ndarray
    log_prob: np.ndarray
    evaluations: int


def fill(
    params: PyTree,
    encoder: bert.Config,
    mesh: Mesh,
    method: Method,
    canvas: Canvas,
    *,
    labels: np.ndarray | None = None,
    samples: int = 1,
    first: int = 0,
    batch_size: int = 32,
    seed: int = 0,
    write: Callable[..., tuple[Array, Trace]] | None = None,
) -> Iterator[list[Filled]]:
    """Samples of every row of a canvas, a batch at a time, in order; every process gets all.

    The noise of a row is a function of the seed and its number: neither the batch that it comes in
    nor the mesh can change it. A batch is rounded up to what the mesh's devices share evenly.

    Args:
      params: from `workdir.load`, placed on `mesh`.
      encoder: the same.
      mesh: of all devices of all processes.
      method: how.
      canvas: N rows.
      labels: i32[N], of models with classes; -1 is none.
      samples: of each row; sample s of row i has the number `i * samples + s`.
      first: number that is begun with.
      batch_size: rows at a time.
      seed: of all noise.
      write: from `make_writer`, of the same method but for its steps and strengths; by default it
        is made, and compiled, here.
    """
    total = len(canvas.tokens) * samples
    if first >= total:
        return
    write = make_writer(encoder, mesh, method) if write is None else write
    shards = parallel.row_shards(mesh)
    size = -(-min(batch_size, total - first) // shards) * shards
    held = parallel.local_rows(mesh, size)
    key = jax.random.key(seed)
    for start in range(first, total, size):
        # What is missing of the last batch is its last row again: one shape, one program.
        numbers = np.minimum(np.arange(start, start + size, dtype=np.int32), total - 1)
        rows = numbers // samples
        batch = {"tokens": canvas.tokens[rows], "fill": canvas.fill[rows], "number": numbers}
        if encoder.classes:
            batch["label"] = np.full(size, -1, np.int32) if labels is None else labels[rows]
        local = {name: values[held] for name, values in batch.items()}
        put = parallel.put_batch(local, mesh, size)
        tokens, trace = jax.device_get(write(params, key, put, method.steps, method.strengths()))
        yield [
            Filled(
                int(numbers[i]),
                tokens[i],
                trace.step[i],
                trace.log_prob[i],
                int(trace.evaluations[i]),
            )
            for i in range(min(size, total - start))
        ]


def make_writer(
    encoder: bert.Config, mesh: Mesh, method: Method
) -> Callable[..., tuple[Array, Trace]]:
    """`(params, key, batch, steps, strengths) -> (tokens i32[B, L], Trace)`, jitted.

    `batch` has "tokens" i32[B, L], "fill" bool[B, L], "number" i32[B] and of models with classes
    "label" i32[B]; `strengths` are `method.strengths()` or other values of the same names.
    """

    @functools.partial(jax.jit, out_shardings=parallel.replicated(mesh))
    def write(params, key, batch, steps, strengths):
        shaped = {name: value for name, value in strengths.items() if name != "guidance"}
        shaping = dataclasses.replace(method.shaping, **shaped)
        denoiser = _denoiser(params, encoder, batch.get("label"), strengths.get("guidance"))
        with parallel.use(mesh):
            return sample(
                shaping(denoiser),
                key,
                batch["tokens"],
                mask_id=encoder.mask_id,
                steps=steps,
                strategy=method.strategy,
                blocks=method.blocks,
                end_id=method.end_id,
                pad_id=method.pad_id,
                fill=batch["fill"],
                rows=batch["number"],
                trace=True,
            )

    return write


def _denoiser(
    params: PyTree, encoder: bert.Config, label: Array | None, weight: Array | None
) -> Denoiser:
    """Of a batch, guided where there is a weight, without the columns that pad the vocabulary.

    A mesh may pad it, and the last digits of a draw's noise depend on the number of columns.
    """
    denoiser = bert.denoiser(params, encoder, label=label)
    if weight is not None:
        without = bert.denoiser(params, encoder, label=jnp.full_like(label, -1))
        denoiser = transforms.guide(denoiser, without, weight)
    return Denoiser(
        denoiser.encode, lambda at, row: denoiser.readout(at, row)[..., : encoder.vocab_size]
    )
