from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.networks.attention import (
    Mask,
    attention,
    attention_mask,
    cudnn,
    fastest,
    rope_turns,
    rotate,
)


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def test_attention_is_the_formula():
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, 5, 3, 4), np.float32)
    mask = np.tril(np.ones((5, 5), bool))
    scores = np.einsum("bthd,bshd->bhts", q, k) / np.sqrt(4)
    expected = np.einsum("bhts,bshd->bthd", softmax(np.where(mask, scores, -np.inf)), v)
    out = attention(q, k, v, Mask("causal"), backend="xla")
    np.testing.assert_allclose(out, expected, atol=1e-6)


def test_a_query_without_keys_gets_finite_values():
    q = jnp.ones((1, 3, 1, 2))
    mask = Mask(valid=jnp.zeros((1, 3), bool))
    grad = jax.jit(jax.grad(lambda q: attention(q, q, q, mask, backend="xla").sum()))(q)
    assert np.isfinite(grad).all()


SEGMENTS = jnp.asarray(np.arange(48) // 11 + np.zeros((3, 1)), jnp.int32)


@pytest.mark.parametrize(
    ("mask", "everywhere", "dtype"),
    [
        (Mask(), None, "float32"),
        (Mask("causal"), None, "bfloat16"),
        (Mask("local", 2, segment_ids=SEGMENTS), None, "float32"),  # in blocks
        (Mask("local", 9, segment_ids=SEGMENTS), None, "bfloat16"),  # in one matrix
        (Mask("local", 2), True, "bfloat16"),
    ],
)
def test_lengths_are_the_mask_of_padding_at_the_end(mask, everywhere, dtype):
    lengths = jnp.asarray([48, 0, 17], jnp.int32)
    valid = jnp.arange(48) < lengths[:, None]
    draw = np.random.default_rng(0).standard_normal((4, 3, 48, 2, 4), np.float32)
    *qkv, weights = jnp.asarray(draw, dtype)

    @jax.jit
    def outputs(qkv, lengths, valid, everywhere):
        def of(seen):
            def loss(qkv):
                told = mask._replace(valid=seen)
                out = attention(*qkv, told, backend="xla", everywhere=everywhere)
                # What comes out at padding means nothing.
                out = jnp.where(valid[..., None, None], out, 0)
                return jnp.sum((weights * out).astype(jnp.float32)), out

            return jax.grad(loss, has_aux=True)(qkv)

        return of(lengths), of(valid)

    by_length, by_mask = outputs(qkv, lengths, valid, everywhere)
    for got, expected in zip(jax.tree.leaves(by_length), jax.tree.leaves(by_mask), strict=True):
        assert got.dtype == expected.dtype == dtype
        np.testing.assert_allclose(np.float32(got), np.float32(expected), atol=1e-6)
    for slopes in by_length[0][1:]:  # by keys and by values
        assert not np.any(np.where(valid[..., None, None], 0, slopes))
        assert np.all(np.any(slopes, axis=(2, 3)) == valid)


def test_unknown_backend():
    q = jnp.ones((1, 3, 1, 2))
    with pytest.raises(
        ValueError, match=r"'flash': must be one of \['auto', 'xla', 'cudnn', 'splash'\]$"
    ):
        attention(q, q, q, backend="flash")


def test_full_and_unpadded_is_no_mask():
    assert attention_mask("full", 7) is None


@pytest.mark.parametrize("kind, window", [("full", 0), ("causal", 0), ("local", 2)])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("segmented", [False, True])
def test_mask_by_its_definition(kind, window, padded, segmented):
    rows, length = 2, 6
    valid = np.array([[1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1]], bool)
    segments = np.array([[0, 0, 1, 1, 2, 2], [5, 5, 5, 1, 1, 5]], np.int32)
    mask = attention_mask(
        kind,
        length,
        window=window,
        valid=jnp.asarray(valid) if padded else None,
        segment_ids=jnp.asarray(segments) if segmented else None,
    )
    if mask is None:
        mask = True
    mask = np.broadcast_to(mask, (rows, 1, length, length))
    for b in range(rows):
        for query in range(length):
            for key in range(length):
                sees = {"full": True, "causal": key <= query, "local": abs(key - query) <= window}
                expected = sees[kind]
                expected &= valid[b, key] or not padded
                expected &= segments[b, query] == segments[b, key] or not segmented
                assert mask[b, 0, query, key] == expected


@jax.jit
def turn(x):
    return rotate(x, rope_turns(x.shape[1], x.shape[-1]))


def test_rope_scores_depend_on_relative_position_only():
    same = np.random.default_rng(1).standard_normal((2, 1, 1, 8), np.float32)  # a query, a key
    q, k = np.asarray(turn(np.tile(same, (1, 12, 1, 1))))[:, :, 0]
    scores = q @ k.T
    for offset in range(-11, 12):
        diagonal = np.diagonal(scores, offset)
        np.testing.assert_allclose(diagonal, diagonal[0], atol=1e-5)
    assert np.ptp(scores[0]) > 0.1


def test_rope_turns_each_pair_as_a_complex_number():
    x = np.random.default_rng(2).standard_normal((2, 5, 3, 6), np.float32)
    position, pair = np.arange(5)[:, None], np.arange(3)
    phase = np.exp(1j * position * 10_000.0 ** (-2 * pair / 6))[:, None]  # [L, 1, d/2]
    expected = (x[..., :3] + 1j * x[..., 3:]) * phase
    out = np.asarray(turn(x))
    np.testing.assert_allclose(out[..., :3] + 1j * out[..., 3:], expected, atol=1e-6)


def test_auto_is_the_fastest_backend_of_a_platform(monkeypatch):
    def queries(length=8, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct((1, length, 2, 64), dtype)

    assert [fastest(name, queries()) for name in ("cpu", "tpu")] == ["xla", "splash"]
    assert fastest("tpu", queries(), lifted=True) == "xla"
    assert fastest("gpu", queries()) == ("cudnn" if cudnn.available() else "xla")
    monkeypatch.setattr(cudnn, "available", lambda: True)
    assert fastest("gpu", queries(), lifted=True) == "cudnn"
    assert fastest("gpu", queries(length=7)) == fastest("gpu", queries(dtype=jnp.float32)) == "xla"
    monkeypatch.setattr(cudnn, "available", lambda: False)
    assert fastest("gpu", queries()) == "xla"  # another maker's GPU


@pytest.mark.parametrize(
    ("capability", "has"), [("9.0", True), ("8.0", True), ("7.5", False), ("gfx90a", False)]
)
def test_cudnn_is_for_newer_nvidia_gpus(capability, has, monkeypatch):
    device = SimpleNamespace(compute_capability=capability)
    monkeypatch.setattr(jax, "devices", lambda: [device])
    assert cudnn.available() == has


@pytest.mark.parametrize("valid", [None, "bool", "lengths"])
def test_fewer_queries_than_keys_are_some_of_all(valid):
    q, k, v = jnp.asarray(np.random.default_rng(0).standard_normal((3, 2, 6, 2, 4)), jnp.float32)
    lengths = jnp.array([6, 3], jnp.int32)
    told = {None: None, "lengths": lengths, "bool": jnp.arange(6) < lengths[:, None]}[valid]
    whole = attention(q, k, v, Mask(valid=told), backend="xla")
    few = attention(q[:, 4:], k, v, Mask(valid=told), backend="xla")
    np.testing.assert_allclose(few, whole[:, 4:], atol=1e-6)


@pytest.mark.parametrize("mask", [Mask("causal"), Mask("local", 2), Mask(segment_ids=SEGMENTS)])
def test_fewer_queries_are_refused_where_their_order_matters(mask):
    x = jnp.zeros((3, 48, 1, 2))
    with pytest.raises(ValueError, match="4 queries and 48 keys: attention must be 'full'"):
        attention(x[:, :4], x, x, mask, backend="xla")


@pytest.mark.parametrize("valid", ["bool", "lengths"])
def test_fewer_queries_are_traced_for_cudnn(valid, monkeypatch):
    """Shapes alone: what the kernel asks of its mask; it runs on a GPU."""
    fused = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91_000)
    monkeypatch.setattr(fused, "check_compute_capability", lambda *_: True)
    q, k = (jax.ShapeDtypeStruct((2, length, 2, 64), jnp.bfloat16) for length in (4, 16))
    lengths = jnp.array([16, 3], jnp.int32)
    told = lengths if valid == "lengths" else jnp.arange(16) < lengths[:, None]
    out = jax.eval_shape(lambda q, k: attention(q, k, k, Mask(valid=told), backend="cudnn"), q, k)
    assert out.shape == q.shape
