"""Local attention with blocks that see everything, and what else ModernBERT has of its own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import reference
from networks.tiny import BASE, params_of

from mdlm_jax.networks import bert
from mdlm_jax.networks.attention import Mask, attention

MODERN = dataclasses.replace(
    BASE,
    layers=4,
    norm_position="pre",
    embedding_norm=True,
    positions="rope",
    rope_theta=100.0,
    gated=True,
    attention="local",
    window=1,
    global_every=3,
    global_rope_theta=1000.0,
    token_types=0,
    use_bias=False,
    output_bias=True,
)


@pytest.fixture(scope="module")
def tokens():
    return jax.random.randint(jax.random.key(7), (2, BASE.max_length), 0, BASE.vocab_size)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"scan": False, "remat": "full"},
        {"time_conditioning": True, "use_bias": True, "output_bias": False},
        {"global_every": 0, "positions": "learned"},
        {"global_every": 2, "embedding_norm": False, "norm": "rmsnorm"},
    ],
    ids=["modernbert", "in line", "conditioned", "all local", "rmsnorm"],
)
def test_it_is_the_formula(changes, tokens):
    config = dataclasses.replace(MODERN, **changes)
    params, t = params_of(config), jnp.array([0.2, 0.9])
    valid = jnp.array([[True] * 6 + [False] * 2, [True] * 8])
    out = jax.jit(lambda p: bert.logits(p, config, tokens, t, valid=valid))(params)
    expected = reference.logits(params, config, tokens, t, valid=valid)
    assert np.ptp(expected) > 1
    np.testing.assert_allclose(out[valid], expected[valid], atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"global_every": 0},
        {"global_every": 2},
        {"global_rope_theta": 100.0},
        {"rope_theta": 10.0},
    ],
)
def test_each_option_matters(changes, tokens):
    params = params_of(MODERN)
    other = dataclasses.replace(MODERN, **changes)
    moved = reference.logits(params, MODERN, tokens) - reference.logits(params, other, tokens)
    assert np.abs(moved).max() > 1e-2


def test_the_first_attention_norm_is_idle(tokens):
    params = params_of(MODERN)

    def loss(params):
        return jnp.square(bert.logits(params, MODERN, tokens)).mean()

    gradient = jax.jit(jax.grad(loss))(params)["encoder"]["blocks"]["attention_norm"]["scale"]
    assert not np.any(gradient[0])
    assert np.all(np.any(gradient[1:], axis=1))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"global_every": 2}, "global_every=2: must be 0 where attention='full'"),
        ({"attention": "local", "window": 2, "global_every": -1}, "global_every=-1: must be 0"),
        (
            {"attention": "local", "window": 2, "global_every": 2, "attention_backend": "splash"},
            "attention_backend='splash': must be another where global_every is not 0",
        ),
        ({"embedding_norm": True}, "embedding_norm=True: must be False where norm_position"),
        ({"output_bias": True}, "output_bias=True: must be False where use_bias=True"),
        ({"rope_theta": 0.0}, "rope_theta=0.0: must be positive"),
    ],
)
def test_impossible_configs(fields, message):
    with pytest.raises(ValueError, match=message):
        bert.Config(**fields)


def test_splash_lifts_no_window():
    x = jnp.zeros((1, 4, 1, 8))
    with pytest.raises(ValueError, match="must be 'xla' where a window is lifted"):
        attention(x, x, x, Mask("local", 1), backend="splash", everywhere=jnp.array(True))
