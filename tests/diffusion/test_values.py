"""Schedules and strategies are equal by value: static arguments of jit, or traced ones."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from every_strategy import EVERY

from mdlm_jax import as_denoiser, corrupt, sample, schedules, strategies
from mdlm_jax.diffusion.values import Bound

MASK, L = 5, 8
KEY = jax.random.key(0)
TABLE = jax.random.normal(jax.random.key(1), (6, 6))
CANVAS = jnp.full((3, L), MASK).at[:, ::3].set(1)

S = strategies
AGAIN = {  # the same as in `EVERY`, made once more
    "exact_count": lambda: S.exact_count(),
    "exact_count, cosine grid": lambda: S.exact_count(grid="cosine"),
    "exact_count, last greedy": lambda: S.exact_count(last="greedy"),
    "left_to_right": lambda: S.left_to_right(),
    "first_hitting": lambda: S.first_hitting(),
    "ancestral": lambda: S.ancestral(schedules.polynomial(1)),
    "ancestral, cosine": lambda: S.ancestral(schedules.cosine()),
    "ancestral, cosine grid": lambda: S.ancestral(grid="cosine"),
    "confidence": lambda: S.confidence(),
    "confidence, margin": lambda: S.confidence("margin"),
    "confidence, entropy": lambda: S.confidence("entropy", grid="uniform"),
    "greedy": lambda: S.greedy(),
    "threshold": lambda: S.threshold(0.6),
    "factor": lambda: S.factor(0.9),
    "entropy_bounded": lambda: S.entropy_bounded(0.5),
    "remask, cap": lambda: S.remask("cap", 0.3),
    "remask, rescale": lambda: S.remask("rescale", 0.4),
    "remask, confidence": lambda: S.remask("confidence", 0.9),
    "remask, loop": lambda: S.remask("loop", 0.4),
    "path_planning": lambda: S.path_planning(),
}
OTHERS = {  # by one value each
    "threshold 0.61": S.threshold(0.61),
    "threshold, square": S.threshold(0.6, schedules.polynomial(2)),
    "threshold, cube": S.threshold(0.6, schedules.polynomial(3)),
    "confidence, cooler": S.confidence(temperature=0.5),
    "remask, cap 0.31": S.remask("cap", 0.31),
    "remask, loop from 0.5": S.remask("loop", 0.4, t_on=0.5),
    "remask, loop at 0.8": S.remask("loop", 0.4, alpha_on=0.8),
    "path_planning 0.5": S.path_planning(0.5),
}
SCHEDULES = {
    "linear": schedules.linear,
    "cosine": schedules.cosine,
    "square": lambda: schedules.polynomial(2),
    "root": lambda: schedules.polynomial(0.5),
}


@pytest.mark.parametrize(
    ("made", "again"),
    [
        ({**EVERY, **OTHERS}, AGAIN),
        ({name: make() for name, make in SCHEDULES.items()}, SCHEDULES),
    ],
    ids=["strategies", "schedules"],
)
def test_equal_and_hashed_by_value(made, again):
    for name, make in again.items():
        assert made[name] == make(), name
        assert hash(made[name]) == hash(make()), name
    for (one, a), (other, b) in itertools.combinations(made.items(), 2):
        assert a != b, (one, other)


def test_an_equal_strategy_and_schedule_are_not_traced_again():
    traced = []

    def step(canvas, strategy, schedule):
        traced.append(strategy)
        return corrupt(KEY, canvas, mask_id=MASK, schedule=schedule).t

    jitted = jax.jit(step, static_argnames=("strategy", "schedule"))
    for make in (*AGAIN.values(), *AGAIN.values()):
        jitted.trace(CANVAS, strategy=make(), schedule=schedules.polynomial(2))
    assert len(traced) == len(AGAIN)
    # Another value is another program.
    jitted.trace(CANVAS, strategy=S.threshold(0.6), schedule=schedules.polynomial(3))
    jitted.trace(CANVAS, strategy=S.threshold(0.61), schedule=schedules.polynomial(2))
    assert len(traced) == len(AGAIN) + 2


def write(strategy):
    denoiser = as_denoiser(lambda tokens, t: TABLE[jnp.roll(tokens, 1, axis=1)], MASK)
    return sample(denoiser, KEY, CANVAS, mask_id=MASK, steps=3, strategy=strategy)


@pytest.mark.slow
def test_a_strategy_may_be_a_traced_argument_whose_numbers_vary():
    traced = []

    @jax.jit
    def jitted(strategy):
        traced.append(strategy)
        return write(strategy)

    fixed = jax.jit(write, static_argnames="strategy")
    for tau, exponent in ((0.1, 2.0), (0.9, 2.0), (0.9, 3.0)):
        strategy = S.threshold(tau, schedules.polynomial(exponent))
        np.testing.assert_array_equal(jitted(strategy), fixed(strategy))
    assert len(traced) == 1
    assert set(jax.tree.leaves(strategy)) == {exponent, tau}
    assert jax.tree.leaves(S.exact_count(grid="cosine")) == []


@pytest.mark.slow
def test_traced_values_still_work_where_a_strategy_is_made():
    taus = jnp.array([0.1, 0.9])
    traced = jax.vmap(lambda tau: write(S.threshold(tau)))(taus)
    for tau, text in zip((0.1, 0.9), traced, strict=True):
        np.testing.assert_array_equal(text, write(S.threshold(tau)))


def test_a_static_strategy_that_holds_an_array_says_what_to_do():
    strategy = S.threshold(jnp.float32(0.9))
    assert strategy == strategy
    assert strategy != S.threshold(jnp.float32(0.9))
    with pytest.raises(TypeError, match=r"above holds an array: .* must hold a number, float\(x\)"):
        hash(strategy)


def test_an_array_equals_itself_alone():
    array = jnp.ones(2)
    assert Bound(max, (array,)) == Bound(max, (array,))
    for other in (jnp.ones(2), 1.0):
        assert Bound(max, (array,)) != Bound(max, (other,)) != Bound(max, (array,))


def test_bound_functions_are_pytrees_of_their_numbers():
    bound = Bound(divmod, (7, "seven", True, None, Bound(divmod, (0.5,))))
    leaves, tree = jax.tree.flatten(bound)
    assert leaves == [7, 0.5]
    assert jax.tree.unflatten(tree, leaves) == bound
    assert jax.tree.structure(Bound(divmod, (8, "seven", True, None, Bound(divmod, (1,))))) == tree
    assert jax.tree.structure(Bound(divmod, (7, "eight", True, None, Bound(divmod, (1,))))) != tree


@pytest.mark.parametrize("name", sorted(set(strategies.__all__) - {"Proposal", "Strategy", "View"}))
def test_an_uncalled_schedule_is_named(name):
    first = {"threshold": (0.9,), "factor": (1,), "entropy_bounded": (0,), "remask": ("cap", 0.1)}
    with pytest.raises(TypeError, match=r"^schedule is the function cosine: call it, "):
        getattr(strategies, name)(*first.get(name, ()), schedule=schedules.cosine)
