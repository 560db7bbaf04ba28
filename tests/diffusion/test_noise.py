"""Noise has one source: no two seeds, purposes, steps, rows or shards share any of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdlm_jax.diffusion import noise

KEY = jax.random.key(0)
TOKENS = jnp.zeros((4, 3), jnp.int32)
IMPLEMENTATIONS = ("threefry2x32", "rbg", "unsafe_rbg")


def words(keys):
    """Each key as a tuple of its words."""
    data = np.asarray(jax.random.key_data(keys))
    return [tuple(each) for each in data.reshape(-1, data.shape[-1]).tolist()]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_other_seeds_have_other_keys(implementation):
    seeds = [0, 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**33 + 1, 2**63, 2**64 - 1]
    with jax.default_prng_impl(implementation):
        keys = [words(noise.seed_key(seed))[0] for seed in seeds]
        assert len(set(keys)) == len(seeds)
        for seed, key in zip(seeds[:4], keys, strict=False):  # those that JAX tells apart
            assert words(jax.random.key(np.uint32(seed))) == [key]
        drawn = {float(jax.random.uniform(noise.seed_key(seed))) for seed in (1, 2**32 + 1)}
        assert len(drawn) == 2


@settings(max_examples=50)
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_a_seed_keeps_its_64_bits(one, other):
    assert (words(noise.seed_key(one)) == words(noise.seed_key(other))) == (one == other)
    high, low = words(noise.seed_key(one))[0]
    assert (high << 32) + low == one


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, "3", None, True])
def test_any_other_seed_is_refused(seed):
    with pytest.raises(ValueError, match=r"seed is .*whole number from 0 to 2\^64 - 1"):
        noise.seed_key(seed)


def test_a_seed_of_numpy_is_one_too_and_under_jit():
    assert words(noise.seed_key(np.int64(2**40))) == words(noise.seed_key(2**40))
    assert words(jax.jit(lambda: noise.seed_key(2**40))()) == words(noise.seed_key(2**40))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_no_two_purposes_steps_rows_or_halves_share_a_key(implementation):
    count = 200

    @jax.jit
    def all_of(key):
        numbers = jnp.arange(count)
        over = lambda function: jax.vmap(function)(numbers)  # noqa: E731
        keys = [
            key[None],
            jax.random.split(key, count),  # on some implementations `fold_in` of 0, 1, ...
            noise.row_keys(key, numbers),
            *(noise.derive(key, purpose)[None] for purpose in noise.PURPOSES),
            *(
                over(lambda n, purpose=purpose: noise.derive(key, purpose, n))
                for purpose in noise.PURPOSES
                if purpose != "row"  # which are those above
            ),
            over(lambda n: noise.derive(key, "training", 7, n)),
            noise.derive(noise.row_keys(key, numbers), "draw", 7),
        ]
        return jnp.concatenate(keys)

    keys = words(all_of(jax.random.key(3, impl=implementation)))
    assert len(keys) > 20 * count
    assert len(set(keys)) == len(keys)
    steps = words(jax.vmap(lambda n: jax.random.fold_in(KEY, n))(jnp.arange(count)))
    assert not set(steps) & {words(noise.derive(KEY, purpose))[0] for purpose in noise.PURPOSES}


def test_a_purpose_has_a_name():
    with pytest.raises(ValueError, match="purpose is 'trainig', it must be one of init, training"):
        noise.derive(KEY, "trainig")


def test_keys_are_derived_one_by_one_whatever_they_are_made_by():
    old = jax.random.PRNGKey(5)
    for key in (jax.random.wrap_key_data(old), old):
        keys = noise.row_keys(key, jnp.arange(4))
        each = [noise.derive(keys[row], "draw", 3, 1) for row in range(4)]
        assert words(noise.derive(keys, "draw", 3, 1)) == words(jnp.stack(each))
    new = noise.derive(jax.random.wrap_key_data(old), "init", 2)
    assert words(new) == words(jax.random.wrap_key_data(noise.derive(old, "init", 2)))


def test_one_key_and_rows_or_keys():
    rows = jnp.array([3, 0, 9, 4])
    keys = noise.row_keys(KEY, rows)
    assert words(noise.keys_of_rows(KEY, None, rows, TOKENS)) == words(keys)
    assert words(noise.keys_of_rows(None, keys, None, TOKENS)) == words(keys)
    old = jax.vmap(jax.random.key_data)(keys)  # u32[4, 2]
    assert words(noise.keys_of_rows(None, old, None, TOKENS)) == words(keys)
    by_default = noise.keys_of_rows(KEY, None, None, TOKENS)
    assert words(by_default) == words(noise.row_keys(KEY, jnp.arange(4)))


@pytest.mark.parametrize(
    ("key", "keys", "rows", "message"),
    [
        (None, None, None, "neither of key and keys given"),
        (KEY, jax.random.split(KEY, 4), None, "both of key and keys given"),
        (None, jax.random.split(KEY, 4), jnp.arange(4), "rows given beside keys"),
        (None, jax.random.split(KEY, 3), None, r"keys has shape \(3,\), it must be \(4,\)"),
        (None, KEY, None, r"keys has shape \(\), it must be \(4,\)"),
        (jax.random.split(KEY, 4), None, None, r"key has shape \(4,\), it must be one key"),
        (KEY, None, jnp.arange(3), r"rows has shape \(3,\), it must be \(4,\)"),
        (0, None, None, r"key is of type int, it must be made by jax.random.key\(seed\)"),
        (jnp.zeros(2), None, None, r"key is float32\[2\], it must be made by"),
        (None, [KEY] * 4, None, "keys is of type list, it must be made by"),
    ],
)  # fmt: skip
def test_other_keys_are_refused(key, keys, rows, message):
    with pytest.raises((TypeError, ValueError), match=message):
        noise.keys_of_rows(key, keys, rows, TOKENS)


def _of_shards(check, *, rows=None, of_shard=lambda key: key):
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec

    def draw(key, tokens):
        keys = noise.keys_of_rows(of_shard(key), None, rows, tokens)
        return noise.row_uniform(keys, 2)

    sharded = jax.shard_map(
        draw,
        mesh=mesh,
        in_specs=(spec(), spec("data")),
        out_specs=spec("data"),
        check_vma=check,
    )
    return jax.jit(sharded)(KEY, TOKENS)


def test_parts_that_would_draw_the_same_noise_are_refused_where_they_are_seen():
    draw = lambda key, tokens: noise.keys_of_rows(key, None, None, tokens)  # noqa: E731
    parts = jnp.stack([TOKENS, TOKENS])
    with pytest.raises(ValueError, match=r"mapped and the key is not.*give rows.*or keys"):
        jax.vmap(draw, in_axes=(None, 0))(KEY, parts)
    with pytest.raises(ValueError, match="mapped and the key is not"):
        _of_shards(True)
    # A key a part, or rows that were thought of, are another matter; so is a map over models.
    both = words(jax.vmap(draw)(jax.random.split(KEY), parts))
    assert len(set(both)) == 8
    assert words(jax.vmap(draw, in_axes=(0, None))(jax.random.split(KEY), TOKENS)) == both
    own = _of_shards(
        True, of_shard=lambda key: noise.derive(key, "samples", jax.lax.axis_index("data"))
    )
    plain = _of_shards(True, rows=jnp.arange(4))
    assert own.shape == plain.shape == (4, 2)
    assert np.array_equal(plain, noise.row_uniform(noise.row_keys(KEY, jnp.arange(4)), 2))


def test_counts_are_spread_over_the_batch():
    """The mean of n stratified uniforms has an error of order 1 / n, not 1 / sqrt(n)."""
    u = jax.vmap(lambda key: noise.stratified(key, jnp.arange(256)))(jax.random.split(KEY, 50))
    assert np.abs(np.asarray(u.mean(axis=1)) - 0.5).max() < 0.01  # plain draws: 0.018 is one sigma
