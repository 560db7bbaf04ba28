"""The kernels of two streams, interpreted, against one softmax by XLA; and their lowering."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.host import parallel
from mdlm_jax.networks.attention import triton_streams
from mdlm_jax.networks.attention.layout import Streams
from mdlm_jax.networks.attention.streams import by_groups
from mdlm_jax.networks.attention.triton_streams import Tile, Tiling, attention_of_streams

ROWS, HEADS, WIDTH = 2, 2, 16


def cut(queries, keys):
    return Tiling(*[Tile(queries, keys)] * 3)


def with_gradients(attend):
    """`(q, k, v, slope) -> output and gradients by q, k and v`."""

    def run(q, k, v, slope):
        out, pull = jax.vjp(attend, q, k, v)
        return out, *pull(slope)

    return jax.jit(run)


def of_tokens(layout, dtype, *, alone):
    shape = (ROWS, layout.both, HEADS, WIDTH)
    q, k, v, slope = jax.random.normal(jax.random.key(0), (4, *shape)).astype(dtype)
    asking = layout.length if alone else layout.both
    return q[:, :asking], k, v, slope[:, :asking]


def padded(layout):
    """One row padded at its end, one somewhere."""
    valid = np.ones((ROWS, layout.length), bool)
    valid[0, layout.length * 2 // 3 :] = valid[1, 1:3] = False
    return jnp.asarray(valid)


def check(layout, tiles, dtype="float32", *, hidden=False, alone=False):
    given = of_tokens(layout, dtype, alone=alone)
    valid = padded(layout) if hidden else None
    how = {"tiles": tiles, "interpret": True}
    ours = with_gradients(lambda *qkv: attention_of_streams(*qkv, layout, valid, **how))(*given)
    theirs = with_gradients(lambda *qkv: by_groups(*qkv, layout, valid, backend="xla", groups=1))
    wanted = theirs(*(x.astype(jnp.float32) for x in given))
    atol = 3e-6 if dtype == "float32" else 4e-2
    for name, got, want in zip(("out", "of_q", "of_k", "of_v"), ours, wanted, strict=True):
        assert got.dtype == dtype
        np.testing.assert_allclose(np.float32(got), want, atol=atol, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("alone", [False, True], ids=["both", "noisy, padding"])
@pytest.mark.parametrize(
    ("layout", "tiles"),
    [
        (Streams(48, 3), cut(16, 16)),  # blocks that do not divide a tile
        (Streams(33, 1), cut(32, 16)),  # blocks of one, and a length that fills no tile
        (Streams(72, 24), cut(16, 32)),  # blocks of more than a tile
        (Streams(96, 6, window=30), cut(16, 16)),
    ],
    ids=["blocks of 3", "of one", "of 24", "window"],
)
def test_values_and_gradients(layout, tiles, alone):
    check(layout, tiles, hidden=alone, alone=alone)


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout",
    [Streams(64, 4), Streams(40, 4, window=4), Streams(8, 8), Streams(12, 6)],
    ids=["blocks of 4", "narrow window, padding", "one block", "two blocks"],
)
def test_values_and_gradients_in_16_bits(layout):
    check(layout, cut(32, 16), "bfloat16", hidden=layout.window is not None)


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [False, True], ids=["", "padding"])
def test_a_mesh_splits_rows_and_heads(hidden):
    layout = Streams(16, 4)
    given = of_tokens(layout, "float32", alone=False)
    valid = padded(layout) if hidden else None
    how = {"tiles": cut(16, 16), "interpret": True}
    attend = functools.partial(attention_of_streams, streams=layout, valid=valid, **how)
    wanted = with_gradients(attend)(*given)
    with parallel.use(parallel.make_mesh(tensor=1, devices=jax.devices()[:1])):
        found = with_gradients(attend)(*given)
    for got, want in zip(found, wanted, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-6)


@contextlib.contextmanager
def an_h100():
    """JAX 0.11 asks for the GPU that is lowered for; before, it took any."""
    if not hasattr(jax.sharding, "AbstractDevice"):
        yield
        return
    device = jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", 132, "gpu")
    with jax.sharding.use_abstract_mesh(
        jax.sharding.AbstractMesh((1,), ("x",), abstract_device=device)
    ):
        yield


@pytest.mark.parametrize(
    ("layout", "heads", "width", "dtype", "alone", "hidden"),
    [
        (Streams(1024, 16), 12, 64, "bfloat16", False, False),
        (Streams(1024, 16), 12, 64, "bfloat16", True, False),
        (Streams(1000, 8, window=200), 2, 128, "float16", False, True),
    ],
)
def test_they_lower_for_gpus_without_one(layout, heads, width, dtype, alone, hidden):
    asking = layout.length if alone else layout.both
    q = jax.ShapeDtypeStruct((32, asking, heads, width), dtype)
    k = jax.ShapeDtypeStruct((32, layout.both, heads, width), dtype)
    valid = jax.ShapeDtypeStruct((32, layout.length), bool) if hidden else None
    assert not triton_streams.refused(q)

    def run(q, k, v, slope, valid):
        attend = functools.partial(attention_of_streams, streams=layout, valid=valid)
        out, pull = jax.vjp(attend, q, k, v)
        return out, *pull(slope)

    with an_h100():
        lowered = jax.jit(run).trace(q, k, k, q, valid).lower(lowering_platforms=("cuda",))
    text = lowered.as_text()
    assert text.count("gpu.triton") == 3
    # Nothing as large as all pairs, and no copies of the streams.
    assert f"{layout.both}x{layout.both}" not in text
    assert "concatenate" not in text and "stablehlo.pad" not in text


@pytest.mark.parametrize(
    ("shape", "dtype", "why"),
    [
        ((1, 1, 2, 64), "bfloat16", ""),
        ((1, 1, 2, 128), "float16", ""),
        ((1, 1, 2, 64), "float32", "float32 (their products are of 16 bits)"),
        ((1, 1, 2, 48), "bfloat16", "heads of width 48 (powers of two from 16 to 128)"),
        ((1, 1, 2, 8), "bfloat16", "heads of width 8 (powers of two from 16 to 128)"),
        ((1, 1, 2, 256), "bfloat16", "heads of width 256 (powers of two from 16 to 128)"),
    ],
)
def test_what_the_kernels_refuse(shape, dtype, why):
    assert triton_streams.refused(jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))) == why
