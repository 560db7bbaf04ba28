"""From requests to rows of the engine: their lengths, their layout and their answers' extent."""

import dataclasses

import exported
import jax
import numpy as np
import pytest

import mdlm_jax
from mdlm_jax import data
from mdlm_jax.serving.offering import offers, plans
from mdlm_jax.serving.offering.plans import Wanted
from mdlm_jax.writing import requests

LENGTHS = (16, 32, 48)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = exported.write(tmp_path_factory.mktemp("plans") / "run", vocab_size=140, length=48)
    return mdlm_jax.load(folder)


def offer_of(loaded, card=None, **model):
    model = loaded.model._replace(length=32, **model)
    loaded = dataclasses.replace(loaded, model=model, card=card or {})
    return offers.offer(loaded, "tiny", lengths=LENGTHS, slots=2)[1]


def rows(offer, text, **wanted):
    return plans.completions(offer, [text], Wanted(seed=1, **wanted))


def length(offer, text, **wanted):
    return len(rows(offer, text, **wanted)[0].job.tokens)


def test_a_text_gets_a_row_of_the_trainings_length_where_it_fits(loaded):
    """The model knows no other, whatever else the server has."""
    offer = offer_of(loaded)
    assert length(offer, "the [MASK]") == 32
    assert length(offer, "{mask:32}") == 32 and length(offer, "{mask:33}") == 48
    assert length(offer, "", max_tokens=48) == 48
    assert length(offer, "the [MASK]", options={"length": 16}) == 16
    with pytest.raises(ValueError, match="length is 24: this server has rows of 16, 32, 48"):
        length(offer, "the [MASK]", options={"length": 24})
    with pytest.raises(ValueError, match="has 49 tokens, a row has 48"):
        length(offer, "{mask:49}")
    with pytest.raises(ValueError, match="has 17 tokens, a row has 16"):
        length(offer, "{mask:17}", options={"length": 16})


def test_where_padding_fills_a_row_up_the_shortest_is_taken(loaded):
    padded = offer_of(loaded, padded=True)
    special = data.special_ids(loaded.tokenizer)
    assert length(padded, "{mask:15}") == 16  # with its separator
    assert length(padded, "{mask:16}") == 32
    assert length(padded, "{mask:48}") == 48
    job = rows(padded, "the [MASK]")[0].job
    size = int(job.valid.sum())
    assert job.tokens[size - 1] == special.sep and (job.tokens[size:] == special.pad).all()
    assert len(job.tokens) == 16 and job.maskable.sum() == size

    framed = offer_of(loaded, framed=True)
    job = rows(framed, "the [MASK]")[0].job
    assert job.tokens[0] == special.cls and job.valid.sum() == size + 1
    assert len(job.tokens) == len(job.valid) == len(job.maskable) == 16
    assert length(framed, "{mask:14}") == 16 and length(framed, "{mask:15}") == 32
    with pytest.raises(ValueError, match="has 47 tokens, a row has 46"):
        length(framed, "{mask:47}")
    assert rows(framed, "{mask:46}")[0].job.fill.sum() == 46


def test_the_choices_of_prompts_are_numbered_as_samples_of_generate(loaded):
    made = plans.completions(offer_of(loaded), ["a [MASK]", "b"], Wanted(seed=4, n=3))
    assert [row.job.choice for row in made] == [*range(6)]
    assert [row.extent.prompt for row in made] == [0, 0, 0, 1, 1, 1]
    assert {row.job.seed for row in made} == {4}


def test_options_of_a_request_go_before_those_of_the_model(loaded):
    defaults = requests.Options(steps=5, temperature=0.5, strategy="threshold(0.7)", top_p=0.9)
    strategies = ("exact_count", "threshold(0.9)")
    _, offer = offers.offer(
        dataclasses.replace(loaded, card={}), "tiny", strategies=strategies, defaults=defaults
    )
    job = rows(offer, "a [MASK]")[0].job
    assert (job.steps, job.temperature, job.top_p) == (5, 0.5, 0.9)
    assert jax.tree.leaves(job.strategy) == [0.7]
    given = {"steps": 7, "temperature": 1.0, "strategy": "threshold(0.2)", "top_k": 3}
    job = rows(offer, "a [MASK]", options=given)[0].job
    assert (job.steps, job.temperature, job.top_p, job.top_k) == (7, 1.0, 0.9, 3)
    assert jax.tree.leaves(job.strategy) == [0.2]
    with pytest.raises(ValueError, match="of a kind that this server does not offer"):
        rows(offer, "a [MASK]", options={"strategy": "exact_count(grid=cosine)"})


def test_an_answer_of_so_many_tokens_leaves_the_rest_unknown(loaded):
    offer = offer_of(loaded, {"config": {"prompt_field": "prompt"}})
    (whole,) = rows(offer, "where is the mill?")
    (short,) = rows(offer, "where is the mill?", max_tokens=5)
    assert len(whole.job.tokens) == len(short.job.tokens) == 32
    np.testing.assert_array_equal(whole.job.tokens, short.job.tokens)
    first = int(np.argmax(whole.job.fill))
    assert whole.extent.given == short.extent.given == first
    assert np.flatnonzero(short.job.fill).tolist() == [*range(first, first + 5)]
    np.testing.assert_array_equal(short.extent.shown, short.job.fill)
    # The model's time counts the whole answer, as in training.
    np.testing.assert_array_equal(short.job.maskable, whole.job.fill)
    (filled,) = rows(offer, "the {mask:3} mill")  # gaps are filled, by such a model too
    assert filled.job.fill.sum() == 3
    with pytest.raises(ValueError, match="echo is for a prompt that is written on"):
        rows(offer, "where?", echo=True)
    prompt = "old mill " * 30
    with pytest.raises(ValueError, match="leaves no room for an answer in a row of 48"):
        rows(offer, prompt)


def test_what_the_tokenizer_does_not_know_is_named(loaded):
    offer = offer_of(loaded)
    for text, wanted in (("河 [MASK]", {}), ("河", {}), ("a", {"suffix": " 河"})):
        with pytest.raises(ValueError, match="does not know: '河'") as refused:
            rows(offer, text, **wanted)
        assert "{mask" not in str(refused.value)


def test_a_text_that_leaves_no_room_is_refused(loaded):
    offer = offer_of(loaded)
    with pytest.raises(ValueError, match="tokens, a row has 48"):
        rows(offer, "old " * 60)
    with pytest.raises(ValueError, match=r"max_tokens is 48: with this prompt .* room for 47 tok"):
        rows(offer, "[SEP]", max_tokens=48)
    assert rows(offer, "[SEP]" * 40)[0].job.fill.sum() == 8  # what is left of the usual 16


def test_a_server_offers_what_its_model_has(loaded):
    with pytest.raises(ValueError, match="length must be from 1 to 48, the model's rows, not 64"):
        offers.offer(loaded, "tiny", lengths=(64,))
    with pytest.raises(ValueError, match="strategy 'fast' must be one of"):
        offers.offer(loaded, "tiny", strategies=("fast",))
    with pytest.raises(ValueError, match="guidance is for models with classes"):
        offers.offer(loaded, "tiny", defaults=requests.Options(guidance=2.0))
