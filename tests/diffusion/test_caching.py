"""When a row looks at its whole canvas, and what transforms make of a denoiser with a cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax import as_denoiser, nelbo, sample, sampling, strategies, transforms
from mdlm_jax.diffusion import caching, clocks
from mdlm_jax.diffusion.caching import CachedDenoiser

MASK, LENGTH, ROWS = 7, 6, 2
TABLE = jax.random.normal(jax.random.key(0), (8, 8))
KEYS = jax.random.split(jax.random.key(1), ROWS)
CANVAS = np.int32([[MASK] * 6, [1, MASK, MASK, 2, MASK, 3]])


def plain():
    return as_denoiser(lambda tokens, t: TABLE[jnp.roll(tokens, 1, axis=1)], MASK)


def counting():
    """A table with a memory: how many evaluations each row asked for."""

    def encode(memory, view, asked, t):
        return memory + asked.any(axis=1), plain().encode(view.canvas, t)

    def start(batch, length):
        assert length == LENGTH
        return jnp.zeros(batch, jnp.int32)

    return CachedDenoiser(start, encode, plain().readout, mask_id=MASK)


def drawn(denoiser, **options):
    options = {"steps": 4, "keys": KEYS, "trace": True, **options}
    return jax.jit(lambda: sample(denoiser, None, CANVAS, mask_id=MASK, **options))()


def test_sample_takes_a_denoiser_with_a_cache():
    jax.tree.map(np.testing.assert_array_equal, drawn(counting()), drawn(plain()))


@pytest.mark.slow
def test_the_memory_goes_from_step_to_step():
    strategy = strategies.exact_count()
    state = sampling.start(strategy, CANVAS, KEYS, mask_id=MASK, steps=jnp.int32([4, 2]))
    denoiser, memory = counting(), jnp.zeros(ROWS, jnp.int32)
    while not sampling.finished(state).all():
        state, memory = sampling.step_with(
            denoiser.encode, denoiser, strategy, state, memory, mask_id=MASK
        )
    np.testing.assert_array_equal(memory, [4, 2])
    np.testing.assert_array_equal(memory, state.evaluations)


@pytest.mark.slow
@pytest.mark.parametrize("value", [0.5, np.float32([0.5, 2.0])], ids=["one", "a row"])
def test_a_transform_of_a_cached_denoiser_is_that_of_the_denoiser(value):
    def transform(denoiser):
        denoiser = transforms.temperature(denoiser, value)
        return transforms.repetition_penalty(denoiser, 1.5)

    changed = caching.transformed(counting(), transform)
    jax.tree.map(np.testing.assert_array_equal, drawn(changed), drawn(transform(plain())))
    assert np.any(drawn(changed)[0] != drawn(plain())[0])


def test_a_guide_of_two_cached_denoisers_is_that_of_the_denoisers():
    def guided(one, other):
        return transforms.guide(one, other, np.float32([3.0, -1.0]))

    def other():
        return as_denoiser(lambda tokens, t: TABLE[tokens], MASK)

    def encode(memory, view, asked, t):
        return memory, other().encode(view.canvas, t)

    second = CachedDenoiser(lambda batch, length: (), encode, other().readout, mask_id=MASK)
    both = caching.joined(counting(), second, guided)
    jax.tree.map(np.testing.assert_array_equal, drawn(both), drawn(guided(plain(), other())))
    assert np.any(drawn(both)[0] != drawn(counting())[0])


def test_a_likelihood_refuses_a_cache():
    with pytest.raises(TypeError, match="denoiser is a CachedDenoiser: sample takes it"):
        nelbo(counting(), jax.random.key(0), CANVAS % 7, mask_id=MASK, draws=2)


WANTED = np.array([[0, 0, 1, 1, 0, 0], [0, 1, 0, 0, 1, 0]], bool)


def view_of(index, asked=WANTED, wanted=WANTED):
    state = sampling.start(strategies.exact_count(), CANVAS, KEYS, mask_id=MASK, steps=9)
    view = clocks.view_of(state, MASK)
    return view._replace(wanted=jnp.asarray(wanted), index=jnp.int32(index)), jnp.asarray(asked)


def test_a_row_looks_at_first_and_then_every_few_steps_of_its_own_clock():
    clock = caching.started(ROWS)
    seen = []
    for step in range(7):
        view, asked = view_of([step, step + 2])
        due = caching.due(clock, view, asked, jnp.int32([3, 2]))
        clock = caching.looked(clock, view, due)
        seen.append(due)
    np.testing.assert_array_equal(
        np.transpose(seen), [[1, 0, 0, 1, 0, 0, 1], [1, 0, 1, 0, 1, 0, 1]]
    )


def test_a_row_that_asks_for_nothing_is_not_due_and_looks_later():
    asked = WANTED & np.array([[False], [True]])
    clock = caching.started(ROWS)
    due = caching.due(clock, *view_of([0, 0], asked), 8)
    np.testing.assert_array_equal(due, [False, True])
    clock = caching.looked(clock, view_of([0, 0])[0], due)
    np.testing.assert_array_equal(caching.due(clock, *view_of([1, 1]), 8), [True, False])


def test_another_block_and_another_text_are_looked_at():
    view, _ = view_of([3, 3])
    clock = caching.looked(caching.started(ROWS), view, np.ones(ROWS, bool))
    np.testing.assert_array_equal(caching.due(clock, *view_of([4, 4]), 8), [False, False])
    later = np.roll(WANTED, 1, axis=1)
    np.testing.assert_array_equal(caching.due(clock, *view_of([4, 4], later, later), 8), True)
    np.testing.assert_array_equal(caching.due(clock, *view_of([0, 4]), 8), [True, False])


@pytest.mark.parametrize(
    ("blocks", "widest", "to_end"), [(1, 6, 6), (2, 3, 6), (3, 2, 6), (6, 1, 6)]
)
def test_the_widest_block_of_known_rows(blocks, widest, to_end):
    wanted = np.ones((1, 6), bool)
    assert caching.widest(wanted, blocks) == widest
    assert caching.widest(wanted, blocks, to_end=True) == to_end


def test_gaps_between_blanks_count():
    wanted = CANVAS[1:] == MASK  # at 1, 2 and 4
    assert [caching.widest(wanted, blocks) for blocks in (1, 2, 3)] == [4, 2, 1]
    assert caching.widest(wanted, 1, to_end=True) == 5
    assert caching.widest(wanted & False, 2) == 1
