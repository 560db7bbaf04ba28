"""All blocks at once, and one block after a cache, against the formulas in float64."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from networks import reference
from networks.blocks_by_pairs import (
    CLEAN,
    CONFIGS,
    COUNT,
    LABEL,
    LENGTH,
    NOISY,
    ROWS,
    SIZE,
    Functions,
    T,
    build,
    expected,
    expected_of,
    functions_of,
    sees,
)
from networks.tiny import MASK, params_of

from mdlm_jax import blocks, interop
from mdlm_jax.networks import bert
from mdlm_jax.networks.attention import Attend, cached

pytestmark = pytest.mark.slow  # each case compiles a network of its own

GOLDEN = Path(__file__).parents[1] / "interop" / "golden"


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    """The cache is read in many chunks, and some are never filled."""
    monkeypatch.setattr(cached, "_CHUNK", 4)


@pytest.mark.parametrize("name", CONFIGS)
def test_all_blocks_at_once(name):
    out = functions_of(name).encode(NOISY, CLEAN, T)
    np.testing.assert_allclose(out, expected_of(name), atol=2e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_one_block_after_a_cache(name):
    of = functions_of(name)
    np.testing.assert_allclose(of.one_by_one(NOISY, CLEAN), expected_of(name), atol=2e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_committing_a_block_and_encoding_the_next_in_one_program(name):
    of = functions_of(name)
    cache = of.start(ROWS, LENGTH)
    for i in range(COUNT - 1):
        extended = of.extend(cache, of.block(CLEAN, i))
        cache, out = of.advance(cache, of.block(CLEAN, i), of.block(NOISY, i + 1), T[:, 0])
        np.testing.assert_allclose(out, of.block(expected_of(name), i + 1), atol=2e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), cache, extended)


def test_the_block_at_hand_never_enters_the_cache():
    of = functions_of("modern")
    *_, cache = of.committed(CLEAN)
    before = jax.device_get(cache)
    of.encode_block(cache, of.block(NOISY, COUNT - 1), T[:, 0])
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(cache))
    np.testing.assert_array_equal(cache.length, LENGTH - SIZE)


def test_one_block_is_the_denoiser_to_the_bit():
    config = CONFIGS["post"]

    @jax.jit
    def both(params):
        denoiser = bert.denoiser(params, config, valid=jnp.int32([12, 7]))
        of_blocks = bert.block_denoiser(params, config, LENGTH, valid=jnp.int32([12, 7]))
        assert of_blocks.mask_id == denoiser.mask_id == MASK
        hidden, other = denoiser.encode(NOISY, T[:, 0]), of_blocks.encode(NOISY, CLEAN, T[:, :1])
        return denoiser.readout(*hidden), of_blocks.readout(*other)

    out, other = both(params_of(config))
    np.testing.assert_array_equal(out, other)
    of = Functions(params_of(config), config, LENGTH)
    alone = bert.logits(params_of(config), config, NOISY)
    after = of.encode_block(of.start(ROWS, LENGTH), NOISY, T[:, 0])
    np.testing.assert_allclose(after[..., MASK + 1 :], alone[..., MASK + 1 :], atol=2e-5)


def test_blocks_of_one_are_a_causal_model_of_the_mask():
    config = CONFIGS["modern"]
    causal = dataclasses.replace(config, attention="causal")
    masks = np.full_like(CLEAN, MASK)
    of = Functions(params_of(config), config, 1)
    out = of.encode(masks, CLEAN, np.ones((ROWS, LENGTH), np.float32))
    logits = jax.jit(lambda tokens: bert.logits(params_of(causal), causal, tokens))
    for i in range(LENGTH):
        canvas = CLEAN.copy()
        canvas[:, i] = MASK
        seen = logits(canvas)[:, i, MASK + 1 :]
        np.testing.assert_allclose(out[:, i, MASK + 1 :], seen, atol=2e-5)


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_a_pretrained_model_writes_in_blocks(name):
    params, config, _ = interop.load_pretrained(GOLDEN / name)
    config = dataclasses.replace(config, dropout=0.0)
    rng = np.random.default_rng(1)
    noisy, clean = rng.integers(0, config.vocab_size, (2, ROWS, 9), dtype=np.int32)
    want = expected(params, config, noisy, clean)
    of = Functions(params, config)
    np.testing.assert_allclose(of.encode(noisy, clean, T[:, :3]), want, atol=1e-4)
    np.testing.assert_allclose(of.one_by_one(noisy, clean), want, atol=1e-4)


# Gradients


def dense_look(q, k, v, number, *, allowed):
    """One softmax over a dense mask."""
    del number
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1])
    chances = jax.nn.softmax(jnp.where(allowed[None, None], scores, -jnp.inf))
    return jnp.einsum("bhqk,bkhd->bqhd", chances, v), ()


@pytest.mark.parametrize(
    "changes", [{}, {"remat": "full"}, {"remat": "dots", "scan": False}], ids=str
)
def test_gradients_are_those_of_one_dense_stream(changes):
    config = dataclasses.replace(CONFIGS["modern"], **changes)
    weights = np.random.default_rng(2).standard_normal((ROWS, LENGTH, config.width))

    def of_streams(params):
        denoiser = bert.block_denoiser(params, config, SIZE)
        return denoiser.readout(denoiser.encode(NOISY, CLEAN, T).at, ())

    def dense(params):
        attend: Attend = jax.tree_util.Partial(dense_look, allowed=jnp.asarray(sees(LENGTH, SIZE)))
        places = jnp.tile(jnp.arange(LENGTH, dtype=jnp.int32), 2)[None]
        encode, project = bert._halves(params, config, None, whole=True)
        both = jnp.concatenate([NOISY, CLEAN], axis=1)
        return project(encode(both, None, positions=places, attend=attend)[0][:, :LENGTH])

    def gradient(logits):
        def loss(params):
            out = logits(params)[..., MASK + 1 : config.vocab_size]
            return (jnp.sin(out) * weights[..., : out.shape[-1]].astype(np.float32)).sum()

        return jax.jit(jax.grad(loss))(params_of(config))

    gradients = gradient(of_streams), gradient(dense)
    assert all(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(gradients[1]["encoder"]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), *gradients)


@pytest.mark.parametrize("name", ["post", "modern"])
def test_with_dropout_the_last_block_is_not_apart_and_computes_the_same(name):
    rate = 1e-9  # keeps everything, by a program that could drop
    config = dataclasses.replace(CONFIGS[name], dropout=rate)
    of = Functions(params_of(config), config, dropout_key=jax.random.key(6))
    np.testing.assert_allclose(of.encode(NOISY, CLEAN, T), expected_of(name), atol=2e-5)
    tokens, noisy = of.block(CLEAN, 0), of.block(NOISY, 1)
    _, out = of.advance(of.start(ROWS, LENGTH), tokens, noisy, T[:, 0])
    np.testing.assert_allclose(out, of.block(expected_of(name), 1), atol=2e-5)


# Padding


@pytest.mark.parametrize("counted", [True, False])
def test_padding_at_the_end_of_rows_is_not_seen(counted):
    config = CONFIGS["modern"]
    lengths = jnp.int32([LENGTH, 7])
    valid = np.arange(LENGTH)[None] < lengths[:, None]
    of = Functions(params_of(config), config, valid=lengths if counted else jnp.asarray(valid))
    outs = [of.encode(np.where(valid, NOISY, f), np.where(valid, CLEAN, f), T) for f in (0, 7)]
    np.testing.assert_array_equal(outs[0][valid], outs[1][valid])
    np.testing.assert_allclose(outs[0][0], expected_of("modern")[0], atol=2e-5)
    # The row of 7 alone: its last block is one of a single token.
    mask = sees(LENGTH, SIZE) & np.tile(valid[1], 2)[None]
    both = np.concatenate([NOISY, CLEAN], axis=1)[1:]
    places = np.tile(np.arange(LENGTH), 2)
    alone = reference.logits(params_of(config), config, both, places=places, sees=mask[None])
    assert np.isfinite(outs[0]).any(-1).all()
    np.testing.assert_allclose(
        outs[0][1, :7, MASK + 1 :], alone[0, :7, MASK + 1 : config.vocab_size], atol=2e-5
    )


# Rows of the cache


# What does not fit


def changed(**changes):
    return dataclasses.replace(CONFIGS["post"], **changes)


BAD = {
    "causal": (lambda: build(changed(attention="causal")), "attention='causal': must be 'full'"),
    "local": (lambda: build(changed(attention="local", window=2)), "attention='local': must be"),
    "time": (lambda: build(changed(time_conditioning=True)), "time_conditioning=True: must be"),
    "size": (lambda: build(size=0), "block_size is 0, at least 1"),
    "window": (lambda: build(window=4), "window is 4: must be a multiple of block_size=3"),
    "no window": (lambda: build(window=0), "window is 0: must be a multiple of block_size=3"),
    "length": (
        lambda: build(size=5).encode(NOISY, CLEAN, T),
        "noisy has rows of 12 tokens, which blocks of 5 do not divide",
    ),
    "too long": (
        lambda: build(changed(max_length=9), window=3).encode(NOISY, CLEAN, T),
        "noisy tokens have length 12: max_length is 9",
    ),
    "clean": (
        lambda: build().encode(NOISY, CLEAN[:, :9], T),
        "clean is int32 [2, 9]: must be int32 [2, 12]",
    ),
    "label": (lambda: build(label=LABEL).encode(NOISY, CLEAN, T), "label given to a network with"),
    "room": (lambda: build().start(2, 13), "a cache for 13 tokens: max_length is 12, or more with"),
    "room of learned": (
        lambda: build(changed(), window=3).start(2, 13),
        "a cache for 13 tokens: max_length is 12",
    ),
    "padding": (
        lambda: build(valid=jnp.int32([3, 4])).start(2, 12),
        "valid given to a network with a cache: must be None",
    ),
    "block": (
        lambda: build().encode_block(build().start(2, 12), NOISY, T[:, 0]),
        "noisy is int32 [2, 12]: must be int32 [2, 3]",
    ),
    "rows": (
        lambda: build().extend(build().start(3, 12), NOISY[:, :3]),
        "tokens is int32 [2, 3]: must be int32 [3, 3]",
    ),
    "where": (
        lambda: build().extend(build().start(2, 12), NOISY[:, :3], jnp.ones(2)),
        "where is float32 [2]: must be bool [2]",
    ),
    "tokens": (
        lambda: build().extend(build().start(2, 12), NOISY[:, :3] + 13),
        "must be from 0 to 12",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused_in_one_line(name):
    run, told = BAD[name]
    with pytest.raises(ValueError, match=re.escape(told)) as error:
        run()
    assert "\n" not in str(error.value)


# Losses and samplers


def without_a_cache(params, config):
    """The same law as a function of both texts, all of it computed for every block."""
    denoiser = bert.block_denoiser(params, config, SIZE)

    def fn(noisy, clean, t):
        return denoiser.readout(denoiser.encode(noisy, clean, t).at, ())

    return blocks.as_block_denoiser(fn, SIZE, MASK)


def test_what_is_written_with_a_cache_is_what_is_written_without():
    config, key = CONFIGS["modern"], jax.random.key(4)
    canvas = np.where(np.arange(LENGTH) % 5 == 1, CLEAN, MASK)  # given tokens in every block

    @jax.jit
    def write(params):
        return [
            blocks.sample(denoiser, key, canvas, mask_id=MASK, steps=2)
            for denoiser in (
                bert.block_denoiser(params, config, SIZE),
                without_a_cache(params, config),
            )
        ]

    written, other = write(params_of(config))
    assert not (written == MASK).any()
    np.testing.assert_array_equal(written, other)


def test_a_loss_of_blocks_reads_out_what_it_needs():
    config, key = CONFIGS["post"], jax.random.key(5)

    @jax.jit
    def both(params):
        return [
            blocks.loss(denoiser, key, CLEAN % MASK, mask_id=MASK)[0]
            for denoiser in (
                bert.block_denoiser(params, config, SIZE),
                without_a_cache(params, config),
            )
        ]

    loss, other = both(params_of(config))
    np.testing.assert_allclose(loss, other, rtol=1e-5)
    assert 1 < loss < 10


def test_rows_lie_on_a_mesh():
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    script = Path(__file__).parent / "blocks_on_four_devices.py"
    done = subprocess.run(
        [sys.executable, script], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["mesh", "shard_map"]
