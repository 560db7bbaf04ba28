"""Attention to keys of an earlier pass: what is fresh, what is stale, and what is not there."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks.tiny import BASE, params_of

from mdlm_jax.networks.attention import Memory
from mdlm_jax.networks.attention.memory import over, write
from mdlm_jax.networks.encoder import Encoder

LENGTH, ROWS = 8, 2
CONFIGS = {
    "post": BASE,
    "pre": dataclasses.replace(
        BASE, norm_position="pre", positions="rope", qk_norm=True, norm="rmsnorm", token_types=0
    ),
    "embedding norm": dataclasses.replace(
        BASE, norm_position="pre", embedding_norm=True, positions="rope", scan=False
    ),
}
ALL = np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1))
PLACES = np.int32([[2, 3, 4], [5, 6, 7]])  # a window that differs from row to row
TOKENS = np.random.default_rng(0).integers(0, BASE.vocab_size, (ROWS, LENGTH), dtype=np.int32)


@functools.partial(jax.jit, static_argnums=0)
def full(config, tokens, valid=None):
    params = {"params": params_of(config)["encoder"]}
    return Encoder(config).apply(params, tokens, None, valid=valid)


@functools.partial(jax.jit, static_argnums=0)
def few(config, memory, tokens, positions, places=None, valid=None):
    places = positions if places is None else places
    attend = over(memory, places, valid, backend="xla")
    params = {"params": params_of(config)["encoder"]}
    out, own = Encoder(config).apply(params, tokens, None, positions=positions, attend=attend)
    return out, write(memory, own, places)


def at(x, places=PLACES):
    return np.take_along_axis(np.asarray(x), places.reshape(*places.shape, *[1] * (x.ndim - 2)), 1)


def garbage(config, places=LENGTH):
    shape = (config.layers, ROWS, places, config.heads, config.head_dim)
    return Memory(jnp.full(shape, 1e3), jnp.full(shape, -1e3))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_pass_over_all_tokens_is_the_full_one_and_leaves_what_a_few_need(name):
    config = CONFIGS[name]
    expected = full(config, TOKENS)
    out, memory = few(config, garbage(config), TOKENS, ALL)
    np.testing.assert_allclose(out, expected, atol=2e-6)
    out, again = few(config, memory, at(TOKENS), PLACES)
    np.testing.assert_allclose(out, at(expected), atol=5e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-6), memory, again)


def test_the_own_keys_are_fresh_and_those_of_others_stale():
    # In one layer keys depend on their own token alone, so none of the others is stale.
    config = dataclasses.replace(CONFIGS["pre"], layers=1)
    _, memory = few(config, garbage(config), TOKENS, ALL)
    changed = TOKENS.copy()
    np.put_along_axis(changed, PLACES, (at(TOKENS) + 1) % config.vocab_size, axis=1)
    out, _ = few(config, memory, at(changed), PLACES)
    np.testing.assert_allclose(out, at(full(config, changed)), atol=5e-6)
    assert np.abs(out - at(full(config, TOKENS))).max() > 0.1
    # In two, those of the second layer are from before the change.
    config = CONFIGS["pre"]
    _, memory = few(config, garbage(config), TOKENS, ALL)
    out, after = few(config, memory, at(changed), PLACES)
    assert np.abs(out - at(full(config, changed))).max() > 0.01
    moved = np.asarray(after.keys != memory.keys).any((0, 3, 4))
    np.testing.assert_array_equal(moved, (ALL[:, None] == PLACES[..., None]).any(1))


def test_a_place_that_is_not_valid_is_not_seen():
    config = CONFIGS["pre"]
    valid = np.int32([[4], [6]]) > ALL
    tokens = np.where(valid, TOKENS, 0)
    _, memory = few(config, garbage(config, LENGTH + 3), tokens, ALL)
    memory = jax.tree.map(lambda x: x.at[:, 0, 4:].set(1e3).at[:, 1, 6:].set(1e3), memory)
    seen = np.pad(valid, ((0, 0), (0, 3)))
    _, memory = few(config, memory, tokens, ALL, valid=seen)
    places = np.int32([[0, 1, 3], [2, 4, 5]])
    out, _ = few(config, memory, at(tokens, places), places, valid=seen)
    np.testing.assert_allclose(out, at(full(config, TOKENS, valid), places), atol=5e-6)


def test_what_stands_nowhere_is_not_written():
    config = CONFIGS["pre"]
    _, memory = few(config, garbage(config), TOKENS, ALL)
    nowhere = PLACES.copy()
    nowhere[0] = LENGTH
    _, after = few(config, memory, at(TOKENS) * 0, PLACES, nowhere)
    same = np.asarray(after.values == memory.values).all((0, 3, 4))
    np.testing.assert_array_equal(same[0], True)
    np.testing.assert_array_equal(same[1], ~np.isin(np.arange(LENGTH), PLACES[1]))


def test_attention_with_a_window_is_refused():
    config = dataclasses.replace(BASE, attention="local", window=2)
    with pytest.raises(ValueError, match=r"attention='local': must be 'full' or 'causal'"):
        few(config, garbage(config), TOKENS, ALL)
