"""What is left for the readout and moved into kernels, against the modules as written."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks.tiny import BASE, params_of

from mdlm_jax.networks import bert
from mdlm_jax.networks.encoder import Encoder
from mdlm_jax.networks.layers import Head

pytestmark = pytest.mark.slow  # compiles gradients

PRE = dataclasses.replace(BASE, norm_position="pre", positions="rope", token_types=0)
RMS = dataclasses.replace(PRE, norm="rmsnorm", use_bias=False, activation="gelu_tanh")
CONFIGS = {
    "bert": BASE,
    "one block": dataclasses.replace(BASE, layers=1),
    "pre-norm with biases": PRE,
    "pre-norm without": dataclasses.replace(PRE, use_bias=False, output_bias=True),
    "rmsnorm": RMS,
    "rmsnorm, gated, in line": dataclasses.replace(RMS, gated=True, scan=False),
    "rmsnorm, recomputed": dataclasses.replace(RMS, remat="full"),
    "alternating": dataclasses.replace(
        RMS,
        norm="layernorm",
        layers=4,
        embedding_norm=True,
        attention="local",
        window=1,
        global_every=3,
    ),
    "time": dataclasses.replace(RMS, time_conditioning=True),
    "dropout": dataclasses.replace(RMS, dropout=0.3),
}
READ = jnp.array([[0, 1], [1, 5], [0, 7]])  # rows and positions


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_readouts_and_gradients_are_those_of_the_whole_network(config):
    params, t = params_of(config), jnp.array([0.3, 0.9])
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, config.vocab_size, (2, 8)), jnp.int32)
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(3, config.vocab_size)), jnp.float32)
    weights = weights.at[:, config.mask_id].set(0.0)
    key = jax.random.key(2) if config is CONFIGS["dropout"] else None
    rngs = {} if key is None else {"dropout": key}

    def whole(params):
        at = Encoder(config).apply({"params": params["encoder"]}, tokens, t, rngs=rngs)
        table = params["encoder"]["embeddings"]["tokens"]
        return Head(config).apply({"params": params["head"]}, at[*READ.T], table, table)

    def read(params):
        denoiser = bert.denoiser(params, config, dropout_key=key)
        return denoiser.readout(denoiser.encode(tokens, t).at[*READ.T], ())

    @functools.partial(jax.jit, static_argnums=0)
    def both(logits, params):
        def loss(params):
            out = logits(params)
            return jnp.sum(jnp.where(weights == 0, 0.0, weights * out)), out

        (_, out), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return out, gradient

    expected, expected_gradient = both(whole, params)
    got, gradient = both(read, params)
    kept = np.arange(config.vocab_size) != config.mask_id
    np.testing.assert_allclose(got[:, kept], expected[:, kept], atol=2e-5)
    largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected_gradient))
    assert largest > 1
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5 * largest),
        gradient,
        expected_gradient,
    )


def test_hidden_states_are_those_of_the_encoder():
    params = params_of(RMS)
    tokens = jnp.arange(16, dtype=jnp.int32).reshape(2, 8) % RMS.vocab_size
    expected = Encoder(RMS).apply({"params": params["encoder"]}, tokens, None)
    np.testing.assert_allclose(bert.hidden_states(params, RMS, tokens), expected, atol=1e-5)
    for wrong in (tokens, jnp.ones(2, bool), jnp.ones(3, jnp.int32)):
        with pytest.raises(
            ValueError, match=r"valid is .*: must be bool \[2, 8\], or int32 \[2\]$"
        ):
            bert.hidden_states(params, RMS, tokens, valid=wrong)
