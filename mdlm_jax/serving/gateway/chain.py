"""How the regions stand now, and which of them is asked next."""

import asyncio
import collections
import dataclasses
import math
import time
from collections.abc import Callable

from mdlm_jax.serving.gateway import failures, regions
from mdlm_jax.serving.gateway.breaker import Breaker, Permit
from mdlm_jax.serving.gateway.failures import Failure
from mdlm_jax.serving.gateway.latencies import Latencies

_NOT_HEALTHY = 1.5  # how many tries count as much
_AGAIN = 0.2  # seconds after which a healthy region is checked again that failed a check


class Standing:
    """How a region stands.

    Attributes:
      region: the region.
      key: that replaces the user's, or None.
      healthy: by its health checks; None before the first.
      breaker: its circuit breaker.
      suspected: set when a try broke, for a health check at once.
      latencies: of streams (True) to their first text, of whole answers (False).
    """

    def __init__(self, region: regions.Region, clock: Callable[[], float] = time.monotonic):
        self.region = region
        self.key = regions.read_key(region)
        self.healthy: bool | None = None
        self.breaker = Breaker(region.rules, clock)
        self.suspected = asyncio.Event()
        self.latencies = {True: Latencies(), False: Latencies()}
        self._clock, self._failed_checks = clock, 0
        self._cool: dict[str, float] = {}  # until when, by whom it was told; '' by all

    @property
    def check_in(self) -> float:
        """Seconds until the next health check, unless something breaks before."""
        every = self.region.health_every_s
        return min(every, _AGAIN) if self.healthy and self._failed_checks else every

    def checked(self, good: bool) -> None:
        """Counts a health check."""
        self._failed_checks = 0 if good else self._failed_checks + 1
        if good:
            if self.healthy is False:
                self.breaker.probe()
            self.healthy = True
        elif self.healthy is None or self._failed_checks >= self.region.health_failures:
            self.healthy = False

    def cool(self, failure: Failure, caller: str) -> None:
        """Leaves the region alone as long as it asked for: a 429 for this caller, else for all."""
        if failure.retry_after is None:
            return
        whose = caller if failure.status == 429 and self.key is None else ""
        now = self._clock()
        self._cool = {each: until for each, until in self._cool.items() if until > now}
        self._cool[whose] = now + failure.retry_after

    def cools_for(self, caller: str) -> float:
        """Seconds for which it is left alone."""
        until = max(self._cool.get(each, -math.inf) for each in ("", caller))
        return max(0.0, until - self._clock())

    def waits(self, caller: str) -> float:
        """Seconds after which it may be asked; 0 for now, healthy or not."""
        if self.breaker.opens_in or self.cools_for(caller):
            return max(self.breaker.opens_in, self.cools_for(caller))
        return 0.0 if self.breaker.has_place else 1.0


@dataclasses.dataclass
class Round:
    """What one request has tried so far.

    Attributes:
      caller: who asks, for what is told to callers alone.
      tried: how often each region was tried, by name.
      excluded: regions that would say the same again.
      failures: of the tries, in order.
      won: the region that answered last, or ''.
    """

    caller: str
    tried: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    excluded: set[str] = dataclasses.field(default_factory=set)
    failures: list[Failure] = dataclasses.field(default_factory=list)
    won: str = ""


class Chain:
    """The regions in the order of preference."""

    def __init__(self, standings: list[Standing]):
        self.standings = standings

    @property
    def ready(self) -> bool:
        """Whether a region is healthy and its breaker not open."""
        return any(each.healthy and not each.breaker.opens_in for each in self.standings)

    def choose(self, made: Round, *, anew: bool = False) -> tuple[Standing, Permit] | None:
        """The first region that may be asked, those tried least before others; None if none may.

        A region that is not healthy comes after those that were tried once: where all checks fail,
        the checks may be what is wrong.

        Args:
          made: what the request has tried.
          anew: only regions that it has not tried, and that are healthy.
        """

        def rank(standing: Standing) -> float:
            return made.tried[standing.region.name] + _NOT_HEALTHY * (standing.healthy is False)

        for standing in sorted(self.standings, key=rank):
            name = standing.region.name
            if name in made.excluded or (anew and rank(standing)):
                continue
            if standing.waits(made.caller):
                continue
            if permit := standing.breaker.permit():
                return standing, permit
        return None

    def hopeless(self, made: Round) -> bool:
        """Whether every region would say the same to the request again."""
        return all(each.region.name in made.excluded for each in self.standings)

    def settle(self, made: Round, standing: Standing, permit: Permit, failure: Failure) -> None:
        """Counts a failure against its region, and for the request."""
        made.failures.append(failure)
        if failure.blames:
            permit.failed()
            standing.suspected.set()
        else:
            permit.released()
        if failure.kind == failures.BUSY:
            standing.cool(failure, made.caller)
        if failure.excludes:
            made.excluded.add(standing.region.name)

    def retry_after(self, caller: str) -> float:
        """Seconds after which a region may be free."""
        return min(each.waits(caller) for each in self.standings)
