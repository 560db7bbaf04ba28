"""A lane: the slots of one kind of rows, their jobs, and their rounds on the device.

The device has its next round before the host reads what came of the last one. So what the host does
between rounds costs the device nothing as long as it takes less than a round. A slot that is
free after a round is used again in the second one after it.

Everything but `waiting`, which the engine's lock guards, belongs to the thread of the device.
"""

import math
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from mdlm_jax.diffusion import Strategy
from mdlm_jax.host import parallel
from mdlm_jax.serving import given, programs
from mdlm_jax.serving.jobs import Failed, Job, Written
from mdlm_jax.serving.kinds import Kind
from mdlm_jax.serving.waiting import Entry, Waiting

Array = jax.Array
PyTree = Any

_OF_HOST = 1.5  # a round takes as much longer than what the host does for one
_LONGEST_ROUND = 0.05  # seconds; cancels and deadlines are noticed between rounds
_MOST_TICKS = 64


class Counts(NamedTuple):
    """What a lane has done so far.

    Attributes:
      rounds: calls of the device.
      late: rounds before which the device had nothing to do, though there were rows.
      ticks: evaluations of all slots at once.
      rows: that were finished.
      evaluations: of the rows that were finished.
      tokens: that were written in them.
      host_seconds: what the host did for the rounds.
      waited_seconds: it waited for the device meanwhile.
    """

    rounds: int = 0
    late: int = 0
    ticks: int = 0
    rows: int = 0
    evaluations: int = 0
    tokens: int = 0
    host_seconds: float = 0.0
    waited_seconds: float = 0.0


class _Flight(NamedTuple):
    """A round that the device has, and nobody has read yet."""

    held: list[Entry | None]
    told: Any  # an array on its way
    since: float


class Lane:
    """The slots of one kind of rows.

    Attributes:
      kind: of the rows.
      name: of the strategy.
      waiting: jobs that have no slot yet; guarded by the engine's lock.
      held: the job in each slot.
      counts: so far.
      tick_seconds: of one tick, lately; 0 before the first.
      host_seconds: of the host for one round, lately.
    """

    def __init__(self, kind: Kind, name: str, params: PyTree, limit: int):
        """Compiles the programs, runs each once, and holds the state of all slots."""
        self.kind, self.name = kind, name
        self.waiting = Waiting(limit)
        self.held: list[Entry | None] = [None] * kind.slots
        self.counts = Counts()
        self.tick_seconds = self.host_seconds = 0.0
        self._refused = 0  # since a row was last finished
        self._params = params
        self._programs = programs.compiled(kind, params)
        self._place = parallel.replicated(kind.mesh)
        no_words = given.nothing(kind.slots, kind.length, kind.numbers)
        self._no_words = jax.device_put(no_words, self._place)
        self._numbers: dict[int, Array] = {}
        self._rows: Any = None
        self._forbidden: Any = None
        self._new: dict[int, Entry] = {}
        self._flight: _Flight | None = None
        self._read = 0.0  # when a round was last read
        self._reset()
        self._warm_up()

    @property
    def is_idle(self) -> bool:
        """Whether no slot holds a job, and all that the device did was told."""
        return not any(self.held) and self._flight is None

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
        """Admits what is new, stops what is given up, goes on, and tells of the round before."""
        begun = time.monotonic()
        if self._rows is None:  # after a failure
            self._reset()
        words = self._words(begun)
        before, self._flight = self._flight, None
        late = before is None or before.told.is_ready()
        if any(self.held) or words is not None:
            self._flight = self._started(words)
        waited = 0.0
        if before is not None:
            waited = self._landed(before)
        self._count(
            rounds=int(self._flight is not None),
            late=int(late and self._flight is not None),
            host_seconds=time.monotonic() - begun - waited,
            waited_seconds=waited,
        )
        self.host_seconds = _recent(self.host_seconds, time.monotonic() - begun - waited)

    def _started(self, words: np.ndarray | None) -> _Flight:
        """The next round, on its way."""
        put = self._no_words if words is None else jax.device_put(words, self._place)
        rows, self._rows = self._rows, None
        arguments = (self._forbidden, put, self._number(self._ticks()))
        self._rows, told = self._programs.round(self._params, rows, *arguments)
        told.copy_to_host_async()
        return _Flight([*self.held], told, time.monotonic())

    def _landed(self, flight: _Flight) -> float:
        """Tells of a round; returns the seconds that it was waited for."""
        begun = time.monotonic()
        told = programs.read(flight.told)
        now = time.monotonic()
        if told.ticks:
            lasted = now - max(self._read, flight.since)
            self.tick_seconds = _recent(self.tick_seconds, lasted / told.ticks)
        self._read = now
        self._count(ticks=told.ticks, **self._tell(flight.held, told, now))
        return now - begun

    def free(self) -> list[int]:
        """The free slots."""
        return [slot for slot, entry in enumerate(self.held) if entry is None]

    def fail(self, reason: Failed) -> None:
        """Every row gets this last event, and all slots are free again."""
        for slot, entry in enumerate(self.held):
            if entry is not None:
                self.held[slot] = None
                entry.tell(reason)
        self._rows, self._flight, self._new = None, None, {}

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

    def _tell(self, held: list[Entry | None], told: programs.Told, now: float) -> dict[str, int]:
        """Tells the listeners of a round with these jobs in the slots; returns what to count."""
        finished = []
        for slot, entry in enumerate(held):
            if entry is None or entry.ended:
                continue
            done = bool(told.done[slot])
            if done and self.held[slot] is entry:
                self.held[slot] = None
                finished.append(slot)
            if done or entry.is_due(now):
                of_row = (told.tokens[slot], told.step[slot], told.log_prob[slot])
                entry.tell(Written(*of_row, int(told.evaluations[slot]), done))
        if not finished:
            return {}
        self._refused = 0
        return {
            "rows": len(finished),
            "evaluations": int(told.evaluations[finished].sum()),
            "tokens": int((told.step[finished] >= 0).sum()),
        }

    def _count(self, **more: Any) -> None:
        """Adds to the counts."""
        before = self.counts._asdict()
        self.counts = self.counts._replace(
            **{name: before[name] + value for name, value in more.items()}
        )

    def _ticks(self) -> int:
        """Ticks of a round: so many that the host is done before it, and no more."""
        if not self.tick_seconds:
            return 1
        enough = math.ceil(_OF_HOST * self.host_seconds / self.tick_seconds)
        return max(1, min(enough, int(_LONGEST_ROUND / self.tick_seconds), _MOST_TICKS))

    def _number(self, value: int) -> Array:
        if value not in self._numbers:
            self._numbers[value] = jax.device_put(np.int32(value), self._place)
        return self._numbers[value]

    def _reset(self) -> None:
        shape = (self.kind.slots, self.kind.encoder.vocab_size)
        self._forbidden = jax.device_put(np.zeros(shape, bool), self._place)
        self._rows = self._programs.begin(self._params)

    def _warm_up(self) -> None:
        """Each program runs once: what it loads, it loads before the first request."""
        masks = np.full(self.kind.length, self.kind.mask_id, np.int32)
        numbers = [0.5] * self.kind.numbers
        job = Job(masks, masks == self.kind.mask_id, self._any_strategy(), steps=1, seed=0)
        words = given.nothing(self.kind.slots, self.kind.length, self.kind.numbers)
        given.pack(words[0], job, numbers)
        none = np.zeros(self.kind.encoder.vocab_size, bool)
        self._forbidden = self._programs.forbid(self._forbidden, np.int32(0), none)
        arguments = (self._rows, self._forbidden, jax.device_put(words, self._place))
        self._rows, out = self._programs.round(self._params, *arguments, self._number(1))
        programs.read(out)
        self._reset()

    def _any_strategy(self) -> Strategy:
        return self.kind.strategy_of((0.5,) * self.kind.numbers)


def _recent(mean: float, value: float) -> float:
    """A mean of the last ten or so."""
    return value if not mean else mean + 0.1 * (value - mean)
