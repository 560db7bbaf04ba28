"""Nothing passes from padding, from another segment, or from beyond a window: forward or back."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks.tiny import BASE, params_of

from mdlm_jax.diffusion import Corrupted, corrupted_loss
from mdlm_jax.networks import bert

LENGTH = BASE.max_length
CONFIGS = {
    "modern": dataclasses.replace(
        BASE,
        norm_position="pre",
        norm="rmsnorm",
        positions="rope",
        qk_norm=True,
        gated=True,
        time_conditioning=True,
        classes=3,
        class_dropout=0.5,
        attention="local",
        window=2,
        remat="full",
    ),
    "post": dataclasses.replace(
        BASE, time_conditioning=True, classes=3, remat="dots", scan=False, attention="causal"
    ),
    "plain": BASE,
}
EVERY_TOKEN = np.arange(LENGTH, dtype=np.int32)[None]  # each position its own row of the table


@functools.partial(jax.jit, static_argnums=0)
def hidden_and_influence(config, params, tokens, valid, segment_ids, key, query):
    """The hidden state at `query` [D], and how far each token's embedding moves it, f32[V]."""
    label = jnp.array([1]) if config.classes else None

    def read(table):
        embeddings = {**params["encoder"]["embeddings"], "tokens": table}
        told = {**params, "encoder": {**params["encoder"], "embeddings": embeddings}}
        denoiser = bert.denoiser(
            told, config, valid=valid, segment_ids=segment_ids, label=label, dropout_key=key
        )
        at = denoiser.encode(tokens, jnp.array([0.5])).at[0, query]
        return jnp.sum(at**3), at

    gradient, at = jax.grad(read, has_aux=True)(params["encoder"]["embeddings"]["tokens"])
    return at, jnp.abs(gradient).max(axis=1)


def reaches(config, valid, segment_ids, query):
    """bool[L]: whose token can be felt at `query` after all layers, by following who sees whom."""
    felt = {query}
    for _ in range(config.layers):
        felt |= {
            key
            for at in felt
            for key in range(LENGTH)
            if valid[key]
            and segment_ids[key] == segment_ids[at]
            and (config.attention != "causal" or key <= at)
            and (config.attention != "local" or abs(key - at) <= config.window)
        }
    return np.isin(np.arange(LENGTH), list(felt))


@st.composite
def layouts(draw):
    """A row with padding anywhere and up to three segments, and a real position of it."""
    valid = draw(st.lists(st.booleans(), min_size=LENGTH, max_size=LENGTH).filter(any))
    segments = sorted(draw(st.lists(st.integers(0, 2), min_size=LENGTH, max_size=LENGTH)))
    query = draw(st.sampled_from(np.flatnonzero(valid).tolist()))
    return np.array(valid), np.int32(segments), query


@pytest.mark.parametrize("name", CONFIGS)
@settings(max_examples=40)
@given(layout=layouts(), seed=st.integers(0, 99))
def test_only_what_a_position_sees_reaches_it(name, layout, seed):
    config, (valid, segments, query) = CONFIGS[name], layout
    params, key = params_of(config), jax.random.key(seed)
    expected = reaches(config, valid, segments, query)

    def read(tokens):
        return hidden_and_influence(
            config, params, np.int32(tokens), valid[None], segments[None], key, query
        )

    hidden, influence = read(EVERY_TOKEN)
    np.testing.assert_array_equal(np.asarray(influence)[:LENGTH] > 0, expected)
    replaced = np.where(expected, EVERY_TOKEN, BASE.vocab_size - 1 - EVERY_TOKEN % 3)
    np.testing.assert_array_equal(read(replaced)[0], hidden)


def test_rows_of_nothing_but_padding_leave_loss_and_gradient_finite():
    config = CONFIGS["modern"]
    valid = np.stack([np.zeros(LENGTH, bool), np.arange(LENGTH) < 5])
    tokens = np.tile(EVERY_TOKEN, (2, 1))
    slots = np.int32([[0, 1], [0, 1]])

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        denoiser = bert.denoiser(params, config, valid=valid)
        weights = np.float32([[0, 0], [1, 1]])
        t, rate = np.float32([1, 0.5]), np.float32([0, 0.2])
        corrupted = Corrupted(tokens, t, rate, slots, slots, weights)
        return corrupted_loss(denoiser, corrupted)[0]

    value, gradient = loss(params_of(config))
    assert np.isfinite(value)
    jax.tree.map(lambda g: np.testing.assert_(np.isfinite(g).all()), gradient)


ROPE = dataclasses.replace(BASE, positions="rope", norm_position="pre", qk_norm=True)
LEARNED = dataclasses.replace(ROPE, positions="learned")
TEXT = np.int32([5, 1, 7, 2])


@functools.partial(jax.jit, static_argnums=0)
def shown(config, params, tokens, valid=None, segment_ids=None):
    return bert.logits(params, config, tokens, valid=valid, segment_ids=segment_ids)


def padded_at(start, filler):
    """TEXT from `start` in a row of padding: tokens and validity `[1, L]`."""
    tokens, valid = np.full(LENGTH, filler, np.int32), np.zeros(LENGTH, bool)
    tokens[start : start + len(TEXT)], valid[start : start + len(TEXT)] = TEXT, True
    return tokens[None], valid[None]


@given(start=st.integers(0, LENGTH - len(TEXT)), filler=st.integers(0, BASE.vocab_size - 1))
def test_rope_does_not_tell_where_in_its_padding_a_text_stands(start, filler):
    def read(config, start):
        tokens, valid = padded_at(start, filler)
        return shown(config, params_of(config), tokens, valid)[0, start : start + len(TEXT)]

    np.testing.assert_allclose(read(ROPE, start), read(ROPE, 0), atol=2e-5)
    if start:
        assert np.abs(read(LEARNED, start) - read(LEARNED, 0)).max() > 0.1


@given(order=st.permutations([0, 1, 2]))
def test_rope_does_not_tell_in_what_order_segments_stand(order):
    segments = [TEXT, np.int32([9, 8]), np.int32([4, 11])]

    def read(config, order):
        """The logits of each segment, by its number."""
        tokens = np.concatenate([segments[i] for i in order])[None]
        ids = np.concatenate([np.full(len(segments[i]), i, np.int32) for i in order])[None]
        out = np.asarray(shown(config, params_of(config), tokens, segment_ids=ids))
        return [out[ids == i] for i in range(3)]

    for moved, stayed in zip(read(ROPE, order), read(ROPE, [0, 1, 2]), strict=True):
        np.testing.assert_allclose(moved, stayed, atol=2e-5)
    if list(order) != [0, 1, 2]:
        pairs = zip(read(LEARNED, order), read(LEARNED, [0, 1, 2]), strict=True)
        assert max(np.abs(a - b).max() for a, b in pairs) > 0.1


def test_rope_tells_the_order_of_tokens():
    params = params_of(ROPE)
    tokens = np.tile(TEXT, 2)[None]
    forward, backward = (shown(ROPE, params, x)[0] for x in (tokens, tokens[:, ::-1]))
    assert np.abs(forward - backward[::-1]).max() > 0.1
