"""One try of a request at one region: an answer, an opened stream, or the reason why neither."""

import asyncio
import contextlib
import dataclasses
import email.utils
import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import yarl

from mdlm_jax.serving.gateway import failures, sse, told
from mdlm_jax.serving.gateway.asked import Asked
from mdlm_jax.serving.gateway.failures import Answer, Failure
from mdlm_jax.serving.gateway.regions import Region

DONE = "[DONE]"
_MARGIN = 0.1  # seconds by which a region may see the deadline earlier
_MOST_BYTES = 2**26  # of an answer that is not streamed
_PASSED = ("content-type", "retry-after")  # of a region's headers, beside x- and openai-


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a try goes.

    Attributes:
      session: the connections.
      region: that is asked.
      key: that replaces the user's; None passes the user's on.
    """

    session: aiohttp.ClientSession
    region: Region
    key: str | None


async def whole(place: Place, asked: Asked) -> Answer:
    """The region's answer to a request that is not streamed.

    Raises:
      Failure: it gave none that the user should get.
    """
    region = place.region
    async with _limit(region.whole_s, asked, region, f"no answer in {region.whole_s:g} s"):
        response = await _request(place, asked)
        with contextlib.closing(response):
            body = await _body(response, region)
    if response.status == 200:
        with _garbage_told(region):
            _check_whole(asked, response, body)
        return Answer(200, body, _headers(response))
    return _judged(place, asked, response, body)


async def opened(place: Place, asked: Asked, fingerprint: str | None) -> "Stream | Answer":
    """A stream that has begun, or an answer that every region would give.

    It has begun when text has come, or with canvases when anything has: servers send a first chunk
    without text at once, which says nothing of how fast they will write.

    Args:
      place: where.
      asked: what.
      fingerprint: that its chunks must have; None for any.

    Raises:
      Failure: neither came.
    """
    region = place.region
    late = f"no first byte in {region.first_byte_s:g} s"
    async with _limit(region.first_byte_s, asked, region, late):
        response = await _request(place, asked)
        try:
            if response.status != 200:
                return _judged(place, asked, response, await _body(response, region))
            with _garbage_told(region):
                _check_type(response, "text/event-stream")
            stream = Stream(response, region, asked)
            await stream.read()
        except BaseException:
            response.close()
            raise
    try:
        await stream.begin(fingerprint)
    except BaseException:
        stream.close()
        raise
    return stream


class Stream:
    """The events of a response, in time."""

    def __init__(self, response: aiohttp.ClientResponse, region: Region, asked: Asked):
        self.region = region
        self._response, self._asked = response, asked
        self._decoder = sse.Decoder()
        self._events: list[sse.Event] = []

    def close(self) -> None:
        """Ends the connection, unless all of it was read: the region stops writing."""
        self._response.close()

    async def read(self) -> None:
        """Waits for bytes, without a limit of its own.

        Raises:
          Failure: there are none, or no events.
        """
        with _broken_told(self.region):
            data = await self._response.content.readany()
        if not data:
            raise Failure(failures.BROKEN, self.region.name, "the stream ended before its text")
        with _garbage_told(self.region):
            self._events += self._decoder.feed(data)

    async def begin(self, fingerprint: str | None) -> None:
        """Waits until the stream has begun, and keeps what came; see `opened`.

        Raises:
          Failure: it did not, or is of another version.
        """
        seen = 0
        while True:
            for event in self._events[seen:]:
                seen += 1
                if event.name == "message" and self._begins(event, fingerprint):
                    return
            await self._read_in_time()

    async def events(self) -> AsyncIterator[sse.Event]:
        """All events, those kept first, until the stream is done: the last is DONE.

        Raises:
          Failure: it broke off, hung or sent no events.
        """
        while True:
            events, self._events = self._events, []
            for event in events:
                yield event
                if event == sse.Event("message", DONE):
                    return
            await self._read_in_time()

    async def _read_in_time(self) -> None:
        seconds = self.region.between_bytes_s
        if self._asked.left <= 0:  # also where bytes never let it wait
            raise Failure(failures.DEADLINE, self.region.name, "the deadline has passed")
        async with _limit(seconds, self._asked, self.region, f"no byte in {seconds:g} s"):
            await self.read()

    def _begins(self, event: sse.Event, fingerprint: str | None) -> bool:
        """Whether a chunk begins the text."""
        if event.data == DONE:
            return True
        with _garbage_told(self.region):
            chunk = told.read_chunk(event.data)
        if "error" in chunk:
            return True
        if fingerprint not in (None, chunk["system_fingerprint"]):
            raise Failure(failures.VERSION, self.region.name, "it runs another version")
        return self._asked.canvases or told.has_text(chunk)


def error_event(region: Region, asked: Asked, chunk: told.Chunk) -> Failure | Answer:
    """What an error within a stream means: another region may do better, or none will."""
    given = chunk["error"] if isinstance(chunk["error"], dict) else {}
    if given.get("type") == "invalid_request_error":
        return Answer(400, json.dumps({"error": given}).encode())
    if given.get("type") == "timeout_error" or given.get("code") == "deadline":
        return _late(region, asked)
    return Failure(failures.STATUS, region.name, "it ended the stream with an error", status=500)


async def _request(place: Place, asked: Asked) -> aiohttp.ClientResponse:
    region = place.region
    with _broken_told(region):
        return await place.session.request(
            "POST" if asked.content else "GET",
            yarl.URL(region.url + asked.path, encoded=True),
            data=asked.content or None,
            headers=asked.headers_for(place.key),
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=None, connect=region.connect_s),
        )


async def _body(response: aiohttp.ClientResponse, region: Region) -> bytes:
    parts, size = [], 0
    with _broken_told(region):
        async for part in response.content.iter_any():
            parts.append(part)
            size += len(part)
            if size > _MOST_BYTES:
                raise Failure(failures.GARBAGE, region.name, f"an answer above {_MOST_BYTES} bytes")
    return b"".join(parts)


def _judged(place: Place, asked: Asked, response: aiohttp.ClientResponse, body: bytes) -> Answer:
    """An answer that is not 200: what every region would say, or a failure."""
    name, status = place.region.name, response.status
    said = Answer(status, body, _headers(response)) if _is_error(body) else None
    wait = _retry_after(response.headers.get("retry-after"), place.region.retry_after_most_s)
    if status in (401, 403) and place.key is not None:
        raise Failure(failures.KEY, name, f"it refuses its key ({status})", status=status)
    if status == 429 or (status == 503 and wait is not None):
        raise Failure(failures.BUSY, name, f"busy ({status})", status=status, retry_after=wait)
    if status == 504:
        raise _late(place.region, asked)
    if status >= 500:
        raise Failure(failures.STATUS, name, f"it answered {status}", status=status)
    if status == 404 and said:
        raise Failure(failures.ABSENT, name, "not there (404)", status=status, answer=said)
    if status >= 400 and said:
        return said
    raise Failure(failures.GARBAGE, name, f"status {status} without an error", status=status)


def _late(region: Region, asked: Asked) -> Failure:
    """Of a region that says that a deadline has passed: the request's, or one of its own."""
    kind = failures.DEADLINE if asked.left < _MARGIN else failures.TIMEOUT
    return Failure(kind, region.name, "its deadline has passed (504)", status=504)


def _is_error(body: bytes) -> bool:
    try:
        return isinstance(json.loads(body)["error"], dict)
    except (ValueError, RecursionError, KeyError, TypeError):
        return False


def _check_whole(asked: Asked, response: aiohttp.ClientResponse, body: bytes) -> None:
    """Refuses what is no answer to the request.

    Raises:
      Garbage: it is none.
    """
    _check_type(response, "application/json")
    try:
        answer: Any = json.loads(body)
    except (ValueError, RecursionError):
        raise told.Garbage("an answer that is no JSON") from None
    if not isinstance(answer, dict):
        raise told.Garbage("an answer that is no JSON object")
    if not asked.content:
        return
    choices, fingerprint = answer.get("choices"), answer.get("system_fingerprint")
    if not isinstance(fingerprint, str) or not fingerprint:
        raise told.Garbage("an answer without system_fingerprint")
    if not isinstance(choices, list) or not choices or not all(map(_is_choice, choices)):
        raise told.Garbage("an answer whose choices cannot be read")


def _is_choice(choice: Any) -> bool:
    if not isinstance(choice, dict):
        return False
    return isinstance(choice.get("text"), str) or isinstance(choice.get("message"), dict)


def _check_type(response: aiohttp.ClientResponse, kind: str) -> None:
    if response.content_type != kind:
        raise told.Garbage(f"an answer of type {response.content_type}, not {kind}")


def _headers(response: aiohttp.ClientResponse) -> tuple[tuple[str, str], ...]:
    lower = ((name.lower(), value) for name, value in response.headers.items())
    return tuple(
        (name, value)
        for name, value in lower
        if (name in _PASSED or name.startswith(("x-", "openai-")))
        and value.isascii()
        and value.isprintable()  # no line ends: a header of a region stays one
    )


def _retry_after(value: str | None, most: float) -> float | None:
    """Seconds of the header, a number or a date; None if it is neither."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (TypeError, ValueError, OverflowError):
            return None
    return min(max(seconds, 0.0), most) if seconds == seconds else None


@contextlib.asynccontextmanager
async def _limit(seconds: float, asked: Asked, region: Region, message: str) -> AsyncIterator[None]:
    """Ends what lasts too long.

    Raises:
      Failure: it lasted longer than `seconds`, or than the request's deadline.
    """
    loop = asyncio.get_running_loop()
    is_deadline = asked.left <= seconds
    try:
        async with asyncio.timeout_at(loop.time() + min(seconds, asked.left)):
            yield
    except TimeoutError:
        if is_deadline:
            kind, message = failures.DEADLINE, "the deadline has passed"
        else:
            kind = failures.TIMEOUT
        raise Failure(kind, region.name, message) from None


@contextlib.contextmanager
def _broken_told(region: Region) -> Iterator[None]:
    """Raises what fails on the way to a region as a `Failure`, without addresses."""
    try:
        yield
    except aiohttp.ServerTimeoutError:
        raise Failure(
            failures.CONNECT, region.name, f"no connection in {region.connect_s:g} s"
        ) from None
    except aiohttp.ClientConnectorError:
        raise Failure(failures.CONNECT, region.name, "no connection") from None
    except aiohttp.ClientResponseError:
        raise Failure(failures.GARBAGE, region.name, "an answer that is no HTTP") from None
    except (aiohttp.ClientError, OSError, RuntimeError) as error:
        # aiohttp's word for a connection that was closed before the read is a RuntimeError.
        if isinstance(error, TimeoutError) or (
            isinstance(error, RuntimeError) and str(error) != "Connection closed."
        ):
            raise
        raise Failure(failures.BROKEN, region.name, "the connection broke off") from None


@contextlib.contextmanager
def _garbage_told(region: Region) -> Iterator[None]:
    try:
        yield
    except (told.Garbage, sse.Malformed) as error:
        raise Failure(failures.GARBAGE, region.name, str(error)) from None
