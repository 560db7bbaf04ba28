"""Rows that are not written to their end: a client gone, a deadline, a full queue, a fault."""

import contextlib
import json
import threading
import time

import httpx
import openai
import pytest
import tiny_server

from mdlm_jax.serving.batching.engine import Engine

LONG = {"strategy": "remask(cap, 0.1)", "steps": 100_000}  # a minute or more: all steps are taken


@pytest.fixture
def small(tiny):
    """Two slots and three places to wait in, for each kind of strategy."""
    with tiny_server.running({"tiny": tiny}, queue=3) as server:
        yield server


def active(server):
    return sum(lane.active + lane.queued for lane in server.engine.stats().lanes)


def ended(server):
    return server.engine.stats().ended


def begin(server, **fields):
    """A stream of a long text, which has begun."""
    stream = server.client.completions.create(
        model="tiny", prompt="the {mask:20}", stream=True, extra_body=LONG, **fields
    )
    next(iter(stream))
    return stream


def test_a_client_that_goes_away_frees_its_slots(small):
    before = ended(small).get("cancelled", 0)
    stream = begin(small, n=3)
    tiny_server.wait_until(lambda: active(small) == 3)
    stream.close()
    tiny_server.wait_until(lambda: active(small) == 0)
    body = {"model": "tiny", "prompt": "the {mask:20}", **LONG}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{small.address}/v1/completions", json=body, timeout=0.5)
    tiny_server.wait_until(lambda: active(small) == 0)
    assert ended(small)["cancelled"] == before + 4
    assert small.client.completions.create(model="tiny", prompt="the").choices[0].text


def test_a_stop_frees_its_slot(server):
    """The row is not written to its end where enough of it is known."""
    body = {"model": "tiny", "prompt": "the", "max_tokens": 30, "seed": 3}
    whole = server.client.completions.create(model="tiny", prompt="the", max_tokens=30, seed=3)
    before = ended(server).get("cancelled", 0)
    stop = whole.choices[0].text[:1]
    answer = httpx.post(f"{server.address}/v1/completions", json={**body, "stop": stop}).json()
    assert answer["choices"][0] | {"logprobs": None} == {
        "index": 0, "text": "", "finish_reason": "stop", "logprobs": None,
    }  # fmt: skip
    assert ended(server).get("cancelled", 0) - before in (0, 1)  # unless one round wrote it all
    tiny_server.wait_until(lambda: active(server) == 0)


def test_a_full_queue_is_told_and_takes_nothing(small):
    """All rows of a request are taken, or none."""
    with contextlib.ExitStack() as streams:
        streams.enter_context(begin(small, n=2))
        tiny_server.wait_until(lambda: sum(x.active for x in small.engine.stats().lanes) == 2)
        streams.enter_context(begin(small, n=2))
        with pytest.raises(openai.RateLimitError) as refused:
            begin(small, n=2)
        assert int(refused.value.response.headers["retry-after"]) >= 1
        assert refused.value.code == "queue_full"
        tiny_server.wait_until(lambda: active(small) == 4)  # what was taken of it is given up
        # Another kind of strategy has places of its own.
        assert small.client.completions.create(model="tiny", prompt="the").choices
    tiny_server.wait_until(lambda: active(small) == 0)


def test_a_deadline_is_told(small):
    body = {"model": "tiny", "prompt": "the {mask:20}", "timeout": 0.3, **LONG}
    begun = time.monotonic()
    response = httpx.post(f"{small.address}/v1/completions", json=body, timeout=30)
    assert response.status_code == 504 and time.monotonic() - begun < 5
    told = response.json()["error"]
    assert told["type"] == "timeout_error" and "the deadline passed" in told["message"]
    with httpx.stream(
        "POST", f"{small.address}/v1/completions", json={**body, "stream": True}, timeout=30
    ) as stream:
        *_, last = [line for line in stream.iter_lines() if line]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "deadline"
    tiny_server.wait_until(lambda: len(small.told) == 2)
    assert [told["status"] for told in small.told] == [504, 504]
    assert active(small) == 0


def test_a_gateway_says_how_much_time_is_left(small):
    body = {"model": "tiny", "prompt": "the {mask:20}", **LONG}
    begun = time.monotonic()

    def ask(left, **fields):
        headers = {"X-Request-Timeout": left, "X-Request-Id": "of-a.gateway"}
        url = f"{small.address}/v1/completions"
        return httpx.post(url, json=body | fields, headers=headers, timeout=30)

    assert ask("0.3").status_code == ask("9", timeout=0.3).status_code == 504
    assert time.monotonic() - begun < 5
    response = ask("999", strategy="exact_count", steps=2)
    assert response.status_code == 200, "more than the server allows is no error of the user"
    assert response.headers["X-Request-Id"] == "of-a.gateway"
    tiny_server.wait_until(lambda: [told["id"] for told in small.told] == ["of-a.gateway"] * 3)
    assert small.told[-1]["answer"] == response.json()["id"]
    for wrong in ("0", "soon"):
        response = ask(wrong)
        assert response.status_code == 400
        assert response.json()["error"]["message"].startswith("x-request-timeout must be a number")


def test_a_deadline_is_told_where_the_device_hangs(small, monkeypatch):
    """The engine cannot tell it then, and the client does not wait for it."""
    hang = threading.Event()
    (lane,) = [x for x in small.engine._lanes if x.name == "exact_count"]
    real = lane.round
    monkeypatch.setattr(lane, "round", lambda: (hang.wait(30), real())[1])
    body = {"model": "tiny", "prompt": "the", "timeout": 0.2}
    begun = time.monotonic()
    try:
        response = httpx.post(f"{small.address}/v1/completions", json=body, timeout=30)
    finally:
        hang.set()
    assert response.status_code == 504 and time.monotonic() - begun < 6
    assert response.json()["error"]["message"].endswith("the engine did not answer")


def test_a_round_that_fails_fails_its_rows_and_makes_the_server_unready(small, monkeypatch):
    assert httpx.get(f"{small.address}/readyz").json() == {"status": "ready"}
    stream = begin(small)
    (lane,) = [x for x in small.engine._lanes if x.name == "exact_count"]

    def fails():
        if not lane.is_idle:
            raise RuntimeError("out of memory\non the device")

    monkeypatch.setattr(lane, "round", fails)
    with pytest.raises(openai.InternalServerError) as failed:
        small.client.completions.create(model="tiny", prompt="the")
    assert failed.value.status_code == 500 and "out of memory" in failed.value.message
    ready = httpx.get(f"{small.address}/readyz")
    assert ready.status_code == 503 and "out of memory" in ready.json()["error"]["message"]
    assert httpx.get(f"{small.address}/healthz").status_code == 200
    with pytest.raises(openai.APIStatusError) as refused:
        small.client.completions.create(model="tiny", prompt="the")
    assert refused.value.status_code == 503 and refused.value.response.headers["retry-after"]
    stream.close()


@pytest.mark.slow
def test_the_end_of_a_server_waits_for_what_was_begun(tiny):
    """And a row that takes longer than that is told so."""
    texts = []

    def follow(stream):
        try:
            texts.append("".join(event.choices[0].text for event in stream if event.choices))
        except openai.APIError as error:
            texts.append(error)

    engine = Engine()
    with tiny_server.running({"tiny": tiny}, engine=engine) as server:
        short = server.client.completions.create(
            model="tiny", prompt="the {mask:20}", stream=True, seed=1,
            extra_body=LONG | {"steps": 20},
        )  # fmt: skip
        threads = [threading.Thread(target=follow, args=(each,)) for each in (short, begin(server))]
        for thread in threads:
            thread.start()
        tiny_server.wait_until(lambda: active(server) == 2)
    for thread in threads:
        thread.join(30)
    assert not engine.ready
    whole, lost = sorted(texts, key=lambda each: isinstance(each, Exception))
    assert whole.startswith("the") and "[MASK]" not in whole
    assert isinstance(lost, openai.APIError) and "the server ended before" in lost.message
