"""Local attention by blocks, against the whole matrix of scores under the mask."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdlm_jax.networks.attention import Mask, attention, attention_mask, local

ROWS, HEADS, WIDTH = 2, 3, 4


def batch(length, seed=0):
    draw = np.random.default_rng(seed)
    shape = (4, ROWS, length, HEADS, WIDTH)
    *qkv, weights = jnp.asarray(draw.normal(size=shape), jnp.float32)
    valid = jnp.asarray(draw.random((ROWS, length)) < 0.7).at[:, 0].set(True)
    segments = jnp.asarray(np.cumsum(draw.random((ROWS, length)) < 0.1, axis=1), jnp.int32)
    return qkv, weights, valid, segments


def dense(q, k, v, window, valid, segment_ids):
    mask = attention_mask("local", q.shape[1], window=window, valid=valid, segment_ids=segment_ids)
    return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="xla")


@functools.partial(jax.jit, static_argnames=("window", "cut_for"))
def both(qkv, weights, window, valid, segment_ids, cut_for="xla"):
    """Values and gradients of the blocks, cut as for a backend, and those of the matrix."""
    by_blocks = functools.partial(
        local.local_attention, blocks=local.blocks_of(window, cut_for), implementation="xla"
    )
    real = jnp.ones(qkv[0].shape[:2], bool) if valid is None else valid

    def outputs(fn):
        def loss(qkv):
            # What comes out at a query that sees no key means nothing.
            out = jnp.where(real[..., None, None], fn(*qkv, window, valid, segment_ids), 0.0)
            return jnp.sum(weights * out), out

        return jax.value_and_grad(loss, has_aux=True)(qkv)

    return outputs(by_blocks), outputs(dense)


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(
    length=st.integers(1, 70),
    window=st.integers(1, 12),
    padded=st.booleans(),
    packed=st.booleans(),
    seed=st.integers(0, 99),
)
def test_values_and_gradients_are_those_of_the_masked_matrix(length, window, padded, packed, seed):
    qkv, weights, valid, segments = batch(length, seed)
    masks = valid if padded else None, segments if packed else None
    blocks, matrix = both(qkv, weights, window, *masks)
    for got, expected in zip(jax.tree.leaves(blocks), jax.tree.leaves(matrix), strict=True):
        assert jnp.isfinite(got).all()
        np.testing.assert_allclose(got, expected, atol=2e-5)


@pytest.mark.parametrize(("length", "window"), [(300, 3), (257, 64), (384, 65)])
def test_blocks_of_whole_tiles_compute_the_same(length, window):
    qkv, weights, *masks = batch(length)
    blocks, matrix = both(qkv, weights, window, *masks, cut_for="cudnn")
    for got, expected in zip(jax.tree.leaves(blocks), jax.tree.leaves(matrix), strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-5)


@given(window=st.integers(1, 2000))
def test_blocks_reach_as_far_as_the_window_and_fill_cudnn_s_tiles(window):
    for implementation in ("xla", "cudnn"):
        size, reach = local.blocks_of(window, implementation)
        assert window <= reach <= size
    assert size % 128 == (size + 2 * reach) % 128 == 0


def test_queries_without_a_key_see_themselves():
    """The gradient by a query without any may be NaN on GPUs."""
    (q, k, v), *_ = batch(40)
    nobody = jnp.zeros((ROWS, 40), bool)
    out = jax.jit(lambda q, k, v: local.local_attention(q, k, v, 3, nobody))(q, k, v)
    np.testing.assert_allclose(out, v, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_window_that_is_lifted_by_a_traced_condition(dtype):
    """In blocks where it holds; values and gradients are those of the matrix either way."""
    qkv, weights, *_ = batch(96)
    qkv = [x.astype(dtype) for x in qkv]
    valid = jnp.arange(96) < jnp.asarray([96, 31])[:, None]
    mask = Mask("local", 4, valid)

    def blocks(*qkv, everywhere):
        return attention(*qkv, mask, backend="xla", everywhere=everywhere)

    def matrix(*qkv, everywhere):
        seen = attention_mask(length=96, everywhere=everywhere, **mask._asdict())
        return jax.nn.dot_product_attention(*qkv, mask=seen, implementation="xla")

    @jax.jit
    def outputs(qkv, everywhere):
        def of(fn):
            def loss(qkv):
                out = jnp.where(valid[..., None, None], fn(*qkv, everywhere=everywhere), 0.0)
                return jnp.sum(weights * out), out

            return jax.grad(loss, has_aux=True)(qkv)

        return of(blocks), of(matrix)

    # (Of sums in another order bfloat16 keeps 8 bits.)
    close = {"float32": {"atol": 2e-5}, "bfloat16": {"atol": 5e-2, "rtol": 2e-2}}[dtype]
    for everywhere in (False, True):
        found, expected = outputs(qkv, jnp.asarray(everywhere))
        for got, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(np.float32(got), np.float32(wanted), **close)


def test_attention_takes_blocks_where_they_are_less_work(monkeypatch):
    asked = []
    monkeypatch.setattr(local, "local_attention", lambda q, *_, **__: asked.append(q.shape[1]) or q)
    for length, everywhere in ((48, None), (49, None), (96, None), (96, jnp.array(False))):
        (q, k, v), *_ = batch(length)
        attention(q, k, v, Mask("local", 4), backend="xla", everywhere=everywhere)
        attention(q, k, v, Mask("full"), backend="xla")
    assert asked == [49, 96, 96]


def test_memory_grows_with_the_length():
    """The whole matrix of scores takes sixteen times as much for four times the length."""

    def planned(length):
        shape = jax.ShapeDtypeStruct((1, length, 1, 8), jnp.float32)
        fn = jax.jit(lambda q, k, v: attention(q, k, v, Mask("local", 4), backend="xla"))
        return fn.lower(shape, shape, shape).compile().memory_analysis().temp_size_in_bytes

    assert 0 < planned(2048) < 6 * planned(512)
