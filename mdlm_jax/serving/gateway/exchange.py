"""One request of a user and its response: sent once, in time, counted and logged once."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from typing import Any

from starlette.requests import ClientDisconnect, Request

from mdlm_jax.serving.gateway import asked, failures, streaming
from mdlm_jax.serving.gateway.asked import Asked, Refused
from mdlm_jax.serving.gateway.chain import Round
from mdlm_jax.serving.gateway.failures import Answer, Unanswered
from mdlm_jax.serving.gateway.racing import Gateway
from mdlm_jax.serving.gateway.sse import Event
from mdlm_jax.serving.gateway.told import Told

_LOG = logging.getLogger("mdlm_jax.serving.gateway.requests")
_ALIVE = 15.0  # seconds of silence after which a stream says that it is still there
_GRACE = 1.0  # seconds after the deadline for a client to read what it was sent
_EVENTS = (
    ("content-type", "text/event-stream; charset=utf-8"),
    ("cache-control", "no-cache"),
    ("x-accel-buffering", "no"),
)

Send = Callable[[Any], Awaitable[None]]
Ask = Callable[[Gateway, Asked, Round], Awaitable[Answer]]


class Exchange:
    """A request that is being answered.

    Args:
      gateway: the regions.
      path: under which it is counted.
      request: as Starlette has it.
      send: of ASGI.
    """

    def __init__(self, gateway: Gateway, path: str, request: Request, send: Send):
        self._gateway, self._path, self._request, self._send = gateway, path, request, send
        self._begun = time.monotonic()
        self._asked: Asked | None = None
        self._made = Round("")
        self._seen = Told()
        self._ended = "gone"  # the client, unless another end is found
        self._started = False

    async def answer(self, target: str, ask: Ask, *, reads: bool) -> None:
        """Answers it, and ends with it when the client goes.

        Args:
          target: the path at the regions.
          ask: gives the answer of a request that is not streamed.
          reads: whether the request has a body, and may be streamed.
        """
        metrics, limits = self._gateway.metrics, self._gateway.limits
        metrics.running += 1
        try:
            if metrics.running > limits.max_requests:
                await self._tell(failures.error(503, "The gateway is full", "overloaded", 1.0))
                return
            try:
                await self._ask(target, ask, reads)
            except Refused as refused:
                await self._tell(refused.answer)
        except ClientDisconnect:
            pass
        except asyncio.CancelledError:  # of the server, whose time to drain is over
            await self._end(failures.error(503, "The gateway is stopping", "stopping", 1.0))
            raise
        finally:
            metrics.running -= 1
            self._log()

    async def _ask(self, target: str, ask: Ask, reads: bool) -> None:
        body = await self._body() if reads else None
        deadline_s = self._gateway.limits.deadline_s
        self._asked = asked.asked(
            target, body, self._request.headers, begun=self._begun, deadline_s=deadline_s
        )
        self._made.caller = self._asked.caller
        self._gateway.budget.requested()
        work = self._stream() if self._asked.stream else self._whole(ask)
        late = self._asked.left + _GRACE
        try:
            async with asyncio.timeout(late):
                await _until_gone(self._request, work)
        except TimeoutError:
            self._ended = "unread"  # and the connection is closed

    async def _whole(self, ask: Ask) -> None:
        assert self._asked is not None
        try:
            async with asyncio.timeout(self._asked.left):
                answer = await ask(self._gateway, self._asked, self._made)
        except Unanswered as unanswered:
            answer = unanswered.answer
        except TimeoutError:
            answer = failures.deadline_passed()
        except Exception:
            answer = _failed(self._asked)
        await self._tell(answer)

    async def _stream(self) -> None:
        assert self._asked is not None
        answer = None
        frames = streaming.frames(self._gateway, self._asked, self._made, self._seen)
        async with contextlib.aclosing(_kept_alive(frames)) as parts:
            try:
                async for part in parts:
                    if not self._started:
                        await self._start(200, _EVENTS)
                    await self._send_part(part)
            except streaming.Ended as ended:
                answer = ended.answer
            except Exception:
                answer = _failed(self._asked)
        if answer is not None:
            await self._end(answer)
        else:
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
            self._ended = "200"

    async def _end(self, error: Answer) -> None:
        """Tells an error: as the answer, or as the last event of a stream that was begun."""
        if not self._started:
            await self._tell(error)
            return
        self._ended = "broken"
        await self._send_part(Event("message", error.body.decode()).encoded())
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _tell(self, answer: Answer) -> None:
        await self._start(answer.status, answer.headers)
        await self._send({"type": "http.response.body", "body": answer.body, "more_body": False})
        self._ended = str(answer.status)

    async def _start(self, status: int, headers: tuple[tuple[str, str], ...]) -> None:
        own = {}
        if self._asked is not None:
            own[asked.ID_HEADER] = self._asked.id
        if self._made.won:
            own["x-gateway-region"] = self._made.won
        pairs = [pair for pair in headers if pair[0] not in own] + [*own.items()]
        encoded = [(name.encode(), value.encode("latin-1", "replace")) for name, value in pairs]
        self._started = True
        await self._send({"type": "http.response.start", "status": status, "headers": encoded})

    async def _send_part(self, part: bytes) -> None:
        await self._send({"type": "http.response.body", "body": part, "more_body": True})

    async def _body(self) -> bytes:
        """The body of the request.

        Raises:
          Refused: it is too long, or does not come in time.
        """
        limits = self._gateway.limits
        parts, size = [], 0
        try:
            async with asyncio.timeout(limits.deadline_s):
                async for part in self._request.stream():
                    parts.append(part)
                    size += len(part)
                    if size > limits.max_body_bytes:
                        asked.refuse(413, f"The body has more than {limits.max_body_bytes} bytes")
        except TimeoutError:
            asked.refuse(408, "The body did not come in time")
        return b"".join(parts)

    def _log(self) -> None:
        """One line, without what users wrote or got."""
        metrics, seconds = self._gateway.metrics, time.monotonic() - self._begun
        metrics.requests.labels(self._path, self._ended).inc()
        metrics.seconds.labels(self._path).observe(seconds)
        name = self._asked.id if self._asked else "-"
        for failure in self._made.failures:
            _LOG.warning("id=%s failed=%s %s", name, failure.kind, failure)
        line = {
            "id": name,
            "path": self._path,
            "ended": self._ended,
            "stream": int(bool(self._asked and self._asked.stream)),
            "region": self._made.won or "-",
            "failures": len(self._made.failures),
            "characters": self._seen.characters,
            "ms": round(1000 * seconds),
        }
        _LOG.info(" ".join(f"{key}={value}" for key, value in line.items()))


def _failed(asked: Asked) -> Answer:
    """What is told when the gateway has an error of its own, which goes into the log."""
    _LOG.exception("id=%s the gateway failed", asked.id)
    return failures.error(500, "The gateway failed", "internal_error")


async def _kept_alive(frames: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """The frames, and a comment whenever none has come for a while."""
    async with contextlib.aclosing(frames):
        while True:
            coming = asyncio.ensure_future(anext(frames, None))
            try:
                while not (await asyncio.wait((coming,), timeout=_ALIVE))[0]:
                    yield Event("", " still there").encoded()
                frame = coming.result()
            finally:
                if not coming.done():
                    coming.cancel()
                    await asyncio.wait((coming,))
            if frame is None:
                return
            yield frame


async def _until_gone(request: Request, work: Coroutine[Any, Any, None]) -> None:
    """Does the work, or stops when the client has gone."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
