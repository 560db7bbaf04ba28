"""Which tokens of a row are kept: the laws stated, around what is never masked anyway."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mdlm_jax import diffusion_loss, keep_around, keep_prefix
from mdlm_jax.diffusion.denoisers import as_denoiser

KEY = jax.random.key(0)
ALARM = 1e-4  # of each p-value below; seeds are fixed
# Six maskable tokens among ten: a prompt in front, a hole, padding behind.
ROW = np.array([0, 0, 1, 1, 0, 1, 1, 1, 1, 0], bool)
PLACES = np.flatnonzero(ROW)


def drawn(keep, rows=12000):
    maskable = jnp.broadcast_to(jnp.asarray(ROW), (rows, len(ROW)))
    left = np.asarray(jax.jit(keep)(KEY, maskable))
    assert not left[:, ~ROW].any()
    return left[:, PLACES]  # [rows, 6]


def test_the_length_of_a_prefix_is_uniform():
    left = drawn(keep_prefix)
    kept = 6 - left.sum(axis=1)
    assert np.array_equal(left, np.arange(6) >= kept[:, None])
    assert stats.chisquare(np.bincount(kept, minlength=6)).pvalue > ALARM  # on {0..5}


def test_the_length_of_a_span_is_uniform_and_its_place_given_the_length():
    left = drawn(keep_around)
    spans = collections.Counter()
    for row in left:
        begin, end = row.argmax(), 6 - row[::-1].argmax()
        assert row[begin:end].all() and row.sum() == end - begin
        spans[end - begin, begin] += 1
    law = {(n, begin): 1 / 6 / (7 - n) for n in range(1, 7) for begin in range(7 - n)}
    counts = np.array([spans[each] for each in law])
    assert counts.sum() == len(left)
    assert stats.chisquare(counts, np.array(list(law.values())) * len(left)).pvalue > ALARM


@pytest.mark.parametrize("keep", [keep_prefix, keep_around])
@settings(max_examples=25)
@given(st.integers(0, 2**31 - 1), st.lists(st.integers(0, 255), min_size=4, max_size=4))
def test_something_is_left_where_something_was(keep, seed, bits):
    maskable = np.unpackbits(np.array(bits, np.uint8)[:, None], axis=1).astype(bool)
    left = np.asarray(keep(jax.random.key(seed), jnp.asarray(maskable)))
    assert not np.any(left & ~maskable)
    assert np.array_equal(left.any(axis=1), maskable.any(axis=1))


@pytest.mark.parametrize("keep", [keep_prefix, keep_around])
def test_what_is_kept_is_a_function_of_key_and_row(keep):
    maskable = jnp.ones((8, 20), bool)
    whole = np.asarray(keep(KEY, maskable))
    assert len({row.tobytes() for row in whole}) > 1
    some = jnp.array([6, 1])
    assert np.array_equal(keep(KEY, maskable[some], some), whole[some])


def test_the_loss_is_that_of_the_rest_given_what_is_kept():
    """A model that knows the second half of every row, and of the first nothing."""
    tokens = jnp.tile(jnp.arange(8) % 4, (64, 1))
    uniform, sure = jnp.zeros(5), 50.0 * jax.nn.one_hot(tokens, 5)
    logits = jnp.where(jnp.arange(8)[:, None] < 4, uniform, sure)
    denoiser = as_denoiser(lambda tokens, t: logits, 4)
    maskable = keep_prefix(KEY, jnp.ones((64, 8), bool))

    @jax.jit
    @jax.vmap
    def losses(key):
        return diffusion_loss(denoiser, key, tokens, mask_id=4, maskable=maskable)[0]

    drawn = np.asarray(losses(jax.random.split(KEY, 40)))
    expected = maskable[:, :4].sum() / maskable.sum() * np.log(4)
    error = drawn.std(ddof=1) / np.sqrt(len(drawn))
    assert error > 0 and abs(drawn.mean() - expected) < 4 * error  # false alarm: 6e-5


@pytest.mark.parametrize("keep", [keep_prefix, keep_around])
def test_it_takes_booleans_of_rows(keep):
    with pytest.raises(ValueError, match=r"maskable must be bool \[B, L\], not int32\[2, 3\]"):
        keep(KEY, jnp.ones((2, 3), jnp.int32))
