"""A causal network with a cache writes what it writes without one, whatever asks it, and where."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks.tiny import BASE, MASK, params_of

from mdlm_jax import causal_denoiser, sample, sampling, strategies, transforms
from mdlm_jax.diffusion import caching, clocks
from mdlm_jax.networks import bert, pieces
from mdlm_jax.networks.attention import cached

pytestmark = pytest.mark.slow  # each case compiles a network of its own

LENGTH, START = 12, 5
POST = dataclasses.replace(BASE, max_length=LENGTH, dropout=0.0, attention="causal")
MODERN = dataclasses.replace(
    POST, norm_position="pre", norm="rmsnorm", positions="rope", token_types=0, vocab_multiple=8
)
TIMED = dataclasses.replace(MODERN, time_conditioning=True, classes=2)
# A whole row, prompts of any length, gaps in text, and one row that nothing is asked of.
CANVAS = np.random.default_rng(0).integers(4, BASE.vocab_size, (6, LENGTH), dtype=np.int32)
CANVAS[0, :] = MASK
CANVAS[1, 1:] = MASK
CANVAS[2, 7:] = MASK
CANVAS[3, [1, 4, 5, 9]] = MASK
CANVAS[4, 2:8] = MASK
ROWS = len(CANVAS)
LABEL = np.int32([0, 1, -1, 0, 1, 0])
KEYS = jax.random.split(jax.random.key(3), ROWS)
# The last but one asks for several positions at a time.
STEPS = np.int32([LENGTH, LENGTH, 6, 4, 4, LENGTH])
STRATEGIES = {
    "left to right": strategies.left_to_right(),
    "anywhere": strategies.exact_count(),
    "taken back": strategies.remask("cap", 0.4),
}


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    """The cache is read in several chunks, and a prompt is read in several pieces."""
    monkeypatch.setattr(cached, "_CHUNK", 4)
    monkeypatch.setattr(pieces, "_PIECE", 3)


def denoisers(params, config):
    told = {"label": LABEL} if config.classes else {}
    plain = bert.denoiser(params, config, **told)
    return (
        bert.causal_cached_denoiser(params, config, START, **told),
        causal_denoiser(plain, start_id=START),
    )


def written(config, strategy, temperatures):
    """With the cache and without it, at each temperature."""

    @jax.jit
    def both(params, temperature):
        def changed(denoiser):
            return transforms.temperature(denoiser, temperature)

        with_cache, without = denoisers(params, config)
        options = {"mask_id": MASK, "steps": STEPS, "strategy": strategy, "trace": True}
        return [
            sample(denoiser, None, CANVAS, keys=KEYS, **options)
            for denoiser in (caching.transformed(with_cache, changed), changed(without))
        ]

    params = params_of(config)
    return [jax.device_get(both(params, temperature)) for temperature in temperatures]


@pytest.mark.parametrize(
    ("config", "strategy"),
    [
        (POST, "left to right"),
        (MODERN, "left to right"),
        (TIMED, "left to right"),
        (MODERN, "anywhere"),
        (POST, "taken back"),
    ],
)
def test_what_is_written_is_what_is_written_without_it(config, strategy):
    drawn = written(config, STRATEGIES[strategy], [np.float32(1.0), np.float32(0.0)])
    for (tokens, trace), (expected, without) in drawn:
        np.testing.assert_array_equal(tokens, expected)
        np.testing.assert_array_equal(trace.step, without.step)
        np.testing.assert_array_equal(trace.evaluations, without.evaluations)
        np.testing.assert_allclose(trace.log_prob, without.log_prob, atol=2e-5)
    assert np.any(drawn[0][0][0] != drawn[1][0][0])


T = np.ones(ROWS, np.float32)
TEXT = np.random.default_rng(1).integers(4, BASE.vocab_size, CANVAS.shape, dtype=np.int32)


def view_of(canvas):
    state = sampling.start(STRATEGIES["anywhere"], CANVAS, KEYS, mask_id=MASK, steps=LENGTH)
    return clocks.view_of(state._replace(canvas=jnp.asarray(canvas)), MASK)


def at(*places):
    """What each row asks for; -1 asks for nothing."""
    return jnp.asarray(np.arange(LENGTH)[None] == np.array(places)[:, None])


@functools.cache
def by_hand():
    """`(memory, canvas, asked) -> (memory, logits)`, an empty memory, and the logits without it."""
    params = params_of(MODERN)
    with_cache, without = denoisers(params, MODERN)

    @jax.jit
    def encode(memory, canvas, asked):
        memory, hidden = with_cache.encode(memory, view_of(canvas), asked, T)
        return memory, with_cache.readout(hidden.at, hidden.row)[..., : MODERN.vocab_size]

    @jax.jit
    def exact(canvas):
        hidden = without.encode(canvas, T)
        return without.readout(hidden.at, hidden.row)[..., : MODERN.vocab_size]

    return encode, with_cache.start(ROWS, LENGTH), exact, with_cache.clear


def test_a_step_back_and_another_text_are_computed_anew():
    encode, memory, exact, _ = by_hand()
    for canvas, places in [
        (TEXT, (3, 0, 11, 5, 6, 7)),
        (TEXT, (4, 2, 0, 5, 3, 11)),
        (np.where(np.arange(LENGTH)[None] == 2, CANVAS, TEXT), (5, 6, 7, 8, 9, 10)),
        (CANVAS[::-1].copy(), (1, 2, 8, 9, 11, 4)),
    ]:
        asked = at(*places)
        memory, out = encode(memory, canvas, asked)
        np.testing.assert_allclose(out[asked], exact(canvas)[asked], atol=2e-5)


def test_places_behind_the_text_and_other_rows_change_nothing_and_what_is_kept_is_used():
    encode, memory, _, clear = by_hand()
    memory, _ = encode(memory, TEXT, at(3, 4, 5, 3, -1, 2))
    assert memory.cache.length.tolist() == [4, 5, 6, 4, 0, 3]
    asked = at(4, 5, -1, 4, 2, 3)
    after, out = encode(memory, TEXT, asked)

    def poisoned(where):
        poison = jnp.where(where[None, :, :, None, None], jnp.nan, 0.0)
        keys, values = (x + poison for x in (memory.cache.keys, memory.cache.values))
        return memory._replace(cache=memory.cache._replace(keys=keys, values=values))

    places = np.arange(memory.cache.keys.shape[2])[None]
    stale = places >= np.asarray(memory.cache.length)[:, None]
    stale[2] = True  # a row that asks for nothing
    again, same = encode(poisoned(stale), TEXT, asked)
    np.testing.assert_array_equal(same, out)
    np.testing.assert_array_equal(again.cache.length, after.cache.length)
    # What is held is read, and not what the row had been before it was cleared.
    held = poisoned((places == 1) & (np.arange(ROWS) < 2)[:, None])
    _, lost = encode(held, TEXT, asked)
    assert np.isnan(lost[0, 4]).any() and np.isnan(lost[1, 5]).any()
    _, cleared = encode(clear(held, jnp.arange(ROWS) < 2), TEXT, asked)
    np.testing.assert_allclose(cleared[asked], out[asked], atol=2e-5)
    np.testing.assert_array_equal(cleared[2:], out[2:])


def test_what_a_causal_cache_does_not_take():
    with pytest.raises(ValueError, match="attention='full': must be 'causal'"):
        bert.causal_cached_denoiser(params_of(BASE), BASE, START)
    with_cache, _ = denoisers(params_of(MODERN), MODERN)
    longer = np.pad(CANVAS, ((0, 0), (0, 1)))
    with pytest.raises(ValueError, match="tokens have length 13: max_length is 12"):
        sample(with_cache, None, longer, keys=KEYS, mask_id=MASK, steps=LENGTH)
