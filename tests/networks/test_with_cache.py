"""Keys and values of earlier steps: exact where nothing is stale, and row by row in any case."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks.tiny import BASE, MASK, params_of

from mdlm_jax import sample, sampling, strategies
from mdlm_jax.diffusion import caching, clocks
from mdlm_jax.networks import bert
from mdlm_jax.networks.with_cache import KINDS

pytestmark = pytest.mark.slow  # each case compiles a network of its own

ROWS, LENGTH = 4, 12
POST = dataclasses.replace(BASE, max_length=LENGTH, dropout=0.0)
ROPE = dataclasses.replace(
    POST, norm_position="pre", norm="rmsnorm", positions="rope", token_types=0, vocab_multiple=8
)
TIMED = dataclasses.replace(ROPE, time_conditioning=True, classes=3)
CONFIGS = {"post": POST, "rope": ROPE, "timed": TIMED}
AROUND = {"prefix": 0, "dual": 0, "vicinity": 2}
LABEL = np.int32([0, 1, 2, -1])
# Padding at the end of rows, prompts, a gap within text, and scattered gaps.
VALID = np.arange(LENGTH) < np.array([12, 9, 12, 11])[:, None]
CANVAS = np.random.default_rng(0).integers(4, BASE.vocab_size, (ROWS, LENGTH), dtype=np.int32)
CANVAS[0, 3:] = MASK
CANVAS[1, 2:9] = MASK
CANVAS[2, 5:9] = MASK
CANVAS[3, [3, 4, 5, 7, 8, 10]] = MASK
FILL = VALID & (CANVAS == MASK)
CLEAN = np.random.default_rng(1).integers(4, BASE.vocab_size, (ROWS, LENGTH), dtype=np.int32)
NEVER = 1000


def cached(params, config, kind="dual", refresh=1, width=LENGTH, canvas=CANVAS):
    told = {"label": LABEL} if config.classes else {}
    return bert.cached_denoiser(
        params, config, kind, width, refresh, around=AROUND[kind], valid=VALID, **told
    )


def plain(params, config):
    told = {"label": LABEL} if config.classes else {}
    return bert.denoiser(params, config, valid=VALID, **told)


def drawn(denoiser, canvas=CANVAS, steps=6, blocks=2, keys=None, **options):
    keys = jax.random.split(jax.random.key(3), len(canvas)) if keys is None else keys
    options = {"fill": FILL, "maskable": VALID, **options}
    return sample(
        denoiser,
        None,
        canvas,
        mask_id=MASK,
        steps=steps,
        blocks=blocks,
        keys=keys,
        trace=True,
        **options,
    )


@functools.partial(jax.jit, static_argnames=("name", "kind", "width"))
def written(params, name, kind, refresh, width, canvas, steps, blocks, keys):
    denoiser = cached(params, CONFIGS[name], kind, refresh, width)
    return drawn(denoiser, canvas, steps, blocks, keys)


@functools.partial(jax.jit, static_argnames="name")
def written_plainly(params, name, canvas, steps, blocks, keys):
    return drawn(plain(params, CONFIGS[name]), canvas, steps, blocks, keys)


KEYS = jax.random.split(jax.random.key(3), ROWS)
STEPS = np.int32([6, 7, 4, 5])
BLOCKS = np.int32([2, 3, 1, 2])


def width_of(kind, blocks=BLOCKS):
    return max(
        caching.widest(FILL[i : i + 1], int(blocks[i]), to_end=kind == "prefix")
        for i in range(ROWS)
    )


@functools.cache
def expected(name):
    return jax.device_get(
        written_plainly(params_of(CONFIGS[name]), name, CANVAS, STEPS, BLOCKS, KEYS)
    )


def run(name, kind, refresh, width=None, canvas=CANVAS, steps=STEPS, blocks=BLOCKS, keys=KEYS):
    width = width_of(kind) if width is None else width
    params = params_of(CONFIGS[name])
    out = written(params, name, kind, jnp.int32(refresh), width, canvas, steps, blocks, keys)
    return jax.device_get(out)


def same(out, expected):
    np.testing.assert_array_equal(out[0], expected[0])
    np.testing.assert_array_equal(out[1].step, expected[1].step)
    np.testing.assert_array_equal(out[1].evaluations, expected[1].evaluations)
    np.testing.assert_allclose(out[1].log_prob, expected[1].log_prob, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["post", "rope"])
def test_a_refresh_in_every_step_is_no_cache(name, kind):
    same(run(name, kind, 1), expected(name))
    # And a refresh that never comes again is something else.
    assert np.abs(run(name, kind, NEVER)[1].log_prob - expected(name)[1].log_prob).max() > 1e-3


def test_a_refresh_in_every_step_is_no_cache_with_time_and_labels():
    same(run("timed", "dual", 1), expected("timed"))
    assert np.abs(run("timed", "dual", 2)[1].log_prob - expected("timed")[1].log_prob).max() > 1e-3


def test_a_window_of_the_whole_row_is_exact_whenever_it_is_refreshed():
    same(run("post", "vicinity", NEVER, width=LENGTH), expected("post"))


def test_a_row_that_is_wider_than_the_window_is_encoded_whole():
    # All rows have a block of two blanks or more, from the first to the last.
    assert min(caching.widest(FILL[i : i + 1], int(BLOCKS[i])) for i in range(ROWS)) > 1
    same(run("rope", "dual", NEVER, width=1), expected("rope"))


class Steps:
    """Evaluations of a cached denoiser by hand."""

    def __init__(self, config, kind="dual", width=4):
        self.config, self.params = config, params_of(config)

        @jax.jit
        def encode(params, memory, view, asked, t, refresh):
            denoiser = cached(params, config, kind, refresh, width)
            memory, hidden = denoiser.encode(memory, view, asked, t)
            return memory, denoiser.readout(hidden.at, hidden.row)[..., : config.vocab_size]

        @jax.jit
        def exact(params, canvas, t):
            hidden = plain(params, config).encode(canvas, t)
            return plain(params, config).readout(*hidden)[..., : config.vocab_size]

        self.encode = functools.partial(encode, self.params)
        self.exact = functools.partial(exact, self.params)
        self.start = functools.partial(cached(self.params, config).start, ROWS, LENGTH)


# The block at hand of each row: within four positions.
WANTED = np.zeros((ROWS, LENGTH), bool)
WANTED[0, 2:6] = WANTED[1, 4:8] = WANTED[2, [5, 8]] = WANTED[3, 7:11] = True
T = np.full(ROWS, 0.5, np.float32)


def view_of(canvas, index, asked=WANTED, wanted=WANTED):
    state = sampling.start(
        strategies.exact_count(), jnp.asarray(canvas), KEYS, mask_id=MASK, steps=100
    )
    index = jnp.broadcast_to(jnp.asarray(index, jnp.int32), ROWS)
    view = clocks.view_of(state, MASK)
    return view._replace(wanted=wanted, blank=wanted, index=index), jnp.asarray(asked)


@functools.cache
def steps_of(layers=2, kind="dual"):
    return Steps(dataclasses.replace(ROPE, layers=layers), kind)


@pytest.mark.parametrize("kind", ["dual", "vicinity"])
def test_a_window_after_a_look_at_the_same_canvas_is_exact(kind):
    of = steps_of(kind=kind)
    exact = of.exact(CANVAS, T)
    memory, whole = of.encode(of.start(), *view_of(CANVAS, 0), T, NEVER)
    _, near = of.encode(memory, *view_of(CANVAS, 1), T, NEVER)
    np.testing.assert_allclose(whole[VALID], exact[VALID], atol=2e-5)
    np.testing.assert_allclose(near[WANTED], exact[WANTED], atol=2e-5)
    # It was no look at the whole row: what lies far from the block was not computed.
    far = ~WANTED & (np.arange(LENGTH) < 2)
    assert np.abs(near[far] - exact[far])[:, MASK + 1 :].max() > 1e-2


def test_in_one_layer_what_changes_in_the_window_is_seen_and_what_changes_outside_is_not():
    of = steps_of(layers=1)
    memory, _ = of.encode(of.start(), *view_of(CANVAS, 0), T, NEVER)
    window = WANTED.copy()
    window[2, 5:9] = True  # from the first to the last that is wanted
    inside = np.where(window, CLEAN, CANVAS)
    memory, near = of.encode(memory, *view_of(inside, 1), T, NEVER)
    np.testing.assert_allclose(near[WANTED], of.exact(inside, T)[WANTED], atol=2e-5)
    outside = np.where(window, inside, CLEAN)
    memory, near = of.encode(memory, *view_of(outside, 2), T, NEVER)
    np.testing.assert_allclose(near[WANTED], of.exact(inside, T)[WANTED], atol=2e-5)
    # Until it is looked at again.
    _, near = of.encode(memory, *view_of(outside, 3), T, 3)
    np.testing.assert_allclose(near[WANTED], of.exact(outside, T)[WANTED], atol=2e-5)


def test_a_new_block_is_a_reason_to_look():
    of = steps_of()
    memory, _ = of.encode(of.start(), *view_of(CANVAS, 0), T, NEVER)
    later = np.roll(WANTED, 1, axis=1) & VALID
    _, out = of.encode(memory, *view_of(CLEAN, 1, later, later), T, NEVER)
    np.testing.assert_allclose(out[later], of.exact(CLEAN, T)[later], atol=2e-5)


def test_what_was_never_looked_at_and_what_asks_for_nothing_leaves_no_trace():
    of = steps_of()
    empty = of.start()
    poisoned = empty._replace(
        memory=jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), empty.memory)
    )
    memory, clean = of.encode(empty, *view_of(CANVAS, 0), T, NEVER)
    after, out = of.encode(poisoned, *view_of(CANVAS, 0), T, NEVER)
    np.testing.assert_array_equal(out, clean)
    jax.tree.map(np.testing.assert_array_equal, after, memory)
    # Half of the rows look, at first one and then the other; none disturbs the others.
    first = np.array([True, False, True, False])[:, None]
    after, out = of.encode(poisoned, *view_of(CANVAS, 0, WANTED & first), T, NEVER)
    rest, more = of.encode(after, *view_of(CANVAS, 0, WANTED & ~first), T, NEVER)
    np.testing.assert_array_equal(np.where(first[..., None], out, more), clean)
    jax.tree.map(np.testing.assert_array_equal, rest, memory)
    # A row that asks for nothing while others are computed keeps what it has.
    kept, _ = of.encode(memory, *view_of(CLEAN, 1, WANTED & first), T, NEVER)
    idle = ~first[:, 0]
    np.testing.assert_array_equal(kept.memory.keys[:, idle], memory.memory.keys[:, idle])
    assert np.any(kept.memory.keys != memory.memory.keys)
    # Windows beside rows that are due are the windows without them.
    alone, near = of.encode(memory, *view_of(CLEAN, 1), T, NEVER)
    mixed, out = of.encode(memory, *view_of(CLEAN, np.where(first[:, 0], 1, 9)), T, 5)
    half = first[:, 0]
    np.testing.assert_array_equal(out[half], near[half])
    np.testing.assert_array_equal(mixed.memory.keys[:, half], alone.memory.keys[:, half])
    np.testing.assert_allclose(
        out[~half][WANTED[~half]], of.exact(CLEAN, T)[~half][WANTED[~half]], atol=2e-5
    )


def test_a_row_is_the_same_to_the_bit_in_any_company():
    whole = run("rope", "dual", 3)
    # Other rows in another order with other clocks; row 2 stays in its padding's place.
    steps, blocks = np.int32([3, 9, STEPS[2], 12]), np.int32([3, 1, BLOCKS[2], 5])
    canvas = np.where(VALID & (np.arange(ROWS) != 2)[:, None], MASK, CANVAS)
    keys = jax.random.split(jax.random.key(9), ROWS).at[2].set(KEYS[2])
    other = run("rope", "dual", 3, None, canvas, steps, blocks, keys)
    for one, two in zip(jax.tree.leaves(whole), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(one[2], two[2])
    assert np.any(whole[0] != other[0])
    # More steps than blanks: steps in which a row asks for nothing, alone or not.
    steps = np.int32([40, 2, 40, 3])
    once = run("rope", "dual", 3, steps=steps)
    again = run("rope", "dual", 3, steps=np.int32([40, 40, 40, 40]))
    for one, two in zip(jax.tree.leaves(once), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(one[[0, 2]], two[[0, 2]])


def test_bad_arguments_are_named():
    params = params_of(POST)

    def made(config=POST, kind="dual", width=4, refresh=8, **options):
        return bert.cached_denoiser(params, config, kind, width, refresh, **options)

    with pytest.raises(ValueError, match="cache 'all': must be one of prefix, dual, vicinity"):
        made(kind="all")
    with pytest.raises(ValueError, match="attention='causal': must be 'full' for a cache"):
        made(dataclasses.replace(POST, attention="causal"))
    for refresh in (0, 2.0):
        with pytest.raises(ValueError, match=f"refresh is {refresh}: must be a whole number"):
            made(refresh=refresh)
    with pytest.raises(ValueError, match="around is 2 for 'dual': must be 0"):
        made(around=2)
    with pytest.raises(ValueError, match="around is 0 for 'vicinity': must be at least 1"):
        made(kind="vicinity")
    with pytest.raises(ValueError, match="width is 0: must be at least 1"):
        made(width=0)
    with pytest.raises(TypeError, match=r"width is 2\.0, it must be one whole number"):
        made(width=2.0)
