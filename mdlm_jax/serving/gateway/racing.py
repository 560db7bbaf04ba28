"""From tries to a result: the next region after a failure, a second one after a long wait."""

import asyncio
import dataclasses
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp

from mdlm_jax.serving.gateway import failures, tries
from mdlm_jax.serving.gateway.asked import Asked
from mdlm_jax.serving.gateway.breaker import Permit
from mdlm_jax.serving.gateway.budget import Budget
from mdlm_jax.serving.gateway.chain import Chain, Round, Standing
from mdlm_jax.serving.gateway.failures import Answer, Failure, Unanswered
from mdlm_jax.serving.gateway.metrics import Metrics
from mdlm_jax.serving.gateway.regions import Limits
from mdlm_jax.serving.gateway.tries import Place, Stream

_BACKOFF, _BACKOFF_MOST = 0.05, 1.0  # seconds before a region is tried again
_PATIENCE, _LOOK = 1.0, 0.05  # seconds that a request waits for a free region, and between looks
_SPARE = 0.5  # of the budget, that hedges leave to retries

Result = Answer | Stream


@dataclasses.dataclass(frozen=True)
class Gateway:
    """What all requests share."""

    chain: Chain
    limits: Limits
    budget: Budget
    metrics: Metrics
    session: aiohttp.ClientSession


@dataclasses.dataclass(frozen=True)
class Won:
    """The result of a race, and the try that had it."""

    standing: Standing
    permit: Permit
    result: Any


@dataclasses.dataclass(frozen=True)
class _Running:
    standing: Standing
    permit: Permit
    begun: float


async def race(
    gateway: Gateway, asked: Asked, made: Round, begin: Callable[[Place], Awaitable[Result]]
) -> Won:
    """Tries regions until one has a result; tries that lost are cancelled.

    Args:
      gateway: the regions, and what may be spent.
      asked: the request.
      made: what it has tried before; the tries of this race are added.
      begin: one try.

    Raises:
      Unanswered: no try is left.
    """
    running: dict[asyncio.Task[Result], _Running] = {}
    try:
        await _start(gateway, asked, made, begin, running)
        hedged = False
        while True:
            wait = None if hedged else _hedge_in(gateway, asked, running)
            done, _ = await asyncio.wait(running, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                hedged = True
                _hedge(gateway, asked, made, begin, running)
            for task in done:
                if won := _settled(gateway, asked, made, task, running):
                    _tell_slow(asked, running)
                    return won
            if not running:
                await _start(gateway, asked, made, begin, running)
    finally:
        for task, each in running.items():
            each.permit.released()
            gateway.metrics.tries.labels(each.standing.region.name, "cancelled").inc()
            task.cancel()
            task.add_done_callback(_close)


def _settled(
    gateway: Gateway,
    asked: Asked,
    made: Round,
    task: asyncio.Task[Result],
    running: dict[asyncio.Task[Result], _Running],
) -> Won | None:
    """What a try that has ended came to; None if it failed."""
    if isinstance(failure := task.exception(), Failure):
        each = running.pop(task)
        failed(gateway, made, each.standing, each.permit, failure)
        return None
    result = task.result()
    each = running.pop(task)
    each.permit.succeeded()
    gateway.metrics.tries.labels(each.standing.region.name, "ok").inc()
    made.won = each.standing.region.name
    if isinstance(result, Stream) or result.status == 200:
        each.standing.latencies[asked.stream].add(time.monotonic() - each.begun)
    return Won(each.standing, each.permit, result)


def _tell_slow(asked: Asked, running: dict[asyncio.Task[Result], _Running]) -> None:
    """Keeps how long the losers of a hedge have run, or the quantile would sink with each hedge."""
    for each in running.values():
        seconds = time.monotonic() - each.begun
        latencies = each.standing.latencies[asked.stream]
        if seconds > (latencies.quantile(0.5) or 0.0):
            latencies.add(seconds)


def failed(
    gateway: Gateway, made: Round, standing: Standing, permit: Permit, failure: Failure
) -> None:
    """Counts a failure of a try, also one that had a result before."""
    gateway.chain.settle(made, standing, permit, failure)
    gateway.metrics.tries.labels(standing.region.name, failure.kind).inc()


async def _start(
    gateway: Gateway,
    asked: Asked,
    made: Round,
    begin: Callable[[Place], Awaitable[Result]],
    running: dict[asyncio.Task[Result], _Running],
) -> None:
    """Starts the first try, or one more after all have failed.

    Raises:
      Unanswered: no try is left.
    """
    count = made.tried.total()
    if asked.left <= 0:
        late = Failure(failures.DEADLINE, "gateway", "the deadline has passed")
        raise Unanswered([*made.failures, late], "the deadline has passed")
    if count >= gateway.limits.tries:
        raise Unanswered(made.failures, f"after {count} tries")
    chosen = await _free(gateway, asked, made)
    if chosen is None:
        reason = "no other region is free" if count else "no region is free"
        raise Unanswered(made.failures, reason, gateway.chain.retry_after(made.caller))
    if _costs(made) and not gateway.budget.withdraw():
        chosen[1].released()
        gateway.metrics.no_budget.inc()
        raise Unanswered(made.failures, "too many retries at present")
    _run(gateway, made, *chosen, begin, running)


async def _free(gateway: Gateway, asked: Asked, made: Round) -> tuple[Standing, Permit] | None:
    """A region that may be asked, after a short wait where it helps; None if there is none."""
    until = time.monotonic() + min(_PATIENCE, asked.left)
    while (chosen := gateway.chain.choose(made)) is None:
        soon = gateway.chain.retry_after(made.caller) <= _PATIENCE
        if not soon or gateway.chain.hopeless(made) or time.monotonic() >= until:
            break
        await asyncio.sleep(_LOOK)
    return chosen


def _costs(made: Round) -> bool:
    """Whether a region may have worked for the request: only then is one more try more load."""
    return any(failure.kind not in failures.IDLE for failure in made.failures)


def _hedge_in(
    gateway: Gateway, asked: Asked, running: dict[asyncio.Task[Result], _Running]
) -> float | None:
    """Seconds until a second region is to be asked; None for never."""
    (each,) = running.values()
    quantile = gateway.limits.hedge_quantile
    usual = each.standing.latencies[asked.stream].quantile(quantile) if quantile else None
    if usual is None:
        return None
    return max(each.begun + max(usual, gateway.limits.hedge_least_s) - time.monotonic(), 0.0)


def _hedge(
    gateway: Gateway,
    asked: Asked,
    made: Round,
    begin: Callable[[Place], Awaitable[Result]],
    running: dict[asyncio.Task[Result], _Running],
) -> None:
    """Asks a region more, if one is free that was not asked and the budget allows it."""
    if made.tried.total() >= gateway.limits.tries or asked.left <= 0:
        return
    chosen = gateway.chain.choose(made, anew=True)
    if chosen is None:
        return
    if not gateway.budget.withdraw(spare=_SPARE):
        chosen[1].released()
        gateway.metrics.no_budget.inc()
        return
    gateway.metrics.hedges.inc()
    _run(gateway, made, *chosen, begin, running)


def _run(
    gateway: Gateway,
    made: Round,
    standing: Standing,
    permit: Permit,
    begin: Callable[[Place], Awaitable[Result]],
    running: dict[asyncio.Task[Result], _Running],
) -> None:
    before = made.tried[standing.region.name]
    made.tried[standing.region.name] += 1
    place = Place(gateway.session, standing.region, standing.key)

    async def wait_and_begin() -> Result:
        if before:
            longest = min(_BACKOFF * 2 ** (before - 1), _BACKOFF_MOST)
            await asyncio.sleep(longest * random.uniform(0.5, 1.0))
        return await begin(place)

    task = asyncio.create_task(wait_and_begin())
    running[task] = _Running(standing, permit, time.monotonic())


def _close(task: asyncio.Task[Result]) -> None:
    """Ends what a try that lost may have opened."""
    if not task.cancelled() and not task.exception():
        result = task.result()
        if isinstance(result, Stream):
            result.close()


async def whole(gateway: Gateway, asked: Asked, made: Round) -> Answer:
    """The answer to a request that is not streamed.

    Raises:
      Unanswered: no try is left.
    """
    won = await race(gateway, asked, made, lambda place: tries.whole(place, asked))
    return won.result
