"""What stands before the endpoints: the log of requests, keys, the size of bodies."""

import hmac
import logging
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mdlm_jax.serving.api.forms import ApiError

_LOG = logging.getLogger("mdlm_jax.serving.requests")
Told = Mapping[str, Any]

# Between gateways and servers.
ID_HEADER = "x-request-id"
TIMEOUT_HEADER = "x-request-timeout"  # seconds that are left


def read_keys(path: str) -> list[bytes]:
    """The keys of a file, one a line; empty lines and those that begin with # are none.

    Raises:
      ValueError: it holds none, or one with white space.
      OSError: it cannot be read.
    """
    lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ValueError(f"{path} holds no key: one a line is read")
    for number, line in enumerate(lines, 1):
        if line in keys and len(line.split()) > 1:
            raise ValueError(f"{path}, line {number}: a key has no white space")
    return [key.encode() for key in keys]


def seconds_left(headers: Mapping[str, str]) -> float:
    """What the header X-Request-Timeout allows; infinity without it.

    Raises:
      ApiError: it is no number of seconds above 0.
    """
    given = headers.get(TIMEOUT_HEADER)
    if given is None:
        return float("inf")
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not seconds > 0:
        raise ApiError(400, f"{TIMEOUT_HEADER} must be a number of seconds above 0")
    return seconds


def request_id(headers: Mapping[str, str]) -> str:
    """That of the header X-Request-Id, if it can stand in a log; else a new one."""
    given = headers.get(ID_HEADER, "")
    return (
        given if re.fullmatch(r"[\w.:-]{1,64}", given, re.ASCII) else f"req-{secrets.token_hex(8)}"
    )


def log(told: Told) -> None:
    """Writes a line about a request: nothing of its text, and no key."""
    _LOG.info(" ".join(f"{name}={value}" for name, value in told.items()))


def all_of(*tells: Callable[[Told], None]) -> Callable[[Told], None]:
    """Tells each of them."""

    def tell(told: Told) -> None:
        for each in tells:
            each(told)

    return tell


class Requests:
    """Tells what became of each request, and gives it an id if the header has none."""

    def __init__(self, app: ASGIApp, tell: Callable[[Told], None]):
        self.app, self.tell = app, tell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Of ASGI."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began = time.monotonic()
        # A stream that fails has had its status: what it failed with is told here.
        told: dict[str, Any] = {"id": request_id(Headers(scope=scope))}
        scope.setdefault("state", {})["told"] = told
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = told["id"]
            await send(message)

        try:
            await self.app(scope, receive, answer)
        finally:
            first = told.pop("first", None)
            # As it was sent: decoded it may hold line ends, which would be lines of the log.
            path = scope.get("raw_path", b"").decode("ascii", "backslashreplace") or scope["path"]
            line = {"id": told.pop("id"), "method": scope["method"], "path": path}
            line |= {"status": told.pop("status", status), **told}
            if first is not None:
                line["first_ms"] = round(1000 * (first - began))
            self.tell({**line, "ms": round(1000 * (time.monotonic() - began))})


class Keys:
    """Refuses requests to the API without one of the keys."""

    def __init__(self, app: ASGIApp, keys: Sequence[bytes]):
        self.app, self.keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Of ASGI."""
        if scope["type"] != "http" or not scope["path"].startswith("/v1/") or self._known(scope):
            return await self.app(scope, receive, send)
        error = ApiError(401, "no valid API key: send one as Authorization: Bearer KEY")
        return await error.response()(scope, receive, send)

    def _known(self, scope: Scope) -> bool:
        scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        key = given.strip().encode()
        # All are compared, so that the time tells nothing.
        same = [hmac.compare_digest(key, each) for each in self.keys]
        return scheme.lower() == "bearer" and any(same)


class Bodies:
    """Refuses bodies that are too large, before they are read."""

    def __init__(self, app: ASGIApp, most: int):
        self.app, self.most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Of ASGI."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        error = ApiError(413, f"the body has more than {self.most:,} bytes")
        told = Headers(scope=scope).get("content-length", "0")
        if not told.isdecimal() or int(told) > self.most:
            return await error.response()(scope, receive, send)
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.most:
                raise HTTPException(413, error.message)
            return message

        return await self.app(scope, counted, send)
