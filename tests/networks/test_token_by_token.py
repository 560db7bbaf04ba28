"""A causal network token by token, against itself on whole texts; and the law that it writes."""

import dataclasses
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks.blocks_by_pairs import in_program
from networks.tiny import BASE, MASK, params_of
from oracle import chi_square_p

from mdlm_jax import blocks, causal_denoiser, causal_likelihood, sample, strategies, transforms
from mdlm_jax.networks import bert
from mdlm_jax.networks.attention import cached

pytestmark = pytest.mark.slow  # each case compiles a network of its own

ROWS, LENGTH, START = 3, 9, 5
CAUSAL = dataclasses.replace(BASE, max_length=LENGTH, dropout=0.0, attention="causal")
MODERN = dataclasses.replace(
    CAUSAL,
    norm_position="pre",
    norm="rmsnorm",
    positions="rope",
    qk_norm=True,
    gated=True,
    token_types=0,
    use_bias=False,
    vocab_multiple=8,
)
CONFIGS = {
    "post": CAUSAL,
    "modern": MODERN,
    "told the time": dataclasses.replace(MODERN, time_conditioning=True, classes=2),
    "one layer": dataclasses.replace(CAUSAL, layers=1, classes=2, scan=False),
}
TOKENS = np.random.default_rng(0).integers(0, MASK, (ROWS, LENGTH), dtype=np.int32)
LABEL = np.int32([1, -1, 0])
T = np.ones(ROWS, np.float32)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    """The cache is read in several chunks, the last of which the text does not fill."""
    monkeypatch.setattr(cached, "_CHUNK", 4)


def build(config=MODERN, start=START, **told):
    told |= {"label": LABEL} if config.classes and not told else {}
    return bert.causal_block_denoiser(params_of(config), config, start, **told)


def at_once(config):
    told = {"label": LABEL} if config.classes else {}
    network = bert.denoiser(params_of(config), config, **told)
    return causal_denoiser(network, start_id=START)


def logits_of(denoiser, hidden):
    return np.asarray(denoiser.readout(hidden.at, hidden.row))


@pytest.mark.parametrize("name", CONFIGS)
def test_token_by_token_the_logits_are_those_of_the_whole_text(name):
    config = CONFIGS[name]
    whole = at_once(config)
    want = logits_of(whole, jax.jit(whole.encode)(TOKENS, T))
    assert np.ptp(want[np.isfinite(want)]) > 1
    denoiser = build(config)
    times = np.ones((ROWS, LENGTH), np.float32)
    nothing = np.full_like(TOKENS, MASK)
    seen = logits_of(denoiser, denoiser.encode(nothing, TOKENS, times))
    np.testing.assert_allclose(seen, want, atol=1e-5)
    cache, extend = denoiser.start(ROWS, LENGTH), jax.jit(denoiser.extend)
    for i in range(LENGTH):
        here = denoiser.encode_block(cache, nothing[:, :1], T)
        np.testing.assert_allclose(
            logits_of(denoiser, here), want[:, i : i + 1], atol=2e-5, err_msg=i
        )
        cache = extend(cache, TOKENS[:, i : i + 1])


@pytest.mark.parametrize("name", ["modern", "told the time"])
def test_the_likelihood_is_that_of_the_chain_rule(name):
    config = CONFIGS[name]
    maskable = np.arange(LENGTH)[None] >= np.array([[0], [2], [5]])

    @jax.jit
    def both():
        told = {"label": LABEL} if config.classes else {}
        network = bert.denoiser(params_of(config), config, **told)
        options = {"mask_id": MASK, "maskable": maskable}
        return (
            causal_likelihood(network, TOKENS, start_id=START, maskable=maskable),
            blocks.nelbo(build(config), None, TOKENS, draws="all", **options),
            blocks.nelbo(build(config), jax.random.key(0), TOKENS, draws=3, **options),
            blocks.loss(build(config), jax.random.key(0), TOKENS, **options)[0],
        )

    exact, *of_blocks, loss = both()
    assert np.all(exact.nats > 1)
    for other in of_blocks:
        np.testing.assert_allclose(other.nats, exact.nats, rtol=1e-5)
        np.testing.assert_array_equal(other.tokens, exact.tokens)
        assert not np.any(other.mc_variance)
    np.testing.assert_allclose(loss, exact.nats.sum() / exact.tokens.sum(), rtol=1e-5)


@pytest.mark.parametrize("name", ["post", "modern"])
def test_the_likeliest_tokens_are_those_that_are_written_without_a_cache(name):
    """Behind prompts of any length, too, and an end of text ends the row."""
    config, key = CONFIGS[name], jax.random.key(0)
    canvas = np.where(np.arange(LENGTH)[None] < np.array([[0], [1], [6]]), TOKENS, MASK)
    options = {"mask_id": MASK, "end_id": 7, "pad_id": 1}

    @jax.jit
    def both():
        cold = [transforms.temperature(x, 0.0) for x in (build(config), at_once(config))]
        return (
            blocks.sample(cold[0], key, canvas, steps=1, trace=True, **options),
            sample(
                cold[1], key, canvas, steps=LENGTH, strategy=strategies.left_to_right(),
                **options, trace=True,
            ),
        )  # fmt: skip

    (written, trace), (expected, _) = both()
    assert len(np.unique(written)) > 3 and not np.any(written == MASK)
    np.testing.assert_array_equal(written, expected)
    ended = np.any((written == 7) & (canvas == MASK), axis=1)
    asked = (canvas == MASK).sum(axis=1)
    np.testing.assert_array_equal(np.asarray(trace.evaluations)[~ended], asked[~ended])
    assert np.all(np.asarray(trace.evaluations)[ended] <= asked[ended])


@pytest.mark.parametrize("prompt", [0, 1])
def test_what_is_written_follows_the_law(prompt):
    """Of two tokens behind the start or a prompt. False alarms: 1e-4 each."""
    rows, words = 6000, [i for i in range(BASE.vocab_size) if i != MASK]
    strings = np.int32([(*[1] * prompt, *rest) for rest in itertools.product(words, repeat=2)])
    canvas = np.full((rows, prompt + 2), MASK, np.int32)
    canvas[:, :prompt] = 1
    maskable = np.broadcast_to(np.arange(prompt + 2) >= prompt, strings.shape)

    @jax.jit
    def both():
        exact = causal_likelihood(
            bert.denoiser(params_of(MODERN), MODERN), strings, start_id=START, maskable=maskable
        )
        written = blocks.sample(build(), jax.random.key(1), canvas, mask_id=MASK, steps=1)
        return jnp.exp(-exact.nats), written

    law, written = (np.asarray(x, np.float64) for x in both())
    np.testing.assert_allclose(law.sum(), 1, rtol=1e-5)
    places = BASE.vocab_size ** np.arange(prompt + 2)
    index = {int(string @ places): i for i, string in enumerate(strings)}
    counts = np.bincount([index[int(row @ places)] for row in written], minlength=len(strings))
    assert chi_square_p(counts, law / law.sum()) > 1e-4


# Rows of the cache


def test_rows_that_do_not_commit_stay_as_they_are():
    denoiser = build()
    extend = jax.jit(denoiser.extend)
    cache, done = denoiser.start(ROWS, LENGTH), np.zeros(ROWS, int)
    whole = at_once(MODERN)
    want = logits_of(whole, whole.encode(TOKENS, T))
    for turn in range(6):
        where = np.array([True, turn % 2 == 0, False])
        after = extend(cache, TOKENS[np.arange(ROWS), done][:, None], jnp.asarray(where))
        np.testing.assert_array_equal(after.last[~where], cache.last[~where])
        cache, done = after, done + where
        np.testing.assert_array_equal(cache.before.length, done + 1)
        out = logits_of(denoiser, denoiser.encode_block(cache, TOKENS[:, :1], T))
        np.testing.assert_allclose(out[:, 0], want[np.arange(ROWS), done], atol=2e-5)
    assert done.tolist() == [6, 3, 0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stale_places_and_other_rows_change_nothing(dtype):
    denoiser = build(dataclasses.replace(MODERN, dtype=dtype))
    extend = jax.jit(denoiser.extend)
    cache = extend(denoiser.start(ROWS, LENGTH), TOKENS[:, :1])
    out = extend(cache, TOKENS[:, 1:2]).last
    stale = np.arange(cache.before.keys.shape[2]) >= 2
    stale = stale[None] | (np.arange(ROWS) == 2)[:, None]  # of row 2 all is lost
    poison = jnp.where(stale[None, :, :, None, None], jnp.nan, 0).astype(dtype)
    before = cache.before._replace(
        keys=cache.before.keys + poison,
        values=cache.before.values + poison,
        length=cache.before.length.at[2].set(8),
    )
    poisoned = extend(cache._replace(before=before), TOKENS[:, 1:2])
    np.testing.assert_array_equal(poisoned.last[:2], out[:2])
    assert np.isnan(poisoned.last[2]).all() and np.isfinite(poisoned.last[:2]).all()


@pytest.mark.parametrize("name", ["post", "modern"])
def test_a_row_that_its_cache_has_no_room_for_is_lost_and_the_others_are_not(name):
    denoiser, length = build(CONFIGS[name]), 8  # whole chunks
    extend, ahead = jax.jit(denoiser.extend), jnp.array([True, False, False])
    cache = denoiser.start(ROWS, length)
    for i in range(length):
        cache = extend(cache, TOKENS[:, i : i + 1], ahead)
    assert np.isfinite(cache.last).all()
    for _ in range(2):
        cache = extend(cache, TOKENS[:, :1], ahead)
        assert np.isnan(cache.last[0]).all() and np.isfinite(cache.last[1:]).all()


# Cost


def test_no_step_but_the_write_touches_the_whole_room_and_it_writes_in_place():
    room = 4 * 1024
    denoiser = build(dataclasses.replace(MODERN, max_length=room))
    cache, token = denoiser.start(ROWS, room), TOKENS[:, :1]
    program = jax.make_jaxpr(denoiser.extend)(cache, token)
    made = [
        (equation.primitive.name, out.aval.shape)
        for equation in in_program(program.jaxpr)
        for out in equation.outvars
    ]
    assert {name for name, shape in made if room in shape} <= {"scatter", "jit"}
    compiled = jax.jit(denoiser.extend, donate_argnums=0).lower(cache, token).compile()
    lines = compiled.as_text().splitlines()
    copies = [line for line in lines if re.search(r"= \S+ copy\(", line)]
    assert not [line for line in copies if f",{room}," in line]


# What does not fit

BAD = {
    "full": (lambda: build(BASE), "attention='full': must be 'causal'"),
    "start": (lambda: build(start=13), "start_id is 13: must be from 0 to 12"),
    "negative": (lambda: build(start=-1), "start_id is -1: must be from 0 to 12"),
    "room": (lambda: build().start(2, 10), "a cache for 10 tokens: max_length is 9"),
    "label": (lambda: build(label=LABEL).start(ROWS, 9), "label given to a network with classes=0"),
    "rows": (
        lambda: build(CONFIGS["one layer"]).start(2, 9),
        "label is int32 [3]: must be int32 [2]",
    ),
    "tokens": (
        lambda: build().extend(build().start(ROWS, 9), TOKENS),
        "tokens is int32 [3, 9]: must be int32 [3, 1]",
    ),
    "unknown": (
        lambda: build().extend(build().start(ROWS, 9), TOKENS[:, :1] + 13),
        "must be from 0 to 12",
    ),
    "where": (
        lambda: build().extend(build().start(ROWS, 9), TOKENS[:, :1], jnp.ones(3)),
        "where is float32 [3]: must be bool [3]",
    ),
    "noisy": (
        lambda: build().encode_block(build().start(2, 9), TOKENS[:, :1], T),
        "noisy is int32 [3, 1]: must be int32 [2, 1]",
    ),
    "long": (
        lambda: build().encode(
            *[np.zeros((1, 10), np.int32)] * 2, np.ones((1, 10), np.float32)
        ),
        "noisy tokens have length 10: max_length is 9",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused_in_one_line(name):
    run, told = BAD[name]
    with pytest.raises(ValueError, match=re.escape(told)) as error:
        run()
    assert "\n" not in str(error.value)


def test_a_start_is_a_number():
    with pytest.raises(TypeError, match="start_id"):
        build(start="[CLS]")
