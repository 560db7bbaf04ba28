"""Asks gateways: by the official client and by hand, and starts them in threads."""

import contextlib
import functools
import json
import socket
import threading
import time
import urllib.request
from typing import NamedTuple

import openai
import uvicorn

from benchmarks import failing_region
from benchmarks.fleet import call
from mdlm_jax.serving.gateway import regions as regions_toml
from mdlm_jax.serving.gateway.app import make_app

PROMPT = "a text of a user"
BODY = {"model": failing_region.MODEL, "prompt": PROMPT, "seed": 5}
# The breaker and the budget have tests of their own.
PATIENT = {"breaker_failures": 10_000, "breaker_least": 10_000, "health_failures": 100}
SOON = {"health_every_s": 0.2, "health_timeout_s": 0.5}
QUICK = {"connect_s": 0.5, "first_byte_s": 1.0, "between_bytes_s": 0.6, "whole_s": 1.5}
FREE = {"hedge_quantile": 0.0, "retry_burst": 1000.0, "deadline_s": 6.0}


@functools.cache
def client(gateway, key="user"):
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0, timeout=20)


class Running(NamedTuple):
    """A gateway in this process."""

    url: str


@contextlib.contextmanager
def before(*places, limits=None, each=None, own=None, **options):
    """Another gateway, in a thread, before regions that are named a, b, c; None is itself."""
    listening = socket.create_server(("127.0.0.1", 0))
    gateway = Running(f"http://127.0.0.1:{listening.getsockname()[1]}")
    made = [
        regions_toml.Region(
            url=(place or gateway).url,
            name=name,
            **{**SOON, **PATIENT, **QUICK, **(each or {}), **(own or {}).get(name, {})},
        )
        for name, place in zip("abc", places, strict=False)
    ]
    settings = regions_toml.Settings(tuple(made), regions_toml.Limits(**{**FREE, **(limits or {})}))
    server = uvicorn.Server(
        uvicorn.Config(
            make_app(settings, **options),
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=5,
        )
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        wait_until(lambda: call(gateway.url + "/readyz")[0] == 200)
        yield gateway
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def wait_until(holds, seconds=10.0):
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it never came to be"
        time.sleep(0.02)


def ask(gateway, *, chat=False, stream=True, on_text=lambda: None, key="user", **body):
    """The texts of all choices, by the official client."""
    body = {"model": failing_region.MODEL, "seed": 5, **body}
    if chat:
        messages = [{"role": "user", "content": PROMPT}]
        made = client(gateway, key).chat.completions.create(
            messages=messages, stream=stream, **body
        )
    else:
        made = client(gateway, key).completions.create(prompt=PROMPT, stream=stream, **body)
    texts = {}
    if not stream:
        return [each.message.content if chat else each.text for each in made.choices]
    for chunk in made:
        for each in chunk.choices:
            text = (each.delta.content if chat else each.text) or ""
            texts[each.index] = texts.get(each.index, "") + text
            if text:
                on_text()
    return [text for _, text in sorted(texts.items())]


def expected(*, chat=False, seed=5, fingerprint="fp_1", **body):
    given = {"messages": [{"role": "user", "content": PROMPT}]} if chat else {"prompt": PROMPT}
    return failing_region.expected(fingerprint, {**given, "seed": seed, **body})


def idle(*regions, seconds=3.0):
    """Whether no request runs in the regions any more, soon."""
    until = time.monotonic() + seconds
    while any(each.stats()["running"] for each in regions):
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def post(gateway, body, path="/v1/completions", timeout=20, **headers):
    """Status, text and headers of a request with a body."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(gateway.url + path, data, names)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, answer.read().decode(), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), error.headers


def metrics(gateway):
    with urllib.request.urlopen(gateway.url + "/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return {
        name: float(value)
        for name, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))
    }
