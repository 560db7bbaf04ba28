"""The NELBO over blocks, against numpy's sum over every set of masks of every block."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from block_law import SIZES, block_denoiser, enumerated, enumerated_all
from every_strategy import any_conditionals, table_denoiser
from oracle import MASK, STRINGS, L

from mdlm_jax import blocks, nelbo
from mdlm_jax.diffusion import noise

pytestmark = pytest.mark.slow  # each case compiles a bound of its own

KEY = jax.random.key(0)
TABLE = any_conditionals()  # of no joint: the bound is loose, and depends on the sets
TOKENS = jnp.asarray(STRINGS)


def exact(conditionals, size, tokens=TOKENS, **options):
    denoiser = block_denoiser(conditionals, size)
    return jax.jit(
        lambda tokens: blocks.nelbo(denoiser, None, tokens, mask_id=MASK, draws="all", **options)
    )(tokens)


@pytest.mark.parametrize("size", SIZES)
def test_all_sets_of_masks_are_the_mean_over_counts_and_sets(size):
    likelihood = exact(TABLE, size)
    np.testing.assert_allclose(likelihood.nats, enumerated_all(TABLE, size), rtol=1e-5)
    assert np.all(likelihood.mc_variance == 0) and np.all(likelihood.tokens == L)


@pytest.mark.parametrize("size", SIZES)
def test_strings_have_a_probability_of_one_together_or_less(oracle, size):
    """A bound of the law that writes in random orders; blocks of one have the only order."""
    bound = np.exp(-np.float64(exact(TABLE, size).nats)).sum()
    assert bound == pytest.approx(1, rel=1e-5) if size == 1 else bound < 0.999
    true = np.exp(-np.float64(exact(oracle.conditionals, size).nats))
    np.testing.assert_allclose(true, oracle.joint, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("given", ["key", "rows", "keys"])
def test_one_block_is_the_nelbo_of_the_row_draw_for_draw(given):
    keys = jax.random.split(KEY, len(STRINGS))
    of = {
        "key": {"key": KEY},
        "rows": {"key": KEY, "rows": jnp.arange(len(STRINGS)) * 3 % 100},
        "keys": {"key": None, "keys": keys},
    }[given]
    options = of | {"tokens": TOKENS, "mask_id": MASK, "draws": 4}
    rows = jax.jit(lambda: nelbo(table_denoiser(TABLE), **options))()
    by_block = jax.jit(lambda: blocks.nelbo(block_denoiser(TABLE, L), **options))()
    for one, other in zip(rows, by_block, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("draws", [2, 8])
def test_draws_agree_with_the_sum_and_their_error_is_right(draws):
    """The rows are independent estimates of one number (false alarm: 6e-5)."""
    string, rows = STRINGS[16], 4000
    tokens = jnp.broadcast_to(jnp.asarray(string), (rows, L))
    likelihood = jax.jit(
        lambda: blocks.nelbo(block_denoiser(TABLE, 2), KEY, tokens, mask_id=MASK, draws=draws)
    )()
    nats = np.asarray(likelihood.nats, np.float64)
    error = nats.std(ddof=1) / np.sqrt(rows)
    assert abs(nats.mean() - enumerated(TABLE, string, 2)) < 4 * error and error > 1e-4
    assert likelihood.mc_variance.mean() == pytest.approx(nats.var(ddof=1), rel=0.15)


def test_blocks_of_one_token_draw_nothing_and_take_one_evaluation():
    times = []

    def logits(noisy, clean, t):
        jax.debug.callback(lambda _: times.append(1), t)
        return jnp.sin(jnp.cumsum(clean, axis=1) - clean)[..., None] * jnp.arange(4.0)

    denoiser = blocks.as_block_denoiser(logits, 1, MASK)
    by_number, by_all = (
        blocks.nelbo(denoiser, None, TOKENS, mask_id=MASK, draws=draws) for draws in (16, "all")
    )
    jax.effects_barrier()
    assert len(times) == 2
    assert np.all(by_number.mc_variance == 0)
    np.testing.assert_array_equal(by_number.nats, by_all.nats)


@pytest.mark.parametrize("draws", [4, "all"])
def test_padding_neither_counts_nor_changes_the_rest(draws):
    maskable = jnp.array([[1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]], bool)
    string = jnp.asarray(STRINGS[[16, 16, 16]])
    filled = jnp.where(maskable, string, 2)
    denoiser = block_denoiser(TABLE, 2)
    run = jax.jit(
        lambda tokens: blocks.nelbo(
            denoiser, KEY, tokens, mask_id=MASK, draws=draws, maskable=maskable
        )
    )
    one, other = run(string), run(filled)
    assert one.tokens.tolist() == [3, 2, 0] and one.nats[2] == 0
    np.testing.assert_allclose(one.nats[1], other.nats[1], rtol=1e-6)
    if draws == "all":
        expected = [enumerated(TABLE, STRINGS[16], 2, np.asarray(row)) for row in maskable]
        np.testing.assert_allclose(one.nats, expected, rtol=1e-5)


def test_a_mask_in_the_text_is_unknown_and_does_not_count():
    tokens = jnp.array([[1, MASK, 0, 2]])
    likelihood = exact(TABLE, 2, tokens)
    expected = enumerated(TABLE, np.asarray(tokens[0]), 2, np.array([True, False, True, True]))
    np.testing.assert_allclose(likelihood.nats[0], expected, rtol=1e-5)
    assert likelihood.tokens[0] == 3


def test_a_rows_estimate_does_not_depend_on_the_batch():
    run = jax.jit(
        lambda tokens, rows: (
            blocks.nelbo(
                block_denoiser(TABLE, 2), KEY, tokens, mask_id=MASK, draws=4, rows=rows
            ).nats
        )
    )
    whole = run(TOKENS[:6], jnp.arange(6))
    for row in (0, 3, 5):
        np.testing.assert_allclose(
            run(TOKENS[row : row + 1], jnp.array([row]))[0], whole[row], rtol=1e-6
        )


def test_parts_have_the_noise_of_their_rows_or_keys():
    denoiser, parts = block_denoiser(TABLE, 2), TOKENS[:4].reshape(2, 2, L)

    def of(key, tokens, **noise):
        return blocks.nelbo(denoiser, key, tokens, mask_id=MASK, draws=4, **noise).nats

    with pytest.raises(ValueError, match=r"mapped and the key is not.*give rows.*or keys"):
        jax.vmap(lambda tokens: of(KEY, tokens))(parts)
    keys = noise.row_keys(KEY, jnp.arange(4))

    @jax.jit
    def both(keys):
        rows, of_rows = jnp.arange(4).reshape(2, 2), keys.reshape(2, 2)
        by_rows = jax.vmap(lambda tokens, rows: of(KEY, tokens, rows=rows))(parts, rows)
        by_keys = jax.vmap(lambda tokens, keys: of(None, tokens, keys=keys))(parts, of_rows)
        whole = of(KEY, TOKENS[:4]), of(None, TOKENS[:4], keys=keys)
        raw = of(None, TOKENS[:4], keys=jax.random.key_data(keys))
        return (by_rows, by_keys), whole, raw

    parted, whole, raw = both(keys)
    for part, all_of_it in zip(parted, whole, strict=True):
        np.testing.assert_allclose(part.reshape(-1), all_of_it, rtol=1e-5)
    np.testing.assert_array_equal(raw, whole[1])
    assert not np.allclose(*whole)


def test_few_positions_are_read_out():
    """Slots are padded once a row and not once a block."""
    read = []

    def readout(at, row):
        read.append(at.shape[0])
        return jnp.zeros((at.shape[0], 5)) + at[:, :1]

    tokens = jnp.zeros((2, 64), jnp.int32)
    for size, draws, most in ((1, 2, 64), (4, 8, 80), (8, 8, 72), (4, "all", 64)):
        denoiser = blocks.as_block_denoiser(
            lambda noisy, clean, t: noisy[..., None] * 1.0, size
        )._replace(readout=readout)
        read.clear()
        jax.eval_shape(
            lambda denoiser=denoiser, draws=draws: blocks.nelbo(
                denoiser, KEY, tokens, mask_id=4, draws=draws
            )
        )
        assert max(read) == 2 * most, size


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"draws": 1}, "draws is 1, at least 2 are needed for its error, or 'all'"),
        ({"draws": "some"}, "draws is 'some', it must be a number from 2 up, or 'all'"),
        ({"draws": 2.5}, "draws is 2.5, it must be one whole number"),
        ({"tokens": TOKENS[:, :3]}, r"tokens has rows of 3 tokens, .* of 2 do not .* to 2 or 4"),
        ({"rows": jnp.arange(3)}, r"rows has shape \(3,\), it must be \(81,\)"),
        ({"key": None}, "neither of key and keys given"),
        ({"schedule": "cosine"}, "schedule is 'cosine', it must be a Schedule"),
        ({"denoiser": table_denoiser(TABLE)}, r"denoiser is a Denoiser, of whole rows"),
        ({"denoiser": enumerated}, r"denoiser is the function enumerated: pass blocks.as_block"),
        ({"mask_id": 1}, "mask_id is 1, but the denoiser was built with mask_id 3"),
        ({"maskable": jnp.ones((1, 4), bool)}, r"maskable has shape \(1, 4\)"),
    ],
)
def test_bad_arguments_are_named_before_anything_is_computed(change, message):
    arguments = {"denoiser": block_denoiser(TABLE, 2), "key": KEY, "tokens": TOKENS}
    with pytest.raises((TypeError, ValueError), match=f"^{message}") as error:
        jax.eval_shape(lambda: blocks.nelbo(**arguments | {"mask_id": MASK, "draws": 2} | change))
    assert "\n" not in str(error.value)


def test_sets_of_nine_are_too_many():
    denoiser = blocks.as_block_denoiser(lambda noisy, clean, t: jnp.zeros((*noisy.shape, 4)), 9)
    with pytest.raises(ValueError, match=r"^draws is 'all' with blocks of 9 tokens: .* 8 at most"):
        blocks.nelbo(denoiser, KEY, jnp.zeros((1, 9), jnp.int32), mask_id=MASK, draws="all")
