"""From what is asked for to what the sampler takes; nothing is compiled."""

import dataclasses

import exported
import jax
import numpy as np
import pytest

from mdlm_jax import data
from mdlm_jax.host import parallel
from mdlm_jax.runs import models
from mdlm_jax.writing import decoding, prompts, requests
from mdlm_jax.writing.requests import Options

ASKED = [prompts.Prompt("the [MASK]"), prompts.Prompt("")]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = exported.write(tmp_path_factory.mktemp("requests") / "run")
    return models.load(str(folder), parallel.make_mesh(devices=jax.devices()[:1]))


def plan(model, options=Options(), asked=ASKED):  # noqa: B008
    return requests.plan(model, asked, options, asking=None)


def test_by_default_it_is_a_row_of_the_training_in_64_steps(model):
    request = plan(model)
    assert request.canvas.tokens.shape == (2, exported.LENGTH)
    assert (request.strategy, request.method.steps, request.method.blocks) == ("exact_count", 64, 1)
    assert request.method.end_id is None and request.labels.tolist() == [-1, -1]
    shorter = plan(model, Options(length=9, blocks=2, steps=8, strategy=" threshold(0.5) "))
    assert shorter.canvas.tokens.shape == (2, 9) and shorter.method.blocks == 2
    assert shorter.strategy == "threshold(0.5)"
    schedule = requests.SCHEDULES["linear"]()
    assert shorter.method.strategy == decoding.strategy("threshold(0.5)", schedule)


def test_rows_are_laid_out_as_the_training_had_them(model):
    """Padded ones end with a separator and padding; of kept ones the masks alone are maskable."""
    special = data.special_ids(model.tokenizer)
    plain = plan(model).canvas
    assert plain.valid is None and plain.maskable.all()
    padded = plan(model._replace(padded=True)).canvas
    size = plain.shown[0].sum()
    assert (
        padded.tokens[0, size] == special.sep
        and (padded.tokens[0, size + 1 :] == special.pad).all()
    )
    assert padded.valid[0].sum() == size + 1 and padded.valid[1].all()
    objective = dataclasses.replace(model.objective, keep="prefix")
    kept = plan(model._replace(objective=objective)).canvas
    np.testing.assert_array_equal(kept.maskable, kept.tokens == special.mask)
    assert not kept.maskable.all()


def test_an_end_of_text_is_filled_up_with_padding_or_behind_an_answer_with_separators(model):
    special = data.special_ids(model.tokenizer)
    method = plan(model, Options(end_of_text=True)).method
    assert (method.end_id, method.pad_id) == (special.sep, special.pad)
    asking = prompts.Asking(None, "[MASK]")
    asked = [prompts.Prompt("old mill")]
    method = requests.plan(model, asked, Options(), asking=asking).method
    assert (method.end_id, method.pad_id) == (special.sep, special.sep)
    method = requests.plan(model, asked, Options(end_of_text=False), asking=asking).method
    assert method.end_id is None


def test_a_causal_model_takes_as_many_steps_as_a_row_has_tokens(model):
    """Whatever is asked for beside: a text is a function of its prompt and its number."""
    objective = dataclasses.replace(model.objective, name="autoregressive")
    causal = model._replace(objective=objective)
    request = plan(causal)
    assert (request.strategy, request.method.steps) == ("left_to_right", exported.LENGTH)
    assert request.method.start_id == data.special_ids(model.tokenizer).sep
    asked = [prompts.Prompt("{mask:3}")]
    assert plan(causal, asked=asked).method == request.method
    for options in (
        Options(steps=64),
        Options(strategy="exact_count"),
        Options(blocks=1),
        Options(cache="dual"),
    ):
        with pytest.raises(ValueError, match="is for models that fill masks"):
            plan(causal, options)


def test_what_a_model_cannot_take_is_refused_by_its_name(model):
    refused = {
        "length must be from 1 to 16": Options(length=0),
        "blocks must be at least 1, not 0": Options(blocks=0),
        "steps is 1, blocks 2": Options(steps=1, blocks=2),
        "forbid: 'zzz' is no": Options(forbid=("zzz",)),
        "forbid: it must be a list of tokens": Options(forbid="er"),
        "forbid and end_of_text exclude each other": Options(forbid=("[SEP]",), end_of_text=True),
        "guidance is for models with classes": Options(guidance=2.0),
        "top_p: p is 1.5": Options(top_p=1.5),
        "cache 'all': must be one of prefix, dual, vicinity": Options(cache="all"),
        "refresh is 0: must be a whole number of steps": Options(cache="dual", refresh=0),
        "refresh is of a cache, and none": Options(refresh=8),
        "around is of a cache, and none": Options(around=8),
        "around is 4 for 'dual': must be 0": Options(cache="dual", around=4),
        "cache=dual computes 16 positions of rows of 16, and saves nothing": Options(cache="dual"),
        "cache=vicinity computes 36": Options(cache="vicinity", blocks=4),
    }
    for told, options in refused.items():
        with pytest.raises(ValueError, match=f"^{told}"):
            plan(model, options)
    with pytest.raises(ValueError, match="a label is for models with classes"):
        plan(model, asked=[prompts.Prompt("", "salt")])


def test_a_cache_is_as_wide_as_the_widest_block(model):
    asked = [prompts.Prompt("the old {mask:4} mill {mask:3}")]

    def cache_of(**options):
        return plan(model, Options(**options), asked).method.cache

    assert cache_of() is None
    wanted = plan(model, asked=asked).canvas.fill[0]
    first, last = np.flatnonzero(wanted)[[0, -1]]
    assert cache_of(cache="dual") == ("dual", last - first + 1, 8, 0)
    assert cache_of(cache="dual", blocks=7, refresh=3) == ("dual", 1, 3, 0)
    assert cache_of(cache="vicinity", blocks=7, around=2) == ("vicinity", 1, 8, 2)
    assert cache_of(cache="prefix", blocks=7) == ("prefix", exported.LENGTH - first, 8, 0)


def test_a_cache_needs_attention_to_the_whole_row(model):
    local = dataclasses.replace(model.encoder, attention="local", window=4)
    with pytest.raises(ValueError, match="attention='local': must be 'full' for a cache"):
        plan(model._replace(encoder=local), Options(cache="dual", blocks=4))
    with pytest.raises(ValueError, match="guidance and cache exclude each other"):
        dataclasses.replace(plan(model, Options(cache="dual", blocks=4)).method, guidance=2.0)
