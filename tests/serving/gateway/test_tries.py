"""One try at a region that says what it is told to, byte for byte."""

import asyncio
import contextlib
import json
import socket
import struct
import time

import aiohttp
import pytest

from mdlm_jax.serving.gateway import failures, tries
from mdlm_jax.serving.gateway.asked import asked
from mdlm_jax.serving.gateway.failures import Answer, Failure
from mdlm_jax.serving.gateway.regions import Region

HEAD = {"system_fingerprint": "fp", "id": "1"}
CHUNK = {**HEAD, "choices": [{"index": 0, "text": "a"}]}
EVENT = f"data: {json.dumps(CHUNK)}\n\n".encode()
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
ANSWER = {**HEAD, "choices": [{"index": 0, "text": "a", "finish_reason": "stop"}]}
ERROR = {"error": {"message": "m", "type": "t", "param": None, "code": "c"}}


def answer(status, body, *headers, kind="application/json"):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} X", f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


def chunked(*parts):
    framed = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
    return STREAM + b"Transfer-Encoding: chunked\r\n\r\n" + framed


@contextlib.asynccontextmanager
async def region(said, end="close", then=b"", key=None, **limits):
    """A place whose region says `said`, a little later `then`, and closes, resets or stays."""

    async def connected(reader, writer):
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(said)
            await writer.drain()
            if then:
                await asyncio.sleep(0.05)
                writer.write(then)
                await writer.drain()
            if end == "stay":
                await reader.read()
            if end == "reset":
                linger = struct.pack("ii", 1, 0)
                found = writer.get_extra_info("socket")
                found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                writer.transport.abort()
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    quick = {"first_byte_s": 0.3, "between_bytes_s": 0.3, "whole_s": 0.3}
    async with server, aiohttp.ClientSession() as session:
        yield tries.Place(session, Region(url=url, name="r", **{**quick, **limits}), key)


def request(**fields):
    body = json.dumps({"prompt": "p", **fields}).encode()
    return asked("/v1/completions", body, {}, begun=time.monotonic(), deadline_s=5.0)


def one_try(said, *, stream=False, fingerprint=None, pause=0.0, **how):
    """What a try comes to: an answer, the events of a stream, or a failure."""

    async def run():
        async with region(said, **how) as place:
            if not stream:
                return await tries.whole(place, request())
            opened = await tries.opened(place, request(stream=True), fingerprint)
            if isinstance(opened, Answer):
                return opened
            with contextlib.closing(opened):
                await asyncio.sleep(pause)
                return [event.data async for event in opened.events()]

    return asyncio.run(run())


def kind_of(said, **how):
    with pytest.raises(Failure) as told:
        one_try(said, **how)
    return told.value.kind


def test_a_whole_answer_is_passed_on_as_it_is():
    said = one_try(answer(200, ANSWER, "X-Mine: m", "Set-Cookie: c", "X-Bad: \x80"), end="stay")
    assert said.status == 200 and json.loads(said.body) == ANSWER
    assert said.headers == (("content-type", "application/json"), ("x-mine", "m"))


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (b"", failures.BROKEN),
        (b"HTTP/1.1 2", failures.BROKEN),
        (b"nothing\r\n\r\n", failures.GARBAGE),
        (answer(200, ANSWER)[:-3], failures.BROKEN),
        (answer(200, b"{"), failures.GARBAGE),
        (answer(200, b"[" * 10**5), failures.GARBAGE),
        (answer(200, b"[]"), failures.GARBAGE),
        (answer(200, {"choices": ANSWER["choices"]}), failures.GARBAGE),
        (answer(200, {**HEAD, "choices": []}), failures.GARBAGE),
        (answer(200, {**HEAD, "choices": [{"text": 3}]}), failures.GARBAGE),
        (answer(200, ANSWER, kind="text/html"), failures.GARBAGE),
        (answer(302, ERROR, "Location: http://a/"), failures.GARBAGE),
        (answer(400, b"<h1>no</h1>", kind="text/html"), failures.GARBAGE),
        (answer(404, b"nginx"), failures.GARBAGE),
        (answer(404, ERROR), failures.ABSENT),
        (answer(429, ERROR), failures.BUSY),
        (answer(503, ERROR), failures.STATUS),
        (answer(503, b"", "Retry-After: 1"), failures.BUSY),
        (answer(500, ERROR), failures.STATUS),
        (answer(504, ERROR), failures.TIMEOUT),
    ],
    ids=range(20),
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_no_answer_is_a_failure(said, kind, stream):
    if stream and b" 200 " in said:
        kind = {failures.BROKEN: failures.GARBAGE}.get(kind, kind)  # its type is wrong already
    assert kind_of(said, stream=stream) == kind


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_of_the_user_is_an_answer(stream):
    for status in (400, 401, 413, 422):
        assert one_try(answer(status, ERROR), stream=stream).status == status
    assert kind_of(answer(401, ERROR), stream=stream, key="k") == failures.KEY
    assert kind_of(answer(403, ERROR), stream=stream, key="k") == failures.KEY


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("2", 2.0), ("0.5", 0.5), ("-3", 0.0), ("9999", 30.0), ("nan", None), ("soon", None),
     ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0), ("Thu, 01 Jan 2170 00:00:00 GMT", 30.0)],
)  # fmt: skip
def test_retry_after_is_a_number_or_a_date(header, seconds):
    with pytest.raises(Failure) as told:
        one_try(answer(429, ERROR, f"Retry-After: {header}"))
    assert told.value.retry_after == seconds and told.value.status == 429


def test_a_stream_is_read_to_its_end():
    data = EVENT + b": alive\n\n" + EVENT + b"data: [DONE]\n\n"
    said = chunked(data[:50], data[50:]) + b"0\r\n\r\n"
    events = one_try(said, stream=True, fingerprint="fp", end="stay")
    assert events == [json.dumps(CHUNK), " alive", json.dumps(CHUNK), "[DONE]"]


@pytest.mark.parametrize("end", ["close", "reset"])
@pytest.mark.parametrize("pause", [0.0, 0.1], ids=["at once", "later"])
@pytest.mark.parametrize(
    "said",
    [chunked(EVENT), chunked(EVENT)[:-1] + b"1", chunked(EVENT) + b"ffff\r\ndata: {", chunked(EVENT)
     + b"0\r\n\r\n"],
    ids=["between chunks", "no chunk", "within a chunk", "as if all were well"],
)  # fmt: skip
def test_a_stream_that_ends_before_it_is_done_is_broken(said, end, pause):
    """Also when it broke off while nobody read: a slow user is in between."""
    assert kind_of(said, stream=True, end=end, pause=pause) in (failures.BROKEN, failures.GARBAGE)


@pytest.mark.parametrize("end", ["close", "reset", "stay"])
def test_chunks_of_http_that_cannot_be_read_break_a_stream(end):
    """aiohttp tells who reads later, and does not wake who reads already: then the time does."""
    for then in (b"zz\r\ndata", b"5\r\nabcdexx\r\n"):
        how = {"stream": True, "then": then, "end": end}
        assert kind_of(chunked(EVENT), pause=0.1, **how) == failures.BROKEN
        assert kind_of(chunked(EVENT), **how) in (failures.BROKEN, failures.TIMEOUT)


def test_a_stream_that_falls_silent_is_given_up():
    begun = time.monotonic()
    for said in (b"", chunked(), chunked(EVENT), chunked(b": alive\n\n")):
        assert kind_of(said, stream=True, end="stay") == failures.TIMEOUT
    assert time.monotonic() - begun < 3.0


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"data: {\n\n", failures.GARBAGE),
        (b"data: \xff\n\n", failures.GARBAGE),
        (b"data: " + b"x" * 2**23, failures.GARBAGE),
        (EVENT.replace(b'"fp"', b'"other"'), failures.VERSION),
        (EVENT.replace(b'"fp"', b"null"), failures.GARBAGE),
    ],
    ids=range(5),
)
def test_a_stream_that_does_not_begin_a_text_is_a_failure(data, kind):
    assert kind_of(chunked(data), stream=True, fingerprint="fp", end="stay") == kind


def test_a_stream_begins_with_its_text():
    """A first chunk without text comes at once from servers, and says nothing."""
    empty = EVENT.replace(b'"a"', b'""')
    begun = time.monotonic()
    assert kind_of(chunked(empty), stream=True, end="stay") == failures.TIMEOUT
    assert time.monotonic() - begun > 0.25
    said = chunked(empty, EVENT, b"data: [DONE]\n\n")
    assert len(one_try(said, stream=True, end="stay")) == 3, "and is told when the text comes"


def test_no_connection_is_a_failure_that_names_no_address():
    with socket.create_server(("127.0.0.1", 0)) as found:
        url = f"http://127.0.0.1:{found.getsockname()[1]}"

    async def run(url, **limits):
        async with aiohttp.ClientSession() as session:
            place = tries.Place(session, Region(url=url, name="r", **limits), None)
            return await tries.whole(place, request())

    for each in (url, "http://no-such-host.invalid"):
        with pytest.raises(Failure) as told:
            asyncio.run(run(each))
        assert told.value.kind == failures.CONNECT and str(told.value) == "r: no connection"
