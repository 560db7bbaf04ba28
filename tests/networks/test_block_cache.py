"""The cache of blocks: rows of their own lengths, stale places, windows, and what it costs."""

import dataclasses
import re

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from networks.blocks_by_pairs import (
    CLEAN,
    CONFIGS,
    COUNT,
    LENGTH,
    MODERN,
    NOISY,
    ROWS,
    SIZE,
    Functions,
    T,
    build,
    expected,
    expected_of,
    functions_of,
    in_program,
)
from networks.tiny import MASK, params_of

from mdlm_jax.networks import bert
from mdlm_jax.networks.attention import cached

pytestmark = pytest.mark.slow  # each case compiles a network of its own


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    """The cache is read in many chunks, and some are never filled."""
    monkeypatch.setattr(cached, "_CHUNK", 4)


def test_rows_of_different_lengths():
    """Row 0 commits every block, row 1 every other time."""
    of = functions_of("modern")
    cache, done = of.start(ROWS, LENGTH), np.zeros(ROWS, int)
    for turn in range(COUNT - 1):
        where = jnp.array([True, turn % 2 == 0])
        tokens, noisy = (
            np.stack([x[r, SIZE * b : SIZE * (b + 1)] for r, b in enumerate(done + later)])
            for x, later in ((CLEAN, 0), (NOISY, np.asarray(where)))
        )
        extended = of.extend(cache, tokens, where)
        for row in np.flatnonzero(~np.asarray(where)):
            for after, before in zip(extended[:2], cache[:2], strict=True):
                np.testing.assert_array_equal(after[:, row], before[:, row])
        cache, out = of.advance(cache, tokens, noisy, T[:, 0], where)
        done += np.asarray(where)
        np.testing.assert_array_equal(cache.length, done * SIZE)
        np.testing.assert_array_equal(extended.length, done * SIZE)
        again = of.encode_block(extended, noisy, T[:, 0])
        want = np.stack(
            [of.block(expected_of("modern")[r : r + 1], b)[0] for r, b in enumerate(done)]
        )
        np.testing.assert_allclose(out, want, atol=2e-5)
        np.testing.assert_allclose(again, want, atol=2e-5)
    assert done.tolist() == [3, 2]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stale_places_and_other_rows_change_nothing(dtype):
    of = Functions(params_of(MODERN), dataclasses.replace(MODERN, dtype=dtype))
    short, *_, long = of.committed(CLEAN)
    short = of.extend(short, of.block(CLEAN, 0))
    noisy, t = of.block(NOISY, 1), T[:, 0]
    out = of.encode_block(short, noisy, t)
    beyond = np.arange(short.keys.shape[2]) >= SIZE
    poison = jnp.where(beyond[None, None, :, None, None], jnp.nan, 0).astype(dtype)
    poisoned = short._replace(keys=short.keys + poison, values=short.values + poison)
    np.testing.assert_array_equal(of.encode_block(poisoned, noisy, t), out)
    after, out_of_both = of.advance(poisoned, of.block(CLEAN, 1), of.block(NOISY, 2), t)
    assert np.isfinite(out_of_both[..., MASK + 1 :]).all()
    assert np.isfinite(after.keys[:, :, : 2 * SIZE]).all()
    # Row 0 beside a longer row, which reads more chunks, and beside a row of NaN: to the bit.
    others = jax.tree.map(lambda a, b: a.at[:, 1].set(b[:, 1]), short[:2], long[:2])
    mixed = cached.Cache(*others, jnp.array([SIZE, LENGTH - SIZE], jnp.int32))
    np.testing.assert_array_equal(of.encode_block(mixed, noisy, t)[0], out[0])
    lost = jax.tree.map(lambda a: a.at[:, 1].set(jnp.nan), others)
    np.testing.assert_array_equal(
        of.encode_block(cached.Cache(*lost, mixed.length), noisy, t)[0], out[0]
    )


def test_a_row_that_its_cache_has_no_room_for_is_lost_and_the_others_are_not():
    of = functions_of("modern")
    cache, full = of.start(ROWS, LENGTH), jnp.array([True, False])
    for i in range(COUNT):
        cache = of.extend(cache, of.block(CLEAN, i), full)
    assert np.isfinite(of.encode_block(cache, of.block(NOISY, 0), T[:, 0])[..., MASK + 1 :]).all()
    cache = of.extend(cache, of.block(CLEAN, 0), full)
    out = of.encode_block(cache, of.block(NOISY, 0), T[:, 0])
    assert np.isnan(out[0, :, MASK + 1 :]).all()
    np.testing.assert_allclose(out[1], of.block(expected_of("modern"), 0)[1], atol=2e-5)


# Windows

LONG_TEXT = 21  # longer than any text that the network was made for


@pytest.mark.parametrize("window", [6, 9])  # less and more than the cache's chunks of 4 hold
def test_a_window_of_the_cache_goes_on_past_the_longest_text(window):
    config = dataclasses.replace(CONFIGS["modern"], max_length=8)
    noisy, clean = np.random.default_rng(3).integers(
        0, config.vocab_size, (2, ROWS, LONG_TEXT), dtype=np.int32
    )
    want = expected(params_of(config), config, noisy, clean, window=window)
    everything = expected(params_of(config), config, noisy, clean)
    felt = want[..., MASK + 1 :] - everything[..., MASK + 1 :]
    assert np.abs(felt).max() > 0.1
    of = Functions(params_of(config), config, window=window)
    out = of.encode(noisy, clean, np.ones((ROWS, LONG_TEXT // SIZE), np.float32))
    np.testing.assert_allclose(out, want, atol=2e-5)
    assert of.start(ROWS, 10**9).keys.shape[2] < window + 4  # the room is the window's
    np.testing.assert_allclose(of.one_by_one(noisy, clean, room=10**9), want, atol=2e-5)
    cache = of.start(ROWS, LONG_TEXT)
    for i in range(LONG_TEXT // SIZE - 1):
        cache, out = of.advance(cache, of.block(clean, i), of.block(noisy, i + 1), T[:, 0])
        np.testing.assert_allclose(out, of.block(want, i + 1), atol=2e-5)


def test_in_a_window_too_rows_have_lengths_of_their_own_and_stale_places_are_not_seen():
    config = dataclasses.replace(CONFIGS["modern"], max_length=8)
    of = Functions(params_of(config), config, window=6)
    cache, ahead = of.start(ROWS, LENGTH), jnp.array([True, False])
    poison = jax.tree.map(lambda x: x.at[:, 1].set(jnp.nan), cache[:2])
    cache = cached.Cache(*poison, cache.length)
    for i in range(COUNT - 1):
        cache = of.extend(cache, of.block(CLEAN, i), ahead)
    out = of.encode_block(cache, of.block(NOISY, COUNT - 1), T[:, 0])
    want = expected(params_of(config), config, window=6)
    np.testing.assert_allclose(out[0], of.block(want, COUNT - 1)[0], atol=2e-5)
    first = of.encode_block(of.start(ROWS, LENGTH), of.block(NOISY, COUNT - 1), T[:, 0])
    np.testing.assert_array_equal(out[1], first[1])


# Cost


def test_no_step_but_the_write_touches_the_whole_room():
    config, room = CONFIGS["modern"], 4 * 1024
    denoiser = bert.block_denoiser(
        params_of(config), dataclasses.replace(config, max_length=room), SIZE
    )
    cache, block = denoiser.start(ROWS, room), NOISY[:, :SIZE]

    def of_the_room(fn, *args):
        made = [
            (equation.primitive.name, out.aval.shape)
            for equation in in_program(jax.make_jaxpr(fn)(*args).jaxpr)
            for out in equation.outvars
        ]
        assert len(made) > 100
        return {name for name, shape in made if room in shape}

    assert not of_the_room(denoiser.encode_block, cache, block, T[:, 0])
    assert of_the_room(denoiser.advance, cache, block, block, T[:, 0]) <= {"scatter", "jit"}


@pytest.mark.parametrize("name", ["extend", "advance"])
def test_a_cache_that_is_handed_over_is_written_in_place(name):
    room = 4 * 1024
    denoiser = build(dataclasses.replace(MODERN, max_length=room))
    cache, block = denoiser.start(ROWS, room), NOISY[:, :SIZE]
    args = {"extend": (cache, block), "advance": (cache, block, block, T[:, 0])}[name]
    program = jax.jit(getattr(denoiser, name), donate_argnums=0).lower(*args).compile()
    copies = [line for line in program.as_text().splitlines() if re.search(r"= \S+ copy\(", line)]
    assert not [line for line in copies if f",{room}," in line]


@pytest.mark.parametrize("room", [16, 64])
def test_chunks_are_read_as_far_as_the_longest_row_reaches(room, monkeypatch):
    config = dataclasses.replace(CONFIGS["modern"], max_length=room)
    denoiser = bert.block_denoiser(params_of(config), config, SIZE)
    read, merge = [], cached._merge

    def counted(softmax, q, k, v, seen):
        jax.debug.callback(lambda _: read.append(k.shape[1]), q.sum() + k.sum())
        return merge(softmax, q, k, v, seen)

    monkeypatch.setattr(cached, "_merge", counted)
    program = jax.jit(denoiser.encode_block)
    for longest, chunks in [(0, 1), (4, 1), (5, 2), (8, 2), (9, 4), (16, 4)]:
        cache = denoiser.start(ROWS, room)._replace(length=jnp.int32([longest, 0]))
        jax.block_until_ready(program(cache, NOISY[:, :SIZE], T[:, 0]))
        jax.effects_barrier()
        assert sorted(read) == sorted(config.layers * [SIZE, *chunks * [4]])
        read.clear()


def test_a_row_does_not_notice_how_long_another_is():
    """To the bit, also where the row needs one chunk and the other several."""
    rows, room, heads, width, count = 2, 2048, 2, 16, 4
    draws = [jax.random.normal(jax.random.key(i), (1, rows, room, heads, width)) for i in (1, 2)]
    q, k, v = (jax.random.normal(jax.random.key(i), (rows, count, heads, width)) for i in (3, 4, 5))

    @jax.jit
    def first(lengths):
        starts = jnp.broadcast_to(lengths[:, None], (rows, count))
        look = cached.after(
            cached.Cache(*draws, lengths),
            jnp.ones((1, count, count), bool),
            starts,
            backend="xla",
        )
        return look(q, k, v, jnp.int32(0))[0][0]

    for own in (5, 512, 700):
        alone = first(jnp.array([own, 0]))
        for other in (300, 600, 2048):
            np.testing.assert_array_equal(first(jnp.array([own, other])), alone)
