"""One pass over the logits gives what two give, and both what the formula says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.diffusion.reading import reductions


@pytest.mark.parametrize("passes", [reductions.in_one_pass, reductions.in_two_passes])
def test_top_and_log_total_also_of_what_is_impossible(passes):
    logits = np.random.default_rng(3).normal(size=(6, 2, 300)).astype(np.float32) * 30
    logits[..., 7] = -np.inf
    logits[0, :, 1:] = -np.inf
    logits[1, :, -1] = 1e4
    logits[2] = -np.inf
    logits[3] = 5.0
    top, log_total = jax.jit(passes)(logits)
    np.testing.assert_array_equal(top, logits.max(-1))
    with np.errstate(divide="ignore"):
        expected = np.logaddexp.reduce(logits.astype(np.float64), axis=-1)
    np.testing.assert_allclose(log_total, expected, rtol=1e-6)


def test_derivatives_are_the_choice_of_the_top_and_softmax():
    logits = jnp.asarray(np.random.default_rng(4).normal(size=(3, 9)))
    tangent = jnp.cos(logits)
    outputs, slopes = jax.jvp(reductions.top_and_log_total, (logits,), (tangent,))
    np.testing.assert_allclose(outputs[1], jax.nn.logsumexp(logits, axis=-1), rtol=1e-6)
    chosen = jnp.take_along_axis(tangent, logits.argmax(-1)[:, None], -1)[:, 0]
    np.testing.assert_allclose(slopes[0], chosen, rtol=1e-6)
    expected = jnp.sum(jax.nn.softmax(logits) * tangent, axis=-1)
    np.testing.assert_allclose(slopes[1], expected, rtol=1e-5)
