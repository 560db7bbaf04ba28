"""Every kind of model behind the API writes what the library writes with it."""

import dataclasses

import exported
import pytest
import tiny_server

import mdlm_jax
from mdlm_jax.runs.experiment import ObjectiveConfig
from mdlm_jax.writing import requests

pytestmark = pytest.mark.slow  # compiles programs of each
HOW = {"strategies": ("exact_count",), "slots": 2, "defaults": requests.Options(steps=4)}
CAUSAL = {**HOW, "defaults": requests.Options()}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"


def with_model(loaded, **fields):
    return dataclasses.replace(loaded, model=loaded.model._replace(**fields))


def written(loaded, prompt, how=HOW, **fields):
    """The texts of two rows, whole and streamed, and the usage."""
    with tiny_server.running({"tiny": loaded}, how=how) as server:
        ours = {name: fields.pop(name) for name in ("label", "guidance") if name in fields}
        asked = {"model": "tiny", "prompt": prompt, "seed": 3, "n": 2, "extra_body": ours, **fields}
        whole = server.client.completions.create(**asked)
        pieces = ["", ""]
        for event in server.client.completions.create(**asked, stream=True):
            for choice in event.choices:
                pieces[choice.index] += choice.text
        assert server.engine.stats().compilations == 0
    texts = [choice.text for choice in whole.choices]
    assert texts == pieces
    return texts, whole.usage


def test_labels_and_guidance(folder):
    loaded = mdlm_jax.load(exported.write(folder, classes=2))
    for fields in ({"label": "wool"}, {"label": "salt", "guidance": 2.0}):
        texts, _ = written(loaded, "the {mask:8} mill", **fields)
        assert texts == loaded.fill("the {mask:8} mill", samples=2, seed=3, steps=4, **fields)


@pytest.mark.parametrize("kind", ["padded", "framed"])
def test_rows_with_padding(folder, kind):
    loaded = with_model(mdlm_jax.load(exported.write(folder)), **{kind: True})
    texts, usage = written(loaded, "old [MASK] {mask:3} salt")
    assert texts == loaded.fill("old [MASK] {mask:3} salt", samples=2, seed=3, steps=4)
    assert usage.completion_tokens == 8


def test_a_causal_model(folder):
    loaded = mdlm_jax.load(exported.write(folder, attention="causal"))
    causal = with_model(loaded, objective=ObjectiveConfig(name="autoregressive"))
    texts, usage = written(causal, "the old", how=CAUSAL, max_tokens=6)
    assert ["the old" + text for text in texts] == causal.fill("the old{mask:6}", samples=2, seed=3)
    assert usage.evaluations == 12  # a token an evaluation


def test_a_model_of_blocks(folder):
    loaded = mdlm_jax.load(exported.write(folder, positions="rope"))
    blocks = with_model(loaded, objective=ObjectiveConfig(name="block", block_size=4))
    texts, _ = written(blocks, "the old", max_tokens=9)
    assert ["the old" + text for text in texts] == blocks.fill(
        "the old{mask:9}", samples=2, seed=3, steps=4
    )
