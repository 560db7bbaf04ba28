"""Paths, keys, logs, signals: the gateway as a process among others."""

import concurrent.futures
import json
import re
import time
import urllib.request

import openai
import pytest
from gateway_places import (
    BODY,
    FREE,
    ask,
    before,
    client,
    expected,
    idle,
    metrics,
    post,
    wait_until,
)

from benchmarks import failing_region
from benchmarks.fleet import Gateway, call, running


def test_what_is_the_users_fault_is_passed_on_at_once(gateway, well):
    count = len(well[1].stats()["asked"])
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="max_tokens"):
            ask(gateway, stream=stream, max_tokens=-1)
    assert len(well[1].stats()["asked"]) == count, "the second region was not asked"
    with pytest.raises(openai.NotFoundError) as told:
        ask(gateway, model="unknown")
    assert told.value.code == "model_not_found"
    assert len(well[1].stats()["asked"]) == count + 1, "it might have had the model"


def test_paths_that_there_are_and_others(gateway, well):
    models = client(gateway).models
    assert [model.id for model in models.list()] == [failing_region.MODEL]
    assert models.retrieve(failing_region.MODEL).id == failing_region.MODEL
    with pytest.raises(openai.NotFoundError):
        models.retrieve("other")
    assert call(gateway.url + "/v1/models/../stats")[0] == 404
    for path, status in {"/v1/embeddings": 404, "/": 404, "/v1/completions": 405}.items():
        found, body = call(gateway.url + path)
        assert found == status and body["error"]["type"] == "invalid_request_error"
    assert post(gateway, b"{}", "/v1/models")[0] == 405
    assert post(gateway, b"{")[0] == 400
    status, body, _ = post(gateway, b'"' + b"x" * 2**20 + b'"')
    assert status == 413 and "1048576 bytes" in json.loads(body)["error"]["message"]
    found, body = call(gateway.url + "/readyz")
    assert found == 200 and body["regions"]["a"] == {"healthy": True, "breaker": "closed"}
    with urllib.request.urlopen(gateway.url + "/healthz") as answer:
        assert answer.status == 200
    page = metrics(gateway)
    assert page['mdlm_gateway_region_healthy{region="a"}'] == 1.0
    assert page["mdlm_gateway_requests_running"] == 0.0


def test_a_region_gets_its_own_key_and_a_new_one_is_read(folder, well):
    first, second = well
    path = folder / "key"
    path.write_text("own-1\n")
    with before(first, second, own={"a": {"key_file": str(path)}}) as gateway:

        def sent(region):
            return region.stats()["asked"][-1]["headers"]["authorization"]

        ask(gateway)
        assert sent(first) == "Bearer own-1"
        path.write_text("own-2")
        time.sleep(0.5)
        first.control(mode="status", status=401)
        assert ask(gateway) == expected(), "a key that is refused is not the user's fault"
        assert sent(first) == "Bearer own-2" and sent(second) == "Bearer user"
        path.unlink()
        time.sleep(0.5)
        first.control()
        ask(gateway)
        assert sent(first) == "Bearer own-2"
    first.control(mode="status", status=401)
    with before(first, second) as gateway, pytest.raises(openai.AuthenticationError):
        ask(gateway)


def test_a_gateway_with_keys_wants_one(well):
    first, second = well
    page = "https://page.example.org"
    with before(first, second, keys=[b"sk-1"], cors=[page]) as gateway:
        assert ask(gateway, key="sk-1") == expected()
        with pytest.raises(openai.AuthenticationError):
            ask(gateway, key="sk-2")
        assert call(gateway.url + "/v1/models")[0] == 401
        allowed = "Access-Control-Allow-Origin"
        for origin in (page, "https://other.example.org"):
            headers = post(gateway, BODY, authorization="Bearer sk-1", origin=origin)[2]
            assert headers.get(allowed) == (page if origin == page else None)


def test_a_gateway_stands_before_gateways_and_before_itself_never(well):
    first, second = well
    with before(first) as one, before(second) as two, before(one, two) as outer:
        first.control(mode="end", after=4)
        assert ask(outer, n=2) == expected(n=2)
        assert ask(outer, stream=False) == expected()
        assert idle(first, second)
    first.control()
    with before(None, second) as ring:
        wait_until(lambda: call(ring.url + "/readyz")[1]["regions"]["a"]["healthy"])
        assert post(ring, BODY, x_gateway_hops="4")[0] == 508
        assert ask(ring) == expected()
        assert metrics(ring)['mdlm_gateway_requests_total{ended="508",path="/v1/completions"}'] == 2


def test_the_log_has_no_text_of_users(gateway, well):
    first, _ = well
    secret = "the secret of a user"
    first.control(mode="html", times=1)
    ask(gateway, user=secret, key="sk-secret", stop=[secret])
    post(gateway, {**BODY, "prompt": secret, "model": secret}, x_request_id="mine")
    post(gateway, secret.encode())
    line = r"\bid=mine path=/v1/completions ended=404 .*ms=\d+$"
    wait_until(lambda: re.search(line, gateway.log.read_text(), re.MULTILINE))
    log = gateway.log.read_text()
    assert "secret" not in log and expected()[0][:20] not in log
    assert "failed=garbage a: an answer of type text/html" in log


@pytest.mark.slow
def test_a_signal_lets_what_was_begun_end(folder, well):
    first, _ = well
    made = Gateway(folder, {"a": first.url}, gateway=FREE)
    with running(made):
        first.control(delay=0.05)
        ended = []

        def end():
            if not ended:
                ended.append(made.process.terminate())

        assert ask(made, on_text=end) == expected() and ended
        assert made.process.wait(10) == 0


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_what_does_not_end_in_time_is_told_so(folder, well, stream):
    first, _ = well
    made = Gateway(folder, {"a": first.url}, "--drain=0.5", gateway=FREE)
    with running(made), concurrent.futures.ThreadPoolExecutor(1) as pool:
        first.control(delay=0.1)
        asked = pool.submit(post, made, {**BODY, "max_tokens": 100, "stream": stream})
        wait_until(lambda: first.stats()["running"])
        time.sleep(0.5)
        made.process.terminate()
        status, raw, _ = asked.result()
        assert status == (200 if stream else 503)
        told = raw.strip().splitlines()[-1].removeprefix("data: ")
        assert json.loads(told)["error"]["code"] == "stopping"
        assert idle(first)
        assert made.process.wait(10) == 0
