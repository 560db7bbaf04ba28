"""Fills canvases with a trained model, batch by batch, on any mesh."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from mdlm_jax.diffusion import noise
from mdlm_jax.host import parallel
from mdlm_jax.networks import bert
from mdlm_jax.runs.sampler import Method, make_writer
from mdlm_jax.writing.canvases import Canvas

PyTree = Any


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
      step: i32[L], the step that wrote the token; -1 if none did.
      log_prob: f32[L], the token's log-probability then.
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
    key: jax.Array | None = None,
) -> Iterator[list[Filled]]:
    """Yields samples of every row of a canvas, a batch at a time, in order, to every process.

    The noise of a row is a function of the seed and its number, so neither its batch nor the mesh
    can change it. A batch is rounded up to what the mesh's devices share evenly, and a single one
    to a power of two, so that few programs serve canvases of any size.

    Args:
      params: from `workdir.load`, placed on `mesh`.
      encoder: the same.
      mesh: of all devices of all processes.
      method: how.
      canvas: N rows.
      labels: i32[N], of models with classes; -1 is none.
      samples: samples of each row; sample s of row i has the number `i * samples + s`.
      first: the number to begin with.
      batch_size: rows at a time.
      seed: of all noise.
      key: of all noise instead, of another purpose than samples.
    """
    total = len(canvas.tokens) * samples
    if first >= total:
        return
    write = make_writer(encoder, mesh, method)
    shards = parallel.row_shards(mesh)
    most = min(batch_size, 1 << (total - first - 1).bit_length())
    size = -(-most // shards) * shards
    key = noise.derive(noise.seed_key(seed), "samples") if key is None else key
    for start in range(first, total, size):
        # The last batch is filled up with its last row: one shape, one program.
        numbers = np.minimum(np.arange(start, start + size, dtype=np.int32), total - 1)
        rows = numbers // samples
        batch = {"tokens": canvas.tokens[rows], "fill": canvas.fill[rows], "number": numbers}
        for name, values in (("valid", canvas.valid), ("maskable", canvas.maskable)):
            if values is not None:
                batch[name] = values[rows]
        if encoder.classes:
            batch["label"] = np.full(size, -1, np.int32) if labels is None else labels[rows]
        put = parallel.put_rows(batch, mesh)
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
