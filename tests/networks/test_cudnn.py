"""cuDNN's attention: what is left to 'xla', and on a GPU its values and gradients."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.networks import cudnn
from mdlm_jax.networks.attention import Mask, attention

on_gpu = pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU")


def random_qkv(length, dtype, head_dim=64):
    shape = (3, 2, length, 4, head_dim)
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32), dtype)


def masks(length):
    valid = np.ones((2, length), bool)
    valid[0, length // 2 :] = valid[1, :3] = valid[1, -5:] = False
    valid = jnp.asarray(valid)
    segments = jnp.asarray(np.arange(length)[None] >= np.array([[7], [length // 2]]), jnp.int32)
    return {
        "full": Mask(),
        "causal": Mask("causal"),
        "local": Mask("local", 4),
        "padded": Mask(valid=valid),
        "segments": Mask(segment_ids=segments),
        "all at once": Mask("causal", 0, valid, segments),
    }


@pytest.mark.parametrize(
    ("length", "head_dim", "dtype", "named"),
    [(8, 16, "float32", "float32"), (9, 16, "bfloat16", "odd length 9"), (8, 12, "bfloat16", "12")],
)
def test_what_cudnn_does_not_take_is_left_to_xla_and_told(length, head_dim, dtype, named, caplog):
    q, k, v = random_qkv(length, dtype, head_dim)
    for mask in masks(length).values():
        cudnn.say_once.cache_clear()
        with caplog.at_level(logging.WARNING):
            got = attention(q, k, v, mask, backend="cudnn")
        assert named in caplog.text
        np.testing.assert_array_equal(got, attention(q, k, v, mask, backend="xla"))


def test_it_is_told_once(caplog):
    cudnn.say_once.cache_clear()
    q, k, v = random_qkv(8, "float32", 16)
    for _ in range(2):
        attention(q, k, v, backend="cudnn")
    assert len(caplog.records) == 1


@on_gpu
@pytest.mark.parametrize("kind", masks(8))
@pytest.mark.parametrize("length", [100, 128])
@pytest.mark.parametrize("everywhere", [None, True])
def test_values_and_gradients_are_those_of_float32(kind, length, everywhere):
    mask = masks(length)[kind]
    if everywhere is not None and mask.kind != "local":
        pytest.skip("there is no window to lift")
    qkv = random_qkv(length, jnp.bfloat16)
    counts = jnp.ones((2, length), bool) if mask.valid is None else mask.valid
    counts = counts[..., None, None]
    weights = jnp.cos(jnp.arange(qkv[0].size)).reshape(qkv[0].shape) * counts
    lifted = None if everywhere is None else jnp.asarray(everywhere)

    def run(backend, dtype):
        def loss(qkv):
            out = attention(*qkv.astype(dtype), mask, backend=backend, everywhere=lifted)
            return (weights * out).sum(), jnp.where(counts, out, 0)

        (_, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(qkv)
        return np.asarray(out, np.float32), np.asarray(grads, np.float32)

    for got, expected in zip(run("cudnn", jnp.bfloat16), run("xla", jnp.float32), strict=True):
        assert np.linalg.norm(got - expected) < 1e-2 * np.linalg.norm(expected)
