"""The kernel of a block after a cache, interpreted, against the loop that XLA compiles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.host import parallel
from mdlm_jax.networks.attention import cached, triton

ROWS, HEADS, WIDTH, LAYERS = 4, 2, 16, 2


def _case(room, window, size, tokens, asking, dtype):
    keys = jax.random.split(jax.random.key(room + tokens), 6)
    empty = cached.empty(LAYERS, ROWS, min(room, window or room), HEADS, WIDTH, dtype)
    # An empty row, a short one, a full one, and one whose ring has turned.
    longest = room if window is None else room + 3 * size
    length = jnp.array([0, 2 * size, min(room, window or room), longest], jnp.int32)
    held = jnp.minimum(length, window or empty.keys.shape[2])
    stale = jnp.arange(empty.keys.shape[2])[None] >= held[:, None]
    kept = (jax.random.normal(key, empty.keys.shape, dtype) for key in keys[:2])
    kept = (jnp.where(stale[None, :, :, None, None], jnp.nan, x) for x in kept)
    q = jax.random.normal(keys[2], (ROWS, asking, HEADS, WIDTH), dtype)
    k, v = (jax.random.normal(key, (ROWS, tokens, HEADS, WIDTH), dtype) for key in keys[3:5])
    own = jax.random.bernoulli(keys[5], 0.5, (ROWS, asking, tokens))
    own |= jnp.eye(asking, tokens, dtype=bool)
    starts = length[:, None] + jnp.where(jnp.arange(asking) < size, size, 0)[None]
    return q, k, v, own, starts, cached.Cache(*kept, length)


@pytest.mark.parametrize(
    ("room", "window", "size", "tokens", "asking", "dtype"),
    [
        (40, None, 4, 8, 4, "float32"),  # fewer tokens than the least product
        (40, None, 16, 32, 32, "bfloat16"),  # places beyond the last whole chunk
        (48, 24, 8, 16, 16, "float32"),  # a ring: queries of both blocks see other places
        (24, None, 1, 1, 1, "float32"),  # a token at a time
    ],
)
def test_the_kernel_is_the_loop(monkeypatch, room, window, size, tokens, asking, dtype):
    monkeypatch.setattr(cached, "_CHUNK", 8)
    monkeypatch.setattr(triton, "_CHUNK", 16)
    q, k, v, own, starts, cache = _case(room, window, size, tokens, asking, dtype)
    turn, layer = cached.ring(cache, window), jnp.int32(1)
    want = cached._by_chunks(q, k, v, layer, cache, own, starts, window)
    out = triton.attention_after_cache(
        *(q, k, v, own, starts, *cache, layer), window=window, turn=turn, interpret=True
    )
    atol = 2e-6 if dtype == "float32" else 2e-2
    np.testing.assert_allclose(
        np.float32(out), np.float32(want), atol=atol, err_msg="kernel and loop differ"
    )
    # A row alone is what it is beside the others, to the bit.
    one = [x[:, 3:] for x in cache[:2]]
    alone = triton.attention_after_cache(
        *(x[3:] for x in (q, k, v, own, starts)),
        *(*one, cache.length[3:], layer),
        **{"window": window, "turn": turn, "interpret": True},
    )
    np.testing.assert_array_equal(alone, out[3:])


def test_a_mesh_splits_rows_and_heads():
    q, k, v, own, starts, cache = _case(24, None, 4, 8, 8, "float32")
    how = {"window": None, "turn": None, "interpret": True}
    arguments = (q, k, v, own, starts, *cache, jnp.int32(0))
    want = triton.attention_after_cache(*arguments, **how)
    mesh = parallel.make_mesh(tensor=1, devices=jax.devices()[:1])
    with parallel.use(mesh):
        out = jax.jit(lambda *args: triton.attention_after_cache(*args, **how))(*arguments)
    np.testing.assert_allclose(out, want, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "dtype", "why"),
    [
        ((1, 1, 2, 64), "bfloat16", ""),
        ((1, 1, 2, 64), "float32", "float32 (its products are of 16 bits)"),
        ((1, 1, 2, 48), "bfloat16", "heads of width 48 (powers of two from 16)"),
    ],
)
def test_what_the_kernel_refuses(shape, dtype, why):
    assert triton.refused(jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))) == why
