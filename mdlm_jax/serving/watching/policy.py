"""When a server does less for a text, so that all get one: stages, and moves between them.

    policy = read("policy.toml")
    state = State()
    state = following(policy, state, Load(queue_age=3.1), now=clock())
    policy.stages[state.stage].steps_of(64)

Nothing here has a clock, a thread or a device. Stage 0 is full service; each further one does less.
A measure above its upper threshold moves one stage down, at least `settle_s` after the move before,
so that what that one did is seen first. All measures below their lower thresholds for `dwell_s`
move one stage back. Between the two thresholds nothing moves, so a load at one of them does not
make it flap, and there and back again takes at least `dwell_s`.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from mdlm_jax.serving import tables


@dataclasses.dataclass(frozen=True)
class Stage:
    """What a request gets.

    Attributes:
      share: of the steps that it asks for, or that the model has by default.
      steps: the most.
      model: that writes it instead of the one that it asks for; '' for that one.
    """

    share: float = tables.number(1.0, 0.0, 1.0)
    steps: int | None = tables.number(None, 1, 1_000_000)
    model: str = ""

    def steps_of(self, asked: int) -> int:
        """Network evaluations of a request that asks for so many; at least 1."""
        shared = math.ceil(self.share * asked)
        return max(min(shared, asked if self.steps is None else self.steps), 1)


@dataclasses.dataclass(frozen=True)
class Band:
    """Two thresholds of a measure.

    Attributes:
      upper: above it, a server does less.
      lower: below it, a server may do more.
    """

    upper: float = tables.number(None, 0.0)
    lower: float = tables.number(None, 0.0)


class Load(NamedTuple):
    """What is measured; None for what is not known, which is taken for calm.

    Attributes:
      queue_age_s: seconds that the row has waited that waits longest for a slot.
      p95_s: of 20 requests, 19 take no longer.
      memory: of the device, the share that is in use.
    """

    queue_age_s: float | None = None
    p95_s: float | None = None
    memory: float | None = None


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds.

    Attributes:
      settle_s: between a move and one down, at least.
      dwell_s: of calm, before a move back.
      window_s: p95 is of the requests that ended so lately, and began after the last move.
    """

    settle_s: float = tables.number(5.0, 0.0)
    dwell_s: float = tables.number(60.0, 0.0)
    window_s: float = tables.number(30.0, 0.001)


class Policy(NamedTuple):
    """All of `policy.toml`.

    Attributes:
      stages: the first is full service.
      bands: the thresholds, by the name of the measure; one at least.
      times: how fast it moves.
    """

    stages: tuple[Stage, ...]
    bands: Mapping[str, Band]
    times: Times = Times()


class State(NamedTuple):
    """Where a policy stands.

    Attributes:
      stage: 0 is full service.
      moved: when it came there.
      busy: when a measure was last seen that was not below its lower threshold.
    """

    stage: int = 0
    moved: float = -math.inf
    busy: float = -math.inf


def following(policy: Policy, state: State, load: Load, now: float) -> State:
    """The state after a look at the load.

    Args:
      policy: thresholds and times.
      state: before.
      load: that is seen.
      now: seconds of a clock that does not go back.
    """
    seen = [
        (value, band)
        for name, band in policy.bands.items()
        if (value := getattr(load, name)) is not None
    ]
    busy = any(value >= band.lower for value, band in seen)
    if busy:
        state = state._replace(busy=now)
    if any(value > band.upper for value, band in seen):
        last = len(policy.stages) - 1
        down = state.stage < last and now - state.moved >= policy.times.settle_s
        return State(state.stage + 1, now, state.busy) if down else state
    rested = not busy and now - max(state.moved, state.busy) >= policy.times.dwell_s
    return State(state.stage - 1, now, state.busy) if state.stage and rested else state


def read(path: str) -> Policy:
    """Reads `policy.toml`.

    Raises:
      ValueError: it is no TOML, a key is unknown or missing, or a value is not accepted.
      OSError: it cannot be read.
    """
    given = tables.read(path)
    try:
        return _policy(given)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _policy(given: dict[str, Any]) -> Policy:
    times = [field.name for field in dataclasses.fields(Times)]
    tables.known(given, ("stage", *Load._fields, *times), "there are")
    stages = _stages(given.get("stage", []))
    bands = {
        name: _band(tables.table(given[name], f"[{name}]"), f"[{name}]")
        for name in Load._fields
        if name in given
    }
    if not bands:
        raise ValueError(f"no threshold: give one of [{'], ['.join(Load._fields)}]")
    numbers = {name: given[name] for name in times if name in given}
    return Policy(stages, bands, tables.build(Times, numbers, "it"))


def _stages(given: Any) -> tuple[Stage, ...]:
    if not isinstance(given, list) or not given:
        raise ValueError("no stage: begin each with [[stage]], and give its share, steps or model")
    found = [Stage()]
    for count, each in enumerate(given, 1):
        where = f"stage {count}"
        stage = tables.build(Stage, tables.table(each, where), where)
        if stage.share == 0:
            raise ValueError(f"{where}: share = 0 leaves no steps, it must be above 0")
        if stage.model == found[-1].model:
            _check_less(stage, found[-1], where)
        found.append(stage)
    return tuple(found)


def _band(given: dict[str, Any], where: str) -> Band:
    for name in ("upper", "lower"):
        if name not in given:
            raise ValueError(f"{where} has no {name}")
    band = tables.build(Band, given, where)
    if band.lower == 0:
        raise ValueError(f"{where}: lower = 0 is never undercut, it must be above 0")
    if band.lower > band.upper:
        raise ValueError(f"{where}: lower = {band.lower} is above upper = {band.upper}")
    return band


def _check_less(stage: Stage, before: Stage, where: str) -> None:
    """Some requests get fewer steps than in the stage before, and none more."""
    given = [(asked, stage.steps_of(asked), before.steps_of(asked)) for asked in range(1, 4097)]
    for asked, steps, fewer in given:
        if steps > fewer:
            by_share = f"share = {before.share:g}"
            most = by_share if stage.share > before.share else f"steps = {before.steps}"
            raise ValueError(
                f"{where} leaves {steps} of {asked} steps, the one before {fewer}: "
                f"a stage must not give more, so give it {most} at most"
            )
    if not any(steps < more for _, steps, more in given):
        raise ValueError(f"{where} must do less than the one before: by share, steps or model")
