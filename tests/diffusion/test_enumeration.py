"""Every set of masks, against the oracle's own sum over them and against the draws of `nelbo`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import MASK, STRINGS, L

from mdlm_jax import nelbo
from mdlm_jax.diffusion.enumeration import enumerated_nelbo

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def untrue(oracle):
    """Conditionals that belong to no joint, whose bound is loose and depends on the sets."""
    rng = np.random.default_rng(0)
    return oracle._replace(conditionals=rng.dirichlet(np.ones(3), oracle.conditionals.shape[:2]))


def exact(oracle, tokens, longest=L, **options):
    return jax.jit(
        lambda tokens: enumerated_nelbo(
            oracle.denoiser(), tokens, mask_id=MASK, longest=longest, **options
        )
    )(jnp.asarray(tokens))


def test_it_is_the_mean_over_all_counts_and_sets(untrue):
    strings = STRINGS[::9]
    expected = [untrue.exact_count_nelbo(string) for string in strings]
    np.testing.assert_allclose(exact(untrue, strings), expected, rtol=1e-5)


def test_true_conditionals_give_the_likelihood(oracle):
    possible = oracle.joint > 0
    nats = exact(oracle, STRINGS[possible])
    np.testing.assert_allclose(nats, -np.log(oracle.joint[possible]), rtol=1e-5)


def test_rows_with_fewer_tokens_have_fewer_sets(untrue):
    """Against many draws of the same rows (alarm: 6e-5 a row)."""
    string = jnp.asarray(STRINGS[16])
    maskable = jnp.array([[1, 1, 0, 1], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]], bool)
    nats = exact(untrue, jnp.tile(string, (4, 1)), longest=3, maskable=maskable)
    many = jnp.repeat(maskable, 500, axis=0)
    drawn = jax.jit(
        lambda: nelbo(
            untrue.denoiser(), KEY, jnp.tile(string, (2000, 1)), mask_id=MASK, draws=8,
            maskable=many,
        ).nats
    )().reshape(4, 500)  # fmt: skip
    error = drawn.std(axis=1, ddof=1) / np.sqrt(500)
    assert np.all(np.abs(nats - drawn.mean(axis=1)) <= 4 * error + 1e-5)
    assert error[0] > 1e-3 and nats[3] == 0


def test_a_row_with_more_tokens_than_it_enumerates_has_no_bound(untrue):
    """Refused where it is seen, else not a number: a part of the sets is no bound."""
    strings = jnp.asarray(STRINGS[:2])
    maskable = jnp.array([[True] * 4, [True, True, False, False]])

    def of(maskable, longest=3):
        return enumerated_nelbo(
            untrue.denoiser(), strings, mask_id=MASK, longest=longest, maskable=maskable
        )

    with pytest.raises(ValueError, match="row 0 has 4 maskable tokens: longest is 3"):
        of(maskable)
    nats = jax.jit(of)(maskable)
    assert np.isnan(nats[0])
    np.testing.assert_allclose(nats[1], exact(untrue, strings, maskable=maskable)[1], rtol=1e-6)
    for longest in (0, 31):
        with pytest.raises(ValueError, match=f"longest is {longest}, it must be from 1 to 30"):
            of(maskable, longest)
