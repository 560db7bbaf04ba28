"""Rows of one request on their way through the engine, as asyncio sees them."""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

from starlette.requests import Request

from mdlm_jax.serving import jobs
from mdlm_jax.serving.api import errors
from mdlm_jax.serving.offering.texts import Row

# The engine answers at the deadline. Where it cannot, as its device hangs, the client is told
# so many seconds later.
GRACE = 2.0


class Engine(Protocol):
    """What is needed of the engine."""

    ready: bool

    def submit(self, name: str, job: jobs.Job, listener: jobs.Listener) -> Any:
        """A ticket, with `cancel()`."""


class Flight:
    """The rows of a request: submitted, followed, and cancelled when nobody waits any more.

    A row tells how far it has come, so of several events that were not taken yet the newest counts:
    a client that reads slowly costs no memory.
    """

    def __init__(self, engine: Engine, name: str, rows: Sequence[Row], *, whole: bool):
        """Submits all rows, or none.

        Args:
          engine: of the process.
          name: of its deployment.
          rows: of the request.
          whole: whether only finished rows are of interest.

        Raises:
          NotTaken: the engine did not take them.
          ValueError: it refuses a value of them.
        """
        self._loop = asyncio.get_running_loop()
        self._newest: dict[int, jobs.Event] = {}
        self._news = asyncio.Event()
        self._open = {*range(len(rows))}
        self._deadline = min(row.job.deadline for row in rows)
        self._gone = False
        self._tickets: list[Any] = []
        try:
            for index, row in enumerate(rows):
                progress = not whole or bool(row.extent.stops)
                job = dataclasses.replace(row.job, progress=progress)
                self._tickets.append(engine.submit(name, job, self._listener(index)))
        except (jobs.NotTaken, ValueError):
            self.close()
            raise

    def _listener(self, index: int) -> jobs.Listener:
        def listen(event: jobs.Event) -> None:  # on the device's thread
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                self._loop.call_soon_threadsafe(self._take, index, event)

        return listen

    def _take(self, index: int, event: jobs.Event) -> None:
        self._newest[index] = event
        self._news.set()

    async def events(self, pause: float) -> AsyncIterator[tuple[int, jobs.Written] | None]:
        """The newest event of each row, until all are finished; None after a pause without one.

        Raises:
          ApiError: a row failed, or nothing was heard of it beyond its deadline.
          Gone: the client went away.
        """
        while self._open:
            left = self._deadline + GRACE - time.monotonic()
            if left <= 0:
                raise errors.ApiError(504, "the deadline passed and the engine did not answer")
            try:
                await asyncio.wait_for(self._news.wait(), min(pause, left))
            except TimeoutError:
                yield None
                continue
            if self._gone:
                raise Gone
            self._news.clear()
            came, self._newest = self._newest, {}
            for index, event in came.items():
                if isinstance(event, jobs.Failed):
                    raise errors.failed(event)
                if index in self._open:
                    if event.done:
                        self._open.discard(index)
                    yield index, event

    def finish(self, index: int) -> None:
        """Ends a row of which enough is known."""
        self._open.discard(index)
        self._tickets[index].cancel()

    def close(self) -> None:
        """Ends all rows: what is not finished frees its place."""
        for ticket in self._tickets:
            ticket.cancel()

    @contextlib.asynccontextmanager
    async def watched(self, request: Request) -> AsyncIterator[None]:
        """Within it, the rows end with the client's connection; behind it, in any case."""

        async def watch() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            self._gone = True
            self._news.set()

        watching = asyncio.create_task(watch())
        try:
            yield
        finally:
            watching.cancel()
            self.close()


class Gone(Exception):
    """The client closed its connection."""
