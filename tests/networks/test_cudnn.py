"""cuDNN's attention: what is left to 'xla', and on a GPU its values and gradients.

On a GPU: `python -m pytest tests/networks/test_cudnn.py` (with `PYTHONPATH=tests:.`); it needs
pytest, numpy, jax and Flax alone.
"""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mdlm_jax.host import parallel
from mdlm_jax.networks.attention import Mask, attention, cudnn

LONG = 1032  # enough for blocks, and no multiple of them
on_gpu = pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU")


def random_qkv(length, dtype, head_dim=64):
    shape = (3, 2, length, 4, head_dim)
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32), dtype)


def masks(length):
    valid = np.ones((2, length), bool)
    valid[0, length // 2 :] = valid[1, :3] = valid[1, -5:] = False
    valid = jnp.asarray(valid)
    lengths = jnp.asarray([length // 3, length], jnp.int32)
    segments = jnp.asarray(np.arange(length)[None] >= np.array([[7], [length // 2]]), jnp.int32)
    return {
        "full": Mask(),
        "causal": Mask("causal"),
        "local": Mask("local", 4),
        "padded": Mask(valid=valid),
        "segments": Mask(segment_ids=segments),
        "all at once": Mask("causal", 0, valid, segments),
        "lengths": Mask(valid=lengths),
        "lengths, causal": Mask("causal", 0, lengths),
        "lengths, segments": Mask("full", 0, lengths, segments),
        "lengths, local": Mask("local", 4, lengths),
        "lengths of nothing": Mask(valid=jnp.asarray([0, length], jnp.int32)),
        "padding alone": Mask(valid=jnp.asarray(np.arange(2)[:, None] >= np.ones(length))),
    }


def windows(length):
    """Of rows that are long enough for blocks."""
    several = masks(length)
    return {
        "blocks": Mask("local", 3),
        "blocks of more than a tile": Mask("local", 70),
        "blocks, padded": several["padded"]._replace(kind="local", window=64),
        "blocks, lengths": several["lengths"]._replace(kind="local", window=64),
        "blocks, segments": several["segments"]._replace(kind="local", window=64),
        "blocks, lengths of nothing": several["lengths of nothing"]._replace(
            kind="local", window=64
        ),
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


def compare(mask, length, everywhere=None, mesh=None):
    """Values and gradients of cuDNN in bfloat16 against XLA's in float32."""
    qkv = random_qkv(length, jnp.bfloat16)
    valid = jnp.ones((2, length), bool) if mask.valid is None else mask.valid
    counts = valid if valid.ndim == 2 else jnp.arange(length) < valid[:, None]
    counts = counts[..., None, None]
    weights = jnp.cos(jnp.arange(qkv[0].size)).reshape(qkv[0].shape) * counts
    if mesh is not None:
        placed = NamedSharding(mesh, PartitionSpec(None, parallel.ROW_AXES))
        qkv = jax.device_put(qkv, placed)

    @jax.jit
    def both(qkv, valid, segment_ids, everywhere):
        told = mask._replace(valid=valid, segment_ids=segment_ids)

        def outputs(backend, dtype):
            def loss(qkv):
                out = attention(*qkv.astype(dtype), told, backend=backend, everywhere=everywhere)
                return (weights * out).sum(), out

            (_, out), slopes = jax.value_and_grad(loss, has_aux=True)(qkv)
            return out.astype(jnp.float32), slopes.astype(jnp.float32)

        with parallel.use(mesh):
            return outputs("cudnn", jnp.bfloat16), outputs("xla", jnp.float32)

    found = jax.device_get(both(qkv, mask.valid, mask.segment_ids, everywhere))
    for got, expected in zip(*found, strict=True):
        assert np.isfinite(got).all()
        where = np.broadcast_to(counts, got.shape)
        got, expected = np.where(where, got, 0), np.where(where, expected, 0)
        assert np.linalg.norm(got - expected) <= 1e-2 * np.linalg.norm(expected)


# A dense mask's gradient has been seen to fail where a length leaves 64 over at 128.
@on_gpu
@pytest.mark.parametrize("length", [100, 192])
@pytest.mark.parametrize("kind", masks(8))
def test_values_and_gradients_are_those_of_float32(kind, length):
    compare(masks(length)[kind], length)


@pytest.mark.parametrize(
    ("kind", "lifted"),
    [
        ("lengths", False),
        ("lengths, causal", False),
        ("lengths of nothing", False),
        *((kind, False) for kind in windows(8)),
        ("blocks, lengths", True),
    ],
)
def test_no_mask_of_every_query_and_key_is_made(kind, lifted, monkeypatch):
    """Of padding at the end and of windows; traced only, wherever it runs."""
    fused = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91_000)  # which asks for the library
    mask = {**masks(LONG), **windows(LONG)}[kind]

    def loss(qkv, valid, segment_ids, everywhere):
        told = mask._replace(valid=valid, segment_ids=segment_ids)
        out = attention(*qkv, told, backend="cudnn", everywhere=everywhere)
        return out.astype(jnp.float32).sum()

    everywhere = jnp.asarray(True) if lifted else None
    arguments = (random_qkv(LONG, jnp.bfloat16), mask.valid, mask.segment_ids, everywhere)
    traced = str(jax.make_jaxpr(jax.grad(loss))(*arguments))
    assert "dot_product_attention_bwd" in traced
    assert f"{LONG},{LONG}]" not in traced


@on_gpu
@pytest.mark.parametrize("kind", ["full", "lengths", "segments", "blocks, padded"])
def test_no_type_is_promoted_but_by_jax_itself(kind):
    mask = {**masks(LONG), **windows(LONG)}[kind]

    def loss(q, k, v):
        return attention(q, k, v, mask, backend="cudnn").astype(jnp.float32).sum()

    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        slopes = jax.jit(jax.grad(loss))(*random_qkv(LONG, jnp.bfloat16))
    assert np.isfinite(np.asarray(slopes, np.float32)).all()


@on_gpu
@pytest.mark.parametrize("kind", windows(8))
def test_windows_by_blocks(kind):
    compare(windows(LONG)[kind], LONG)


@on_gpu
@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize(
    ("kind", "length"), [("local", 100), ("blocks", LONG), ("blocks, lengths", LONG)]
)
def test_windows_that_are_lifted(kind, length, everywhere):
    compare({**masks(length), **windows(length)}[kind], length, jnp.asarray(everywhere))


@on_gpu
@pytest.mark.skipif(len(jax.devices()) < 2, reason="needs two devices")
@pytest.mark.parametrize("kind", ["full", "lengths", "lengths, segments", "blocks, lengths"])
def test_rows_of_two_gpus(kind):
    mask = {**masks(LONG), **windows(LONG)}[kind]
    compare(mask, LONG, mesh=parallel.make_mesh(data=2, devices=jax.devices()[:2]))
