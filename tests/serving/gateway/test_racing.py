"""What a request may spend: its time, tries of others, the patience of regions."""

import concurrent.futures
import json
import socket
import threading
import time

import openai
import pytest
from gateway_places import (
    BODY,
    ask,
    before,
    expected,
    idle,
    metrics,
    post,
    wait_until,
)
from gateway_places import Running as Nowhere

from benchmarks.fleet import call


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("after", [0, 4])
@pytest.mark.parametrize("by", ["field", "header"])
def test_nothing_hangs_past_its_deadline(gateway, well, stream, after, by):
    for each in well:
        each.control(mode="hang", after=after)
    asked = {"x_request_timeout": "0.5"} if by == "header" else {}
    body = {**BODY, "stream": stream, **({} if asked else {"timeout": 0.5})}
    begun = time.monotonic()
    status, raw, _ = post(gateway, body, **asked)
    assert 0.4 < time.monotonic() - begun < 1.0
    assert status == (200 if stream and after else 504)
    error = json.loads(raw.strip().splitlines()[-1].removeprefix("data: "))["error"]
    assert error == {
        "message": "The deadline of the request has passed",
        "type": "timeout_error",
        "param": None,
        "code": "deadline",
    }
    assert idle(*well)


def test_a_slow_drip_ends_at_the_deadline_too(gateway, well):
    well[0].control(mode="slow", seconds=0.2)
    begun = time.monotonic()
    raw = post(gateway, {**BODY, "stream": True, "timeout": 1.0, "max_tokens": 200})[1]
    assert 0.9 < time.monotonic() - begun < 1.5
    assert json.loads(raw.split("data: ")[-1])["error"]["code"] == "deadline"


def test_a_client_that_goes_frees_its_place_in_the_region(gateway, well):
    for stream in (False, True):
        well[0].control(mode="slow", seconds=0.2)
        with socket.create_connection(("127.0.0.1", gateway.port)) as gone:
            body = json.dumps({**BODY, "stream": stream, "max_tokens": 500}).encode()
            gone.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
            )
            if stream:
                assert b"200 OK" in gone.recv(1000)
            else:
                time.sleep(0.3)
            assert well[0].stats()["running"] == 1
        assert idle(well[0], seconds=1.0)
    assert metrics(gateway)['mdlm_gateway_requests_total{ended="gone",path="/v1/completions"}'] >= 2


@pytest.mark.slow  # it waits as long as the region says
def test_a_busy_region_is_left_alone_as_long_as_it_says(gateway, well):
    first, _ = well
    first.control(mode="status", status=429, retry_after=2)
    count = len(first.stats()["asked"])
    for _ in range(5):
        assert ask(gateway, key="busy") == expected()
    assert len(first.stats()["asked"]) == count + 1
    assert ask(gateway, key="another") == expected()
    assert len(first.stats()["asked"]) == count + 2, "the limit may be one user's"
    first.control()
    time.sleep(2.0)
    assert ask(gateway, key="busy") == expected()
    assert len(first.stats()["asked"]) == count + 3
    for each in well:
        each.control(mode="status", status=429, retry_after=1.5)
    with pytest.raises(openai.RateLimitError) as told:
        ask(gateway, key="third")
    assert told.value.response.headers["retry-after"] == "2" and told.value.code == "regions_full"
    for each in well:
        each.control()
    status, _, headers = post(gateway, BODY, authorization="Bearer third")
    assert status == 503 and headers["retry-after"] in ("1", "2"), "none is asked before"
    time.sleep(1.5)
    assert ask(gateway, key="third") == expected()


def test_a_slow_region_is_overtaken_and_given_up(well):
    first, second = well
    with before(first, second, limits={"hedge_quantile": 0.9}) as gateway:
        for stream in (False, True):
            for _ in range(20):
                ask(gateway, stream=stream)
            usual = metrics(gateway)["mdlm_gateway_hedges_total"]
            first.control(mode="hang", times=1)
            begun = time.monotonic()
            assert ask(gateway, stream=stream) == expected()
            assert time.monotonic() - begun < 0.9, "long before the try's own limit"
            assert metrics(gateway)["mdlm_gateway_hedges_total"] == usual + 1
            assert idle(first, second, seconds=0.5), "who lost was cancelled"
        # If both are slow, the first that has text wins.
        first.control(mode="slow", seconds=0.3, times=1)
        assert ask(gateway, n=2) == expected(n=2)
        assert idle(first, second, seconds=0.5)
        page = metrics(gateway)
        assert page['mdlm_gateway_tries_total{region="a",result="cancelled"}'] >= 3
        assert page['mdlm_gateway_region_breaker{region="a"}'] == 0.0, "slow is not broken"


def test_hedges_and_retries_share_one_budget(well):
    first, second = well
    tight = {"retry_burst": 2.0, "retry_share": 0.0, "retries_per_s": 0.0}
    with before(first, second, limits=tight) as gateway:
        first.control(mode="status", status=500)
        assert ask(gateway) == ask(gateway) == expected()
        with pytest.raises(openai.InternalServerError, match="too many retries at present"):
            ask(gateway)
        first.control()
        assert ask(gateway) == expected(), "first tries are free"
        assert metrics(gateway)["mdlm_gateway_retries_refused_total"] == 1.0


def test_requests_fill_the_budget(well):
    first, second = well
    half = {"retry_burst": 2.0, "retry_share": 0.5, "retries_per_s": 0.0}
    with before(first, second, limits=half) as gateway:
        first.control(mode="status", status=500)
        ends = []
        for _ in range(20):
            status, _, _ = post(gateway, BODY)
            ends.append(status)
    assert ends == [200, 200, *[200, 502] * 9], "2 of the burst, then each second one"


def test_who_refuses_connections_costs_no_budget(well):
    gone, second = Nowhere("http://127.0.0.1:1"), well[1]
    none = {"retry_burst": 0.0, "retry_share": 0.0, "retries_per_s": 0.0}
    with before(gone, second, limits=none) as gateway:
        assert ask(gateway) == ask(gateway, stream=False) == expected()


def test_a_broken_try_is_followed_by_a_health_check(well):
    """Long before the next regular one: others are not sent where one broke."""
    first, second = well
    rare = {"health_every_s": 60.0, "health_failures": 2}
    with before(first, second, each=rare) as gateway:
        first.control(ready=False, mode="reset", after=2, times=1)
        assert ask(gateway) == expected()
        wait_until(
            lambda: not call(gateway.url + "/readyz")[1]["regions"]["a"]["healthy"], seconds=2.0
        )


def test_a_region_that_keeps_failing_is_asked_no_more_until_a_probe_succeeds(well):
    first, second = well
    rules = {"breaker_failures": 3, "breaker_open_s": 1.0, "breaker_probes": 1}
    with before(first, second, each=rules) as gateway:
        first.control(mode="status", status=500)
        count = len(first.stats()["asked"])
        for _ in range(6):
            assert ask(gateway) == expected()
        assert len(first.stats()["asked"]) == count + 3
        assert call(gateway.url + "/readyz")[1]["regions"]["a"]["breaker"] == "open"
        time.sleep(1.0)
        assert ask(gateway) == expected()
        assert len(first.stats()["asked"]) == count + 4, "a probe, that failed"
        first.control()
        time.sleep(1.0)
        assert ask(gateway) == expected()
        assert len(first.stats()["asked"]) == count + 4, "it is open for longer"
        time.sleep(1.0)
        assert ask(gateway) == expected()
        assert len(first.stats()["asked"]) == count + 5
        assert call(gateway.url + "/readyz")[1]["regions"]["a"]["breaker"] == "closed"


def test_a_request_waits_a_moment_for_a_region_to_be_free(well):
    first, _ = well
    rules = {"breaker_failures": 1, "breaker_open_s": 0.4, "breaker_open_most_s": 3.0}
    with before(first, each=rules, limits={"tries": 1}) as gateway:
        first.control(mode="status", status=500, times=1)
        assert post(gateway, BODY)[0] == 502
        begun = time.monotonic()
        assert ask(gateway) == expected() and time.monotonic() - begun > 0.3
        first.control(mode="status", status=500)
        for _ in range(5):
            status, body, headers = post(gateway, BODY)
        begun = time.monotonic()
        status, body, headers = post(gateway, BODY)
        assert status == 503 and json.loads(body)["error"]["code"] == "no_region"
        assert headers["retry-after"] in ("2", "3") and time.monotonic() - begun < 0.3


def test_an_unhealthy_region_is_left_out_and_comes_back(well):
    first, second = well
    with before(first, second, each={"health_failures": 2}) as gateway:

        def healthy(name):
            return call(gateway.url + "/readyz")[1]["regions"][name]["healthy"]

        first.control(ready=False)
        wait_until(lambda: not healthy("a"))
        count = len(first.stats()["asked"])
        assert ask(gateway) == expected() and len(first.stats()["asked"]) == count
        second.control(ready=False)
        wait_until(lambda: call(gateway.url + "/readyz")[0] == 503)
        assert ask(gateway) == expected(), "where no check succeeds, who knows"
        assert call(gateway.url + "/v1/models")[0] == 503
        second.control(ready=True)
        wait_until(lambda: healthy("b"))
        count = len(first.stats()["asked"])
        assert ask(gateway) == expected() and len(first.stats()["asked"]) == count
        first.control(ready=True)
        wait_until(lambda: healthy("a"))
        assert ask(gateway) == expected() and len(first.stats()["asked"]) == count + 1


def test_more_requests_than_the_gateway_takes_are_refused(well):
    first, second = well
    with before(first, second, limits={"max_requests": 1}) as gateway:
        first.control(mode="slow", seconds=0.2)
        begun = threading.Event()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            one = pool.submit(ask, gateway, on_text=begun.set, max_tokens=4)
            begun.wait(5)
            status, body, headers = post(gateway, BODY)
            assert status == 503 and json.loads(body)["error"]["code"] == "overloaded"
            assert headers["retry-after"] == "1"
            assert one.result() == expected(max_tokens=4)
        assert ask(gateway, max_tokens=4) == expected(max_tokens=4)
