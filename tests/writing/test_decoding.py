import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.diffusion import Denoiser, Hidden, schedules, strategies, transforms
from mdlm_jax.diffusion.denoisers import law_of
from mdlm_jax.diffusion.reading import draws
from mdlm_jax.runs.shaping import Shaping
from mdlm_jax.writing import decoding

LINEAR = schedules.linear()

SPECS = {
    "ancestral": "ancestral(last=greedy)",
    "confidence": "confidence(score=margin, temperature=0.5)",
    "entropy_bounded": "entropy_bounded(0.1)",
    "exact_count": "exact_count",
    "factor": "factor(value=0.5)",
    "first_hitting": " first_hitting() ",
    "greedy": "greedy(entropy, grid='cosine')",
    "left_to_right": "left_to_right(last=greedy)",
    "path_planning": "path_planning(0.5)",
    "remask": "remask(cap, 0.04)",
    "threshold": "threshold(0.9)",
}


def view(masked=3, length=8):
    canvas = jnp.where(jnp.arange(length) < masked, 9, 1)[None]
    blank = canvas == 9
    return strategies.View(
        canvas=canvas, wanted=blank, blank=blank, rate=blank.mean(axis=1), outside=jnp.zeros(1),
        share=blank.mean(axis=1), index=jnp.int32(0), steps=jnp.int32(4), mask_id=jnp.int32(9),
    )  # fmt: skip


def test_every_strategy_has_a_spec_and_a_line_in_the_listing():
    assert SPECS.keys() == decoding.STRATEGIES.keys()
    for spec in SPECS.values():
        assert isinstance(decoding.strategy(spec, LINEAR), strategies.Strategy)
    lines = decoding.listing().splitlines()
    assert len(lines) == len(SPECS) == len({*lines})
    assert "- threshold(tau): Keeps every candidate of probability `tau` or more, and the best" in (
        lines
    )
    assert any("grid=cosine|uniform" in line for line in lines)  # the default is first
    assert any("remask(kind: cap|rescale|confidence|loop, eta, t_on=0.55" in line for line in lines)
    assert not any("20" in line or ", eq" in line for line in lines)  # the papers are not told


def test_arguments_reach_the_strategy():
    assert decoding.strategy("confidence(margin)", LINEAR).score is draws.margin
    assert decoding.strategy(SPECS["greedy"], LINEAR).score is draws.entropy
    assert decoding.strategy(SPECS["remask"], LINEAR).remasks
    key = jax.random.key(0)[None]
    last = view()._replace(index=jnp.array([3]))
    noise = {
        spec: decoding.strategy(spec, LINEAR).propose((), key, last)[0].noise
        for spec in ("ancestral", "ancestral(last=greedy)")
    }
    assert noise == {"ancestral": 1.0, "ancestral(last=greedy)": 0.0}


def test_the_denoiser_is_told_the_time_of_the_schedule_that_it_was_trained_with():
    cosine = schedules.cosine()
    for spec in ("threshold(0.5)", "confidence", "greedy(margin)"):
        proposal, _ = decoding.strategy(spec, cosine).propose((), None, view())
        np.testing.assert_allclose(proposal.t, cosine.rate_to_time(3 / 8), rtol=1e-6)
        proposal, _ = decoding.strategy(spec, LINEAR).propose((), None, view())
        np.testing.assert_allclose(proposal.t, 3 / 8, rtol=1e-6)


def test_a_strategy_of_ones_own_needs_no_schedule(monkeypatch):
    def mine(share=0.5):
        """Mine, and nobody else's (Nobody et al. 2026)."""
        return strategies.threshold(share)

    monkeypatch.setitem(decoding.STRATEGIES, "mine", mine)
    assert isinstance(decoding.strategy("mine(0.1)", LINEAR), strategies.Strategy)
    assert decoding.listing().splitlines()[-1] == "- mine(share=0.5): Mine, and nobody else's"
    with pytest.raises(ValueError, match=r"it is mine\(share=0.5\)"):
        decoding.strategy("mine(schedule=linear)", LINEAR)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("best", "strategy 'best' must be one of ancestral, confidence, .*threshold"),
        ("", "strategy '' cannot be read: write a name, or name"),
        ("threshold(0.9", "cannot be read"),
        ("threshold(" + "-" * 200_000 + "1)", r"^strategy 'threshold\(-{47}\.\.\.' cannot be read"),
        ("threshold(" + "9" * 5_000 + ")", "cannot be read"),
        ("strategies.threshold(0.9)", "cannot be read"),
        ("threshold(open('x'))", "cannot be read"),
        ("threshold", r"it is threshold\(tau\)$"),
        ("threshold(0.9, 1)", r"it is threshold\(tau\)$"),
        ("threshold(high)", r"it is threshold\(tau\)$"),
        ("threshold(value=0.9)", r"it is threshold\(tau\)$"),
        ("exact_count(schedule=linear)", r"it is exact_count\(grid=uniform\|cosine, last=drawn"),
        ("threshold(1.5)", "threshold: tau is 1.5, it must be from 0 to 1"),
        ("threshold(-0.5)", "threshold: tau is -0.5"),
        ("remask(cap)", r"it is remask\(kind: cap\|rescale\|confidence\|loop, eta, t_on=0.55"),
        ("remask(sometimes, 0.1)", "kind is 'sometimes', it must be cap or rescale"),
        ("confidence(temperature=-1)", "confidence: temperature is -1"),
    ],
)
def test_a_spec_that_names_no_strategy_is_refused_in_one_line(spec, message):
    with pytest.raises(ValueError, match=message) as error:
        decoding.strategy(spec, LINEAR)
    assert "\n" not in str(error.value)


def table(vocabulary=7):
    """A denoiser without positions: each row has logits of its own."""
    logits = jnp.asarray(np.random.default_rng(0).normal(0, 2, (2, 5, vocabulary)), jnp.float32)
    return Denoiser(lambda tokens, t: Hidden(logits), lambda at, row: at)


def logits(denoiser, tokens=None):
    """`[B, L, V]` of what is drawn from, read out position by position."""
    tokens = jnp.zeros((2, 5), jnp.int32) if tokens is None else tokens
    hidden = denoiser.encode(tokens, jnp.ones(2))
    at = jax.tree.map(lambda x: x.reshape(10, *x.shape[2:]), hidden.at)
    row = jax.tree.map(lambda x: jnp.repeat(x, 5, axis=0), hidden.row)
    return law_of(denoiser)(at, row).reshape(2, 5, -1)


ALL = Shaping(forbid=(2,), repetition_penalty=1.5, temperature=0.7, min_p=0.05, top_k=4, top_p=0.9)


def test_the_defaults_change_nothing():
    denoiser = table()
    assert Shaping()(denoiser) is denoiser
    assert Shaping().changed() == {} and Shaping().strengths() == {"temperature": 1.0}


def test_transforms_are_applied_in_the_order_of_the_fields():
    expected = transforms.top_p(
        transforms.top_k(
            transforms.min_p(
                transforms.temperature(
                    transforms.repetition_penalty(transforms.forbid(table(), (2,)), 1.5), 0.7
                ),
                0.05,
            ),
            4,
        ),
        0.9,
    )
    tokens = jnp.array([[0, 1, 6, 6, 6], [3, 3, 3, 3, 3]])
    np.testing.assert_array_equal(logits(ALL(table()), tokens), logits(expected, tokens))
    assert list(ALL.changed()) == [field.name for field in dataclasses.fields(Shaping)]


def test_other_strengths_are_not_another_program():
    @jax.jit
    def shaped(strengths):
        return logits(dataclasses.replace(ALL, **strengths)(table()))

    np.testing.assert_allclose(shaped(ALL.strengths()), logits(ALL(table())), rtol=1e-5)
    other = dataclasses.replace(ALL, temperature=1.3, top_p=0.5, repetition_penalty=2.0)
    np.testing.assert_allclose(shaped(other.strengths()), logits(other(table())), rtol=1e-5)
    assert shaped._cache_size() == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -0.5}, "temperature: value is -0.5, it must be at least 0"),
        ({"temperature": float("inf")}, "temperature: it is inf, it must be a finite number"),
        ({"temperature": float("nan")}, "temperature: it is nan"),
        ({"top_k": 0}, "top_k: k is 0"),
        ({"top_p": 1.5}, "top_p: p is 1.5"),
        ({"min_p": -0.1}, "min_p: p is -0.1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty: penalty is 0.0"),
        ({"forbid": (-1,)}, "forbid: token -1"),
    ],
)
def test_impossible_values_are_refused_by_name(values, message):
    with pytest.raises(ValueError, match=message):
        Shaping(**values)
