import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import reference, tiny

from mdlm_jax.networks import bert

TINY = bert.Config(
    vocab_size=13,
    mask_id=3,
    max_length=8,
    layers=2,
    width=16,
    heads=2,
    mlp_width=24,
    vocab_multiple=8,
)
MODERN = dataclasses.replace(
    TINY,
    norm_position="pre",
    norm="rmsnorm",
    positions="rope",
    qk_norm=True,
    gated=True,
    activation="silu",
    token_types=0,
    use_bias=False,
    time_conditioning=True,
    classes=3,
    class_dropout=0.5,
)
POST_TIME = dataclasses.replace(TINY, time_conditioning=True, activation="gelu_tanh")
POST_CLASSES = dataclasses.replace(TINY, classes=3, class_dropout=0.25, dropout=0.0, layers=1)
CONFIGS = {"bert": TINY, "modern": MODERN, "post_time": POST_TIME, "post_classes": POST_CLASSES}

ROWS, LENGTH = 2, 8
TIME = jnp.array([0.25, 0.75])


@functools.cache
def params_of(config, noise=0.0):
    """Fresh parameters, or random ones where nothing is zero or one."""
    return tiny.params_of(config, noise) if noise else bert.init(jax.random.key(0), config)


@functools.partial(jax.jit, static_argnums=1)
def forward(params, config, tokens, t=TIME, **options):
    return bert.logits(params, config, tokens, t, **options)


@pytest.fixture(scope="module")
def tokens():
    return jax.random.randint(jax.random.key(7), (ROWS, LENGTH), 0, TINY.vocab_size)


def test_post_norm_is_bert(tokens):
    params = params_of(TINY, noise=0.2)
    types = jnp.tile(jnp.arange(LENGTH) // 5, (ROWS, 1))
    expected = reference.logits(params, TINY, tokens, token_types=types)
    out = forward(params, TINY, tokens, token_types=types)
    assert np.ptp(expected) > 1
    np.testing.assert_allclose(out, expected, atol=1e-5)
    expected = reference.logits(params, TINY, tokens)
    np.testing.assert_allclose(forward(params, TINY, tokens), expected, atol=1e-5)


@pytest.mark.parametrize("config", [TINY, MODERN], ids=["learned", "rope"])
def test_positions_say_where_a_token_stands(config, tokens):
    """Rows in another order, their positions with them, are the same rows."""
    params = params_of(config, noise=0.2)
    plain = forward(params, config, tokens)
    order = np.stack([np.random.default_rng(seed).permutation(LENGTH) for seed in range(ROWS)])
    mixed = jnp.take_along_axis(tokens, order, axis=1)
    out = forward(params, config, mixed, positions=jnp.asarray(order, jnp.int32))
    expected = np.take_along_axis(np.asarray(plain), order[..., None], axis=1)
    np.testing.assert_allclose(out, expected, atol=1e-4)
    assert np.abs(forward(params, config, mixed) - expected).max() > 0.01
    if config.positions == "rope":  # distances alone
        later = jnp.broadcast_to(100 + jnp.arange(LENGTH, dtype=jnp.int32), tokens.shape)
        out = forward(params, config, tokens, positions=later)
        np.testing.assert_allclose(out, plain, atol=1e-3)
    else:
        with pytest.raises(ValueError, match="positions holds 8: must be from 0 to 7"):
            bert.logits(params, config, tokens, TIME, positions=jnp.full_like(tokens, LENGTH))


@pytest.mark.parametrize("config", [TINY, MODERN], ids=["bert", "modern"])
def test_denoiser_is_the_forward_pass_with_impossible_tokens_removed(config, tokens):
    params = params_of(config, noise=0.1)

    @jax.jit
    def read(params, tokens):
        denoiser = bert.denoiser(params, config)
        hidden = denoiser.encode(tokens, TIME)
        return hidden.at, denoiser.readout(hidden.at.reshape(-1, config.width), hidden.row)

    at, out = read(params, tokens)
    plain = forward(params, config, tokens)
    assert at.shape == (ROWS, LENGTH, config.width)
    assert plain.shape == (ROWS, LENGTH, config.vocab_size)
    assert plain.dtype == out.dtype == jnp.float32
    out = np.asarray(out.reshape(ROWS, LENGTH, config.padded_vocab))
    removed = np.arange(config.padded_vocab) >= config.vocab_size
    removed[config.mask_id] = True
    assert (out[..., removed] == -np.inf).all()
    kept = np.flatnonzero(~removed)
    np.testing.assert_allclose(out[..., kept], plain[..., kept], atol=1e-6)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_params_are_plain_float32_with_an_axis_name_a_dimension(config):
    params = jax.eval_shape(lambda: bert.init(jax.random.key(0), config))
    axes = bert.logical_axes(config)
    shapes = jax.tree.map(lambda x: x.shape, params)

    def is_tuple(x):
        return isinstance(x, tuple)

    assert jax.tree.structure(shapes, is_leaf=is_tuple) == jax.tree.structure(
        axes, is_leaf=is_tuple
    )
    for names, leaf in zip(
        jax.tree.leaves(axes, is_leaf=is_tuple), jax.tree.leaves(params), strict=True
    ):
        assert leaf.dtype == jnp.float32
        assert len(names) == leaf.ndim
        assert len(set(names)) == len(names)
    for names in jax.tree.leaves(axes["encoder"]["blocks"], is_leaf=is_tuple):
        assert names[0] == "layers"
    assert type(params) is dict


def test_initial_weights():
    params = params_of(TINY)
    kernels = np.asarray(params["encoder"]["blocks"]["attention"]["qkv"]["kernel"])
    assert np.abs(kernels).max() <= 2 * TINY.init_scale
    assert abs(kernels.std() / TINY.init_scale - 0.88) < 0.06  # of a normal cut at two sigmas
    assert np.abs(kernels[0] - kernels[1]).max() > TINY.init_scale


@pytest.mark.parametrize("config", [MODERN, POST_TIME], ids=["modern", "post_time"])
def test_fresh_time_conditioning_changes_nothing(config, tokens):
    fresh, trained = params_of(config), params_of(config, noise=0.1)
    np.testing.assert_array_equal(
        forward(fresh, config, tokens, TIME), forward(fresh, config, tokens, 1 - TIME)
    )
    moved = forward(trained, config, tokens, TIME) - forward(trained, config, tokens, 1 - TIME)
    assert np.abs(moved).max() > 1e-3


def test_a_fresh_pre_norm_block_is_the_identity(tokens):
    params = params_of(MODERN)
    other = params_of(MODERN, noise=0.1)
    blocks = {**other["encoder"]["blocks"]}
    blocks["modulation"] = params["encoder"]["blocks"]["modulation"]
    changed = {**params, "encoder": {**params["encoder"], "blocks": blocks}}
    np.testing.assert_array_equal(forward(params, MODERN, tokens), forward(changed, MODERN, tokens))


def test_fresh_post_norm_conditioning_keeps_the_unconditioned_model(tokens):
    params = params_of(POST_TIME)
    plain = dataclasses.replace(POST_TIME, time_conditioning=False)
    np.testing.assert_allclose(
        forward(params, POST_TIME, tokens), forward(params, plain, tokens, None), atol=1e-6
    )


def test_time_is_ignored_without_time_conditioning(tokens):
    params = params_of(TINY, noise=0.1)
    np.testing.assert_array_equal(
        forward(params, TINY, tokens, TIME), forward(params, TINY, tokens, 1 - TIME)
    )


@pytest.mark.parametrize("config", [MODERN, POST_CLASSES], ids=["adaln", "embedded"])
def test_labels(config, tokens):
    params = params_of(config, noise=0.1)
    labelled = forward(params, config, tokens, label=jnp.array([0, 2]))
    other = forward(params, config, tokens, label=jnp.array([0, 1]))
    none = forward(params, config, tokens, label=jnp.array([-1, -1]))
    np.testing.assert_array_equal(none, forward(params, config, tokens))
    np.testing.assert_array_equal(labelled[0], other[0])
    assert np.abs(labelled[1] - other[1]).max() > 1e-3
    assert np.abs(labelled - none).max(axis=(1, 2)).min() > 1e-3


@pytest.mark.parametrize("config", [MODERN, POST_CLASSES], ids=["adaln", "embedded"])
def test_labels_that_do_not_exist_are_no_others(config, tokens):
    """Refused where they are seen, else not a number: -2, or one too many, is no class."""
    params = params_of(config, noise=0.1)
    rows = jnp.tile(tokens[:1], (4, 1))

    @jax.jit
    def traced(label):
        return bert.logits(params, config, rows, jnp.ones(4), label=label)

    out = np.asarray(traced(jnp.array([-2, config.classes, config.classes + 1, 0])))
    assert np.isnan(out[:3]).all() and np.isfinite(out[3]).all()
    for label in (-2, config.classes):
        with pytest.raises(ValueError, match=f"label holds {label}: must be from -1 to"):
            bert.logits(params, config, rows[:1], jnp.ones(1), label=jnp.array([label]))


def test_class_dropout_replaces_whole_rows_by_no_label():
    params = params_of(POST_CLASSES, noise=0.1)
    tokens = jnp.zeros((400, LENGTH), jnp.int32)
    label = jnp.full(400, 2, jnp.int32)
    kept, dropped = forward(params, POST_CLASSES, tokens[:2], label=jnp.array([2, -1]))
    out = forward(
        params, POST_CLASSES, tokens, jnp.zeros(400), label=label, dropout_key=jax.random.key(3)
    )
    is_kept = np.isclose(out, kept, atol=1e-5).all((1, 2))
    is_dropped = np.isclose(out, dropped, atol=1e-5).all((1, 2))
    assert (is_kept ^ is_dropped).all()
    assert abs(is_dropped.mean() - 0.25) < 0.09  # four standard deviations


def test_padding_is_never_looked_at(tokens):
    params = params_of(TINY, noise=0.1)
    valid = jnp.array([[True] * 5 + [False] * 3, [True] * 8])
    out = forward(params, TINY, tokens, valid=valid)
    other = forward(params, TINY, tokens.at[0, 5:].set(0), valid=valid)
    short = forward(params, TINY, tokens[:1, :5], TIME[:1])
    np.testing.assert_array_equal(out[0, :5], other[0, :5])
    np.testing.assert_allclose(out[:1, :5], short, atol=1e-6)
    np.testing.assert_allclose(out[1], forward(params, TINY, tokens)[1], atol=1e-6)
    by_length = forward(params, TINY, tokens, valid=bert.row_lengths(valid))
    np.testing.assert_allclose(by_length[0, :5], out[0, :5], atol=1e-6)
    np.testing.assert_allclose(by_length[1], out[1], atol=1e-6)


def test_lengths_of_rows():
    valid = jnp.arange(8) < jnp.asarray([[5], [0], [8]])
    lengths = bert.row_lengths(valid)
    assert lengths.dtype == jnp.int32
    np.testing.assert_array_equal(lengths, [5, 0, 8])
    assert bert.row_lengths(None) is None


@pytest.mark.parametrize(
    "fields, seen_by",
    [
        ({"attention": "full"}, range(8)),
        ({"attention": "causal"}, range(3, 8)),
        ({"attention": "local", "window": 1}, range(1, 6)),  # one position a layer, two layers
    ],
    ids=["full", "causal", "local"],
)
def test_who_sees_a_changed_token(fields, seen_by, tokens):
    config = dataclasses.replace(TINY, **fields)
    params = params_of(TINY, noise=0.1)
    changed = tokens.at[:, 3].add(1) % TINY.vocab_size
    moved = np.abs(forward(params, config, changed) - forward(params, config, tokens)).max((0, 2))
    np.testing.assert_array_equal(np.flatnonzero(moved), list(seen_by))


@functools.partial(jax.jit, static_argnums=(1, 3))
def loss_and_gradient(params, config, tokens, dropped=True):
    """With dropout and class dropout, if `dropped`."""
    label = jnp.array([0, 2]) if config.classes else None

    def loss(params):
        key = jax.random.key(4) if dropped else None
        out = bert.logits(params, config, tokens, TIME, label=label, dropout_key=key)
        return jnp.mean(jax.nn.logsumexp(out, axis=-1) - out[..., 0])

    return jax.value_and_grad(loss)(params)


@pytest.fixture(scope="module")
def scanned(tokens):
    """Loss and gradient of a config where blocks are scanned and nothing is recomputed."""
    return functools.cache(lambda c: loss_and_gradient(params_of(c, noise=0.1), c, tokens))


def test_every_parameter_is_trained(scanned):
    jax.tree.map(lambda g: np.testing.assert_(np.abs(g).max() > 0), scanned(MODERN)[1])


@pytest.mark.parametrize(
    "config, compiled",
    [
        (MODERN, {"scan": False, "remat": "dots"}),
        (MODERN, {"remat": "full"}),
        (POST_TIME, {"scan": False}),
    ],
    ids=["modern_unrolled_dots", "modern_full", "post_unrolled"],
)
def test_scan_and_remat_only_choose_how_to_compile(config, compiled, tokens, scanned):
    """The noise of dropout is theirs too: the same in both passes, however they are compiled."""
    value, gradient = scanned(config)
    other = dataclasses.replace(config, **compiled)
    other_value, other_gradient = loss_and_gradient(params_of(config, noise=0.1), other, tokens)
    np.testing.assert_allclose(other_value, value, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), other_gradient, gradient)


def test_scan_and_remat_do_not_change_the_initial_parameters():
    config = dataclasses.replace(MODERN, scan=False, remat="full")
    fresh = bert.init(jax.random.key(0), config)
    jax.tree.map(np.testing.assert_array_equal, fresh, params_of(MODERN))


def test_scan_and_remat_do_what_they_say(tokens):
    params = params_of(MODERN)

    def count(operation, **fields):
        config = dataclasses.replace(MODERN, **fields)
        return loss_and_gradient.lower(params, config, tokens, False).as_text().count(operation)

    assert count("stablehlo.while") > 0
    assert count("stablehlo.while", scan=False) == 0
    products = [count("stablehlo.dot_general", remat=remat) for remat in ("none", "dots", "full")]
    assert products[0] < products[1] < products[2]


def test_dropout_needs_a_key_and_repeats_with_it(tokens):
    params = params_of(TINY, noise=0.1)
    plain = forward(params, TINY, tokens)
    key, other = jax.random.split(jax.random.key(5))
    dropped = forward(params, TINY, tokens, dropout_key=key)
    np.testing.assert_array_equal(plain, forward(params, TINY, tokens))
    np.testing.assert_array_equal(dropped, forward(params, TINY, tokens, dropout_key=key))
    assert np.abs(dropped - plain).max() > 1e-2
    assert np.abs(dropped - forward(params, TINY, tokens, dropout_key=other)).max() > 1e-2
    without = dataclasses.replace(TINY, dropout=0.0)
    np.testing.assert_array_equal(plain, forward(params, without, tokens, dropout_key=key))


@pytest.mark.parametrize("config", [TINY, MODERN], ids=["bert", "modern"])
def test_bfloat16_is_close_and_returns_float32(config, tokens):
    params = params_of(config, noise=0.1)
    half = dataclasses.replace(config, dtype="bfloat16")
    out, exact = forward(params, half, tokens), forward(params, config, tokens)
    at = jax.eval_shape(lambda: bert.denoiser(params, half).encode(tokens, TIME)).at
    assert out.dtype == jnp.float32
    assert at.dtype == jnp.bfloat16
    assert 0 < np.abs(out - exact).max() < 0.04 * np.ptp(exact)


def test_the_embedding_gradient_is_summed_in_float32(tokens):
    config = dataclasses.replace(TINY, dtype="bfloat16")
    text = loss_and_gradient.lower(params_of(TINY), config, tokens).as_text()
    _, *scatters = text.split('"stablehlo.scatter"')
    types = [re.search(r"\}\) : \(tensor<\d+x\d+x(\w+)>", scatter)[1] for scatter in scatters]
    assert types and set(types) == {"f32"}


IDS = jnp.zeros((ROWS, LENGTH), jnp.int32)


@pytest.mark.parametrize(
    "config, arguments, message",
    [
        (TINY, {"tokens": IDS[0]}, r"tokens are int32 \[8\]: must be int32 \[B, L\]"),
        (TINY, {"tokens": IDS.astype(float)}, r"tokens are float32 \[2, 8\]"),
        (TINY, {"tokens": IDS - 1}, "tokens holds -1: must be from 0 to"),
        (TINY, {"tokens": IDS + TINY.vocab_size}, "tokens holds .*: must be from 0 to"),
        (TINY, {"tokens": jnp.tile(IDS, 2)}, "tokens have length 16: max_length is 8"),
        (TINY, {"valid": IDS}, r"valid is int32 \[2, 8\]: must be bool \[2, 8\]"),
        (TINY, {"segment_ids": IDS[:, :4]}, r"segment_ids is int32 \[2, 4\]"),
        (TINY, {"token_types": IDS[0]}, "token_types is"),
        (TINY, {"label": IDS[:, 0]}, "label given to a network with classes=0: must be None"),
        (MODERN, {"label": IDS}, r"label is int32 \[2, 8\]: must be int32 \[2\]"),
        (MODERN, {"t": None}, "t is None"),
        (MODERN, {"t": jnp.float32(0.5)}, r"t is float32 \[\]: must be float \[2\]"),
        (MODERN, {"token_types": IDS}, "token_types given to a network with token_types=0"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(config, arguments, message):
    arguments = {"tokens": IDS, "t": TIME, **arguments}
    with pytest.raises(ValueError, match=message) as error:
        bert.logits(params_of(config), config, **arguments)
    assert "\n" not in str(error.value)
    tokens, t = arguments.pop("tokens"), arguments.pop("t")
    with pytest.raises(ValueError, match=message):
        bert.denoiser(params_of(config), config, **arguments).encode(tokens, t)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("timed", [False, True])
def test_prepared_parameters_are_the_parameters(dtype, timed):
    config = dataclasses.replace(
        TINY, norm_position="pre", norm="rmsnorm", dtype=dtype, time_conditioning=timed
    )
    params = tiny.params_of(config)
    prepared = bert.prepare(params, config)
    tokens, t = jnp.arange(12).reshape(2, 6), jnp.array([0.3, 0.9])

    def logits(params):
        own = bert.denoiser(params, config)
        at = own.encode(tokens, t).at
        return own.readout(at.reshape(12, -1), ())

    np.testing.assert_array_equal(logits(prepared), logits(params))
    assert bert.prepare(prepared, config) is prepared
    assert prepared.encoder["embeddings"]["tokens"] is params["encoder"]["embeddings"]["tokens"]
    if not timed:
        with pytest.raises(ValueError, match="prepared parameters are for denoisers without"):
            bert.logits(prepared, config, tokens)
