"""The engine: one thread that owns the device and writes the rows of all requests.

    with Engine() as engine:
        engine.add(Deployment("base", params, encoder, lengths=(128,), strategies={...}))
        ticket = engine.submit("base", job, listener)
        ticket.cancel()
        engine.stats()
        engine.drain(timeout=30)

- `Engine(queue=256)`: jobs that wait in a lane, at most.
- `add(deployment)`: compiles in the calling thread; returns when it is ready to be used.
- `remove(name)`: takes no new jobs; what was taken is finished.
- `submit(name, job, listener) -> Ticket`: raises `Full`, `Stopping`, `Unknown`, `ValueError`.
- `aside(name, work) -> Future`: has `work(params)` called between rounds, at low priority.
- `ticket.cancel()`: its slot is free after the round at hand; the listener gets
  `Failed('cancelled')`.
- `drain(timeout) -> bool`: takes no new jobs, waits for the others, ends.
- `ready`, `reason`: whether jobs are taken, and why not.
- `deployments`: by name. `stats()`: a `Stats`.

Slots and lanes. A deployment has lanes, one for each length and kind of strategy. A lane has slots,
one row each, which are all computed in each tick, however many are in use. So a row's text is a
function of its job alone: within one compiled shape other rows, its slot and the moment of its
coming change nothing, to the bit. Deployments of the same parameters share their memory, and where
they have the same kinds of rows, their lanes.

Events. `listener(event)` is called on the thread of the device and must not block:

    lambda event: loop.call_soon_threadsafe(queue.put_nowait, event)

A job that was taken has exactly one last event: a `Written` with `done`, or a `Failed`.
"""

import collections
import itertools
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from mdlm_jax.serving.batching import checking, compilations
from mdlm_jax.serving.batching.asides import Aside, Asides
from mdlm_jax.serving.batching.lanes import Lane
from mdlm_jax.serving.batching.served import Deployment, Served, serve
from mdlm_jax.serving.batching.stats import LaneStats, Stats
from mdlm_jax.serving.batching.waiting import Entry
from mdlm_jax.serving.jobs import Failed, Full, Job, Listener, Stopping, Unknown

__all__ = ["Deployment", "Engine", "LaneStats", "Stats", "Ticket"]

_LOG = logging.getLogger(__name__)


class Ticket:
    """A job that was taken."""

    def __init__(self, entry: Entry):
        self._entry = entry

    def cancel(self) -> None:
        """Gives the job up if it is not finished. Later, or again, this changes nothing."""
        self._entry.cancelled = True


class Engine:
    """Writes rows; see the module's docstring. Any thread may call its methods."""

    def __init__(self, *, queue: int = 256):
        """Starts the thread.

        Args:
          queue: jobs that wait in a lane, at most; one more is refused.

        Raises:
          ValueError: a queue of none.
        """
        if queue < 1:
            raise ValueError(f"queue is {queue}, it must be at least 1")
        self._limit = queue
        self._served: dict[str, Served] = {}
        self._lanes: list[Lane] = []
        self._asides = Asides()
        self._adding = threading.Lock()
        self._changed = threading.Condition()  # guards all of this, and what waits in the lanes
        self._numbers = itertools.count()
        self._taken = self._refused = 0
        self._ended: collections.Counter[str] = collections.Counter()
        self._failure = ""
        self._draining = self._ending = False
        self._thread = threading.Thread(target=self._run, name="mdlm_jax engine", daemon=True)
        self._thread.start()
        self._compilations = compilations.Counter(self._thread)

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *exception: object) -> None:
        self.drain(0)

    @property
    def ready(self) -> bool:
        """Whether jobs are taken."""
        return not self.reason

    @property
    def reason(self) -> str:
        """Why no jobs are taken; "" if they are."""
        return self._stopped or ("" if self._served else "no model is deployed")

    @property
    def _stopped(self) -> str:
        """Why no jobs of any model are taken; "" if they are."""
        if self._failure:
            return self._failure
        if self._draining:
            return "the engine is drained"
        return "" if self._thread.is_alive() else "the engine's thread has ended"

    @property
    def deployments(self) -> dict[str, Deployment]:
        """Those that take jobs, by name."""
        with self._changed:
            return {name: served.deployment for name, served in self._served.items()}

    def add(self, deployment: Deployment) -> None:
        """Serves a model. It is compiled here, while others are served.

        Raises:
          ValueError: the name is taken.
          Stopping: the engine is drained.
        """
        with self._adding:
            if self._draining:
                raise Stopping(self.reason)
            if deployment.name in self._served:
                raise ValueError(f"deployment {deployment.name!r} is there already")
            served = serve(deployment, [*self._served.values()], self._limit)
            with self._changed:
                self._served[deployment.name] = served
                self._lanes += [x for x in served.lanes.values() if x not in self._lanes]

    def remove(self, name: str) -> None:
        """Takes no new jobs for a deployment. What it holds is freed when its jobs are finished.

        Raises:
          Unknown: no such deployment.
        """
        with self._changed:
            if name not in self._served:
                raise self._no_such(name)
            del self._served[name]
            self._changed.notify_all()

    def submit(self, name: str, job: Job, listener: Listener) -> Ticket:
        """Takes a job.

        Args:
          name: of a deployment.
          job: a row.
          listener: is called with every event, on the thread of the device. It must not block.

        Raises:
          Unknown: no such deployment, length of rows, or kind of strategy.
          Full: as many jobs wait as may.
          Stopping: the engine is drained, or has failed.
          ValueError: a value that no such row has; it is named.
        """
        served = self._served_as(name)
        lane = served.lane_of(job)
        deployment = served.deployment
        in_blocks = deployment.blocks is not None
        checking.check(job, deployment.encoder, padded=deployment.padded, in_blocks=in_blocks)
        with self._changed:
            if self._served_as(name) is not served:  # removed meanwhile
                raise self._no_such(name)
            if lane.waiting.is_full_for(job.priority):
                self._refused += 1
                raise Full(f"{len(lane.waiting)} requests wait already", lane.refuse())
            entry = Entry(job, listener, next(self._numbers), time.monotonic(), self._ended)
            lane.waiting.put(entry)
            self._taken += 1
            self._changed.notify_all()
        return Ticket(entry)

    def parameters(self, name: str) -> Any:
        """The parameters of a deployment as they are evaluated; who holds them holds its memory.

        Raises:
          Unknown: no such deployment.
        """
        with self._changed:
            if name not in self._served:
                raise self._no_such(name)
            return self._served[name].params

    def aside(self, name: str, work: Callable[[Any], Any]) -> Future:
        """Has a small piece of work done on the device's thread, hardly delaying the rows.

        See `asides` for when. It must have been compiled, and should take no longer than a round.

        Args:
          name: of a deployment, which is not held by it.
          work: is called with the parameters of the deployment as they are evaluated.

        Returns:
          Gets what `work` returns or raises, or `Unknown` if the deployment is gone then. It is
          cancelled when the engine is drained.

        Raises:
          Unknown: no such deployment.
          Stopping: the engine is drained.
        """
        piece = Aside(name, work, Future())
        with self._changed:
            if self._draining or not self._thread.is_alive():
                raise Stopping(self._stopped)
            if name not in self._served:
                raise self._no_such(name)
            self._asides.put(piece)
            self._changed.notify_all()
        return piece.future

    def drain(self, timeout: float) -> bool:
        """Takes no new jobs, waits for those that it has, and ends the thread.

        Args:
          timeout: seconds. What is not finished then gets `Failed('stopped')`.

        Returns:
          Whether all were finished.
        """
        until = time.monotonic() + timeout
        with self._changed:
            self._draining = True
            self._asides.cancel()
            while self._is_busy() and (left := until - time.monotonic()) > 0:
                self._changed.wait(left)
            finished, again = not self._is_busy(), self._ending
            self._ending = True
            self._changed.notify_all()
        self._thread.join()
        if not again:
            self._compilations.close()
        return finished

    def stats(self) -> Stats:
        """What it does, and has done."""
        with self._changed:
            return Stats(
                ready=self.ready,
                reason=self.reason,
                compilations=self._compilations.count,
                taken=self._taken,
                refused=self._refused,
                ended=dict(self._ended),
                lanes=tuple(map(self._stats_of, self._lanes)),
            )

    def _stats_of(self, lane: Lane) -> LaneStats:
        users = [name for name, served in self._served.items() if lane in served.lanes.values()]
        oldest = lane.waiting.oldest()
        return LaneStats(
            deployments=tuple(users),
            length=lane.kind.length,
            strategy=lane.name,
            guided=lane.kind.guided,
            slots=lane.kind.slots,
            active=lane.kind.slots - len(lane.free()),
            queued=len(lane.waiting),
            oldest=0.0 if oldest is None else time.monotonic() - oldest,
            tick_seconds=lane.tick_seconds,
            counts=lane.counts,
        )

    def _served_as(self, name: str) -> Served:
        served = self._served.get(name)
        if self._stopped:
            raise Stopping(self._stopped)
        if served is None:
            raise self._no_such(name)
        return served

    def _no_such(self, name: str) -> Unknown:
        known = ", ".join(map(repr, self._served)) or "none"
        return Unknown(f"no model {name!r} is deployed; there is {known}")

    def _is_busy(self) -> bool:
        return self._taken > self._ended.total()

    # What follows runs on the thread of the device.

    def _run(self) -> None:
        while self._has_work():
            self._turn_lanes()
            self._turn_aside()
        for lane in self._lanes:
            self._end(lane, Failed("stopped", "the server ended before the text was written"))

    def _has_work(self) -> bool:
        """Waits for jobs or asides; False if the thread is to end."""
        with self._changed:
            while True:
                self._lanes = [lane for lane in self._lanes if self._is_used(lane)]
                if self._ending or self._is_busy() or len(self._asides):
                    return not self._ending
                self._changed.notify_all()  # who waits for the last job
                self._changed.wait()

    def _is_used(self, lane: Lane) -> bool:
        served = any(lane in each.lanes.values() for each in self._served.values())
        return served or bool(lane.waiting) or not lane.is_idle

    def _turn_lanes(self) -> None:
        """A round of each lane; an idle engine then holds none that was removed."""
        for lane in [*self._lanes]:
            self._turn(lane)

    def _turn(self, lane: Lane) -> None:
        """One round of a lane."""
        with self._changed:
            lost = lane.waiting.take_given_up(time.monotonic())
            free = lane.free()[: len(lane.waiting)]
            taken = [(slot, lane.waiting.take()) for slot in free]
        for entry, why in lost:
            entry.tell(why)
        lane.admit(taken)
        try:
            lane.round()
        except Exception as error:
            _LOG.exception("a round failed")
            what = f"{type(error).__name__}: {error}".partition("\n")[0]
            self._failure = f"a round failed: {what}"
            lane.fail(Failed("failed", f"the model could not be evaluated: {what}"))

    def _turn_aside(self) -> None:
        """One piece of other work, if it is its turn."""
        with self._changed:
            piece = self._asides.take(busy=self._is_busy())
            if piece is None:
                return
            served = self._served.get(piece.name)
            if served is None:
                if piece.future.set_running_or_notify_cancel():
                    piece.future.set_exception(self._no_such(piece.name))
                return
        self._asides.run(piece, served.params)

    def _end(self, lane: Lane, why: Failed) -> None:
        with self._changed:
            waiting = [lane.waiting.take() for _ in range(len(lane.waiting))]
        for entry in waiting:
            entry.tell(why)
        lane.fail(why)
