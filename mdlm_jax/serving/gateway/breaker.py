"""The circuit breaker of a region: it stops asking a region that keeps failing.

Closed: all is asked; the results of the last seconds are counted. Open: nothing is asked for a
while. Half-open: a few tries probe; if they succeed it closes, if one fails it opens for longer.
"""

import collections
import dataclasses
import time
from collections.abc import Callable

CLOSED, HALF_OPEN, OPEN = "closed", "half-open", "open"


@dataclasses.dataclass(frozen=True)
class Rules:
    """When a breaker opens and closes.

    Attributes:
      failures: so many in a row, within the window, open it.
      share: of the window's results, that are failures, opens it too,
      least: if the window has so many results.
      window: seconds.
      open_for: seconds until it probes; doubled whenever a probe fails.
      open_most: seconds, the most that doubling gives.
      probes: tries that may run while half-open, and successes that close it.
    """

    failures: int = 5
    share: float = 0.5
    least: int = 20
    window: float = 10.0
    open_for: float = 5.0
    open_most: float = 60.0
    probes: int = 2


class Permit:
    """Leave for one try. It is settled once; a failure may follow a success (a stream broke)."""

    def __init__(self, breaker: "Breaker", era: int):
        self._breaker, self._era, self._settled = breaker, era, False

    def succeeded(self) -> None:
        """The region answered."""
        if not self._settled:
            self._settled = True
            self._breaker._succeeded(self._era)

    def failed(self) -> None:
        """The region failed: before it answered, or after."""
        held, self._settled = not self._settled, True
        self._breaker._failed(self._era, held)

    def released(self) -> None:
        """The try says nothing of the region: it was cancelled. Nothing, if it is settled."""
        if not self._settled:
            self._settled = True
            self._breaker._released(self._era)


class Breaker:
    """The state machine. An era begins at each change of state; results of an older era are void.

    Args:
      rules: when it opens and closes.
      clock: seconds, never backwards.
    """

    def __init__(self, rules: Rules, clock: Callable[[], float] = time.monotonic):
        self._rules, self._clock = rules, clock
        self._era = 0
        self._results: collections.deque[list[float]] = collections.deque()  # second, good, bad
        self._row = 0  # failures since the last success
        self._until: float | None = None  # when an open breaker probes; None if closed
        self._open_for = rules.open_for
        self._probing = self._probed = 0

    @property
    def state(self) -> str:
        """'closed', 'half-open' or 'open'."""
        if self._until is None:
            return CLOSED
        return OPEN if self._clock() < self._until else HALF_OPEN

    @property
    def opens_in(self) -> float:
        """Seconds until a try may be let through again; 0 unless open."""
        return 0.0 if self._until is None else max(0.0, self._until - self._clock())

    @property
    def has_place(self) -> bool:
        """Whether `permit` would give one."""
        state = self.state
        return state == CLOSED or (state == HALF_OPEN and self._probing < self._rules.probes)

    def permit(self) -> Permit | None:
        """Leave for a try, which must be settled; None if there is none now."""
        if not self.has_place:
            return None
        if self.state == HALF_OPEN:
            self._probing += 1
        return Permit(self, self._era)

    def probe(self) -> None:
        """Lets probes through from now on, if it is open: the region gave a sign of life."""
        if self._until is not None:
            self._until = min(self._until, self._clock())

    def _succeeded(self, era: int) -> None:
        if era != self._era:
            return
        if self._until is None:
            self._row = 0
            self._count(good=1)
            return
        self._probing -= 1
        self._probed += 1
        if self._probed >= self._rules.probes:
            self._until, self._open_for = None, self._rules.open_for
            self._begin_era()

    def _failed(self, era: int, held: bool) -> None:
        if era != self._era:
            return
        if self._until is not None:
            self._probing -= held
            self._open_for = min(2 * self._open_for, self._rules.open_most)
            self._open()
            return
        good, bad = self._count(bad=1)
        self._row = min(self._row + 1, int(bad))  # what is older than the window is forgotten
        many = good + bad >= self._rules.least and bad >= self._rules.share * (good + bad)
        if many or self._row >= self._rules.failures:
            self._open()

    def _released(self, era: int) -> None:
        if era == self._era and self._until is not None:
            self._probing -= 1

    def _open(self) -> None:
        self._until = self._clock() + self._open_for
        self._begin_era()

    def _begin_era(self) -> None:
        self._era += 1
        self._probing = self._probed = self._row = 0
        self._results.clear()

    def _count(self, good: int = 0, bad: int = 0) -> tuple[float, float]:
        """Adds a result; returns how many good and bad ones the window has."""
        now = self._clock()
        second = float(int(now))
        if not self._results or self._results[-1][0] != second:
            self._results.append([second, 0, 0])
        self._results[-1][1] += good
        self._results[-1][2] += bad
        while self._results[0][0] < now - self._rules.window:
            self._results.popleft()
        return sum(each[1] for each in self._results), sum(each[2] for each in self._results)
