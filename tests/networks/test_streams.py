"""Attention of two streams by every backend, against one dense softmax; and what it computes."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.host import parallel
from mdlm_jax.networks.attention import cudnn, streams, triton_streams
from mdlm_jax.networks.attention.layout import Streams
from mdlm_jax.networks.attention.streams import two_streams
from mdlm_jax.pods import topologies

pytestmark = pytest.mark.slow  # each case compiles attention of its own

with_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (extra `tpu`)"
)

LAYOUTS = {
    "blocks": Streams(48, 3),
    "one block": Streams(8, 8),
    "blocks of one": Streams(9, 1),
    "two blocks": Streams(12, 6),
    "window": Streams(48, 3, window=6),
    "narrow window": Streams(40, 4, window=4),
}
HEADS, HEAD_DIM = 2, 8


def allowed(layout):
    """bool[both, both], pair by pair."""
    length, size, window = layout
    reach = length if window is None else window // size
    seen = np.zeros((layout.both,) * 2, bool)
    for query in range(layout.both):
        for key in range(layout.both):
            noisy = query < length
            before = query % length // size - key % length // size
            if key < length:
                seen[query, key] = noisy and before == 0
            else:
                seen[query, key] = (1 if noisy else 0) <= before <= reach
    return seen


def of_tokens(layout, heads=HEADS, dtype=jnp.float32):
    shape = (3, 2, layout.both, heads, HEAD_DIM)
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), dtype)


def padded(layout):
    """One row padded at its end, one somewhere."""
    valid = np.ones((2, layout.length), bool)
    valid[0, layout.length * 2 // 3 :] = valid[1, 1:3] = False
    return valid


def dense(qkv, seen):
    q, k, v = qkv
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(HEAD_DIM)
    chances = jax.nn.softmax(jnp.where(seen[:, None], scores, -jnp.inf))
    return jnp.einsum("bhqk,bkhd->bqhd", chances, v)


@pytest.mark.parametrize(
    ("hidden", "alone"),
    [(False, False), (True, False), (True, True)],
    ids=["both", "padding-both", "padding-noisy"],
)
@pytest.mark.parametrize("backend", ["xla", "splash"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_values_and_gradients(name, backend, hidden, alone):
    layout = LAYOUTS[name]
    asking = layout.length if alone else layout.both
    valid = padded(layout) if hidden else np.ones((2, layout.length), bool)
    both = np.asarray(layout.join(valid, valid))
    seen = allowed(layout)[None] & both[:, None] | np.eye(layout.both, dtype=bool)
    weights = np.random.default_rng(1).standard_normal((2, layout.both, HEADS, HEAD_DIM))
    weights = jnp.asarray(weights * both[..., None, None], jnp.float32)[:, :asking]

    def ours(qkv):
        told = {"valid": jnp.asarray(valid) if hidden else None, "backend": backend}
        q, k, v = qkv
        return two_streams(q[:, :asking], k, v, layout, interpret=True, **told)

    def theirs(qkv):
        return dense(qkv, seen)[:, :asking]

    def run(fn):
        def loss(qkv):
            out = fn(qkv)
            return (out * weights).sum(), out * both[:, :asking, None, None]

        (_, out), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(of_tokens(layout))
        return out, gradients

    (out, gradients), (want, wanted) = run(ours), run(theirs)
    np.testing.assert_allclose(out, want, atol=2e-6)
    np.testing.assert_allclose(gradients, wanted, atol=2e-5)


@pytest.mark.parametrize(
    ("measured", "backend", "dtype", "by"),
    [
        (False, "cudnn", "bfloat16", "groups"),
        (True, "cudnn", "bfloat16", "kernels"),
        (True, "cudnn", "float32", "groups"),
        (True, "xla", "bfloat16", "groups"),
    ],
)
def test_what_computes_them_on_gpus(monkeypatch, measured, backend, dtype, by):
    monkeypatch.setattr(streams, "_KERNELS_ON_GPUS", measured)
    monkeypatch.setattr(triton_streams, "attention_of_streams", lambda *_: "kernels")
    monkeypatch.setattr(streams, "by_groups", lambda *_, backend: "groups")
    q = jax.ShapeDtypeStruct((1, 8, 2, 16), dtype)
    assert two_streams(q, q, q, Streams(8, 8), backend=backend) == by


@pytest.mark.parametrize(
    "layout, most",
    [
        (Streams(1024, 16), 1.36),
        (Streams(1024, 128), 1.13),
        (Streams(1024, 512), 1.5),
        (Streams(1024, 1024), 1),
        (Streams(4096, 16, window=512), 0.75),
    ],
    ids=str,
)
def test_how_many_pairs_are_computed(layout, most):
    """In units of `L^2`, which is what the allowed pairs are without a window: never 4, nor 2."""

    def size(places):
        return sum(part.stop - part.start for part in places)

    groups = list(streams._groups(layout, layout.both, 8))
    pairs = sum(size(asking) * size(keys) for asking, keys in groups)
    if layout.window is None:
        seen = layout.sees(*np.ogrid[: layout.both, : layout.both])
        assert seen.sum() == layout.length**2
    assert pairs <= most * layout.length**2
    q = jax.ShapeDtypeStruct((1, layout.both, 1, 8), jnp.float32)
    attend = functools.partial(two_streams, streams=layout, backend="xla")
    flops = jax.jit(attend).lower(q, q, q).cost_analysis()["flops"]
    assert flops < 1.5 * pairs * 2 * 2 * 8  # two products of 8; the rest is masks and softmax


def test_lengths_that_cudnn_does_not_take_are_filled_up(monkeypatch):
    """By what is handed to the kernel, which needs a GPU: even lengths, a mask for each query."""
    seen, own = [], jax.nn.dot_product_attention

    def kernel(q, k, v, *, mask, implementation):
        assert implementation == "cudnn"
        seen.append((q.shape[1], k.shape[1], mask.shape))
        return own(q, k, v, mask=mask, implementation="xla")

    monkeypatch.setattr(jax.nn, "dot_product_attention", kernel)
    layout = LAYOUTS["blocks of one"]
    q, k, v = of_tokens(layout, dtype=jnp.bfloat16)
    assert not cudnn.refused(q[:, :8])
    out = two_streams(q, k, v, layout, backend="cudnn")
    assert len(seen) == 3
    for queries, keys, mask in seen:
        assert queries % 2 == keys % 2 == 0
        assert mask == (1, 1, queries, keys)
    wide = dense(of_tokens(layout), allowed(layout)[None])
    np.testing.assert_allclose(out.astype(jnp.float32), wide, atol=0.05)


@with_libtpu
@pytest.mark.parametrize(
    ("layout", "asks"),
    [
        (Streams(1024, 16), "both"),
        (Streams(1024, 16), "noisy"),
        (Streams(8192, 32), "both"),
        (Streams(1000, 8, window=200), "noisy"),
    ],
    ids=str,
)
def test_it_compiles_for_tpus_on_a_mesh(layout, asks):
    devices = topologies.devices(topologies.parse("v5e:2x2"))
    mesh = parallel.make_mesh(data=2, tensor=2, devices=devices)
    placed = jax.NamedSharding(mesh, jax.P(None, ("data", "fsdp"), None, "tensor"))
    asking = layout.length if asks == "noisy" else layout.both

    def loss(qkv):
        with parallel.use(mesh):
            q, k, v = qkv
            out = two_streams(q[:, :asking], k, v, layout, backend="splash")
        return out.astype(jnp.float32).sum()

    qkv = jax.ShapeDtypeStruct((3, 2, layout.both, 2, 64), jnp.bfloat16, sharding=placed)
    text = jax.jit(jax.grad(loss)).lower(qkv).compile().as_text()
    # Forward, and backward for queries and for keys and values.
    assert text.count('custom_call_target="tpu_custom_call"') == 3
    assert f"{layout.both},{layout.both}]" not in text
