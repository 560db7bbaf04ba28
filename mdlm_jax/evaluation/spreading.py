"""Whatever is computed of rows, batch by batch, on the devices of any mesh."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from mdlm_jax import data
from mdlm_jax.host import parallel

PyTree = Any


def over_rows(
    of_batch: Callable[[PyTree, dict[str, jax.Array]], PyTree], mesh: Mesh | None = None
) -> Callable[..., list[PyTree]]:
    """`(params, rows, batch_size, advance) -> ` what `of_batch` makes of each batch, on the host.

    `advance(n)` is called when n more rows are done.

    Compiled once for a batch size. Every row comes once, in order; the last batch is filled up with
    rows of which nothing is maskable. A batch is no larger than all rows are.

    Args:
      of_batch: `(params, batch) -> arrays`, the batch as of `data.eval_batches`.
      mesh: spreads the rows of a batch over its devices, and `batch_size` is rounded up to what
        they share evenly; every process has all rows, and gets the result of all.
    """
    outputs = None if mesh is None else parallel.replicated(mesh)
    shards = 1 if mesh is None else parallel.row_shards(mesh)

    @functools.partial(jax.jit, out_shardings=outputs)
    def compiled(params, batch):
        with parallel.use(mesh):
            return of_batch(params, batch)

    def put(batch):
        return batch if mesh is None else parallel.put_rows(batch, mesh)

    def of_rows(
        params: PyTree,
        rows: data.Rows,
        batch_size: int,
        advance: Callable[[int], None] = lambda rows: None,
    ) -> list[PyTree]:
        size = -(-min(batch_size, max(len(rows), 1)) // shards) * shards
        parts = []
        for batch in data.eval_batches(rows, batch_size=size):
            parts.append(compiled(params, put(batch)))
            if len(parts) > 1:  # one late, so that the devices never wait
                parts[-2] = jax.device_get(parts[-2])
                advance(size)
        if parts:
            parts[-1] = jax.device_get(parts[-1])
            advance(len(rows) - size * (len(parts) - 1))
        return parts

    return of_rows
