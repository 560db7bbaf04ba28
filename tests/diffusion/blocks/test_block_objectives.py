"""The loss of blocks: its value in the mean, its gradient, its parts, and what it reads out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from block_law import SIZES, block_denoiser, enumerated_all
from every_strategy import any_conditionals, table_denoiser
from oracle import MASK, STRINGS, L
from scipy import stats

from mdlm_jax import blocks, corrupted_loss, diffusion_loss
from mdlm_jax.diffusion import noise

pytestmark = pytest.mark.slow  # each case compiles a loss of its own

KEY = jax.random.key(0)
TABLE = any_conditionals()
TOKENS = jnp.asarray(STRINGS[:8])
WIDTH = 12
TEXT = jax.random.randint(jax.random.key(1), (6, WIDTH), 0, MASK)
WEIGHTS = jax.random.normal(jax.random.key(2), (MASK + 1, MASK + 1, MASK + 1))


def of_weights(weights, size):
    """A token's logits from what stands there and from the clean text before its block."""

    def logits(noisy, clean, t):
        first = jnp.arange(noisy.shape[1]) // size * size
        before = jnp.where(first > 0, clean[:, jnp.maximum(first - 1, 0)], MASK)
        return weights[noisy, before] + 0.1 * jnp.repeat(t, size, axis=1)[..., None]

    return blocks.as_block_denoiser(logits, size, MASK)


@pytest.mark.parametrize("given", ["key", "rows", "keys"])
def test_one_block_is_the_loss_of_the_row_draw_for_draw(given):
    of = {
        "key": {"key": KEY},
        "rows": {"key": KEY, "rows": jnp.array([4, 5, 0, 1, 7, 6, 2, 3]), "paired": True},
        "keys": {"key": None, "keys": jax.random.split(KEY, 8)},
    }[given]
    options = of | {"tokens": TOKENS, "mask_id": MASK}
    row, row_aux = jax.jit(lambda: diffusion_loss(table_denoiser(TABLE), **options))()
    block, block_aux = jax.jit(lambda: blocks.loss(block_denoiser(TABLE, L), **options))()
    assert row == block
    jax.tree.map(np.testing.assert_array_equal, row_aux, block_aux)


@pytest.mark.parametrize("size", SIZES)
def test_in_the_mean_it_is_the_nelbo_per_token(size):
    """Over independent keys (false alarm: 6e-5); blocks of one leave nothing to chance."""
    denoiser = block_denoiser(TABLE, size)
    drawn = jax.jit(jax.vmap(lambda key: blocks.loss(denoiser, key, TOKENS, mask_id=MASK)[0]))(
        jax.random.split(KEY, 500)
    )
    expected, drawn = enumerated_all(TABLE, size)[:8].mean() / L, np.asarray(drawn, np.float64)
    error = drawn.std(ddof=1) / np.sqrt(500)
    assert abs(drawn.mean() - expected) < 4 * error + 1e-6
    assert error < 1e-7 if size == 1 else error > 1e-4


@pytest.mark.parametrize("size", [1, 2, 4, 12])
def test_every_block_has_a_count_of_its_own(size):
    """Uniform on {1..size}, and neighbours opposite (false alarm of the counts: 1e-4)."""

    @jax.jit
    @jax.vmap
    def counts(key):
        drawn = blocks.corrupt(key, TEXT, block_size=size, mask_id=MASK)
        return (drawn.blocks.canvas == MASK).sum(axis=1)

    drawn = np.asarray(counts(jax.random.split(KEY, 300)))  # [300, blocks]
    pairs = drawn.reshape(300, -1, 2).sum(axis=2)
    assert np.all(pairs == size + 1)
    first = np.bincount(drawn[:, 0], minlength=size + 1)
    assert first[0] == 0 and (size == 1 or stats.chisquare(first[1:]).pvalue > 1e-4)


@pytest.mark.parametrize(("size", "rows"), [(1, 6), (2, 3), (4, 6), (4, 3), (12, 3)])
def test_pairs_save_slots_and_change_nothing(size, rows):
    """Of an odd number of blocks a row, pairs are of two rows; of an odd number in all, none."""
    denoiser, text = of_weights(WEIGHTS, size), TEXT[:rows]

    @jax.jit
    def run():
        drawn = [
            blocks.corrupt(KEY, text, block_size=size, mask_id=MASK, paired=paired)
            for paired in (None, False)
        ]
        return drawn, [blocks.corrupted_loss(denoiser, each) for each in drawn]

    (paired, alone), ((loss, aux), (expected, expected_aux)) = run()
    count = WIDTH // size
    whole = count * rows % 2 == 0
    slots = paired.blocks.positions.size
    assert slots == (rows * WIDTH * (size + 1) // (2 * size) if whole else rows * WIDTH)
    assert len(paired.blocks.positions) == (rows // 2 if count % 2 and whole else rows)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(aux.nats, expected_aux.nats, rtol=1e-5)
    for drawn in (paired, alone):
        np.testing.assert_array_equal(drawn.clean, text)
        assert drawn.blocks.canvas.shape == (rows * count, size)
        assert np.sum(drawn.blocks.weights > 0) == np.sum(drawn.blocks.canvas == MASK)


def plain_loss(weights, drawn, size):
    """From whole logits: the weight of a masked token is `length / count` of its block."""
    canvas = drawn.blocks.canvas.reshape(TEXT.shape)
    times = drawn.blocks.t.reshape(len(TEXT), -1)
    logits = of_weights(weights, size).encode(canvas, TEXT, times).at
    logits = jnp.where(jnp.arange(MASK + 1) == MASK, -jnp.inf, logits)
    nats = -jnp.take_along_axis(jax.nn.log_softmax(logits), TEXT[..., None], axis=-1)[..., 0]
    masked = (canvas == MASK).reshape(len(TEXT), -1, size)
    share = size / masked.sum(axis=-1, keepdims=True)
    return jnp.sum(masked * share * nats.reshape(masked.shape)) / TEXT.size


@pytest.mark.parametrize("size", [1, 4, 12])
def test_value_and_gradient_are_those_of_the_formula(size):
    @jax.jit
    def both(weights):
        drawn = blocks.corrupt(KEY, TEXT, block_size=size, mask_id=MASK)
        own = jax.value_and_grad(
            lambda w: blocks.corrupted_loss(of_weights(w, size), drawn, mask_id=MASK)[0]
        )(weights)
        whole = jax.value_and_grad(
            lambda w: blocks.loss(of_weights(w, size), KEY, TEXT, mask_id=MASK)[0]
        )(weights)
        return own, whole, jax.value_and_grad(plain_loss)(weights, drawn, size)

    own, whole, plain = both(WEIGHTS)
    for one, other, expected in zip(own, whole, plain, strict=True):
        np.testing.assert_allclose(one, expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(one, other)
    assert np.abs(plain[1]).max() > 1e-3


@pytest.mark.parametrize("size", [4, 2, 12])
def test_microbatches_add_up(size):
    """Cut along the leading axis of every leaf, as an accumulating step does."""
    denoiser = of_weights(WEIGHTS, size)

    @jax.jit
    def run():
        drawn = blocks.corrupt(KEY, TEXT, block_size=size, mask_id=MASK)
        parts = jax.tree.map(lambda x: x.reshape(3, -1, *x.shape[1:]), drawn)
        of_parts = [
            blocks.corrupted_loss(denoiser, jax.tree.map(lambda x, i=i: x[i], parts))
            for i in range(3)
        ]
        return blocks.corrupted_loss(denoiser, drawn), jax.tree.map(lambda *x: sum(x), *of_parts)

    (loss, aux), (parted, parted_aux) = run()
    np.testing.assert_allclose(loss, parted, rtol=1e-6)
    np.testing.assert_allclose(aux.nats, parted_aux.nats, rtol=1e-5)
    assert aux.masked.sum() == parted_aux.masked.sum() > 0


def test_padding_neither_counts_nor_changes_the_rest():
    valid = jnp.arange(WIDTH)[None] < jnp.array([12, 7, 8, 3, 1, 5])[:, None]
    denoiser = of_weights(WEIGHTS, 4)
    run = jax.jit(lambda text: blocks.loss(denoiser, KEY, text, mask_id=MASK, maskable=valid))
    (loss, aux), (other, _) = run(TEXT), run(jnp.where(valid, TEXT, (TEXT + 1) % MASK))
    assert loss == other and aux.masked.sum() > 0
    assert run(jnp.where(valid, (TEXT + 1) % MASK, TEXT))[0] != loss


@pytest.mark.parametrize("size", [4, 2])
def test_parts_have_the_noise_of_their_rows_or_keys(size):
    """Three and six blocks a row: pairs of two rows, and of one."""
    parts, denoiser = TEXT[:4].reshape(2, 2, WIDTH), of_weights(WEIGHTS, size)
    keys = noise.row_keys(KEY, jnp.arange(4))

    def drawn(key, tokens, **of):
        return blocks.corrupt(key, tokens, block_size=size, mask_id=MASK, **of).blocks.canvas

    def loss(key, tokens, **of):
        return blocks.loss(denoiser, key, tokens, mask_id=MASK, **of)[0]

    for function in (drawn, loss):
        with pytest.raises(ValueError, match=r"mapped and the key is not.*give rows.*or keys"):
            jax.vmap(lambda tokens, function=function: function(KEY, tokens))(parts)
    of = {} if size == 2 else {"paired": True}

    @jax.jit
    def both(rows, keys):
        by_rows = jax.vmap(lambda tokens, rows: drawn(KEY, tokens, rows=rows, **of))
        by_keys = jax.vmap(lambda tokens, keys: drawn(None, tokens, keys=keys))
        whole = drawn(KEY, TEXT[:4]), drawn(None, TEXT[:4], keys=keys)
        numbers, of_rows = rows.reshape(2, 2), keys.reshape(2, 2)
        return (by_rows(parts, numbers), by_keys(parts, of_rows)), whole

    parted, whole = both(jnp.arange(4), keys)
    for part, all_of_it in zip(parted, whole, strict=True):
        np.testing.assert_array_equal(part.reshape(-1, size), all_of_it)
    if size == 4:
        with pytest.raises(ValueError, match=r"rows are traced.*say paired=True"):
            jax.jit(lambda rows: drawn(KEY, TEXT[:4], rows=rows))(jnp.arange(4))


def test_blocks_given_the_text_before_them_are_rows():
    """What takes a denoiser takes blocks: here the loss of a corruption."""
    denoiser = of_weights(WEIGHTS, 4)

    @jax.jit
    def both():
        drawn = blocks.corrupt(KEY, TEXT, block_size=4, mask_id=MASK)
        own = blocks.corrupted_loss(denoiser, drawn)[0]
        law = blocks.given(denoiser, TEXT)
        return own, diffusion_loss(law, KEY, TEXT.reshape(-1, 4), mask_id=MASK)[0]

    np.testing.assert_allclose(*both(), rtol=1e-6)


def test_leaves_of_a_row_are_those_of_each_of_its_blocks():
    """A row's own weight in the readout, repeated for its blocks."""
    inner = of_weights(WEIGHTS, 4)
    strength = jnp.linspace(0.5, 2, len(TEXT))

    def encode(noisy, clean, t):
        return inner.encode(noisy, clean, t)._replace(row=strength)

    scaled = inner._replace(
        encode=encode, readout=lambda at, row: inner.readout(at, ()) * row[:, None]
    )

    @jax.jit
    def run(weight):
        alone = inner._replace(readout=lambda at, row: inner.readout(at, ()) * weight)
        return [
            blocks.nelbo(denoiser, KEY, TEXT, mask_id=MASK, draws=4).nats
            for denoiser in (scaled, alone)
        ]

    for row in (0, 5):
        got, expected = run(strength[row])
        np.testing.assert_allclose(got[row], expected[row], rtol=1e-5)
    assert not np.allclose(got, expected, rtol=1e-2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"tokens": TEXT[:, :3]},
            r"tokens has rows of 3 tokens, which blocks of 4 do not .*4 ",
        ),
        ({"tokens": TEXT[0]}, r"tokens must be integers \[B, L\], not int32\[12\]: of one row"),
        ({"tokens": [[0, 1]]}, "tokens is a list: pass an array"),
        ({"rows": jnp.arange(3)}, r"rows has shape \(3,\), it must be \(6,\)"),
        ({"keys": jax.random.split(KEY, 18), "key": None}, r"keys has shape \(18,\), .* \(6,\)"),
        ({"keys": jax.random.split(KEY, 6)}, "both of key and keys given"),
        ({"maskable": jnp.ones((6, 3), bool)}, r"maskable has shape \(6, 3\)"),
        ({"denoiser": table_denoiser(TABLE)}, r"denoiser is a Denoiser, of whole rows"),
        ({"denoiser": plain_loss}, r"denoiser is the function plain_loss: pass blocks.as_block"),
        ({"mask_id": 1}, "mask_id is 1, but the denoiser was built with mask_id 3"),
        ({"paired": True, "tokens": TEXT[:3]}, "paired blocks: .* are an odd number"),
    ],
)
def test_bad_arguments_are_named_before_anything_is_computed(change, message):
    arguments = {"denoiser": of_weights(WEIGHTS, 4), "key": KEY, "tokens": TEXT, "mask_id": MASK}
    with pytest.raises((TypeError, ValueError), match=f"^{message}") as error:
        jax.eval_shape(lambda: blocks.loss(**arguments | change))
    assert "\n" not in str(error.value)


def test_only_corrupted_blocks_of_its_size_have_a_loss():
    drawn = blocks.corrupt(KEY, TEXT, block_size=4, mask_id=MASK)
    with pytest.raises(ValueError, match=r"^corrupted has blocks of 4 tokens, the den.* have 2"):
        blocks.corrupted_loss(of_weights(WEIGHTS, 2), drawn)
    with pytest.raises(TypeError, match=r"^corrupted is a Corrupted, it must be a CorruptedBl"):
        blocks.corrupted_loss(of_weights(WEIGHTS, 4), drawn.blocks)
    with pytest.raises(TypeError, match=r"^denoiser is a BlockDenoiser: the functions in mdl"):
        corrupted_loss(of_weights(WEIGHTS, 4), drawn.blocks)
    for size, message in ((0, "block_size is 0"), (2.5, "block_size is 2.5, it must be one whole")):
        with pytest.raises((TypeError, ValueError), match=f"^{message}"):
            blocks.corrupt(KEY, TEXT, block_size=size, mask_id=MASK)
