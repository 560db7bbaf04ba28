import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.pages import ab_plot, ab_table
from mdlm_jax.serving import digests
from mdlm_jax.serving.versions import comparing
from mdlm_jax.serving.versions.comparing import Side
from mdlm_jax.writing.prompts import Prompt
from mdlm_jax.writing.requests import Options
from mdlm_jax.writing.wanted import Wanted

HOW = {"seed": 3, "samples": 1, "draws": 8, "batch_size": 4}
TEXTS = [
    "the river runs past",
    "old stone mill",
    "wool salt and honey",
    "that still stands",
    "later its harbour",
]


def side(model, name="one", **options):
    dtype = options.pop("dtype", None)
    version = digests.of(model, Options(**options), dtype)
    return Side(name, version, version.of_model(model))


def with_gaps(model, count=5):
    """Prompts that lack some tokens: of text n, n + 1 of them, the first ones."""
    prompts = []
    for number, text in enumerate(TEXTS[:count]):
        encoding = model.tokenizer.encode(text, add_special_tokens=False)
        gap = min(number + 1, len(encoding.ids))
        prompts.append(Prompt(f"{{mask:{gap}}}{text[encoding.offsets[gap - 1][1] :]}"))
    return Wanted(prompts, TEXTS[:count])


@pytest.fixture(scope="module")
def compared(tiny):
    """One step and eight, of the same weights."""
    one, eight = side(tiny, steps=1), side(tiny, "eight", steps=8)
    wanted = with_gaps(tiny)
    return wanted, *comparing.compare(comparing.plan(one, eight, wanted), **HOW)


@pytest.mark.slow
def test_what_is_measured_is_what_generate_writes(tiny, compared):
    wanted, _, of_prompts = compared
    for which, steps in enumerate((1, 8)):
        written = tiny.fill([p.text for p in wanted.asked], steps=steps, seed=3, batch_size=4)
        exact = [text == reference for text, reference in zip(written, wanted.texts, strict=True)]
        assert of_prompts["exact"][which].tolist() == list(map(float, exact))
    assert of_prompts["evaluations"][0].tolist() == [1.0] * 5
    assert of_prompts["evaluations"][1].tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_the_reference_of_one_token_has_its_exact_likelihood(tiny, compared):
    wanted, record, of_prompts = compared
    planned = comparing.plan(side(tiny, steps=1), side(tiny, steps=8), wanted)[0]
    canvas, row = planned.request.canvas.tokens[:1], planned.wanted[:1]
    hidden = tiny.denoiser.encode(jnp.asarray(canvas), jnp.ones(1))
    assert not jax.tree.leaves(hidden.row)
    logits = tiny.denoiser.readout(jax.tree.map(lambda x: x[0], hidden.at), ())
    (place,) = np.flatnonzero(planned.request.canvas.fill[0])
    logits = logits[place].at[tiny.mask_id].set(-jnp.inf)
    nats = -jax.nn.log_softmax(logits)[row[0, place]]
    for name in ("reference_nats", "reference_nats_in_steps"):
        for of_side in of_prompts[name]:
            assert of_side[0] == pytest.approx(float(nats), rel=1e-4)
    # The model's bound is the same to the bit, and in fewer steps it is another.
    assert record["differences"]["reference_nats"]["difference"] == 0.0
    one, eight = of_prompts["reference_nats_in_steps"]
    assert abs(one[1:] - eight[1:]).min() > 1e-4
    assert record["left_out"] == {}


def test_the_record_says_what_was_compared(tiny, compared):
    _, record, of_prompts = compared
    assert record["a"]["name"] == "one" and record["a"]["steps"] == 1
    assert record["b"]["digest"] == side(tiny, steps=8).version.digest
    assert record["prompts"] == 5 and {*of_prompts} < {*record["differences"]}
    for name, (a, b) in of_prompts.items():
        found = record["differences"][name]
        assert found["a"] == pytest.approx(a.mean())
        assert found["difference"] == pytest.approx((b - a).mean())
        assert found["low"] <= found["difference"] <= found["high"]
    assert record["differences"]["milliseconds"]["a"] > 0


def test_the_table_and_the_picture_hold_every_figure(compared):
    _, record, _ = compared
    table = ab_table.table(record)
    for figure in ab_table.FIGURES.values():
        assert figure.name in table
    (evaluations,) = (line for line in table.splitlines() if line.startswith("network eval"))
    assert evaluations.split()[2:] == ["1.0", "3.0", "+2.0", "+0.8", "to", "+3.2", "a"]
    picture = ab_plot.ab_png(record)
    assert picture.startswith(b"\x89PNG") and len(picture) > 20_000


@pytest.mark.slow
def test_more_samples_are_means(tiny):
    wanted = with_gaps(tiny, 2)
    planned = comparing.plan(side(tiny, steps=1), side(tiny, steps=8), wanted)
    record, of_prompts = comparing.compare(planned, **{**HOW, "samples": 3})
    written = tiny.fill([p.text for p in wanted.asked], steps=8, seed=3, samples=3, batch_size=4)
    shares = [
        sum(text == reference for text in texts) / 3
        for texts, reference in zip(written, wanted.texts, strict=True)
    ]
    assert of_prompts["exact"][1].tolist() == pytest.approx(shares)
    assert {len(each) for sides in of_prompts.values() for each in sides} == {2}
    assert record["samples"] == 3


def test_answers_are_compared_up_to_their_end(models):
    pairs = models["pairs"]
    wanted = Wanted([Prompt("the river"), Prompt("wool")], ["runs past", "and honey"])
    one, eight = side(pairs, steps=1), side(pairs, "eight", steps=8)
    planned = comparing.plan(one, eight, wanted)
    record, of_prompts = comparing.compare(planned, **HOW)
    assert record["left_out"] == {"reference_nats_in_steps": "answers end at their first separator"}
    assert np.isfinite(of_prompts["written_nats"]).all()
    # What follows the end does not count.
    separator = pairs.tokenizer.token_to_id("[SEP]")
    fill = planned[0].request.canvas.fill
    tokens = planned[0].wanted.copy()
    rows = comparing._rows(planned[0], tokens)
    sizes = [len(pairs.tokenizer.encode(text).ids) + 1 for text in wanted.texts]
    assert rows.counts.tolist() == sizes
    ours = comparing._gathered(tokens, fill, planned[0].ends, separator)
    assert [int((row != separator).sum()) + 1 for row in ours.tokens] == sizes
    tokens[:, -1] = 5  # behind the end
    np.testing.assert_array_equal(
        comparing._gathered(tokens, fill, planned[0].ends, separator).tokens, ours.tokens
    )


@pytest.mark.parametrize(
    "options, told",
    [
        ({"strategy": "greedy"}, "b writes by greedy, not in the random order of exact_count"),
        ({"temperature": 0.5}, "b draws from another law than its model's: temperature"),
        ({"blocks": 2}, "b does not write the whole row at a time"),
    ],
)
def test_a_law_that_is_not_known_is_left_out_and_said(options, told, tiny, compared):
    wanted = with_gaps(tiny, 3)
    planned = comparing.plan(side(tiny, steps=2), side(tiny, "b", steps=2, **options), wanted)
    assert comparing._without_law(planned[0]) is None
    assert comparing._without_law(planned[1]) == told
    record = {**compared[1], "left_out": {"reference_nats_in_steps": told}}
    assert f"left out: reference, nats/token, in its steps: {told}" in ab_table.table(record)


@pytest.mark.slow
def test_other_weights_have_another_likelihood(tiny):
    halved = jax.tree.map(lambda x: x * 0.5, tiny.params)
    other = dataclasses.replace(tiny, model=tiny.model._replace(params=halved))
    wanted = with_gaps(tiny, 3)
    planned = comparing.plan(side(tiny, steps=4), side(other, "other", steps=4), wanted)
    _, of_prompts = comparing.compare(planned, **HOW)
    one, two = of_prompts["reference_nats"]
    assert abs(one - two).min() > 1e-3


def test_different_tokenizers_are_refused(tiny):
    tokenizer = type(tiny.tokenizer).from_str(tiny.tokenizer.to_str())
    tokenizer.add_tokens(["another"])
    other = dataclasses.replace(tiny, model=tiny.model._replace(tokenizer=tokenizer))
    sides = side(tiny, steps=1), side(tiny, "b", steps=2)._replace(model=other)
    with pytest.raises(ValueError, match="one and b have different tokenizers"):
        comparing.plan(*sides, with_gaps(tiny))


def test_an_interval_that_is_not_there_is_null(compared):
    _, record, _ = compared
    lacking = {"a": 1.0, "b": 2.0, "difference": 1.0, "low": math.nan, "high": math.nan}
    changed = {**record, "differences": {**record["differences"], "milliseconds": lacking}}
    assert comparing.as_json(changed)["differences"]["milliseconds"]["low"] is None
    assert ab_table.interval("milliseconds", lacking) == ""
    assert ab_plot.ab_png(changed).startswith(b"\x89PNG")
