"""Derivatives that the layers bring themselves, against autodiff of the plain formulas."""

import jax
import jax.numpy as jnp
import numpy as np

from mdlm_jax.networks.layers import gelu_tanh, tied_logits


def test_gelu_has_the_values_and_derivatives_of_its_formula():
    x = jnp.linspace(-12.0, 12.0, 2001)

    def plain(x):
        return jax.nn.gelu(x, approximate=True)

    for ours, theirs in ((gelu_tanh, plain), (jax.grad(gelu_tanh), jax.grad(plain))):
        np.testing.assert_allclose(jax.vmap(ours)(x), jax.vmap(theirs)(x), atol=1e-5)
    tangent = jax.jvp(gelu_tanh, (x,), (jnp.cos(x),))[1]
    np.testing.assert_allclose(tangent, jax.jvp(plain, (x,), (jnp.cos(x),))[1], atol=1e-5)


def test_gelu_is_computed_in_float32_and_returns_its_type():
    x = jnp.linspace(-12.0, 12.0, 2001).astype(jnp.bfloat16)
    expected = jax.nn.gelu(x.astype(jnp.float32), approximate=True).astype(jnp.bfloat16)
    got = gelu_tanh(x)
    assert got.dtype == jnp.bfloat16
    close = {"rtol": 2**-7, "atol": 1e-6}  # 1 + tanh cancels in the tail of the reference
    np.testing.assert_allclose(got.astype(jnp.float32), expected.astype(jnp.float32), **close)
    assert np.isfinite(gelu_tanh(jnp.array([-1e4, 1e4]))).all()


def test_tied_logits_have_the_gradients_of_the_product():
    draw = np.random.default_rng(0)
    shapes = (3, 4, 5), (7, 5), (3, 4, 7)
    x, table, slope = (jnp.asarray(draw.normal(size=shape), jnp.float32) for shape in shapes)

    def gradients(logits):
        def total(x, table):
            return jnp.sum(slope * logits(x, table))

        return jax.grad(total, argnums=(0, 1))(x, table)

    got = gradients(lambda x, table: tied_logits(x, table, table))
    expected = gradients(lambda x, table: x @ table.T)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_the_table_takes_its_gradient_in_float32_where_bfloat16_is_computed():
    draw = np.random.default_rng(1)
    x = jnp.asarray(draw.normal(size=(4, 8)), jnp.bfloat16)
    table = jnp.asarray(draw.normal(size=(6, 8)), jnp.float32)

    def total(x, table):
        return jnp.sum(tied_logits(x, table, table.astype(jnp.bfloat16)) ** 2)

    of_x, of_table = jax.grad(total, argnums=(0, 1))(x, table)
    assert (of_x.dtype, of_table.dtype) == (jnp.bfloat16, jnp.float32)
    exact = jax.grad(lambda t: jnp.sum((x.astype(jnp.float32) @ t.T) ** 2))(table)
    assert np.linalg.norm(of_table - exact) < 1e-2 * np.linalg.norm(exact)
