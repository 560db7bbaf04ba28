"""What each option of the encoder claims, in the whole network and beside all the others."""

import dataclasses
import functools
import itertools
import random

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import reference
from networks.tiny import BASE, MASK, params_of

from mdlm_jax.diffusion import corrupt, corrupted_loss
from mdlm_jax.networks import bert, encoder, layers

ROWS, LENGTH, WIDTH = 3, BASE.max_length, BASE.width
OPTIONS = {
    "norm_position": ("post", "pre"),
    "norm": ("layernorm", "rmsnorm"),
    "positions": ("learned", "rope"),
    "qk_norm": (False, True),
    "gated": (False, True),
    "activation": ("gelu_tanh", "silu"),
    "time_conditioning": (False, True),
    "classes": (0, 3),
    "attention": ("full", "causal", "local"),
    "token_types": (0, 2),
    "use_bias": (False, True),
    "vocab_multiple": (1, 8),
}


def covering(options):
    """Few configs in which every two values of every two options meet, chosen greedily."""

    def pairs(fields):
        return {frozenset(pair) for pair in itertools.combinations(fields.items(), 2)}

    rng = random.Random(0)
    wanted = {
        frozenset([(a, x), (b, y)])
        for a, b in itertools.combinations(options, 2)
        for x, y in itertools.product(options[a], options[b])
    }
    configs = []
    while wanted:
        tries = []
        for _ in range(30):
            fields = {}
            for name in rng.sample(sorted(options), len(options)):
                values = rng.sample(options[name], len(options[name]))
                fields[name] = max(values, key=lambda v: len(pairs({**fields, name: v}) & wanted))
            tries.append(fields)
        best = max(tries, key=lambda fields: len(pairs(fields) & wanted))
        wanted -= pairs(best)
        window = 2 if best["attention"] == "local" else 0
        configs.append(dataclasses.replace(BASE, **best, window=window))
    return configs


TOKENS = np.random.default_rng(2).integers(0, BASE.vocab_size, (ROWS, LENGTH), np.int32)
TIME = np.float32([0.25, 0.5, 1.0])
LABEL = np.int32([0, -1, 2])
VALID = np.array([[1] * 8, [1, 1, 1, 1, 1, 0, 0, 0], [0, 1, 1, 1, 1, 1, 1, 0]], bool)
SEGMENTS = np.int32([[0, 0, 0, 1, 1, 1, 2, 2], [0, 0, 0, 0, 0, 9, 9, 9], [0, 0, 0, 0, 1, 1, 1, 1]])
TYPES = np.tile(np.int32([0, 0, 1, 1, 0, 1, 0, 1]), (ROWS, 1))


def given_to(config):
    """All arguments that the config has a use for."""
    types = {"token_types": TYPES} if config.token_types else {}
    label = {"label": LABEL} if config.classes else {}
    return {"valid": VALID, "segment_ids": SEGMENTS, **types, **label}


@functools.partial(jax.jit, static_argnums=1)
def forward(params, config, tokens, t=TIME, **arguments):
    return bert.logits(params, config, tokens, t, **arguments)


MATRIX = covering(OPTIONS)


@pytest.mark.parametrize("config", MATRIX, ids=range(len(MATRIX)))
def test_any_two_options_together_are_their_formulas(config):
    params, arguments = params_of(config), given_to(config)
    expected = reference.logits(params, config, TOKENS, TIME, **arguments)
    out = forward(params, config, TOKENS, **arguments)
    assert np.ptp(expected[VALID]) > 1
    np.testing.assert_allclose(out[VALID], expected[VALID], atol=2e-4)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", layers.ACTIVATIONS)
def test_mlp_is_its_formula(activation, gated):
    config = dataclasses.replace(BASE, activation=activation, gated=gated)
    x = 2 * np.random.default_rng(3).standard_normal((2, 3, WIDTH), np.float32)
    module = layers.Mlp(config)
    fresh = nn.meta.unbox(jax.jit(module.init)(jax.random.key(0), x)["params"])
    params = jax.tree.map(lambda leaf: 20 * leaf, fresh)
    expected = reference.mlp(config, jax.tree.map(np.float64, params), x)
    assert expected.std() > 0.5
    out = jax.jit(module.apply)({"params": params}, x)
    np.testing.assert_allclose(out, expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["layernorm", "rmsnorm"])
def test_norms_hold_where_the_mean_is_large(kind):
    config = dataclasses.replace(BASE, norm=kind)
    x = np.random.default_rng(4).standard_normal((5, WIDTH)).astype(np.float32)
    weights = {"scale": np.linspace(0.5, 2, WIDTH, dtype=np.float32)}
    if kind == "layernorm":  # its variance is that of the deviations, however far the mean
        x = x + np.float32(4096)
        weights["bias"] = np.linspace(-1, 1, WIDTH, dtype=np.float32)
    out = layers.norm(config, "norm").apply({"params": weights}, x)
    np.testing.assert_allclose(out, reference.norm(config, weights, np.float64(x)), atol=2e-3)


QK_NORM = dataclasses.replace(BASE, qk_norm=True, positions="rope")


@pytest.mark.parametrize("qk_norm", [False, True])
def test_qk_norm_makes_scores_blind_to_the_size_of_queries_and_keys(qk_norm):
    config = dataclasses.replace(QK_NORM, qk_norm=qk_norm)
    params = params_of(config)

    def enlarge(path, leaf):  # queries and keys are the first two of the three; kernel or bias
        if "qkv" not in jax.tree_util.keystr(path):
            return leaf
        factor = np.float32([100, 100, 1]).reshape(3, 1, 1)
        return leaf * factor

    larger = jax.tree.map_with_path(enlarge, params)
    moved = np.abs(forward(params, config, TOKENS) - forward(larger, config, TOKENS)).max()
    assert moved < 1e-4 if qk_norm else moved > 0.1


def test_qk_norm_bounds_the_scores():
    """With fresh scales a query and a key have length sqrt(d), so no score exceeds sqrt(d)."""
    d = QK_NORM.head_dim
    for kind in ("layernorm", "rmsnorm"):
        module = layers.norm(dataclasses.replace(QK_NORM, norm=kind), "n", "head_dim")
        x = 1e3 * jax.random.normal(jax.random.key(0), (2, 50, d)) ** 3
        q, k = jax.jit(lambda x, m=module: m.init_with_output(jax.random.key(0), x)[0])(x)
        assert jnp.abs(q @ k.T).max() / np.sqrt(d) <= np.sqrt(d) * (1 + 1e-5)


@pytest.mark.parametrize("norm_position", ["post", "pre"])
def test_time_conditioning_learns_from_its_zero_start(norm_position):
    config = dataclasses.replace(BASE, norm_position=norm_position, time_conditioning=True)
    params = jax.tree.map(np.copy, params_of(config))
    for leaf in params["encoder"]["blocks"]["modulation"].values():
        leaf[:] = 0

    @jax.jit
    @jax.grad
    def gradient(params):
        return jnp.mean(bert.logits(params, config, TOKENS, TIME)[..., 0] ** 2)

    told = gradient(params)["encoder"]["blocks"]["modulation"]
    told = np.abs(told["kernel"]).max((1, 4))  # [layers, branch, shift | scale | gate]
    learns = told > 0
    if norm_position == "pre":  # behind a closed gate nothing moves but the gate
        assert learns[..., 2].all() and not learns[..., :2].any()
    else:
        assert learns.all()


def test_without_biases_no_parameter_is_one():
    def names(config):
        axes = bert.logical_axes(config)
        leaves = jax.tree.leaves_with_path(axes, is_leaf=lambda x: isinstance(x, tuple))
        return [path[-1].key for path, _ in leaves]

    everything = dataclasses.replace(
        BASE, norm_position="pre", time_conditioning=True, classes=2, qk_norm=True, gated=True
    )
    with_biases = names(everything)
    assert with_biases.count("bias") == with_biases.count("kernel") + with_biases.count("scale") + 1
    without = names(dataclasses.replace(everything, use_bias=False))
    assert "bias" not in without
    assert sorted(without) == sorted(name for name in with_biases if name != "bias")


def test_padded_vocabulary_is_as_if_it_were_not_there():
    """Whatever stands in its rows: it takes no probability, and training leaves it alone."""
    config = dataclasses.replace(BASE, vocab_multiple=8)
    params = params_of(config)
    filled = jax.tree.map(np.copy, params)
    filled["encoder"]["embeddings"]["tokens"][config.vocab_size :] = 50.0
    filled["head"]["bias"][config.vocab_size :] = 50.0

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        corrupted = corrupt(jax.random.key(0), TOKENS, mask_id=MASK, rows=jnp.arange(ROWS))
        return corrupted_loss(bert.denoiser(params, config), corrupted)[0]

    (value, gradient), (other, other_gradient) = loss(params), loss(filled)
    np.testing.assert_allclose(value, other, rtol=1e-6)
    close = functools.partial(
        np.testing.assert_allclose, atol=1e-6
    )  # accelerators add in any order
    jax.tree.map(close, gradient, other_gradient)
    table = gradient["encoder"]["embeddings"]["tokens"]
    assert not np.any(table[config.vocab_size :]) and np.all(np.any(table[:MASK], axis=1))
    assert not np.any(gradient["head"]["bias"][config.vocab_size :])


@pytest.mark.parametrize("scan", [True, False])
def test_dropout_has_its_rate_and_is_drawn_anew_for_each_branch_and_layer(scan):
    """Attention adds 1 and the MLP 10 wherever they are kept, doubled for the rate of a half."""
    config = dataclasses.replace(BASE, norm_position="pre", dropout=0.5, scan=scan, heads=1)
    params = jax.tree.map(np.zeros_like, params_of(config)["encoder"]["blocks"])
    params["attention"]["out"]["bias"] += 1
    params["mlp"]["down"]["bias"] += 10
    x = jnp.zeros((40, LENGTH, WIDTH))
    stack = encoder.blocks(config, config.layers, None, numbered=False)

    @jax.jit
    def run(key):
        told = (None, (None, None), (), None)
        return stack.apply({"params": params}, x, *told, rngs={"dropout": key})[0]

    out = np.asarray(run(jax.random.key(0)))
    kept = {"attention": out % 20 / 2, "mlp": out // 20}  # in how many of the two layers
    for counts in kept.values():
        shares = [np.mean(counts == n) for n in range(3)]
        np.testing.assert_allclose(shares, [0.25, 0.5, 0.25], atol=0.03)
    assert abs(np.corrcoef(kept["attention"].ravel(), kept["mlp"].ravel())[0, 1]) < 0.06
    assert np.abs(np.corrcoef(out.reshape(40, -1)) - np.eye(40)).max() < 0.5  # rows differ
