"""A lane: the slots of one kind of rows, their jobs, and one round at a time on the device.

A round costs what the host does for it, and a slot whose row is done in it stays empty to its end.
So a round has at least so many ticks that the two cost least together, and from then on it ends
when a row is done.

Everything but `waiting`, which the engine's lock guards, belongs to the thread of the device.
"""

import math
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from mdlm_jax.host import parallel
from mdlm_jax.serving.batching.waiting import Entry, Waiting
from mdlm_jax.serving.jobs import Failed, Job, Written
from mdlm_jax.serving.rows import given, programs
from mdlm_jax.serving.rows.kinds import Kind

Array = jax.Array
PyTree = Any

_LONGEST_ROUND = 0.02  # seconds; what comes, is cancelled or late is noticed between rounds
_MOST_TICKS = 64
_TRIALS = 3  # of the times of a round and a tick


class Counts(NamedTuple):
    """What a lane has done so far.

    Attributes:
      rounds: calls of the device.
      ticks: evaluations of all slots at once.
      rows: that were finished.
      evaluations: of the rows that were finished.
      tokens: that were written in them.
      device_seconds: of the calls.
      host_seconds: of the host's work for them.
    """

    rounds: int = 0
    ticks: int = 0
    rows: int = 0
    evaluations: int = 0
    tokens: int = 0
    device_seconds: float = 0.0
    host_seconds: float = 0.0


class Lane:
    """The slots of one kind of rows.

    Attributes:
      kind: of the rows.
      name: of the strategy.
      waiting: jobs that have no slot yet; guarded by the engine's lock.
      held: the job in each slot.
      counts: so far.
      tick_seconds: of one tick, lately.
      host_seconds: of the host's work for a round, lately.
      call_seconds: of a call without a tick.
    """

    def __init__(self, kind: Kind, name: str, params: PyTree, limit: int):
        """Compiles the programs, runs each once, and holds the state of all slots."""
        self.kind, self.name = kind, name
        self.waiting = Waiting(limit)
        self.held: list[Entry | None] = [None] * kind.slots
        self.counts = Counts()
        self.tick_seconds = self.host_seconds = self.call_seconds = 0.0
        self._refused = 0  # since a row was last finished
        self._params = params
        self._programs = programs.compiled(kind, params)
        self._place = parallel.replicated(kind.mesh)
        no_words = given.nothing(kind.slots, kind.length, kind.numbers)
        self._no_words = jax.device_put(no_words, self._place)
        self._limits: dict[tuple[int, int], Array] = {}
        self._rows: Any = None
        self._forbidden: Any = None
        self._new: dict[int, Entry] = {}
        self._reset()
        self._warm_up()

    @property
    def is_idle(self) -> bool:
        """Whether no slot holds a job."""
        return not any(self.held)

    def refuse(self) -> float:
        """Seconds after which a job that is refused now may find a place.

        A place in the queue is free when a row is finished, and whoever was refused before comes
        first. A row is finished after as many ticks as it has steps, at most.
        """
        steps = [entry.job.steps for entry in self.held if entry is not None]
        a_row = self.tick_seconds * (sum(steps) / len(steps) if steps else 1)
        self._refused += 1
        return max(self._refused * a_row / self.kind.slots, 0.1)

    def admit(self, entries: list[tuple[int, Entry]]) -> None:
        """Gives free slots to jobs, from the next round on."""
        self._new |= dict(entries)
        for slot, entry in entries:
            self.held[slot] = entry

    def round(self) -> None:
        """Admits what is new, stops what is given up, goes on for some ticks, and tells of it."""
        begun = time.monotonic()
        if self._rows is None:  # after a failure
            self._reset()
        words = self._words(begun)
        if words is None and self.is_idle:
            return
        asked = time.monotonic()
        told = self._called(words, *self._ticks())
        answered = time.monotonic()
        on_device = answered - asked
        self._count_rows(told, on_device)
        self._tell(told, answered)
        on_host = time.monotonic() - begun - on_device
        self._count(host_seconds=on_host)
        self.host_seconds = _recent(self.host_seconds, on_host)
        if told.ticks:
            a_tick = max(on_device - self.call_seconds, 0) / told.ticks
            self.tick_seconds = _recent(self.tick_seconds, a_tick)

    def _called(self, words: np.ndarray | None, least: int, most: int) -> programs.Told:
        """A round on the device, and what came of it."""
        put = self._no_words if words is None else jax.device_put(words, self._place)
        limits = self._limits.get((least, most))
        if limits is None:
            limits = jax.device_put(np.array([least, most], np.int32), self._place)
            self._limits[least, most] = limits
        rows, self._rows = self._rows, None
        call = self._programs.round
        self._rows, told = call(self._params, rows, self._forbidden, put, limits)
        return programs.read(told)

    def free(self) -> list[int]:
        """The free slots."""
        return [slot for slot, entry in enumerate(self.held) if entry is None]

    def fail(self, reason: Failed) -> None:
        """Every row gets this last event, and all slots are free again."""
        for slot, entry in enumerate(self.held):
            if entry is not None:
                self.held[slot] = None
                entry.tell(reason)
        self._rows, self._new = None, {}

    def _words(self, now: float) -> np.ndarray | None:
        """i32[S, width], what changes in the slots; None if nothing does."""
        stopped, new = self._give_up(now), self._new
        self._new = {}
        if not new and not stopped:
            return None
        words = given.nothing(self.kind.slots, self.kind.length, self.kind.numbers)
        for slot in stopped:
            words[slot, 0] = given.STOP
        for slot, entry in new.items():
            if slot in stopped:
                continue
            given.pack(words[slot], entry.job, jax.tree.leaves(entry.job.strategy))
            if entry.job.forbid:
                ids = np.zeros(self.kind.encoder.vocab_size, bool)
                ids[list(entry.job.forbid)] = True
                forbidden, self._forbidden = self._forbidden, None
                self._forbidden = self._programs.forbid(forbidden, np.int32(slot), ids)
        return words

    def _give_up(self, now: float) -> list[int]:
        """The slots whose jobs are cancelled or late, which are free from now on."""
        stopped = []
        for slot, entry in enumerate(self.held):
            if entry is not None and (why := entry.given_up(now)):
                self.held[slot] = None
                stopped.append(slot)
                entry.tell(why)
        return stopped

    def _tell(self, told: programs.Told, now: float) -> None:
        """Tells the listeners of a round, and frees the slots of rows that are done."""
        ends = zip(told.evaluations.tolist(), told.done.tolist(), strict=True)
        for slot, (entry, (evaluations, done)) in enumerate(zip(self.held, ends, strict=True)):
            if entry is None:
                continue
            if done:
                self.held[slot] = None
            if done or entry.is_due(now):
                of_row = (told.tokens[slot], told.step[slot], told.log_prob[slot])
                entry.tell(Written(*of_row, evaluations, done))

    def _count_rows(self, told: programs.Told, seconds: float) -> None:
        """Counts a round before anybody is told of it."""
        held = np.array([entry is not None for entry in self.held])
        finished = np.flatnonzero(held & told.done)
        if len(finished):
            self._refused = 0
        self._count(
            rounds=1,
            ticks=told.ticks,
            rows=len(finished),
            evaluations=int(told.evaluations[finished].sum()),
            tokens=int((told.step[finished] >= 0).sum()),
            device_seconds=seconds,
        )

    def _count(self, **more: Any) -> None:
        """Adds to the counts."""
        before = self.counts._asdict()
        self.counts = self.counts._replace(
            **{name: before[name] + value for name, value in more.items()}
        )

    def _ticks(self) -> tuple[int, int]:
        """Ticks of a round, at least and at most.

        Of n ticks, the host costs `host / n` a tick, and rows of k steps, which are done somewhere
        in a round, leave `n / 2k` of the slots empty. The sum is least at `sqrt(2 k host / tick)`.
        """
        longest = max(1, min(int(_LONGEST_ROUND / max(self.tick_seconds, 1e-6)), _MOST_TICKS))
        steps = [entry.job.steps for entry in self.held if entry is not None]
        host = (self.host_seconds + self.call_seconds) / max(self.tick_seconds, 1e-6)
        best = round(math.sqrt(2 * host * sum(steps) / len(steps))) if steps else 1
        return max(1, min(best, longest)), longest

    def _reset(self) -> None:
        shape = (self.kind.slots, self.kind.encoder.vocab_size)
        self._forbidden = jax.device_put(np.zeros(shape, bool), self._place)
        self._rows = self._programs.begin(self._params)

    def _warm_up(self) -> None:
        """Each program runs before the first request, and the times of a call and a tick are taken.

        What programs load, they load here.
        """
        none = np.zeros(self.kind.encoder.vocab_size, bool)
        self._forbidden = self._programs.forbid(self._forbidden, np.int32(0), none)
        masks = np.full(self.kind.length, self.kind.mask_id, np.int32)
        numbers = [0.5] * self.kind.numbers
        strategy = self.kind.strategy_of(tuple(numbers))
        job = Job(masks, masks == self.kind.mask_id, strategy, steps=self.kind.length, seed=0)
        words = given.nothing(self.kind.slots, self.kind.length, self.kind.numbers)
        for row in words:
            given.pack(row, job, numbers)
        calls, rounds = [], []
        for trial in range(_TRIALS + 1):
            self._called(words, 1, 1)
            begun = time.monotonic()
            self._called(None, 0, 0)
            between = time.monotonic()
            told = self._called(None, 2, 2)
            if trial:
                calls.append(between - begun)
                rounds.append((time.monotonic() - between) / max(told.ticks, 1))
        self.call_seconds = min(calls)
        self.tick_seconds = max(min(rounds) - self.call_seconds / 2, 0.0)
        self._reset()


def _recent(mean: float, value: float) -> float:
    """A mean of the last ten or so."""
    return value if not mean else mean + 0.1 * (value - mean)
