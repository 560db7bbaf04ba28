"""Jobs that wait for a slot: in order, bounded, and gone when nobody wants them any more."""

import collections
import dataclasses
import heapq
import logging

from mdlm_jax.serving.jobs import Event, Failed, Job, Listener, Written

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(eq=False)
class Entry:
    """A job in the engine.

    Attributes:
      job: what is to be written.
      listener: is told.
      number: of the job; earlier jobs have smaller ones.
      since: `time.monotonic()` of its coming.
      outcomes: how jobs ended; this one is added when it does.
      cancelled: set by anybody, noticed between rounds.
      ended: whether the last event was sent.
      told: `time.monotonic()` of the event before.
    """

    job: Job
    listener: Listener
    number: int
    since: float
    outcomes: collections.Counter[str]
    cancelled: bool = False
    ended: bool = False
    told: float = 0.0

    def is_due(self, now: float) -> bool:
        """Whether it is time for an event before the last one; if so, it is taken as sent."""
        due = self.job.progress and now - self.told >= self.job.every
        if due:
            self.told = now
        return due

    def tell(self, event: Event) -> None:
        """Counts a last event, and calls the listener. If that raises, its row is given up."""
        if self.ended:
            return
        if isinstance(event, Failed) or event.done:
            self.ended = True
            self.outcomes["done" if isinstance(event, Written) else event.reason] += 1
        try:
            self.listener(event)
        except Exception:
            _LOG.exception("a listener raised; its job is given up")
            self.cancelled = True

    def given_up(self, now: float) -> Failed | None:
        """Why the job is not to go on, if it is not."""
        if self.cancelled:
            return Failed("cancelled", "the request was cancelled")
        if self.job.deadline <= now:
            waited = now - self.since
            return Failed("deadline", f"the deadline passed, {waited:.1f} seconds after it came")
        return None


class Waiting:
    """Jobs in the order of their priority, then of their coming.

    A job is counted against the limit only with those that go before it. So jobs of low priority
    take no place of a user's.
    """

    def __init__(self, limit: int):
        self._limit = limit
        self._heap: list[tuple[int, int, Entry]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def is_full_for(self, priority: int) -> bool:
        """Whether as many jobs of this priority, or of one that goes before it, wait already."""
        return sum(other <= priority for other, _, _ in self._heap) >= self._limit

    def put(self, entry: Entry) -> None:
        """Adds a job; `is_full_for` was asked before."""
        heapq.heappush(self._heap, (entry.job.priority, entry.number, entry))

    def take(self) -> Entry:
        """Removes the first."""
        return heapq.heappop(self._heap)[-1]

    def take_given_up(self, now: float) -> list[tuple[Entry, Failed]]:
        """Removes those that are cancelled or late, each with the reason."""
        lost = [(entry, why) for *_, entry in self._heap if (why := entry.given_up(now))]
        if lost:
            gone = {id(entry) for entry, _ in lost}
            self._heap = [each for each in self._heap if id(each[-1]) not in gone]
            heapq.heapify(self._heap)
        return lost

    def oldest(self) -> float | None:
        """When the one came that waits longest; None if none waits."""
        return min((entry.since for *_, entry in self._heap), default=None)
