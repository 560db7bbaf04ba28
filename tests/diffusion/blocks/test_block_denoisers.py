"""A lifted function: block by block after its cache it is what it is all at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from block_law import SIZES, block_denoiser
from every_strategy import any_conditionals
from oracle import MASK, STRINGS, L

from mdlm_jax import Hidden, as_denoiser, blocks, diffusion_loss, transforms

TABLE = any_conditionals()
KEY = jax.random.key(0)
CLEAN = jnp.asarray(STRINGS[7::11])
NOISY = jnp.where(jax.random.bernoulli(KEY, 0.5, CLEAN.shape), MASK, CLEAN)


def logits_of(denoiser, hidden):
    at = hidden.at.reshape(-1, hidden.at.shape[-1])
    return denoiser.readout(at, ()).reshape(hidden.at.shape)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("room", [L, L + 3])
def test_block_by_block_is_all_at_once(size, room):
    denoiser = block_denoiser(TABLE, size)
    times = jnp.linspace(0, 1, len(CLEAN) * (L // size)).reshape(len(CLEAN), -1)

    @jax.jit
    def both():
        cache, by_block = denoiser.start(len(CLEAN), room), []
        for block in range(L // size):
            part = slice(block * size, (block + 1) * size)
            by_block.append(denoiser.encode_block(cache, NOISY[:, part], times[:, block]))
            cache = denoiser.extend(cache, CLEAN[:, part])
        return denoiser.encode(NOISY, CLEAN, times), by_block

    at_once, by_block = both()
    expected = logits_of(denoiser, at_once)
    got = jnp.concatenate([logits_of(denoiser, hidden) for hidden in by_block], axis=1)
    np.testing.assert_array_equal(got, expected)
    assert np.isfinite(expected[..., :MASK]).all() and np.all(expected[..., MASK] == -np.inf)


def test_each_row_has_a_place_of_its_own():
    """Rows that have committed different numbers of blocks, in one call."""
    denoiser = block_denoiser(TABLE, 2)
    ahead = denoiser.extend(denoiser.start(len(CLEAN), L), CLEAN[:, :2])
    behind = denoiser.start(len(CLEAN), L)
    first = jnp.arange(len(CLEAN)) % 2 == 0
    mixed = jax.tree.map(
        lambda a, b: jnp.where(first.reshape(-1, *(1,) * (a.ndim - 1)), a, b), ahead, behind
    )
    t = jnp.ones(len(CLEAN))
    one, other, both = (
        denoiser.encode_block(c, NOISY[:, :2], t).at for c in (ahead, behind, mixed)
    )
    np.testing.assert_array_equal(both, jnp.where(first[:, None, None], one, other))
    assert not np.array_equal(one, other)


def test_a_function_sees_times_by_block():
    seen = []

    def logits(noisy, clean, t):
        seen.append(t.shape)
        return jnp.repeat(t, 2, axis=1)[..., None] * jnp.arange(4.0)

    denoiser = blocks.as_block_denoiser(logits, 2)
    hidden = denoiser.encode(NOISY, CLEAN, jnp.array([[0.0, 1.0]] * len(CLEAN)))
    assert np.all(hidden.at[:, :2] == 0) and np.all(hidden.at[:, 2:, 1] == 1)
    cache = denoiser.start(len(CLEAN), 3)  # in whole blocks
    assert cache.tokens.shape == (len(CLEAN), 4)
    np.testing.assert_array_equal(
        denoiser.encode_block(cache, NOISY[:, :2], jnp.full(len(CLEAN), 0.25)).at[..., 1], 0.25
    )
    assert seen == [(len(CLEAN), 2)] * 2


def test_a_row_without_room_is_nan_where_its_length_is_traced():
    denoiser = block_denoiser(TABLE, 2)
    cache = denoiser.start(2, 4)
    cache = cache._replace(length=jnp.array([4, 2]))
    at = jax.jit(denoiser.encode_block)(cache, NOISY[:2, :2], jnp.ones(2)).at
    assert np.isnan(at[0]).all() and not np.isnan(at[1]).any()


def test_shapes_of_the_law_compose_onto_it():
    cold = transforms.temperature(block_denoiser(TABLE, 2), 0.5)
    assert isinstance(cold, blocks.BlockDenoiser)
    logits = jnp.array([[1.0, 2.0]])
    np.testing.assert_allclose(cold.shape(logits, ()), 2 * logits, rtol=1e-6)


def test_a_strength_a_row_leaves_the_arguments_of_advance():
    def advance(cache, tokens, noisy, t, where=None):
        return where, Hidden(noisy)

    plain = block_denoiser(TABLE, 2)._replace(advance=advance)
    shaped = transforms.temperature(plain, jnp.ones(3))
    where, hidden = shaped.advance((), NOISY[:3], NOISY[:3], jnp.ones(3), where=True)
    assert where is True and hidden.row[1].shape == (3,)


def fn(noisy, clean, t):
    return jnp.zeros((*noisy.shape, 4))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: blocks.as_block_denoiser(np.zeros((4, 4)), 2),
            "fn is a ndarray, it must be",
        ),
        (lambda: blocks.as_block_denoiser(block_denoiser(TABLE, 2), 2), "fn is a BlockDenoiser al"),
        (lambda: blocks.as_block_denoiser(as_denoiser(fn), 2), "fn is a Denoiser, it must be"),
        (lambda: blocks.as_block_denoiser(fn, 0), "block_size is 0, at least 1 is needed"),
        (lambda: blocks.as_block_denoiser(fn, 2.0), "block_size is 2.0, it must be one whole numb"),
        (lambda: blocks.as_block_denoiser(fn, 2, "[MASK]"), r"mask_id is '\[MASK\]', it must be"),
        (
            lambda: jax.jit(lambda n: blocks.as_block_denoiser(fn, n))(2),
            "block_size is traced, it must be a number that is known",
        ),
    ],
)
def test_what_cannot_be_lifted_is_said(build, message):
    with pytest.raises((TypeError, ValueError), match=f"^{message}") as error:
        build()
    assert "\n" not in str(error.value)


def test_what_a_function_returns_must_be_logits():
    for returned, message in (
        ((jnp.zeros((1, 4, 4)),), r"function in as_block_denoiser returned a tuple: it must"),
        (
            jnp.zeros((1, 2, 4)),
            r"returned float32\[1, 2, 4\]: it must return .* \[1, 4, V",
        ),
    ):
        lifted = blocks.as_block_denoiser(lambda *_, returned=returned: returned, 2)
        with pytest.raises((TypeError, ValueError), match=message):
            lifted.encode(NOISY[:1], CLEAN[:1], jnp.ones((1, 2)))


def test_a_full_cache_takes_no_more():
    denoiser = block_denoiser(TABLE, 2)
    cache = denoiser.start(1, 2)
    cache = denoiser.extend(cache, CLEAN[:1, :2])
    message = (
        r"the cache has room for 2 tokens and holds 2 of row 0: start\(batch, length\) with .* 4"
    )
    with pytest.raises(ValueError, match=message):
        denoiser.extend(cache, CLEAN[:1, :2])
    with pytest.raises(ValueError, match=message):
        denoiser.encode_block(cache, NOISY[:1, :2], jnp.ones(1))


def test_functions_of_rows_refuse_a_block_denoiser():
    with pytest.raises(TypeError, match=r"denoiser is a BlockDenoiser: .* blocks.loss"):
        diffusion_loss(block_denoiser(TABLE, 2), KEY, CLEAN, mask_id=MASK)
