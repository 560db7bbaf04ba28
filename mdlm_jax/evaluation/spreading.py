"""A function of a batch applied to all rows, on the devices of any mesh."""

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
    """`(params, rows, batch_size, advance) -> [of_batch(params, batch), ...]`, on the host.

    `advance` is called with n whenever n more rows are done.

    The function is compiled once for a batch size. Every row comes once, in order. The last batch
    is filled up with rows that have no maskable token. A batch is not larger than the number of
    rows.

    Args:
      of_batch: `(params, batch) -> arrays`, for a batch of `data.eval_batches`.
      mesh: spreads the rows of a batch over its devices; `batch_size` is rounded up to a multiple
        of its row shards. Every process has all rows, and gets the results of all rows.
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
            if len(parts) > 1:  # fetched one batch late, so that the devices never wait
                parts[-2] = jax.device_get(parts[-2])
                advance(size)
        if parts:
            parts[-1] = jax.device_get(parts[-1])
            advance(len(rows) - size * (len(parts) - 1))
        return parts

    return of_rows
