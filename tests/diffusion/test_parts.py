"""A batch that is cut up before it comes here: `rows`, or `keys`, tell the parts apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax import (
    as_denoiser,
    at_rate,
    corrupt,
    corrupt_mlm,
    diffusion_loss,
    keep_around,
    keep_prefix,
    mlm_loss,
    nelbo,
)
from mdlm_jax.diffusion import noise

MASK, WIDTH = 9, 12
KEY = jax.random.key(0)
TOKENS = jnp.arange(4 * WIDTH).reshape(4, WIDTH) % MASK
MASKABLE = jnp.ones(TOKENS.shape, bool)


def _logits(tokens, t):
    """Another number wherever another place is masked."""
    place = jnp.arange(WIDTH)[:, None]
    return jnp.sin(tokens.sum(axis=1)[:, None, None] + place * jnp.arange(MASK + 1))


DENOISER = as_denoiser(_logits, MASK)
# Each a function of (key, tokens, **whose noise), to an array that differs where the noise does.
DRAW = {
    "corrupt": lambda key, tokens, **of: corrupt(key, tokens, mask_id=MASK, **of).canvas,
    "bernoulli": lambda key, tokens, **of: (
        corrupt(key, tokens, mask_id=MASK, corruption="bernoulli", **of).canvas
    ),
    "corrupt_mlm": lambda key, tokens, **of: (
        corrupt_mlm(key, tokens, mask_id=MASK, vocab_size=10, rate=0.5, **of).canvas
    ),
    "nelbo": lambda key, tokens, **of: nelbo(DENOISER, key, tokens, mask_id=MASK, **of).nats,
    "at_rate": lambda key, tokens, **of: (
        at_rate(DENOISER, key, tokens, mask_id=MASK, rate=0.5, **of).nats
    ),
    "keep_prefix": lambda key, tokens, **of: keep_prefix(key, tokens < MASK, **of),
    "keep_around": lambda key, tokens, **of: keep_around(key, tokens < MASK, **of),
}
LOSS = {
    "diffusion_loss": lambda key, tokens, **of: diffusion_loss(
        DENOISER, key, tokens, mask_id=MASK, **of
    )[0][None],
    "mlm_loss": lambda key, tokens, **of: mlm_loss(
        DENOISER, key, tokens, mask_id=MASK, rate=0.5, **of
    )[0][None],
}


@pytest.mark.parametrize("name", DRAW)
def test_a_rows_noise_is_a_function_of_its_key(name):
    """Of equal rows: as many draws as keys, wherever a row stands."""
    tokens = jnp.broadcast_to(TOKENS[0], TOKENS.shape)
    keys = jax.random.split(KEY, 4)
    run = jax.jit(lambda keys: DRAW[name](None, tokens, keys=keys))
    drawn = np.asarray(run(keys))
    order = np.array([2, 0, 3, 1])
    assert np.array_equal(run(keys[order]), drawn[order])
    raw = jax.random.key_data(keys)
    assert np.array_equal(run(raw), drawn)
    assert len({row.tobytes() for row in drawn}) > 1
    same = np.asarray(run(jnp.stack([keys[0]] * 4)))
    assert len({row.tobytes() for row in same}) == 1


@pytest.mark.parametrize("name", [*DRAW, *LOSS])
def test_one_key_for_mapped_rows_is_refused_and_the_cures_work(name):
    draw = (DRAW | LOSS)[name]
    parts = TOKENS.reshape(2, 2, WIDTH)
    with pytest.raises(ValueError, match=r"mapped and the key is not.*give rows.*or keys"):
        jax.vmap(lambda tokens: draw(KEY, tokens))(parts)
    paired = {"paired": True} if name in ("corrupt", "diffusion_loss") else {}
    numbers = jnp.arange(4).reshape(2, 2)
    keys = jax.random.split(KEY, (2, 2))

    @jax.jit
    def cures(numbers, keys):
        by_rows = jax.vmap(lambda tokens, rows: draw(KEY, tokens, rows=rows, **paired))
        by_keys = jax.vmap(lambda tokens, keys: draw(None, tokens, keys=keys))
        return by_rows(parts, numbers), by_keys(parts, keys)

    by_rows, by_keys = cures(numbers, keys)
    if name in DRAW:  # rows are numbered as in the whole batch
        whole = jax.jit(lambda: draw(KEY, TOKENS))()
        np.testing.assert_allclose(by_rows.reshape(whole.shape), whole, rtol=1e-5)
    assert not np.array_equal(by_rows[0], by_rows[1])
    assert not np.array_equal(by_keys[0], by_keys[1])


def test_shards_draw_their_own_noise():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split, whole = jax.sharding.PartitionSpec("data"), jax.sharding.PartitionSpec()

    def of_shard(tokens, **of):
        return corrupt(tokens=tokens, mask_id=MASK, **of).canvas

    def sharded(function, *arguments):
        specs = tuple(split if x.ndim else whole for x in arguments)
        return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=split))(
            *arguments
        )

    with pytest.raises(ValueError, match="mapped and the key is not"):
        sharded(lambda key, tokens: of_shard(tokens, key=key), KEY, TOKENS)
    keys = noise.row_keys(KEY, jnp.arange(4))
    got = sharded(lambda keys, tokens: of_shard(tokens, key=None, keys=keys), keys, TOKENS)
    assert np.array_equal(got, jax.jit(lambda: of_shard(TOKENS, key=None, keys=keys))())

    def numbered(key, tokens):
        rows = jax.lax.axis_index("data") * len(tokens) + jnp.arange(len(tokens))
        return of_shard(tokens, key=key, rows=rows, paired=True)

    expected = jax.jit(lambda: of_shard(TOKENS, key=KEY))()
    assert np.array_equal(sharded(numbered, KEY, TOKENS), expected)


def test_pairing_is_said_of_traced_rows_and_is_of_neighbours():
    def loss(rows, **of):
        return diffusion_loss(DENOISER, KEY, TOKENS, mask_id=MASK, rows=rows, **of)[0]

    with pytest.raises(ValueError, match=r"rows are traced.*say paired=True"):
        jax.jit(loss)(jnp.arange(4))
    with pytest.raises(ValueError, match=r"must be neighbours, 2i and 2i \+ 1, not \[0, 2\]"):
        loss(jnp.array([0, 2, 1, 3]), paired=True)
    of = jax.jit(lambda rows: [loss(rows, paired=paired) for paired in (True, False)])
    for rows in ([0, 1, 2, 3], [7, 6, 2, 3]):
        paired, unpaired = of(jnp.array(rows))
        np.testing.assert_allclose(paired, unpaired, rtol=1e-5)
    plain = jax.jit(lambda: diffusion_loss(DENOISER, KEY, TOKENS, mask_id=MASK)[0])()
    np.testing.assert_allclose(of(jnp.arange(4))[0], plain, rtol=1e-6)


@pytest.mark.parametrize("by", ["rows", "keys"])
def test_said_pairs_lose_no_token_whatever_rows_they_are(by):
    """The sum of weights is 1 only if every masked token has its slot."""

    @jax.jit
    @jax.vmap
    def weights(key):
        rows = jax.random.randint(key, (4,), 0, 1000)
        of = {"key": KEY, "rows": rows} if by == "rows" else {"keys": noise.row_keys(key, rows)}
        of = {"key": None} | of
        out = corrupt(tokens=TOKENS, mask_id=MASK, paired=True, **of)
        return out.weights.sum(), out.positions.shape[0] * jnp.ones(())

    total, groups = weights(jax.random.split(KEY, 200))
    np.testing.assert_allclose(total, 1.0, rtol=1e-5)
    assert np.all(groups == 2)


@pytest.mark.parametrize("paired", [True, False])
def test_counts_of_keys_are_uniform_too(paired):
    from scipy import stats

    tokens = jnp.zeros((2, 5), jnp.int32)

    @jax.jit
    @jax.vmap
    def rates(keys):
        return corrupt(None, tokens, mask_id=MASK, keys=keys, paired=paired).rate

    drawn = np.asarray(rates(jax.random.split(KEY, (6000, 2))))
    for row in range(2):
        counts = np.bincount(np.rint(drawn[:, row] * 5).astype(int), minlength=6)
        assert counts[0] == 0 and stats.chisquare(counts[1:]).pvalue > 1e-4  # the false alarm
    together = np.corrcoef(drawn.T)[0, 1]
    assert together < -0.9 if paired else abs(together) < 0.06  # 4.6 standard errors
