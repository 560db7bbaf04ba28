"""A policy at work: it looks at the load now and then, and says what a request gets.

    steering = Steering(policy, engine)
    with steering.looking():  # twice a second
        stage = steering.admit(pinned=False)

A request gets what the stage of its coming says, whatever the load is later.
"""

import collections
import contextlib
import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from mdlm_jax.serving.batching.engine import Engine
from mdlm_jax.serving.repeating import repeating
from mdlm_jax.serving.watching import policy
from mdlm_jax.serving.watching.policy import Load, Policy, Stage, State

EVERY = 0.5  # seconds between two looks
_FEWEST = 10  # latencies of which a p95 is taken
_ENDS = {200, 504}  # statuses that say how long a request takes


class _Ended(NamedTuple):
    at: float
    seconds: float


class Steering:
    """A policy and where it stands. Any thread may call its methods.

    Attributes:
      policy: the stages and thresholds.
      admitted: requests so far, by their stage and whether they were pinned.
      moves: so far, by their direction: 'down' or 'back'.
    """

    def __init__(
        self,
        steered: Policy,
        engine: Engine,
        *,
        memory: Callable[[], float | None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Begins with full service.

        Args:
          steered: the policy.
          engine: whose queues are looked at.
          memory: the share of the device's memory that is in use; by default that of this process'
            devices.
          clock: in seconds.
        """
        self.policy = steered
        self.admitted: collections.Counter[tuple[int, bool]] = collections.Counter()
        self.moves = collections.Counter(down=0, back=0)
        self._engine, self._clock = engine, clock
        self._memory = memory or memory_share
        self._state = State()
        self._ended: collections.deque[_Ended] = collections.deque()
        self._lock = threading.Lock()

    @property
    def stage(self) -> int:
        """The number of the stage; 0 is full service."""
        return self._state.stage

    def admit(self, *, pinned: bool) -> tuple[int, Stage]:
        """The stage of a request that comes now, which is 0 if it is pinned."""
        number = 0 if pinned else self._state.stage
        with self._lock:
            self.admitted[number, pinned] += 1
        return number, self.policy.stages[number]

    def tell(self, told: Mapping[str, Any]) -> None:
        """Hears how long a request took; `told` is what its log line says."""
        if "stage" in told and told["status"] in _ENDS:
            with self._lock:
                self._ended.append(_Ended(self._clock(), told["ms"] / 1000))

    def look(self) -> Load:
        """Looks at the load, and moves if the policy says so."""
        now = self._clock()
        load = Load(
            queue_age_s=max((lane.oldest for lane in self._engine.stats().lanes), default=0.0),
            p95_s=self._p95(now),
            memory=self._memory(),
        )
        before, self._state = self._state, policy.following(self.policy, self._state, load, now)
        if before.stage != self._state.stage:
            self.moves["down" if before.stage < self._state.stage else "back"] += 1
        return load

    def looking(self, every: float = EVERY) -> contextlib.AbstractContextManager[None]:
        """Within it, the load is looked at every so many seconds."""
        return repeating(self.look, every, "mdlm_jax policy")

    def _p95(self, now: float) -> float | None:
        """Of the requests that this stage has had lately; None if these are few."""
        with self._lock:
            while self._ended and self._ended[0].at < now - self.policy.times.window_s:
                self._ended.popleft()
            moved = self._state.moved
            times = sorted(each.seconds for each in self._ended if each.at - each.seconds >= moved)
        return times[math.ceil(0.95 * len(times)) - 1] if len(times) >= _FEWEST else None


def check(steered: Policy) -> None:
    """Refuses a policy that these devices cannot follow.

    Raises:
      ValueError: a threshold of memory, and devices that do not tell it.
    """
    if "memory" in steered.bands and memory_share() is None:
        raise ValueError("[memory]: this device does not tell how much memory is in use")


def memory_share() -> float | None:
    """The share of their memory that is in use of this process' devices, of the fullest one."""
    told = [device.memory_stats() or {} for device in jax.local_devices()]
    shares = [each["bytes_in_use"] / each["bytes_limit"] for each in told if "bytes_limit" in each]
    return max(shares, default=None)
