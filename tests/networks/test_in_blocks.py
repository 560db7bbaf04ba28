"""All blocks at once, and one block after a cache, against the formulas in float64.

What a block sees is written down here pair by pair, and `reference` computes one dense stream of
the noisy and the clean text from it.
"""

import dataclasses
import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from networks import reference
from networks.tiny import BASE, MASK, params_of

from mdlm_jax import blocks, interop
from mdlm_jax.networks import bert
from mdlm_jax.networks.attention import Attend, cached

pytestmark = pytest.mark.slow  # each case compiles a network of its own

GOLDEN = Path(__file__).parents[1] / "interop" / "golden"
ROWS, LENGTH, SIZE = 2, 12, 3
COUNT = LENGTH // SIZE
LONG = dataclasses.replace(BASE, max_length=LENGTH, dropout=0.0)
MODERN = dataclasses.replace(
    LONG,
    norm_position="pre",
    norm="rmsnorm",
    positions="rope",
    qk_norm=True,
    gated=True,
    activation="silu",
    token_types=0,
    use_bias=False,
    vocab_multiple=8,
)
CONFIGS = {
    "post": LONG,
    "modern": MODERN,
    "in line": dataclasses.replace(MODERN, embedding_norm=True, scan=False, layers=3),
    "one layer": dataclasses.replace(LONG, layers=1, classes=3, positions="rope"),
}
NOISY, CLEAN = np.random.default_rng(0).integers(
    0, BASE.vocab_size, (2, ROWS, LENGTH), dtype=np.int32
)
T = np.ones((ROWS, COUNT), np.float32)
LABEL = np.int32([2, -1])


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    """The cache is read in many chunks, and some are never filled."""
    monkeypatch.setattr(cached, "_CHUNK", 4)


def sees(length, size, window=None):
    """bool[2 L, 2 L], query and key, of a noisy text and the clean one behind it."""
    allowed = np.zeros((2 * length, 2 * length), bool)
    for query in range(2 * length):
        for key in range(2 * length):
            block, of = query % length // size, key % length // size
            near = window is None or key % length >= block * size - window
            if query < length and key < length:  # noisy, noisy
                allowed[query, key] = block == of
            elif query < length:  # noisy, clean
                allowed[query, key] = of < block and near
            elif key >= length:  # clean, clean
                allowed[query, key] = of <= block and near
    return allowed


def expected(params, config, noisy=NOISY, clean=CLEAN, size=SIZE, window=None, **told):
    """f64[B, L, V]: what `reference` computes of the noisy text."""
    rows, length = noisy.shape
    mask = np.broadcast_to(sees(length, size, window), (rows, 2 * length, 2 * length))
    places = np.tile(np.arange(length), 2)
    both = np.concatenate([noisy, clean], axis=1)
    out = reference.logits(params, config, both, places=places, sees=mask, **told)[:, :length]
    out[..., config.mask_id] = -np.inf
    return out


def told_of(config):
    return {"label": LABEL} if config.classes else {}


class Functions:
    """A block denoiser's functions to logits, each compiled once."""

    def __init__(self, params, config, size=SIZE, **options):
        def build(params):
            return bert.block_denoiser(params, config, size, **options)

        def logits(denoiser, hidden):
            return denoiser.readout(hidden.at, hidden.row)[..., : config.vocab_size]

        @jax.jit
        def encode(params, *args):
            return logits(build(params), build(params).encode(*args))

        @jax.jit
        def encode_block(params, *args):
            return logits(build(params), build(params).encode_block(*args))

        @jax.jit
        def advance(params, *args):
            cache, hidden = build(params).advance(*args)
            return cache, logits(build(params), hidden)

        @jax.jit
        def extend(params, *args):
            return build(params).extend(*args)

        self.size, self.start = size, build(params).start
        self.encode, self.encode_block, self.advance, self.extend = (
            functools.partial(fn, params) for fn in (encode, encode_block, advance, extend)
        )

    def block(self, x, i):
        return x[:, i * self.size : (i + 1) * self.size]

    def committed(self, clean, room=None):
        """The caches before each block."""
        cache = self.start(len(clean), room or clean.shape[1])
        yield cache
        for i in range(clean.shape[1] // self.size - 1):
            cache = self.extend(cache, self.block(clean, i))
            yield cache

    def one_by_one(self, noisy, clean, room=None):
        """The logits of all blocks after caches: `extend`, then `encode_block`."""
        out = [
            self.encode_block(cache, self.block(noisy, i), T[:1, 0].repeat(len(noisy)))
            for i, cache in enumerate(self.committed(clean, room))
        ]
        return np.concatenate(out, axis=1)


@functools.cache
def functions_of(name):
    config = CONFIGS[name]
    return Functions(params_of(config), config, **told_of(config))


@functools.cache
def expected_of(name):
    config = CONFIGS[name]
    out = expected(params_of(config), config, **told_of(config))
    assert np.ptp(out[np.isfinite(out)]) > 1
    return out


@pytest.mark.parametrize("name", CONFIGS)
def test_all_blocks_at_once(name):
    out = functions_of(name).encode(NOISY, CLEAN, T)
    np.testing.assert_allclose(out, expected_of(name), atol=2e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_one_block_after_a_cache(name):
    of = functions_of(name)
    np.testing.assert_allclose(of.one_by_one(NOISY, CLEAN), expected_of(name), atol=2e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_committing_a_block_and_encoding_the_next_in_one_program(name):
    of = functions_of(name)
    cache = of.start(ROWS, LENGTH)
    for i in range(COUNT - 1):
        extended = of.extend(cache, of.block(CLEAN, i))
        cache, out = of.advance(cache, of.block(CLEAN, i), of.block(NOISY, i + 1), T[:, 0])
        np.testing.assert_allclose(out, of.block(expected_of(name), i + 1), atol=2e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), cache, extended)


def test_the_block_at_hand_never_enters_the_cache():
    of = functions_of("modern")
    *_, cache = of.committed(CLEAN)
    before = jax.device_get(cache)
    of.encode_block(cache, of.block(NOISY, COUNT - 1), T[:, 0])
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(cache))
    np.testing.assert_array_equal(cache.length, LENGTH - SIZE)


def test_one_block_is_the_denoiser_to_the_bit():
    config = CONFIGS["post"]

    @jax.jit
    def both(params):
        denoiser = bert.denoiser(params, config, valid=jnp.int32([12, 7]))
        of_blocks = bert.block_denoiser(params, config, LENGTH, valid=jnp.int32([12, 7]))
        assert of_blocks.mask_id == denoiser.mask_id == MASK
        hidden, other = denoiser.encode(NOISY, T[:, 0]), of_blocks.encode(NOISY, CLEAN, T[:, :1])
        return denoiser.readout(*hidden), of_blocks.readout(*other)

    out, other = both(params_of(config))
    np.testing.assert_array_equal(out, other)
    of = Functions(params_of(config), config, LENGTH)
    alone = bert.logits(params_of(config), config, NOISY)
    after = of.encode_block(of.start(ROWS, LENGTH), NOISY, T[:, 0])
    np.testing.assert_allclose(after[..., MASK + 1 :], alone[..., MASK + 1 :], atol=2e-5)


def test_blocks_of_one_are_a_causal_model_of_the_mask():
    config = CONFIGS["modern"]
    causal = dataclasses.replace(config, attention="causal")
    masks = np.full_like(CLEAN, MASK)
    of = Functions(params_of(config), config, 1)
    out = of.encode(masks, CLEAN, np.ones((ROWS, LENGTH), np.float32))
    logits = jax.jit(lambda tokens: bert.logits(params_of(causal), causal, tokens))
    for i in range(LENGTH):
        canvas = CLEAN.copy()
        canvas[:, i] = MASK
        seen = logits(canvas)[:, i, MASK + 1 :]
        np.testing.assert_allclose(out[:, i, MASK + 1 :], seen, atol=2e-5)


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_a_pretrained_model_writes_in_blocks(name):
    params, config, _ = interop.load_pretrained(GOLDEN / name)
    config = dataclasses.replace(config, dropout=0.0)
    rng = np.random.default_rng(1)
    noisy, clean = rng.integers(0, config.vocab_size, (2, ROWS, 9), dtype=np.int32)
    want = expected(params, config, noisy, clean)
    of = Functions(params, config)
    np.testing.assert_allclose(of.encode(noisy, clean, T[:, :3]), want, atol=1e-4)
    np.testing.assert_allclose(of.one_by_one(noisy, clean), want, atol=1e-4)


# Gradients


def dense_look(q, k, v, number, *, allowed):
    """One softmax over a dense mask."""
    del number
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1])
    chances = jax.nn.softmax(jnp.where(allowed[None, None], scores, -jnp.inf))
    return jnp.einsum("bhqk,bkhd->bqhd", chances, v), ()


@pytest.mark.parametrize(
    "changes", [{}, {"remat": "full"}, {"remat": "dots", "scan": False}], ids=str
)
def test_gradients_are_those_of_one_dense_stream(changes):
    config = dataclasses.replace(CONFIGS["modern"], **changes)
    weights = np.random.default_rng(2).standard_normal((ROWS, LENGTH, config.width))

    def of_streams(params):
        denoiser = bert.block_denoiser(params, config, SIZE)
        return denoiser.readout(denoiser.encode(NOISY, CLEAN, T).at, ())

    def dense(params):
        attend: Attend = jax.tree_util.Partial(dense_look, allowed=jnp.asarray(sees(LENGTH, SIZE)))
        places = jnp.tile(jnp.arange(LENGTH, dtype=jnp.int32), 2)[None]
        encode, project = bert._halves(params, config, None, whole=True)
        both = jnp.concatenate([NOISY, CLEAN], axis=1)
        return project(encode(both, None, positions=places, attend=attend)[0][:, :LENGTH])

    def gradient(logits):
        def loss(params):
            out = logits(params)[..., MASK + 1 : config.vocab_size]
            return (jnp.sin(out) * weights[..., : out.shape[-1]].astype(np.float32)).sum()

        return jax.jit(jax.grad(loss))(params_of(config))

    gradients = gradient(of_streams), gradient(dense)
    assert all(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(gradients[1]["encoder"]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), *gradients)


@pytest.mark.parametrize("name", ["post", "modern"])
def test_with_dropout_the_last_block_is_not_apart_and_computes_the_same(name):
    rate = 1e-9  # keeps everything, by a program that could drop
    config = dataclasses.replace(CONFIGS[name], dropout=rate)
    of = Functions(params_of(config), config, dropout_key=jax.random.key(6))
    np.testing.assert_allclose(of.encode(NOISY, CLEAN, T), expected_of(name), atol=2e-5)
    tokens, noisy = of.block(CLEAN, 0), of.block(NOISY, 1)
    _, out = of.advance(of.start(ROWS, LENGTH), tokens, noisy, T[:, 0])
    np.testing.assert_allclose(out, of.block(expected_of(name), 1), atol=2e-5)


# Padding


@pytest.mark.parametrize("counted", [True, False])
def test_padding_at_the_end_of_rows_is_not_seen(counted):
    config = CONFIGS["modern"]
    lengths = jnp.int32([LENGTH, 7])
    valid = np.arange(LENGTH)[None] < lengths[:, None]
    of = Functions(params_of(config), config, valid=lengths if counted else jnp.asarray(valid))
    outs = [of.encode(np.where(valid, NOISY, f), np.where(valid, CLEAN, f), T) for f in (0, 7)]
    np.testing.assert_array_equal(outs[0][valid], outs[1][valid])
    np.testing.assert_allclose(outs[0][0], expected_of("modern")[0], atol=2e-5)
    # The row of 7 alone: its last block is one of a single token.
    mask = sees(LENGTH, SIZE) & np.tile(valid[1], 2)[None]
    both = np.concatenate([NOISY, CLEAN], axis=1)[1:]
    places = np.tile(np.arange(LENGTH), 2)
    alone = reference.logits(params_of(config), config, both, places=places, sees=mask[None])
    assert np.isfinite(outs[0]).any(-1).all()
    np.testing.assert_allclose(
        outs[0][1, :7, MASK + 1 :], alone[0, :7, MASK + 1 : config.vocab_size], atol=2e-5
    )


# Rows of the cache


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


def in_program(jaxpr):
    """Every equation of a program, those of its loops and branches among them."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from in_program(inner)


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


# What does not fit


def build(config=MODERN, size=SIZE, **options):
    return bert.block_denoiser(params_of(config), config, size, **options)


def changed(**changes):
    return dataclasses.replace(CONFIGS["post"], **changes)


BAD = {
    "causal": (lambda: build(changed(attention="causal")), "attention='causal': must be 'full'"),
    "local": (lambda: build(changed(attention="local", window=2)), "attention='local': must be"),
    "time": (lambda: build(changed(time_conditioning=True)), "time_conditioning=True: must be"),
    "size": (lambda: build(size=0), "block_size is 0, at least 1"),
    "window": (lambda: build(window=4), "window is 4: must be a multiple of block_size=3"),
    "no window": (lambda: build(window=0), "window is 0: must be a multiple of block_size=3"),
    "length": (
        lambda: build(size=5).encode(NOISY, CLEAN, T),
        "noisy has rows of 12 tokens, which blocks of 5 do not divide",
    ),
    "too long": (
        lambda: build(changed(max_length=9), window=3).encode(NOISY, CLEAN, T),
        "noisy tokens have length 12: max_length is 9",
    ),
    "clean": (
        lambda: build().encode(NOISY, CLEAN[:, :9], T),
        "clean is int32 [2, 9]: must be int32 [2, 12]",
    ),
    "label": (lambda: build(label=LABEL).encode(NOISY, CLEAN, T), "label given to a network with"),
    "room": (lambda: build().start(2, 13), "a cache for 13 tokens: max_length is 12, or more with"),
    "room of learned": (
        lambda: build(changed(), window=3).start(2, 13),
        "a cache for 13 tokens: max_length is 12",
    ),
    "padding": (
        lambda: build(valid=jnp.int32([3, 4])).start(2, 12),
        "valid given to a network with a cache: must be None",
    ),
    "block": (
        lambda: build().encode_block(build().start(2, 12), NOISY, T[:, 0]),
        "noisy is int32 [2, 12]: must be int32 [2, 3]",
    ),
    "rows": (
        lambda: build().extend(build().start(3, 12), NOISY[:, :3]),
        "tokens is int32 [2, 3]: must be int32 [3, 3]",
    ),
    "where": (
        lambda: build().extend(build().start(2, 12), NOISY[:, :3], jnp.ones(2)),
        "where is float32 [2]: must be bool [2]",
    ),
    "tokens": (
        lambda: build().extend(build().start(2, 12), NOISY[:, :3] + 13),
        "must be from 0 to 12",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused_in_one_line(name):
    run, told = BAD[name]
    with pytest.raises(ValueError, match=re.escape(told)) as error:
        run()
    assert "\n" not in str(error.value)


# Losses and samplers


def without_a_cache(params, config):
    """The same law as a function of both texts, all of it computed for every block."""
    denoiser = bert.block_denoiser(params, config, SIZE)

    def fn(noisy, clean, t):
        return denoiser.readout(denoiser.encode(noisy, clean, t).at, ())

    return blocks.as_block_denoiser(fn, SIZE, MASK)


def test_what_is_written_with_a_cache_is_what_is_written_without():
    config, key = CONFIGS["modern"], jax.random.key(4)
    canvas = np.where(np.arange(LENGTH) % 5 == 1, CLEAN, MASK)  # given tokens in every block

    @jax.jit
    def write(params):
        return [
            blocks.sample(denoiser, key, canvas, mask_id=MASK, steps=2)
            for denoiser in (
                bert.block_denoiser(params, config, SIZE),
                without_a_cache(params, config),
            )
        ]

    written, other = write(params_of(config))
    assert not (written == MASK).any()
    np.testing.assert_array_equal(written, other)


def test_a_loss_of_blocks_reads_out_what_it_needs():
    config, key = CONFIGS["post"], jax.random.key(5)

    @jax.jit
    def both(params):
        return [
            blocks.loss(denoiser, key, CLEAN % MASK, mask_id=MASK)[0]
            for denoiser in (
                bert.block_denoiser(params, config, SIZE),
                without_a_cache(params, config),
            )
        ]

    loss, other = both(params_of(config))
    np.testing.assert_allclose(loss, other, rtol=1e-5)
    assert 1 < loss < 10


def test_rows_lie_on_a_mesh():
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    script = Path(__file__).parent / "blocks_on_four_devices.py"
    done = subprocess.run(
        [sys.executable, script], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["mesh", "shard_map"]


def test_a_row_does_not_notice_how_long_another_is():
    """To the bit, also where the row needs one chunk and the other several."""
    rows, room, heads, width, count = 2, 2048, 2, 16, 4
    draws = [jax.random.normal(jax.random.key(i), (1, rows, room, heads, width)) for i in (1, 2)]
    q, k, v = (jax.random.normal(jax.random.key(i), (rows, count, heads, width)) for i in (3, 4, 5))

    @jax.jit
    def first(lengths):
        starts = jnp.broadcast_to(lengths[:, None], (rows, count))
        look = cached.after(
            cached.Cache(*draws, lengths), jnp.ones((1, count, count), bool), starts
        )
        return look(q, k, v, jnp.int32(0))[0][0]

    for own in (5, 512, 700):
        alone = first(jnp.array([own, 0]))
        for other in (300, 600, 2048):
            np.testing.assert_array_equal(first(jnp.array([own, other])), alone)
