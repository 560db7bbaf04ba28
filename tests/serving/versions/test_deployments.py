"""Versions on a SQLite file, followed by a real engine, and under load by a real server."""

import collections
import concurrent.futures
import dataclasses
import gc
import shutil
import threading
import time
import weakref

import exported
import jax
import pytest
import tiny_server
from serving import serving_engines as tiny

from mdlm_jax.serving.batching.engine import Engine
from mdlm_jax.serving.versions import deployments, references, registry, storage
from mdlm_jax.serving.versions.deployments import Deployments, How
from mdlm_jax.serving.watching.quality import Quality
from mdlm_jax.writing.requests import Options

pytest.importorskip("mlflow")

LENGTH, SLOTS = 32, 4
MODEL = {"kind": "bpe", "vocab_size": 300, "length": LENGTH}


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    """Versions 1 and 2 of the same weights with 1 and 3 steps, and 3 of others with 3."""
    folder = tmp_path_factory.mktemp("registered")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        client = registry.connect()
        for run, steps in (("one", 1), ("one", 3), ("other", 3)):
            if not (folder / run).exists():
                exported.write(folder / run, **MODEL, mlp_width=32 if run == "one" else 48)
            registry.register(client, "tiny", str(folder / run), Options(steps=steps))
    return folder


@pytest.fixture
def client(registered, tmp_path, monkeypatch):
    shutil.copy(registered / "mlflow.db", tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    made = registry.connect()
    registry.promote(made, "tiny", 1)
    return made


@pytest.fixture
def engine():
    with Engine() as made:
        yield made


def serving(engine, client, *served, **how):
    parsed = [references.parse(each) for each in served or ["models:/tiny"]]
    return Deployments(engine, client, parsed, How(slots=SLOTS, **how))


def names(catalog):
    return [offer.name for offer in catalog.listed()]


def test_a_promotion_is_followed_and_rolled_back(engine, client, monkeypatch):
    catalog = serving(engine, client)
    assert catalog.choose("tiny", "key") is None
    catalog.update()
    held = catalog.choose("tiny", "key")
    assert (held.name, held.defaults.steps) == ("tiny/1", 1)
    assert names(catalog) == ["tiny", "tiny/1"]
    for name in ("tiny@champion", "tiny/1"):
        assert catalog.choose(name, "key") is held
    for name in ("tiny/2", "tiny@challenger", "models:/tiny", "other"):
        assert catalog.choose(name, "key") is None

    def fail(*_):
        raise AssertionError("the weights are there: nothing is to be read")

    monkeypatch.setattr(storage, "load", fail)
    registry.promote(client, "tiny", 2)
    assert catalog.choose("tiny", "key") is held  # until the next look
    catalog.update()
    offer = catalog.choose("tiny", "key")
    assert (offer.name, offer.defaults.steps) == ("tiny/2", 3)
    assert offer.fingerprints != held.fingerprints
    assert names(catalog) == ["tiny", "tiny/2"]
    # A request that was given the old one can still be written.
    assert engine.deployments.keys() == {"tiny/1", "tiny/2"}
    one, two = engine.deployments.values()
    assert one.params is two.params
    assert len(engine.stats().lanes) == 1  # and the programs
    registry.rollback(client, "tiny")
    catalog.update()
    assert catalog.choose("tiny", "key") is held
    del offer
    catalog.update()
    assert engine.deployments.keys() == {"tiny/1"}


@pytest.mark.slow
def test_what_nobody_holds_goes(engine, client):
    catalog = serving(engine, client)
    catalog.update()
    held = catalog.choose("tiny", "key")
    registry.promote(client, "tiny", 3)
    catalog.update()
    for _ in range(2):
        catalog.update()
        assert engine.deployments.keys() == {"tiny/1", "tiny/3"}
    del held
    gc.collect()
    catalog.update()
    assert engine.deployments.keys() == {"tiny/3"}


@pytest.mark.slow
def test_a_promotion_ends_the_canary_of_the_old_version_and_begins_that_of_the_new(
    engine, client, registered, canary_file
):
    other = str(registered / "other")
    again, is_new = registry.register(client, "tiny", other, Options(steps=3), canary=canary_file)
    assert (again.number, is_new) == (3, False)
    curve = storage.canary_of(client, again)
    quality = Quality(engine, canary_file)
    parsed = [references.parse("models:/tiny")]
    catalog = Deployments(engine, client, parsed, How(slots=SLOTS), quality)
    catalog.update()
    assert storage.canary_of(client, registry.find(client, parsed[0])) is None
    assert quality.told()["tiny/1"].source == "first"
    old = weakref.ref(jax.tree.leaves(engine.deployments["tiny/1"].params)[0])
    go_on, begun = threading.Event(), threading.Event()
    engine.add(tiny.deployment("other"))
    engine.aside("other", lambda params: begun.set() or go_on.wait(120))
    assert begun.wait(60)
    looks = threading.Thread(target=quality.look)  # its first piece waits behind that
    looks.start()
    tiny_server.wait_until(lambda: len(engine._asides) == 1)
    registry.promote(client, "tiny", 3)
    catalog.update()
    gc.collect()
    assert looks.is_alive() and old() is None
    assert quality.told().keys() == {"tiny/3"} and quality.told()["tiny/3"].measured == ()
    go_on.set()
    looks.join(60)
    quality.look()
    assert quality.told()["tiny/3"][:3] == (curve.points, curve.points, "registered")
    assert engine.stats().compilations == 0


@pytest.mark.slow
def test_a_curve_that_cannot_be_read_keeps_no_version_away(
    engine, client, registered, canary_file, tmp_path, caplog
):
    found = registry.find(client, references.parse("models:/tiny/1"))
    (tmp_path / "canary.json").write_text('{"format": 99}')
    at = f"versions/{found.version.digest}"
    client.log_artifact(found.run_id, str(tmp_path / "canary.json"), at)
    quality = Quality(engine, canary_file)
    parsed = [references.parse("models:/tiny/1")]
    Deployments(engine, client, parsed, How(slots=SLOTS), quality).update()
    assert "the canary of tiny/1 cannot be read: a canary of the format 99" in caplog.text
    assert quality.told()["tiny/1"].source == "first"


def test_traffic_is_split_and_the_split_is_followed(engine, client):
    catalog = serving(engine, client)
    registry.promote(client, "tiny", 2, "challenger")
    registry.split(client, "tiny", {"champion": 3, "challenger": 1})
    catalog.update()

    def share(name):
        chosen = [catalog.choose("tiny", f"user {n}").name for n in range(400)]
        return chosen.count(name) / len(chosen)

    assert 0.15 < share("tiny/2") < 0.35
    assert names(catalog) == ["tiny", "tiny/1", "tiny/2"]
    assert catalog.choose("tiny@challenger", "key").name == "tiny/2"
    assert catalog.choose("tiny/2", "key") is catalog.choose("tiny@challenger", "other")
    registry.split(client, "tiny", {"champion": 1, "challenger": 1})
    catalog.update()
    assert 0.4 < share("tiny/2") < 0.6
    registry.split(client, "tiny", {"champion": 0, "challenger": 1})
    catalog.update()
    assert share("tiny/2") == 1 and names(catalog) == ["tiny", "tiny/2"]
    registry.split(client, "tiny", {})
    catalog.update()
    assert share("tiny/1") == 1


def test_a_number_is_not_followed_and_an_alias_takes_no_share(engine, client):
    registry.promote(client, "tiny", 2, "challenger")
    registry.split(client, "tiny", {"challenger": 1})
    catalog = serving(engine, client, "models:/tiny@champion", "models:/tiny/2")
    catalog.update()
    assert catalog.choose("tiny", "key").name == "tiny/1"
    registry.promote(client, "tiny", 2)
    registry.promote(client, "tiny", 1, "challenger")
    catalog.update()
    assert catalog.choose("tiny", "key").name == "tiny/2"
    assert catalog.choose("tiny/2", "key").name == "tiny/2"
    assert names(catalog) == ["tiny", "tiny/2"]


@pytest.mark.slow
def test_a_version_that_cannot_be_loaded_changes_nothing(engine, client, monkeypatch, caplog):
    catalog = serving(engine, client)
    catalog.update()
    tries = []

    def load(*_):
        tries.append(time.monotonic())
        raise OSError("the disk is full")

    caplog.set_level("INFO")
    with monkeypatch.context() as patch:
        patch.setattr(storage, "load", load)
        registry.promote(client, "tiny", 3)
        for _ in range(3):
            catalog.update()
            assert catalog.choose("tiny", "key").name == "tiny/1"
        assert len(tries) == 1  # it waits before it tries again
        patch.setattr(deployments, "_FIRST_PAUSE", 0.0)
        registry.promote(client, "tiny", 2)  # which it can load
        catalog.update()
        assert catalog.choose("tiny", "key").name == "tiny/2"
        registry.promote(client, "tiny", 3)
        catalog.update()
        assert len(tries) == 2
    told = "models:/tiny cannot be followed: OSError: the disk is full"
    assert [record.getMessage() for record in caplog.records].count(told) == 2
    catalog.update()
    assert catalog.choose("tiny", "key").name == "tiny/3"


def test_a_registry_that_is_away_changes_nothing(engine, client, monkeypatch):
    catalog = serving(engine, client)
    catalog.update()

    def away(*_):
        raise ConnectionError("nobody answers")

    with monkeypatch.context() as patch:
        patch.setattr(client, "get_registered_model", away)
        catalog.update()
        assert catalog.choose("tiny", "key").name == "tiny/1"
    registry.promote(client, "tiny", 2)
    catalog.update()
    assert catalog.choose("tiny", "key").name == "tiny/2"


@pytest.mark.parametrize(
    "served, told",
    [
        ("models:/tiny@other", "tiny has no alias 'other': there are champion"),
        ("models:/tiny/9", r"Model Version \(name=tiny, version=9\) not found"),
        ("models:/nothing", "Registered Model with name=nothing not found"),
    ],
)
def test_a_server_does_not_begin_without_its_version(served, told, engine, client):
    with pytest.raises(ValueError, match=told):
        serving(engine, client, served).update()


@pytest.mark.slow
def test_the_strategy_of_a_version_is_compiled_first_and_each_kind_once(engine, client, registered):
    how = Options(steps=2, strategy="threshold(0.5)")
    made, _ = registry.register(client, "tiny", str(registered / "one"), how)
    registry.promote(client, "tiny", made.number)
    catalog = serving(engine, client, strategies=("exact_count", "threshold(0.9)"))
    catalog.update()
    offer = catalog.choose("tiny", "key")
    assert offer.strategies == ("threshold(0.5)", "exact_count")
    assert offer.defaults.strategy == "threshold(0.5)"


@pytest.mark.slow
def test_under_load_promotions_drop_nothing_and_mix_nothing(client):
    """Eight clients ask all the time, while another version is promoted again and again."""
    import tiny_server

    engine = Engine(queue=256)
    catalog = serving(engine, client)
    catalog.update()
    answered, ended = [], threading.Event()

    def ask(server, seed):
        made = server.client.completions.create(
            model="tiny", prompt="the {mask:6} river {mask:6}", seed=seed
        )
        return made.model, made.system_fingerprint, seed, made.choices[0].text

    def ask_on(server, user):
        number = 0
        while not ended.is_set():
            answered.append(ask(server, user * 100 + number % 10))
            number += 1

    with tiny_server.answering(engine, catalog) as server, catalog.following(0.1):
        with concurrent.futures.ThreadPoolExecutor(8) as clients:
            asking = [clients.submit(ask_on, server, user) for user in range(8)]
            try:
                for number in (3, 2, 3, 1):
                    before = len(answered)
                    registry.promote(client, "tiny", number)
                    name = f"tiny/{number}"
                    tiny_server.wait_until(lambda n=name: answered and answered[-1][0] == n, 60)
                    tiny_server.wait_until(lambda n=before: len(answered) > n + 30, 60)
                    tiny_server.wait_until(lambda n=name: engine.deployments.keys() == {n}, 60)
            finally:
                ended.set()
            for each in asking:
                each.result()  # raises what a client was refused
        texts = collections.defaultdict(set)
        for name, fingerprint, seed, text in answered:
            texts[name, fingerprint, seed].add(text)
        assert {name for name, _, _ in texts} == {"tiny/1", "tiny/2", "tiny/3"}
        assert all(len(each) == 1 for each in texts.values())
        # The same as each version writes alone.
        undisturbed = {}
        for number in (1, 2, 3):
            registry.promote(client, "tiny", number)
            tiny_server.wait_until(
                lambda n=number: catalog.choose("tiny", "key").name == f"tiny/{n}", 60
            )
            for seed in {seed for name, _, seed in texts if name == f"tiny/{number}"}:
                *key, text = ask(server, seed)
                undisturbed[tuple(key)] = {text}
        assert undisturbed == dict(texts)
        # By which a mixture would be seen.
        by_seed = collections.defaultdict(list)
        for (_, _, seed), text in texts.items():
            by_seed[seed] += text
        assert all(len({*each}) == len(each) for each in by_seed.values())
    stats = engine.stats()
    assert stats.ended == {"done": len(answered) + len(undisturbed)}, dataclasses.asdict(stats)
