"""A region that writes a text that its seed decides, and fails as it is told: for the gateway.

    python -m benchmarks.failing_region --port=8001 [--fingerprint=fp_1] [--delay=0.02]

It speaks the contract of `mdlm_jax.serve`: OpenAI's JSON and events, a system_fingerprint in every
chunk. The text of a choice is a function of (fingerprint, prompt, seed, choice); how it is cut into
chunks, and how the choices of a request interleave, is random, as it is where many users share a
device. `POST /control` with `{"mode": "reset", "after": 3, "times": 1}` makes the next request fail
after 3 chunks (MODES has all), `{"steps": 8}` gives requests that are not pinned so many steps;
`GET /stats` tells how many requests run, and what was asked.
"""

import argparse
import asyncio
import json
import random
import socket
import struct
from collections.abc import Iterator
from typing import Any

import uvicorn

_WORDS = (
    "der Fluß runs past an old 石の mill — and market, where traders sold wool, salt & honey 🍯 "
    "naïve \"quotes\" \\ back\tslash 'ticks' later its people built a harbour"
)
MODEL = "failing"

MODES = {
    "bad_json": "a chunk that is no JSON",
    "binary": "bytes that are no text",
    "cut": "a chunk of HTTP that ends in its middle",
    "end": "the stream ends as if all were well, before its text has",
    "error_event": "an error within the stream",
    "hang": "nothing more comes",
    "html": "a page instead of an answer",
    "no_fingerprint": "a chunk without the fingerprint",
    "not_http": "bytes that are no HTTP",
    "other_text": "another text than the seed gives",
    "other_version": "the fingerprint changes within the stream",
    "reset": "the connection is reset",
    "slow": "each chunk takes `seconds`",
    "status": "`status` instead of an answer, with `retry_after`",
}


def text_of(fingerprint: str, prompt: str, seed: int, choice: int, words: int = 0) -> str:
    """What an undisturbed region writes."""
    draw = random.Random(f"{fingerprint}/{prompt}/{seed}/{choice}")
    return " ".join(draw.choices(_WORDS.split(), k=words or draw.randint(8, 24)))


def expected(fingerprint: str, body: dict[str, Any]) -> list[str]:
    """The texts of all choices of a request."""
    prompt = body.get("prompt") or json.dumps(body.get("messages"))
    prompt += f" in {body['steps']} steps" if "steps" in body else ""
    words = body.get("max_tokens") or 0
    return [
        text_of(fingerprint, prompt, body["seed"], index, words)
        for index in range(body.get("n") or 1)
    ]


class Region:
    """The ASGI app."""

    def __init__(self, fingerprint: str, delay: float):
        self.fingerprint, self.delay = fingerprint, delay
        self.fault: dict[str, Any] = {}
        self.running, self.asked = 0, list[dict[str, Any]]()
        self.ready = True
        self.steps: int | None = None  # of a policy

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answers a request."""
        if scope["type"] != "http":
            return
        path, headers = scope["path"], {k.decode(): v.decode() for k, v in scope["headers"]}
        body = b""
        while (part := await receive()).get("more_body"):
            body += part["body"]
        body += part.get("body", b"")
        if path == "/readyz":
            await _json(send, 200 if self.ready else 503, {"ready": self.ready})
        elif path == "/stats":
            await _json(send, 200, {"running": self.running, "asked": self.asked})
        elif path == "/control":
            given = json.loads(body)
            self.ready = given.get("ready", self.ready)
            self.fingerprint = given.get("fingerprint", self.fingerprint)
            self.delay = given.get("delay", self.delay)
            self.steps = given.get("steps")
            self.fault = given if given.get("mode") else {}
            await _json(send, 200, {})
        elif path == "/v1/models":
            await _json(send, 200, {"object": "list", "data": [{"id": MODEL, "object": "model"}]})
        elif path == f"/v1/models/{MODEL}":
            await _json(send, 200, {"id": MODEL, "object": "model"})
        elif path in ("/v1/completions", "/v1/chat/completions"):
            self.running += 1
            asked = json.loads(body)
            self.asked = [*self.asked[-200:], {"headers": headers, "body": asked}]
            answering = asyncio.create_task(self._generate(asked, path, receive, send))
            leaving = asyncio.create_task(_left(receive))
            try:
                await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
            finally:
                self.running -= 1
                answering.cancel()
                leaving.cancel()
        else:
            await _error(send, 404, "not_found")

    async def _generate(self, asked: dict[str, Any], path: str, receive: Any, send: Any) -> None:
        if self.steps is not None and asked.get("policy") != "pinned":
            asked = {**asked, "steps": self.steps}
        fault = self._next_fault()
        mode, after = fault.get("mode"), fault.get("after", 0)
        transport = receive.__self__.transport
        if mode == "status":
            wait = fault.get("retry_after")
            headers = [] if wait is None else [("retry-after", str(wait))]
            await _error(send, fault["status"], "told", headers)
            return
        if asked.get("model", MODEL) != MODEL:
            await _error(send, 404, "model_not_found")
            return
        if asked.get("max_tokens") == -1:
            await _error(send, 400, "max_tokens")
            return
        if mode == "html":
            await _start(send, 200, "text/html")
            await send({"type": "http.response.body", "body": b"<h1>It works!</h1>"})
            return
        if mode == "not_http":
            transport.write(b"\x00\x01 nothing of HTTP\r\n\r\n")
            transport.close()
            return
        delay = fault.get("seconds", self.delay) if mode == "slow" else self.delay
        events = self._events(asked, "chat" in path)
        if not asked.get("stream"):
            for number, _ in enumerate(events):
                await asyncio.sleep(delay)
                if number >= after and await self._fail(mode, transport, send, None):
                    return
            answer = self._whole(asked, "chat" in path)
            if mode == "no_fingerprint":
                del answer["system_fingerprint"]
            raw = b'{"choices": [' if mode in ("bad_json", "cut") else json.dumps(answer).encode()
            await _start(send, 200, "application/json")
            await send({"type": "http.response.body", "body": raw})
            return
        await _start(send, 200, "text/event-stream")
        for number, chunk in enumerate(events):
            await asyncio.sleep(delay * random.uniform(0.5, 1.5))
            if number >= after:
                if mode == "no_fingerprint":
                    del chunk["system_fingerprint"]
                elif mode == "other_version":
                    chunk["system_fingerprint"] = "fp_other"
                elif mode == "other_text":
                    for choice in chunk["choices"]:
                        holder, name = (
                            (choice["delta"], "content") if "delta" in choice else (choice, "text")
                        )
                        holder[name] = "".join(reversed(holder.get(name) or "ab")) + "!"
                elif await self._fail(mode, transport, send, chunk):
                    return
            if asked.get("canvases"):
                await _part(send, b'event: canvas\ndata: {"canvas": "[MASK]"}\n\n')
            await _part(send, f"data: {json.dumps(chunk)}\n\n".encode())
        await _part(send, b"data: [DONE]\n\n")
        await send({"type": "http.response.body", "body": b""})

    async def _fail(self, mode: str | None, transport: Any, send: Any, chunk: Any) -> bool:
        """Fails in the middle of an answer; whether the answer ends with it."""
        streams = chunk is not None
        if mode == "hang":
            await asyncio.sleep(3600)
        elif mode == "reset":
            linger = struct.pack("ii", 1, 0)
            transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, linger
            )
            transport.abort()
        elif mode == "bad_json" and streams:
            await _part(send, b'data: {"choices": [{"index": 0, "te\n\n')
        elif mode == "binary" and streams:
            await _part(send, b"data: \xff\xfe\xfd\n\n")
        elif mode == "error_event" and streams:
            error = {"message": "a tick raised", "type": "server_error", "code": "failed"}
            await _part(send, f"data: {json.dumps({'error': error})}\n\n".encode())
            await send({"type": "http.response.body", "body": b""})
        elif mode == "end" and streams:
            await send({"type": "http.response.body", "body": b""})
        elif mode == "cut" and streams:
            transport.write(b"400\r\ndata: {" + json.dumps(chunk).encode()[:20])
            transport.close()
        else:
            return False
        return True

    def _next_fault(self) -> dict[str, Any]:
        fault = self.fault
        if fault and fault.get("times") is not None:
            fault["times"] -= 1
            if fault["times"] <= 0:
                self.fault = {}
        return fault

    def _head(self, asked: dict[str, Any], chat: bool) -> dict[str, Any]:
        return {
            "id": f"cmpl-{random.randrange(10**9)}",
            "object": "chat.completion.chunk" if chat else "text_completion",
            "created": random.randrange(10**9),
            "model": MODEL,
            "system_fingerprint": self.fingerprint,
            **({} if self.steps is None else {"policy": {"stage": 1, "steps": asked["steps"]}}),
        }

    def _events(self, asked: dict[str, Any], chat: bool) -> Iterator[dict[str, Any]]:
        """The chunks of a stream: pieces of all choices in a random order."""
        head = self._head(asked, chat)
        waiting = dict(enumerate(expected(self.fingerprint, asked)))
        if chat:
            for index in waiting:
                delta = {"role": "assistant", "content": ""}
                yield {**head, "choices": [{"index": index, "delta": delta, "finish_reason": None}]}
        places = dict.fromkeys(waiting, 0)
        while waiting:
            index = random.choice([*waiting])
            size = random.randint(1, 12)
            piece, waiting[index] = waiting[index][:size], waiting[index][size:]
            text: dict[str, Any] = {"delta": {"content": piece}} if chat else {"text": piece}
            choice = {"index": index, **text, "finish_reason": None}
            if asked.get("logprobs"):
                choice["logprobs"] = _logprobs(piece, places[index], chat)
            places[index] += len(piece)
            if not waiting[index]:
                del waiting[index]
                if random.random() < 0.5:
                    yield {**head, "choices": [choice]}
                    end: dict[str, Any] = {"delta": {}} if chat else {"text": ""}
                    choice = {"index": index, **end}
                choice["finish_reason"] = "stop"
            yield {**head, "choices": [choice]}
        if (asked.get("stream_options") or {}).get("include_usage"):
            yield {**head, "choices": [], "usage": {"completion_tokens": sum(places.values())}}

    def _whole(self, asked: dict[str, Any], chat: bool) -> dict[str, Any]:
        texts = expected(self.fingerprint, asked)
        choices = [
            {
                "index": index,
                **({"message": {"role": "assistant", "content": text}} if chat else {"text": text}),
                "finish_reason": "stop",
            }
            for index, text in enumerate(texts)
        ]
        kind = "chat.completion" if chat else "text_completion"
        return {**self._head(asked, chat), "object": kind, "choices": choices}


def _logprobs(piece: str, place: int, chat: bool) -> dict[str, Any]:
    """Of tokens that are single characters."""
    if chat:
        return {"content": [{"token": each, "logprob": -1.0} for each in piece]}
    return {
        "tokens": [*piece],
        "token_logprobs": [-1.0] * len(piece),
        "text_offset": [*range(place, place + len(piece))],
    }


async def _left(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _start(send: Any, status: int, kind: str, headers: Any = ()) -> None:
    pairs = [(b"content-type", kind.encode())]
    pairs += [(name.encode(), value.encode()) for name, value in headers]
    await send({"type": "http.response.start", "status": status, "headers": pairs})


async def _part(send: Any, part: bytes) -> None:
    await send({"type": "http.response.body", "body": part, "more_body": True})


async def _json(send: Any, status: int, value: Any, headers: Any = ()) -> None:
    await _start(send, status, "application/json", headers)
    await send({"type": "http.response.body", "body": json.dumps(value).encode()})


async def _error(send: Any, status: int, code: str, headers: Any = ()) -> None:
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": code, "type": kind, "param": None, "code": code}
    await _json(send, status, {"error": error}, headers)


def main() -> None:
    """Serves until it is killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--fingerprint", default="fp_1")
    parser.add_argument("--delay", type=float, default=0.005)
    given = parser.parse_args()
    uvicorn.run(
        Region(given.fingerprint, given.delay),
        host="127.0.0.1",
        port=given.port,
        log_level="warning",
        lifespan="off",
    )


if __name__ == "__main__":
    main()
