"""What a real server tells Prometheus."""

import re
import shutil
import subprocess

import httpx
import openai
import pytest
import tiny_server
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from mdlm_jax.serving.watching import metrics

PROMPT = "the {mask:9} mill"
LONG = {"strategy": "remask(cap, 0.1)", "steps": 100_000}


@pytest.fixture(scope="module")
def served(tiny):
    with tiny_server.running({"tiny": tiny}, queue=2) as server:
        yield server


def page(server):
    return httpx.get(f"{server.address}/metrics").text


def figures(server):
    """The value of every sample, by name and labels."""
    families = text_string_to_metric_families(page(server))
    return {
        (each.name, *sorted(each.labels.items())): each.value
        for family in families
        for each in family.samples
    }


def total(found, name, **labels):
    return sum(
        value
        for (own, *pairs), value in found.items()
        if own == name and labels.items() <= dict(pairs).items()
    )


def grown(server, before, name, **labels):
    """How much a figure has grown; a request is counted when its connection is done."""
    return total(figures(server), name, **labels) - total(before, name, **labels)


def ask(server, **fields):
    return server.client.completions.create(model="tiny", prompt=PROMPT, **fields)


def counts(server, before, outcome, **labels):
    """Waits until one more request has ended so, and no other."""
    name = "mdlm_requests_total"
    tiny_server.wait_until(lambda: grown(server, before, name) == 1)
    assert grown(server, before, name, outcome=outcome, **labels) == 1


def test_an_answer_is_counted_with_its_time_and_its_work(served):
    before = figures(served)
    ask(served, n=2, extra_body={"steps": 3})
    counts(served, before, "answered", endpoint="completions", model="tiny")
    grew = {
        "mdlm_request_seconds_count": 1,
        "mdlm_first_token_seconds_count": 0,  # nobody was told before the end
        "mdlm_rows_taken_total": 2,
        "mdlm_rows_written_total": 2,
        "mdlm_evaluations_total": 2 * 3,
        "mdlm_tokens_total": 2 * 9,
    }
    assert {name: grown(served, before, name) for name in grew} == grew
    assert grown(served, before, "mdlm_ticks_total", strategy="exact_count", length="48") >= 3
    assert 0 < grown(served, before, "mdlm_request_seconds_sum") < 10


def test_a_stream_is_counted_with_the_time_of_its_first_text(served):
    before = figures(served)
    assert [*ask(served, stream=True)]
    counts(served, before, "answered")
    assert grown(served, before, "mdlm_first_token_seconds_count", model="tiny") == 1
    first, whole = (
        grown(served, before, f"mdlm_{name}_seconds_sum") for name in ("first_token", "request")
    )
    assert 0 < first <= whole


def test_each_outcome_is_counted(served):
    def begin():
        stream = served.client.completions.create(
            model="tiny", prompt="the {mask:20}", stream=True, n=2, extra_body=LONG
        )
        next(iter(stream))
        return stream

    before = figures(served)
    with pytest.raises(openai.BadRequestError):
        ask(served, temperature=-1.0)
    counts(served, before, "refused", model="tiny")
    before = figures(served)
    with pytest.raises(openai.NotFoundError):
        served.client.completions.create(model="what a user wrote", prompt="")
    counts(served, before, "refused", model="")
    before = figures(served)
    streams = [begin()]
    tiny_server.wait_until(lambda: total(figures(served), "mdlm_slots_active") == 2)
    streams.append(begin())
    waiting = figures(served)
    assert total(waiting, "mdlm_queue_rows", strategy="remask(cap, 0.1)") == 2
    assert total(waiting, "mdlm_queue_oldest_seconds") > 0
    with pytest.raises(openai.RateLimitError):
        begin()
    counts(served, before, "full", model="tiny")
    for stream in streams:
        before = figures(served)
        stream.close()
        counts(served, before, "cancelled", endpoint="completions")
    tiny_server.wait_until(lambda: total(figures(served), "mdlm_slots_active") == 0)
    before = figures(served)
    with pytest.raises(openai.InternalServerError):
        ask(served, extra_body={"timeout": 0.1, **LONG})
    counts(served, before, "deadline")
    body = {"model": "tiny", "prompt": "the {mask:20}", "timeout": 0.1, "stream": True, **LONG}
    before = figures(served)
    httpx.post(f"{served.address}/v1/completions", json=body)
    counts(served, before, "deadline")  # a stream has had its status 200
    assert grown(served, before, "mdlm_request_seconds_count") == 0
    assert "what a user wrote" not in page(served)


def test_what_fails_makes_it_unready(tiny, monkeypatch):
    with tiny_server.running({"tiny": tiny}) as server:
        before = figures(server)
        assert total(before, "mdlm_ready") == 1
        (lane,) = [x for x in server.engine._lanes if x.name == "exact_count"]

        def fails():
            raise RuntimeError("out of memory")

        monkeypatch.setattr(lane, "round", fails)
        with pytest.raises(openai.InternalServerError):
            ask(server)
        counts(server, before, "failed")
        before = figures(server)
        assert total(before, "mdlm_ready") == 0
        assert total(before, "mdlm_rows_ended_total", how="failed") == 1
        with pytest.raises(openai.InternalServerError):
            ask(server)
        counts(server, before, "unready")


def test_models_software_and_process_are_told(served):
    found = figures(served)
    (offer,) = served.offers.values()
    ((length, fingerprint),) = offer.fingerprints.items()
    told = {"model": "tiny", "length": str(length), "fingerprint": fingerprint}
    assert total(found, "mdlm_model_info", **told) == 1
    assert total(found, "mdlm_build_info") == 1
    assert total(found, "process_resident_memory_bytes") > 1e6
    assert total(found, "mdlm_slots", model="tiny", guided="false") == 6
    assert total(found, "mdlm_compilations_after_readiness_total") == 0


def test_labels_are_bounded_and_names_follow_the_conventions(served):
    text = page(served)
    types = dict(re.findall(r"^# TYPE (mdlm_\S+) (\S+)$", text, re.MULTILINE))
    assert {name for name, kind in types.items() if kind == "counter"} == {
        name for name in types if name.endswith("_total")
    }
    labels = {*re.findall(r"[{,](\w+)=", "".join(re.findall(r"^mdlm_.*", text, re.MULTILINE)))}
    assert labels <= {
        "endpoint", "model", "outcome", "le", "length", "strategy", "guided", "how", "fingerprint",
        "version", "jax", "device",
    }  # fmt: skip
    # What promtool finds fault with is one line each.
    if shutil.which("promtool"):
        done = subprocess.run(
            ["promtool", "check", "metrics"], input=text, capture_output=True, text=True
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_open_metrics_are_told_to_who_asks_for_them(served):
    kind = "application/openmetrics-text"
    answer = httpx.get(f"{served.address}/metrics", headers={"Accept": f"{kind}; version=1.0.0"})
    assert answer.headers["content-type"].startswith(kind)
    families = {each.name for each in openmetrics.text_string_to_metric_families(answer.text)}
    assert {"mdlm_requests", "mdlm_ready"} <= families
    plain = httpx.get(f"{served.address}/metrics")
    assert plain.status_code == 200 and plain.headers["content-type"].startswith("text/plain")


def test_lanes_of_several_deployments_are_told_once():
    """Two that are drained have no name any more, and a page with one sample twice is refused."""
    counts = metrics.stats.Counts(rounds=3)
    lane = metrics.stats.LaneStats((), 8, "exact_count", False, 4, 1, 2, 0.5, 0.1, counts)
    both = lane._replace(deployments=("b", "a"))
    lanes = (lane, lane._replace(oldest=0.7), both)
    families = {each.name: each.samples for each in metrics._of_lanes(lanes)}
    found = {
        name: {each.labels["model"]: each.value for each in families[name]}
        for name in ("mdlm_rounds", "mdlm_queue_oldest_seconds")
    }
    assert found == {
        "mdlm_rounds": {"": 6, "a+b": 3},
        "mdlm_queue_oldest_seconds": {"": 0.7, "a+b": 0.5},
    }
