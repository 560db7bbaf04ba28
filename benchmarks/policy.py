"""What a policy would have done with the requests that a server has logged, without a device.

    python -m mdlm_jax.serve --workdir=RUN --slots=16 2> server.log
    python -m benchmarks.policy --log=server.log --policy=policy.toml --slots=16 [--faster=2]

It prints a JSON line without the policy and one with it. Each request of the log comes again, at
its time, with its rows and network evaluations. It meets `--slots` slots whose tick takes
`--tick_ms`; the policy looks twice a second, as a server's does, on a clock of the simulation.
`--faster=2` lets the same requests come in half of the time: what if twice as many users came?

| field | what it is |
|---|---|
| `p50_s`, `p95_s`, `p99_s` | from a request to its end |
| `queue_age_s` | the longest that a row waited for a slot |
| `evaluations` | of all rows: what the texts cost, and a sign of how good they are |
| `stages` | the share of the requests that each stage admitted |
| `moves` | of the policy, `[seconds, stage]` from the first request on |

Only requests that got their text come again, so take the log of a server that answered all. A
stage's share is taken of a request's evaluations, not of its steps: one that has fewer gaps than
steps, or ends early, loses evaluations here that a server would leave it. Not simulated: a full
queue (429), deadlines, pinned requests, memory, autoregressive models, the speed of other models.
"""

import argparse
import collections
import dataclasses
import datetime
import json
import math
import re
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mdlm_jax.serving.watching import policy
from mdlm_jax.serving.watching.steering import EVERY, Steering

_LINE = re.compile(
    r"(\S+ \S+) mdlm_jax\.serving\.requests id=\S+ method=POST "
    r"path=/v1/(?:chat/)?completions status=200 "
)


class Asked(NamedTuple):
    """A request of the log.

    Attributes:
      at: seconds from the first one.
      rows: how many it has.
      evaluations: of each row.
      seconds: that it took.
    """

    at: float
    rows: int
    evaluations: int
    seconds: float


def recorded(lines: Iterable[str]) -> list[Asked]:
    """The requests that were answered, by the time of their coming.

    Raises:
      ValueError: there is none, or a policy was at work.
    """
    found = []
    for line in lines:
        if not (match := _LINE.match(line)):
            continue
        told = dict(re.findall(r"(\w+)=(\d+)", line))
        if int(told.get("stage", 0)):
            raise ValueError("the log holds requests whose steps a policy had already reduced")
        if "rows" in told and int(told.get("evaluations", 0)):
            ended = datetime.datetime.strptime(match[1], "%Y-%m-%d %H:%M:%S,%f").timestamp()
            rows, seconds = int(told["rows"]), int(told["ms"]) / 1000
            each = max(round(int(told["evaluations"]) / rows), 1)
            found.append(Asked(ended - seconds, rows, each, seconds))
    if not found:
        raise ValueError("the log has no request that was answered")
    first = min(each.at for each in found)
    return sorted(each._replace(at=each.at - first) for each in found)


def tick_of(asked: Sequence[Asked]) -> float:
    """Seconds of a tick: a tenth of the requests took less for an evaluation, the others waited."""
    paces = sorted(each.seconds / each.evaluations for each in asked)
    return paces[len(paces) // 10]


@dataclasses.dataclass
class Row:
    """One row, of a request that came at a time."""

    request: int
    came: float
    left: int


class Slots:
    """Slots and a queue, on a clock of their own: an engine, as far as a policy looks at it."""

    def __init__(self, slots: int):
        self.now = 0.0
        self.active: list[Row] = []
        self.queue: collections.deque[Row] = collections.deque()
        self._slots = slots

    def clock(self) -> float:
        """Seconds."""
        return self.now

    @property
    def oldest(self) -> float:
        """Seconds that the row has waited that waits longest."""
        return self.now - self.queue[0].came if self.queue else 0.0

    def stats(self) -> Any:
        """Of an engine with one lane."""
        return _Stats((self,))

    def tick(self, seconds: float) -> list[Row]:
        """Fills free slots, evaluates once, and gives the rows that ended."""
        while self.queue and len(self.active) < self._slots:
            self.active.append(self.queue.popleft())
        self.now += seconds
        for row in self.active:
            row.left -= 1
        ended = [row for row in self.active if not row.left]
        self.active = [row for row in self.active if row.left]
        return ended


class _Stats(NamedTuple):
    lanes: tuple[Slots, ...]


def simulated(
    asked: Sequence[Asked], given: policy.Policy | None, *, slots: int, tick: float
) -> dict[str, Any]:
    """The fields of a line.

    Args:
      asked: requests by the time of their coming.
      given: the policy; None for none.
      slots: rows at a time.
      tick: seconds of an evaluation of them.
    """
    engine = Slots(slots)
    full = policy.Policy((policy.Stage(),), {})
    steering = Steering(given or full, engine, memory=lambda: None, clock=engine.clock)
    coming = collections.deque(enumerate(asked))
    left = [each.rows for each in asked]
    seconds, cost, age, looks = [0.0] * len(asked), 0, 0.0, 0.0
    moves = list[tuple[float, int]]()
    stages = [0] * len(asked)
    while coming or engine.active or engine.queue or steering.stage:  # until it is back
        if not (engine.active or engine.queue):  # nothing to do until the next look or request
            then = min(looks, coming[0][1].at) if coming else looks
            engine.now = max(engine.now, then)
        if looks <= engine.now:
            before = steering.stage
            steering.look()
            if steering.stage != before:
                moves.append((round(engine.now, 1), steering.stage))
            looks = EVERY * (engine.now // EVERY + 1)
        while coming and coming[0][1].at <= engine.now:
            number, each = coming.popleft()
            stages[number], stage = steering.admit(pinned=False)
            steps = stage.steps_of(each.evaluations)
            cost += steps * each.rows
            engine.queue.extend(Row(number, each.at, steps) for _ in range(each.rows))
        if engine.active or engine.queue:
            age = max(age, engine.oldest)
            for row in engine.tick(tick):
                left[row.request] -= 1
                if not left[row.request]:
                    took = engine.now - row.came
                    seconds[row.request] = took
                    told = {"stage": stages[row.request], "status": 200, "ms": 1000 * took}
                    steering.tell(told)
    seconds.sort()
    shares = collections.Counter(stages)
    return {
        "p50_s": round(statistics.median(seconds), 3),
        "p95_s": round(seconds[math.ceil(0.95 * len(seconds)) - 1], 3),
        "p99_s": round(seconds[math.ceil(0.99 * len(seconds)) - 1], 3),
        "queue_age_s": round(age, 3),
        "evaluations": cost,
        "stages": {n: round(shares[n] / len(asked), 3) for n in range(len(steering.policy.stages))},
        "moves": moves,
    }


def main(arguments: list[str] | None = None) -> int:
    """Prints a line without the policy and one with it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--log", required=True, help="what a server wrote to stderr")
    parser.add_argument("--policy", required=True, help="a policy, as `serve` takes it")
    parser.add_argument("--slots", type=int, default=16, help="rows at a time")
    parser.add_argument("--tick_ms", type=float, default=None, help="by default from the log")
    parser.add_argument("--faster", type=float, default=1.0, help="than the requests came")
    given = parser.parse_args(arguments)
    for name in ("slots", "faster", "tick_ms"):
        if getattr(given, name) is not None and not getattr(given, name) > 0:
            parser.error(f"--{name} is {getattr(given, name)}, it must be above 0")
    try:
        read = policy.read(given.policy)
        with Path(given.log).open() as lines:
            asked = recorded(lines)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    tick = tick_of(asked) if given.tick_ms is None else given.tick_ms / 1000
    asked = [each._replace(at=each.at / given.faster) for each in asked]
    for name, each in (("none", None), (given.policy, read)):
        line = {"policy": name, "requests": len(asked), "tick_ms": round(1000 * tick, 2)}
        told = simulated(asked, each, slots=given.slots, tick=tick)
        print(json.dumps({**line, **told}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
