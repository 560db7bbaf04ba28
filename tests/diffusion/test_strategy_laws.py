"""Each strategy against its own law under every transform, worked out by other code (`laws.py`)."""

import functools
import itertools

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
from every_strategy import any_conditionals, table_denoiser
from laws import Model, normalised
from oracle import CANVASES, MASK, PLACES, STRINGS, L, V, chi_square_p, make_oracle
from shaped import one_a_row

from mdlm_jax import sample, strategies, transforms

ROWS = 2500  # a law
ALARM = 1e-4  # false-alarm rate of each chi-square test, of which there are 300; seeds are fixed
OWN, OTHER = any_conditionals(3), any_conditionals(4)


def guide(denoiser, weight):
    return transforms.guide(denoiser, table_denoiser(OTHER), weight)


def guided(weight):
    return normalised(OWN**weight * OTHER ** (1 - weight))


def nucleus(p, share):
    order = np.argsort(-p, axis=-1)
    descending = np.take_along_axis(p, order, axis=-1)
    inside = np.cumsum(descending, axis=-1) - descending < share
    return np.take_along_axis(inside, np.argsort(order, axis=-1), axis=-1) * p


def penalised(p, penalty):
    stands = np.any(CANVASES[:, None, :, None] == np.arange(V), axis=2)  # [256, 1, V]
    return p ** np.where(stands, penalty, 1)


WAYS = {  # a transform, what the scores are of, what is drawn from
    "as it is": (lambda d: d, OWN, OWN),
    "temperature": (lambda d: transforms.temperature(d, 0.5), OWN, OWN**2),
    "cold": (
        lambda d: transforms.temperature(d, 0.0), OWN, OWN.max(axis=-1, keepdims=True) == OWN
    ),
    "top_k": (lambda d: transforms.top_k(d, 2), OWN, OWN * (OWN.min(-1, keepdims=True) < OWN)),
    "top_p": (lambda d: transforms.top_p(d, 0.7), OWN, nucleus(OWN, 0.7)),
    "min_p": (
        lambda d: transforms.min_p(d, 0.5), OWN, OWN * (0.5 * OWN.max(-1, keepdims=True) <= OWN)
    ),
    "forbid": (lambda d: transforms.forbid(d, [1]), OWN, OWN * np.array([1, 0, 1])),
    "repetition_penalty": (
        lambda d: transforms.repetition_penalty(d, 1.5), OWN, penalised(OWN, 1.5)
    ),
    "guide": (lambda d: guide(d, 2.0), guided(2.0), guided(2.0)),
    "guide, then temperature": (
        lambda d: transforms.temperature(guide(d, 0.5), 2.0), guided(0.5), guided(0.5) ** 0.5
    ),
}  # fmt: skip
MODELS = {name: Model(own, normalised(drawn)) for name, (_, own, drawn) in WAYS.items()}


def counts_of(tokens):
    """How often each of STRINGS is there, of `tokens [..., ROWS, L]`: `[..., 81]`."""
    numbers = np.asarray(tokens) @ (V ** np.arange(L - 1, -1, -1))
    return np.apply_along_axis(np.bincount, -1, numbers, minlength=len(STRINGS))


@functools.cache
def program(make):
    """`(key, value, steps) -> tokens`, `ROWS` of each way: one program a strategy."""

    @jax.jit
    def write(key, value, steps):
        denoiser = table_denoiser(OWN)
        ways = [transform(denoiser) for transform, *_ in WAYS.values()]
        rows = len(ways) * ROWS
        return sample(
            one_a_row(ways, jnp.repeat(jnp.arange(len(ways)), ROWS)),
            key, jnp.full((rows, L), MASK), mask_id=MASK, steps=steps, strategy=make(value),
            chunk=rows * L,
        )  # fmt: skip

    return write


def left_evenly(index, steps):
    return L * (steps - 1 - index) // steps


def evenly(index, steps):
    """How many blanks `[256]` a step writes, of as many in each."""
    return laws.BLANK.sum(axis=1) - left_evenly(index, steps)


def random_order(model, value, index, steps):
    return laws.in_random_order(model, evenly(index, steps))


def reading_order(model, value, index, steps):
    due = np.full(len(laws.BLANK), -(-L // steps))
    return laws.best(model, -np.arange(L)[None, None] + 0.0, due[:, None])


def greedy_at_last(model, value, index, steps):
    likeliest = model.drawn == model.drawn.max(axis=-1, keepdims=True)
    drawn = likeliest if index + 1 == steps else model.drawn
    return random_order(model._replace(drawn=drawn), value, index, steps)


def greedily(model, value, index, steps):
    model = model._replace(drawn=model.drawn == model.drawn.max(axis=-1, keepdims=True))
    return surest(model, value, index, steps)


def surest(model, value, index, steps):
    return laws.best(model, laws.of_tokens(model.own), evenly(index, steps)[:, None])


def most_certain(model, value, index, steps):
    return laws.best(model, laws.certainty(model.own), evenly(index, steps)[:, None])


def by_noisy_margin(model, value, index, steps):
    """The noise anneals to none; at one token a step."""
    scale = max(value * (1 - (index + 1) / steps), 1e-3)
    return laws.one_by_noisy_score(model, laws.margins(model.own), scale)


def adaptive(law):
    """One that writes all that is left in the last step."""

    def step(model, value, index, steps):
        all_that_is_left = laws.keeping(model, True)
        return all_that_is_left if index + 1 == steps else law(model, value)

    return step


def planned(model, value, index, steps):
    return laws.planned(model, value, left_evenly(index, steps))


def looped(x):
    return np.where(1 - x > 0.55, 1 - 0.9 * x / 0.45, np.minimum(0.1, 0.1 * (1 - x) / 0.05))


def reverse(rate, sigma):
    """The reverse process, `sigma(value, t, highest)`."""

    def step(model, value, index, steps):
        back = functools.partial(sigma, value)
        return laws.reverse_process(rate, back, index, steps, model)

    return step


def uniform(x):
    return 1 - x


def by_confidence(model, eta, index, steps):
    """Three steps: write; write and take back by the probabilities of the first; write the rest."""
    assert steps == 3
    if index != 1:
        return laws.reverse_process(uniform, lambda t, highest: 0, index, steps, model)
    p = model.own[-1][np.arange(L), laws.LETTERS]  # all that the first step writes was blank
    weights = np.where(laws.BLANK, 0, np.exp(-p))
    # From t = 2/3 to 1/3: rates 2/3 and 1/3, sigma_max = (1/3) / (1/3) = 1; blanks have sigma 0.
    return laws.writing(
        model, 0.5, eta * weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-9)
    )


EVENLY = {"temperature": 0.0, "grid": "uniform"}
MAKERS = {
    "exact_count": (lambda _: strategies.exact_count(), random_order),
    "exact_count, last greedy": (lambda _: strategies.exact_count(last="greedy"), greedy_at_last),
    "left_to_right": (lambda _: strategies.left_to_right(), reading_order),
    "first_hitting": (lambda _: strategies.first_hitting(), random_order),
    "ancestral": (lambda _: strategies.ancestral(), reverse(uniform, lambda *_: 0)),
    "ancestral, cosine": (
        lambda _: strategies.ancestral(grid="cosine"),
        reverse(lambda x: np.cos(np.pi / 2 * x), lambda *_: 0),
    ),
    "confidence": (lambda _: strategies.confidence(**EVENLY), surest),
    "confidence, entropy": (lambda _: strategies.confidence("entropy", **EVENLY), most_certain),
    "confidence, margin": (
        lambda value: strategies.confidence("margin", temperature=value, grid="uniform"),
        by_noisy_margin,
    ),
    "greedy": (lambda _: strategies.greedy(), greedily),
    "threshold": (strategies.threshold, adaptive(laws.above)),
    "factor": (strategies.factor, adaptive(laws.by_factor)),
    "entropy_bounded": (strategies.entropy_bounded, adaptive(laws.by_entropy_bound)),
    "remask, cap": (
        lambda value: strategies.remask("cap", value),
        reverse(uniform, lambda value, t, highest: min(value, highest)),
    ),
    "remask, rescale": (
        lambda value: strategies.remask("rescale", value),
        reverse(uniform, lambda value, t, highest: value * highest),
    ),
    "remask, loop": (
        lambda value: strategies.remask("loop", value),
        reverse(looped, lambda value, t, highest: min(value, highest) if 0.05 < t <= 0.55 else 0),
    ),
    "remask, confidence": (lambda value: strategies.remask("confidence", value), by_confidence),
    "path_planning": (strategies.path_planning, planned),
}


@pytest.mark.parametrize(
    ("name", "value", "steps"),
    [
        ("exact_count", 0, 3),
        ("exact_count, last greedy", 0, 2),
        ("left_to_right", 0, 3),
        ("first_hitting", 0, 3),
        ("ancestral", 0, 3),
        ("ancestral, cosine", 0, 3),
        ("confidence", 0, 4),
        ("confidence", 0, 2),
        ("confidence, entropy", 0, 2),
        ("confidence, margin", 1.0, 4),
        ("greedy", 0, 4),
        ("threshold", 0.6, 4),
        ("threshold", 0.6, 2),
        ("factor", 0.9, 4),
        ("entropy_bounded", 0.8, 4),
        ("remask, cap", 0.3, 5),
        ("remask, rescale", 0.5, 5),
        ("remask, loop", 0.3, 8),
        ("remask, confidence", 0.9, 3),
        ("path_planning", 0.0, 3),
        ("path_planning", 1.0, 3),
        ("path_planning", 3.0, 3),
    ],
)
def test_a_strategy_follows_its_own_law_under_every_transform(name, value, steps):
    make, step = MAKERS[name]
    tokens = program(make)(jax.random.key(0), float(value), steps)
    for way, counts in zip(MODELS, counts_of(tokens.reshape(len(WAYS), ROWS, L)), strict=True):
        law = laws.law_of([step(MODELS[way], value, index, steps) for index in range(steps)])
        assert chi_square_p(counts, law) > ALARM, way


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        (strategies.exact_count(), {}),
        (strategies.exact_count(), {"blocks": 2}),
        (strategies.left_to_right(), {}),
        (strategies.first_hitting(), {}),
        (strategies.confidence("margin", grid="uniform"), {}),
        (strategies.confidence("entropy", temperature=0.0, grid="uniform"), {}),
        (strategies.entropy_bounded(0.0), {}),
        (strategies.threshold(1.0), {"blocks": 4}),
    ],
)
def test_a_token_a_step_in_an_order_that_the_draws_do_not_choose_is_exact(
    oracle, strategy, options
):
    canvases, rows = np.array([[MASK] * 4, [MASK, 1, MASK, MASK]]), 8000
    tokens = jax.jit(
        lambda key: sample(
            oracle.denoiser(), key, jnp.repeat(canvases, rows, axis=0), mask_id=MASK,
            steps=L, strategy=strategy, chunk=2 * rows, **options,
        )
    )(jax.random.key(0))  # fmt: skip
    for canvas, counts in zip(canvases, counts_of(tokens.reshape(2, rows, L)), strict=True):
        assert chi_square_p(counts, oracle.posterior(canvas)) > ALARM


def test_first_hitting_is_the_reverse_process_in_continuous_time():
    """A denoiser that is told the time; all orders of writing, their times integrated.

    The times of the four tokens are independent and uniform: of those in a given order the density
    is 1 on `1 > t_1 > ... > t_4 > 0`, integrated by the trapezoidal rule.
    """
    oracle = make_oracle()
    drift, nodes = 0.7, np.linspace(1, 0, 201)
    with np.errstate(divide="ignore"):
        logs = np.maximum(np.log(oracle.conditionals), -1e9)

    @functools.cache
    def p_at(canvas, position):  # [nodes, V]
        powers = np.exp((1 - drift * nodes[:, None]) * logs[canvas][position])
        return powers / powers.sum(axis=-1, keepdims=True)

    law = np.zeros(len(STRINGS))
    for i in np.flatnonzero(oracle.joint):
        for order in itertools.permutations(range(L)):
            canvas, density = np.full(L, MASK), np.ones(len(nodes))
            for position in order:  # density[j]: that all so far were written before nodes[j]
                here = density * p_at(canvas @ PLACES, position)[:, STRINGS[i][position]]
                slices = (here[1:] + here[:-1]) / 2 * -np.diff(nodes)
                density = np.append(0, np.cumsum(slices))
                canvas[position] = STRINGS[i][position]
            law[i] += density[-1]
    assert law.sum() == pytest.approx(1, abs=1e-3)
    tokens = jax.jit(
        lambda key: sample(
            oracle.denoiser(drift), key, jnp.full((16000, L), MASK), mask_id=MASK, steps=L,
            strategy=strategies.first_hitting(), chunk=16000,
        )
    )(jax.random.key(0))  # fmt: skip
    assert chi_square_p(counts_of(tokens), law / law.sum()) > ALARM
