"""`launch/serve_ray.py` on a Ray of this machine: replicas killed, replaced, left, under load."""

import contextlib
import itertools
import signal
import socket
import threading
import time
from pathlib import Path
from typing import NamedTuple

import exported
import gateway_places
import httpx
import openai
import psutil
import pytest
import tiny_server
import yaml
from fastapi import testclient

import mdlm_jax
from mdlm_jax.serving.versions import registry
from mdlm_jax.writing import requests

ray = pytest.importorskip("ray", reason="needs the extra serve-ray")
from ray import serve  # noqa: E402
from ray.serve.schema import ServeDeploySchema  # noqa: E402

from launch import serve_ray  # noqa: E402

pytestmark = pytest.mark.slow  # a Ray starts: a quarter of a minute

SLOTS, STEPS, SEEDS = 2, 4, range(6)
STRATEGIES = ("exact_count", "remask(cap, 0.1)")
PROMPT = "the {mask:20}"
LONG = {"strategy": STRATEGIES[1], "steps": 150}  # it is always in the middle of some


class App(NamedTuple):
    url: str
    client: openai.OpenAI
    settings: serve_ray.Settings
    driver: psutil.Process

    def replicas(self):
        """Their processes."""
        return {
            each.pid
            for each in self.driver.children(recursive=True)
            if each.name().startswith("ray::ServeR")
        }

    def states(self):
        told = serve.status().applications["default"].deployments["mdlm"].replica_states
        return {getattr(state, "value", state): count for state, count in told.items()}


def client_of(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=30)


def text_of(client, seed):
    """Of a request; of each second seed as a stream."""
    asked = {"model": "run", "prompt": PROMPT, "seed": seed, "extra_body": LONG}
    if seed % 2:
        return client.completions.create(**asked).choices[0].text
    with client.completions.create(**asked, stream=True) as stream:
        return "".join(piece.choices[0].text for piece in stream)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ray") / "run"
    return exported.write(folder, kind="bpe", vocab_size=300, length=32)


@pytest.fixture(scope="module")
def texts(folder):
    """What an undisturbed server writes, and its fingerprint."""
    how = {"strategies": STRATEGIES, "slots": SLOTS, "defaults": requests.Options(steps=STEPS)}
    with tiny_server.running({"run": mdlm_jax.load(folder)}, how=how) as server:
        answers = [
            server.client.completions.create(model="run", prompt=PROMPT, seed=seed, extra_body=LONG)
            for seed in SEEDS
        ]
    assert len({answer.choices[0].text for answer in answers}) == len(SEEDS)
    return [answer.choices[0].text for answer in answers], answers[0].system_fingerprint


@pytest.fixture(scope="module")
def app(folder):
    """Two replicas on one GPU, which Ray believes to be there."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    settings = serve_ray.Settings(
        workdir=str(folder),
        strategies=", ".join(STRATEGIES),
        steps=STEPS,
        slots=SLOTS,
        replicas=2,
        cpus=0.5,
        gpus=0.5,
    )
    root = str(Path(serve_ray.__file__).parents[1])
    ray.init(
        num_cpus=2,
        num_gpus=1,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": root}},
    )
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(serve_ray.app(settings))
        url = f"http://127.0.0.1:{port}"
        with client_of(url) as client:
            yield App(url, client, settings, psutil.Process())
        serve.shutdown()
    finally:
        ray.shutdown()


@contextlib.contextmanager
def load(texts, *urls):
    """Clients that ask one of the urls each; yields what became of their requests so far."""
    done, ends, numbers = [], threading.Event(), itertools.count()

    def ask(url):
        with client_of(url) as client:
            while not ends.wait(0.05):
                seed = next(numbers) % len(SEEDS)
                try:
                    told = "text" if text_of(client, seed) == texts[seed] else "wrong"
                except (openai.APIError, httpx.HTTPError) as error:
                    told = error
                done.append((url, told))

    threads = [threading.Thread(target=ask, args=(url,)) for url in urls]
    for thread in threads:
        thread.start()
    try:
        yield done
    finally:
        ends.set()
        for thread in threads:
            thread.join(60)
    assert not any(thread.is_alive() for thread in threads)


def failed(done):
    return [(url, told) for url, told in done if told != "text"]


def test_a_replica_that_is_killed_costs_its_own_requests_and_is_replaced(app, texts):
    written, fingerprint = texts
    before = app.replicas()
    assert len(before) == 2 and app.states() == {"RUNNING": 2}
    memory = {psutil.Process(pid).environ()["XLA_PYTHON_CLIENT_MEM_FRACTION"] for pid in before}
    assert memory == {"0.450"}
    plain = app.client.completions.create(model="run", prompt=PROMPT, seed=0, extra_body=LONG)
    assert (plain.choices[0].text, plain.system_fingerprint) == (written[0], fingerprint)

    patient = {"first_byte_s": 20.0, "between_bytes_s": 20.0, "whole_s": 20.0}
    gateway = gateway_places.before(app, each=patient, limits={"deadline_s": 60.0})
    with gateway as guarded, load(written, *[app.url] * 3, guarded.url) as done:
        tiny_server.wait_until(lambda: len(done) >= 8, 30)
        assert not failed(done)
        psutil.Process(min(before)).send_signal(signal.SIGKILL)
        tiny_server.wait_until(lambda: app.states() != {"RUNNING": 2}, 30)
        tiny_server.wait_until(lambda: app.states() == {"RUNNING": 2}, 60)
        back = len(done)
        tiny_server.wait_until(lambda: len(done) >= back + 8, 30)
    errors = failed(done)
    assert not failed(done[back:]), errors
    assert all(url == app.url and told != "wrong" for url, told in errors), errors
    assert guarded.url in {url for url, _ in done}
    after = app.replicas()
    assert len(after) == 2 and min(before) not in after


def test_an_update_drops_no_request(app, texts):
    """The GPU has no place for a third replica, so that they go one after the other."""
    before = app.replicas()
    with load(texts[0], *[app.url] * 2) as done:
        tiny_server.wait_until(lambda: len(done) >= 4, 30)
        serve.run(serve_ray.app(app.settings.model_copy(update={"steps": 3})))
        updated = len(done)
        tiny_server.wait_until(lambda: len(done) >= updated + 4, 30)
    assert not failed(done) and updated > 4
    assert not app.replicas() & before
    answer = app.client.completions.create(model="run", prompt=PROMPT, seed=0)
    assert answer.usage.evaluations == 3


def test_a_replica_follows_its_version(folder, tmp_path, monkeypatch):
    """Without a Ray: the class that it makes replicas of."""
    pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(serve_ray, "_FOLLOW", 0.2)
    client = registry.connect()
    for steps in (1, 2):
        registry.register(client, "tiny", str(folder), requests.Options(steps=steps))
    registry.promote(client, "tiny", 1)
    settings = serve_ray.Settings(model="models:/tiny@champion", strategies=STRATEGIES[0], slots=1)
    wrapped, *_ = serve_ray.Replica.func_or_class.__bases__
    replica = wrapped(settings)
    with testclient.TestClient(replica.__serve_build_asgi_app__()) as user:

        def written():
            asked = {"model": "tiny", "prompt": PROMPT, "seed": 1}
            return user.post("/v1/completions", json=asked).json()["model"]

        assert written() == "tiny/1"
        registry.promote(client, "tiny", 2)
        tiny_server.wait_until(lambda: written() == "tiny/2", 60)
    replica.__del__()


def test_clients_that_leave_free_their_slots(app):
    endless = {**LONG, "steps": 100_000}
    with contextlib.ExitStack() as streams:
        for _ in range(6):  # in 4 slots
            stream = app.client.completions.create(
                model="run", prompt=PROMPT, stream=True, extra_body=endless
            )
            next(iter(streams.enter_context(stream)))
    began = time.monotonic()
    for seed in SEEDS:
        assert text_of(app.client, seed)
    assert time.monotonic() - began < 20


def test_settings_that_cannot_be_are_refused(folder):
    here = {"workdir": str(folder)}
    for told, given in {
        "give one of workdir and model": {},
        "a version has its own": {"model": "models:/x", "steps": 1},
        "max_replicas is 1": {**here, "replicas": 2, "max_replicas": 1},
        "lengths must be as 64,128, not '64;128'": {**here, "lengths": "64;128"},
        "Extra inputs are not permitted": {**here, "slot": 3},
        "no folder at": {"workdir": str(folder / "nothing")},
    }.items():
        with pytest.raises(ValueError, match=told):
            serve_ray.app(serve_ray.Settings(**given))


def test_the_configuration_of_a_cluster_is_one():
    path = Path(serve_ray.__file__).with_name("serve_ray.yaml")
    (made,) = ServeDeploySchema.model_validate(yaml.safe_load(path.read_text())).applications
    assert made.import_path == "launch.serve_ray:app"
    settings = serve_ray.Settings(**made.args)
    assert settings.max_replicas > settings.replicas
    assert serve_ray.app(settings)
