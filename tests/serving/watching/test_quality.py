"""The canary of a server: what it measures, beside what, and at whose cost."""

import concurrent.futures
import dataclasses
import re
import shutil
import subprocess
import threading
from pathlib import Path

import httpx
import jax
import numpy as np
import pytest
import tiny_server
import yaml
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from mdlm_jax import at_rate, data
from mdlm_jax.diffusion import noise
from mdlm_jax.networks import bert
from mdlm_jax.runs.experiment import ObjectiveConfig
from mdlm_jax.serving.batching.engine import Engine
from mdlm_jax.serving.offering import offers
from mdlm_jax.serving.watching import canary, metrics
from mdlm_jax.serving.watching.quality import Quality

RULES = Path(__file__).parents[3] / "launch" / "prometheus_rules.yaml"
LAWS = {
    "masks": ({}, {}),
    "blocks": ({"name": "block", "block_size": 4}, {}),
    "blocks of one": ({"name": "block", "block_size": 1}, {}),
    "causal": ({"name": "autoregressive"}, {"attention": "causal"}),
}
HOW = {**tiny_server.HOW, "strategies": ("exact_count",)}


def evaluated(model, files):
    """Nats and error by mask rate, as `evaluate --text` measures them."""
    rows = data.read_rows(files, model.tokenizer, model.length)
    sep = data.special_ids(model.tokenizer).sep
    measure = model.family.make_measure(
        model.objective, model.encoder, start_id=sep, seed=0, draws=2, mesh=None, curve=True
    )
    figures = measure.of_rows(model.params, rows, 32)
    if model.exact:
        return {1.0: (figures["nats_per_token"], figures["text_error"])}
    return {each["rate"]: (each["nats"], each["error"]) for each in figures["rate_curve"]}


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS)
def test_each_family_is_measured_by_its_own_law(tiny, canary_file, law):
    objective, encoder = LAWS[law]
    model = tiny.model._replace(
        objective=ObjectiveConfig(**objective),
        encoder=dataclasses.replace(tiny.model.encoder, **encoder),
    )
    curve = canary.measure(model, canary_file)
    wanted = evaluated(model, canary_file)
    assert [each.rate for each in curve.points] == [*wanted]
    for each in curve.points:
        assert (each.nats, each.error) == pytest.approx(wanted[each.rate], rel=1e-5)
    assert canary.from_json(curve.as_json()) == curve


def at_fifteen_percent(model, files):
    """The nats of a masked token at BERT's rate, from the mathematics alone."""
    rows = data.read_rows(files, model.tokenizer, model.length)

    @jax.jit
    def read(params):
        return at_rate(
            bert.denoiser(params, model.encoder, valid=rows.valid),
            noise.derive(noise.seed_key(0), "rates", 150_000),
            rows.tokens,
            mask_id=model.encoder.mask_id,
            rate=0.15,
            maskable=rows.maskable,
        )

    sums = read(model.params)
    return float(sums.nats.sum() / sums.masked.sum())


def test_text_for_no_error_is_refused(tiny, tmp_path):
    (tmp_path / "short.txt").write_text("wool")
    with pytest.raises(ValueError, match="' fill 1 of the 8 rows of 48 tokens that an"):
        canary.of(tiny.model, f"{tmp_path}/short.txt")
    with pytest.raises(ValueError, match=r"--canary: .*none.txt' matches no file"):
        canary.of(tiny.model, f"{tmp_path}/none.txt")


def told(page, name):
    """The samples of a gauge: value by labels."""
    (family,) = [x for x in text_string_to_metric_families(page) if x.name == name]
    return {tuple(sorted(each.labels.items())): each.value for each in family.samples}


def by_rate(page, name, model="tiny"):
    found = [(dict(labels), value) for labels, value in told(page, name).items()]
    return {float(of["rate"]): value for of, value in found if of["model"] == model}


@pytest.mark.slow
def test_a_server_tells_what_evaluation_measures_and_writes_what_it_wrote(tiny, canary_file):
    engine = Engine()
    quality = Quality(engine, canary_file)
    with tiny_server.running({"tiny": tiny}, engine=engine, how=HOW, quality=quality) as server:

        def page():
            return httpx.get(f"{server.address}/metrics").text

        def write(seed):
            answer = server.client.completions.create(
                model="tiny", prompt="the {mask:9} mill", seed=seed, n=2
            )
            return [choice.text for choice in answer.choices]

        before = page()
        assert not told(before, "mdlm_canary_nats")
        (begun,) = told(before, "mdlm_canary_measured_timestamp_seconds").values()
        alone = [write(seed) for seed in range(8)]
        looks = threading.Thread(target=quality.look)
        looks.start()
        beside = 0
        with concurrent.futures.ThreadPoolExecutor(4) as users:
            while looks.is_alive() or not beside:
                assert [*users.map(write, range(8))] == alone
                beside += 1
        looks.join()
        after = page()
    (at,) = told(after, "mdlm_canary_measured_timestamp_seconds").values()
    assert at > begun
    found = by_rate(after, "mdlm_canary_nats")
    assert len(found) == 8
    assert found[0.15] == pytest.approx(at_fifteen_percent(tiny.model, canary_file), rel=1e-5)
    assert by_rate(after, "mdlm_canary_reference_nats") == found  # nothing was registered
    sources = {dict(each)["source"] for each in told(after, "mdlm_canary_reference_nats")}
    assert sources == {"first"}
    assert engine.stats().compilations == 0


@pytest.fixture(scope="module")
def beside(tiny, canary_file):
    """The page of a server of the same model, registered or not, and of what it is after a fault.

    And the curve of the registration.
    """
    registered = canary.measure(tiny.model, canary_file)
    leaves, tree = jax.tree.flatten(tiny.model.params)
    largest = int(np.argmax([leaf.size if leaf.ndim > 1 else 0 for leaf in leaves]))

    def scaled(scale):
        changed = [leaf * scale if n == largest else leaf for n, leaf in enumerate(leaves)]
        return jax.tree.unflatten(tree, changed)

    models = {
        "same": (tiny.model.params, registered),
        "tampered": (scaled(3.0), registered),
        "broken": (scaled(np.nan), registered),
        "other": (tiny.model.params, registered._replace(digest="of another text")),
    }
    offered = {}
    with Engine() as engine:
        quality = Quality(engine, canary_file)
        for name, (params, curve) in models.items():
            loaded = dataclasses.replace(tiny, model=tiny.model._replace(params=params))
            deployment, offered[name] = offers.offer(loaded, name, **HOW)
            engine.add(deployment)
            quality.add(name, quality.prepare(loaded.model), curve)
        for _ in models:
            quality.look()  # one of them, the longest due
        watching = metrics.Metrics(engine, offers.Fixed(offered), None, quality)
        page = generate_latest(watching.registry).decode()
        assert engine.stats().compilations == 0
    return page, registered


def test_other_weights_than_those_of_the_registration_raise_the_alert(beside):
    page, registered = beside
    assert by_rate(page, "mdlm_canary_nats", "same") == {
        each.rate: each.nats
        for each in registered.points  # to the bit
    }
    for model, is_away in {"same": False, "tampered": True, "broken": True}.items():
        found, reference, error = (
            by_rate(page, f"mdlm_canary_{name}", model)
            for name in ("nats", "reference_nats", "reference_error_nats")
        )
        within = [abs(found[rate] - reference[rate]) <= error[rate] for rate in found]
        assert len(within) == 8 and all(within) is not is_away


def test_what_was_registered_with_another_canary_is_compared_with_itself(beside):
    page, _ = beside
    sources = {
        (dict(each)["model"], dict(each)["source"])
        for each in told(page, "mdlm_canary_reference_nats")
    }
    assert sources == {(name, "registered") for name in ("same", "tampered", "broken")} | {
        ("other", "first")
    }
    assert by_rate(page, "mdlm_canary_reference_nats", "other") == by_rate(
        page, "mdlm_canary_nats", "other"
    )


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_the_shipped_rules_find_the_same(beside, tmp_path):
    page, _ = beside
    samples = re.findall(r"^(mdlm_canary\w+\{.*\}) (\S+)$", page, re.MULTILINE)
    series = [{"series": name, "values": f"{value} {value}"} for name, value in samples]
    silent = {"eval_time": "1m", "alertname": "MdlmCanary", "exp_alerts": []}
    test = {"interval": "1m", "input_series": series, "alert_rule_test": [silent]}
    (tmp_path / "test.yaml").write_text(
        yaml.safe_dump({"rule_files": [str(RULES)], "tests": [test]})
    )
    done = subprocess.run(
        ["promtool", "test", "rules", tmp_path / "test.yaml"], capture_output=True, text=True
    )
    alerts = {*re.findall(r'model="(\w+)"', done.stdout + done.stderr)}
    assert alerts == {"tampered", "broken"}, done.stderr
