"""What an engine tells of itself."""

from collections.abc import Mapping
from typing import NamedTuple

from mdlm_jax.serving.batching.lanes import Counts


class LaneStats(NamedTuple):
    """One lane.

    Attributes:
      deployments: that use it.
      length: tokens of a row.
      strategy: its name.
      guided: whether its rows are guided.
      slots: how many.
      active: slots in use.
      queued: jobs that wait.
      oldest: seconds that the one has waited that waits longest; 0 if none waits.
      tick_seconds: of one tick, lately; 0 before the first.
      counts: since the lane was made.
    """

    deployments: tuple[str, ...]
    length: int
    strategy: str
    guided: bool
    slots: int
    active: int
    queued: int
    oldest: float
    tick_seconds: float
    counts: Counts


class Stats(NamedTuple):
    """An engine.

    Attributes:
      ready: whether it takes jobs.
      reason: why not; "" if it does.
      compilations: on the thread of the device; 0, or something is wrong.
      taken: jobs.
      refused: jobs, because the queue was full.
      ended: jobs by how: 'done', or the reason of `Failed`.
      lanes: all.
    """

    ready: bool
    reason: str
    compilations: int
    taken: int
    refused: int
    ended: Mapping[str, int]
    lanes: tuple[LaneStats, ...]
