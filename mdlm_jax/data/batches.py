"""Batches of rows: training batches are a function of (seed, step), evaluation's of the rows."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from mdlm_jax.data.rows import Rows

Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class TrainBatches:
    """Training batches; this process reads its own rows of them.

    Attributes:
      rows: the N rows that are read.
      order: endless `grain.MapDataset` of row indices, every N of them a new permutation.
      batch_size: rows B of the global batch.
      local: i64[b], which of the B rows this process reads.
    """

    rows: Rows
    order: Any
    batch_size: int
    local: np.ndarray

    def at(self, step: int) -> Batch:
        """The batch of a step (0, 1, ...), in any order.

        Returns:
          tokens i32[b, L], maskable bool[b, L], label i32[b], and of padded rows valid bool[b, L]
          (`rows` says which tokens these are), of the rows `step * B + local` of the endless
          shuffled sequence.
        """
        ids = np.array([self.order[int(step * self.batch_size + i)] for i in self.local])
        return _read(self.rows, ids)

    def iterate(self, start_step: int = 0) -> Iterator[Batch]:
        """`at(start_step)`, `at(start_step + 1)`, ... without end, read ahead in a thread."""
        import grain

        steps = grain.MapDataset.range(start_step, sys.maxsize).map(self.at)
        return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=8)))


def train_batches(
    rows: Rows, *, batch_size: int, seed: int, local: np.ndarray | None = None
) -> TrainBatches:
    """Endless shuffled batches: each epoch visits every row once, in a new order.

    Batches continue across the end of an epoch, so that no row is left out.

    Args:
      rows: N rows.
      batch_size: rows of the global batch, of all processes together.
      seed: 0 <= seed < 2**32.
      local: i64[b], the rows of a batch that this process reads, such as
        `parallel.local_rows(mesh, batch_size)`; all of them by default.

    Raises:
      ValueError: an argument is out of its range, or there are fewer rows than a batch takes.
    """
    import grain  # It imports jax.

    _check_batch_size(batch_size)
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be in [0, 2**32), got {seed}")
    local = np.arange(batch_size) if local is None else np.asarray(local)
    if not local.size or local.min() < 0 or local.max() >= batch_size:
        raise ValueError(f"local must be rows in [0, batch_size={batch_size}), got {local}")
    if len(rows) < batch_size:
        raise ValueError(f"batch_size {batch_size} exceeds the corpus: it has {len(rows)} rows")
    order = grain.MapDataset.range(len(rows)).seed(seed).shuffle().repeat()
    return TrainBatches(rows, order, batch_size, local)


def eval_batches(rows: Rows, *, batch_size: int) -> Iterator[Batch]:
    """Every row once, in order.

    The last batch is filled up with rows of zeros without maskable positions; their ids continue
    from N.

    Yields:
      tokens i32[B, L], maskable bool[B, L], label i32[B], rows i32[B] (the index of each row), and
      of padded rows valid bool[B, L].

    Raises:
      ValueError: `batch_size` is below 1.
    """
    _check_batch_size(batch_size)
    return (_eval_batch(rows, i, batch_size) for i in range(0, len(rows), batch_size))


def _eval_batch(rows: Rows, first: int, batch_size: int) -> Batch:
    ids = np.arange(first, first + batch_size, dtype=np.int32)
    batch = _read(rows, ids[ids < len(rows)])
    missing = batch_size - len(batch["label"])
    filled = {
        name: np.pad(values, [(0, missing)] + [(0, 0)] * (values.ndim - 1))
        for name, values in batch.items()
    }
    return {**filled, "rows": ids}


def _read(rows: Rows, ids: np.ndarray) -> Batch:
    read = rows[ids]
    batch = {
        "tokens": np.asarray(read.tokens, np.int32),
        "maskable": read.maskable,
        "label": np.asarray(read.labels, np.int32),
    }
    valid = read.valid
    return batch if valid is None else {**batch, "valid": valid}


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
