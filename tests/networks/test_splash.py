"""The TPU's kernel against `xla`: values and gradients on the CPU, by interpreting it; and that the
TPU compiler takes it, where that is installed (extra `tpu`).
"""

import importlib.util
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.host import parallel
from mdlm_jax.networks.attention import Mask, attention
from mdlm_jax.networks.attention.splash import splash_attention
from mdlm_jax.pods import topologies

SCRIPT = Path(__file__).parent / "splash_on_four_devices.py"

with_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (extra `tpu`)"
)


def random_qkv(rows, length, heads, head_dim):
    shape = (3, rows, length, heads, head_dim)
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32))


def padding(length):
    """One row padded at its end, one at both ends."""
    valid = np.ones((2, length), bool)
    valid[0, length // 2 :] = valid[1, :3] = valid[1, -5:] = False
    return jnp.asarray(valid)


def segments(length):
    """Documents of different lengths, one after the other; a number comes twice in a row."""
    starts = np.array([[0, 7, 70, length - 9], [0, 1, 2, length // 2]])
    ids = (np.arange(length) >= starts[..., None]).sum(1) - 1
    return jnp.asarray(np.array([[3, -1, 3, 0], [1, 0, 2, 5]])[[[0], [1]], ids], jnp.int32)


def both(mask, length, head_dim=8):
    """Outputs where valid, and gradients of some function of these, of both backends."""
    qkv = random_qkv(2, length, 2, head_dim)
    counts = jnp.ones((2, length), bool) if mask.valid is None else mask.valid
    weights = jnp.cos(jnp.arange(qkv[0].size)).reshape(qkv[0].shape) * counts[..., None, None]

    def run(backend):
        def loss(qkv):
            out = backend(*qkv)
            return (weights * out).sum(), jnp.where(counts[..., None, None], out, 0)

        (_, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(qkv)
        return np.asarray(out), np.asarray(grads)

    kernel = partial(splash_attention, **mask._asdict(), interpret=True)
    return run(kernel), run(partial(attention, mask=mask, backend="xla"))


@pytest.mark.parametrize(
    "kind, window",
    [
        ("full", 0),
        pytest.param("causal", 0, marks=pytest.mark.slow),
        pytest.param("local", 9, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("hidden", ["nothing", "padding", "segments", "padding and segments"])
def test_values_and_gradients_are_those_of_xla(kind, window, hidden):
    length = 100  # no multiple of the kernel's blocks
    mask = Mask(
        kind,
        window,
        valid=padding(length) if "padding" in hidden else None,
        segment_ids=segments(length) if "segments" in hidden else None,
    )
    (out, grads), (expected, expected_grads) = both(mask, length)
    np.testing.assert_allclose(out, expected, atol=2e-6)
    np.testing.assert_allclose(grads, expected_grads, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("length, head_dim", [(128, 64), (256, 128), (640, 8)])
def test_blocks_of_every_size(length, head_dim):
    mask = Mask(segment_ids=segments(length))
    (out, grads), (expected, expected_grads) = both(mask, length, head_dim)
    np.testing.assert_allclose(out, expected, atol=2e-6)
    np.testing.assert_allclose(grads, expected_grads, atol=2e-5)


def test_a_row_of_padding_alone_is_finite():
    q, k, v = random_qkv(1, 16, 1, 8)
    valid = jnp.zeros((1, 16), bool)
    kernel = partial(splash_attention, valid=valid, interpret=True)
    out, grad = jax.jit(jax.value_and_grad(lambda q: kernel(q, k, v).sum()))(q)
    assert np.isfinite(out)
    assert np.isfinite(grad).all()


@pytest.mark.slow
def test_on_a_mesh_each_device_has_its_rows_and_heads():
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    done = subprocess.run(
        [sys.executable, SCRIPT], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["rows-and-heads", "one-row"]


@with_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("length", [128, 512, 1000, 2048, 8192])
def test_it_compiles_for_tpus_on_a_mesh(length, head_dim):
    devices = topologies.devices(topologies.parse("v5e:2x2"))
    mesh = parallel.make_mesh(data=2, tensor=2, devices=devices)
    rows, heads = ("data", "fsdp"), "tensor"

    def struct(shape, dtype, *spec):
        sharding = jax.NamedSharding(mesh, jax.P(*spec))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    def loss(qkv, segment_ids):
        with parallel.use(mesh):
            mask = Mask(segment_ids=segment_ids)
            return attention(*qkv, mask, backend="splash").astype(jnp.float32).sum()

    qkv = struct((3, 2, length, 2, head_dim), jnp.bfloat16, None, rows, None, heads)
    segment_ids = struct((2, length), jnp.int32, rows)
    text = jax.jit(jax.grad(loss)).lower(qkv, segment_ids).compile().as_text()
    # Forward, and backward for queries and for keys and values.
    assert text.count('custom_call_target="tpu_custom_call"') == 3
    if length > 512:  # the largest block
        assert f"{length},{length}]" not in text  # no scores anywhere
