"""A given text committed in pieces, against the same text block by block."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks.tiny import BASE, MASK, params_of

from mdlm_jax import blocks
from mdlm_jax.networks import bert, pieces
from mdlm_jax.networks.attention import cached

ROWS, LENGTH, START = 4, 12, 5
LEARNED = dataclasses.replace(BASE, max_length=LENGTH, dropout=0.0)
ROPE = dataclasses.replace(LEARNED, positions="rope", norm_position="pre", classes=2)
TOKENS = np.random.default_rng(0).integers(0, BASE.vocab_size, (ROWS, LENGTH), dtype=np.int32)
LABEL = np.int32([1, -1, 0, 1])
T = np.ones(ROWS, np.float32)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Several pieces, the last of which is not full, and several chunks of the cache."""
    monkeypatch.setattr(pieces, "_PIECE", 7)
    monkeypatch.setattr(cached, "_CHUNK", 5)


def in_blocks(config=LEARNED, window=None, **told):
    told |= {"label": LABEL} if config.classes else {}
    return bert.block_denoiser(params_of(config), config, 2, window=window, **told)


def token_by_token(config=LEARNED):
    config = dataclasses.replace(config, attention="causal")
    told = {"label": LABEL} if config.classes else {}
    return bert.causal_block_denoiser(params_of(config), config, START, **told)


KINDS = {
    "blocks": in_blocks,
    "rope": functools.partial(in_blocks, ROPE),
    "window": functools.partial(in_blocks, ROPE, 4),
    "causal": token_by_token,
    "causal rope": functools.partial(token_by_token, ROPE),
}


@functools.cache
def functions(kind):
    denoiser = KINDS[kind]()

    def logits(cache):
        noisy = jnp.full((ROWS, denoiser.block_size), MASK)
        return denoiser.readout(*denoiser.encode_block(cache, noisy, jnp.asarray(T)))

    return denoiser, *map(jax.jit, (denoiser.prefill, denoiser.extend, logits))


def one_by_one(kind, count):
    denoiser, _, extend, _ = functions(kind)
    size, cache = denoiser.block_size, denoiser.start(ROWS, LENGTH)
    for i in range(max(count)):
        cache = extend(cache, TOKENS[:, i * size : (i + 1) * size], i < jnp.asarray(count))
    return cache


@pytest.mark.slow  # compiles
@pytest.mark.parametrize("kind", KINDS)
def test_each_row_has_what_it_has_block_by_block(kind):
    denoiser, prefill, _, logits = functions(kind)
    count = np.int32([0, 1, 4, 5]) if denoiser.block_size == 2 else np.int32([0, 1, 9, 11])
    cache = prefill(denoiser.start(ROWS, LENGTH), TOKENS, count)
    want = logits(one_by_one(kind, count))
    assert np.ptp(want[np.isfinite(want)]) > 1
    np.testing.assert_allclose(logits(cache), want, atol=2e-5)
    # What it has already is not committed again, and it goes on from there.
    more = np.minimum(count + np.int32([1, 3, 1, 0]), LENGTH // denoiser.block_size)
    both = [prefill(cache, TOKENS, each) for each in (count - count % 2, more)]
    jax.tree.map(np.testing.assert_array_equal, both[0], cache)
    np.testing.assert_allclose(logits(both[1]), logits(one_by_one(kind, more)), atol=2e-5)


@pytest.mark.slow  # compiles
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_the_same_to_the_bit_in_any_company(kind):
    denoiser, prefill, _, logits = functions(kind)
    most = LENGTH // denoiser.block_size - 1
    cache = denoiser.start(ROWS, LENGTH)
    alone = logits(prefill(cache, TOKENS, np.int32([0, 0, 3, 0])))[2]
    others = np.where(np.arange(ROWS)[:, None] == 2, TOKENS, 7)
    beside = logits(prefill(cache, others, np.int32([most, 1, 3, 2])))[2]
    np.testing.assert_array_equal(beside, alone)


@pytest.mark.slow  # compiles
@pytest.mark.parametrize("kind", ["blocks", "window", "causal rope"])
def test_a_sampler_writes_behind_prompts_what_it_writes_without_pieces(kind):
    denoiser = KINDS[kind]()
    prompts = np.int32([0, 3, 8, LENGTH])[:, None]
    canvas = np.where(np.arange(LENGTH)[None] < prompts, TOKENS % 3, MASK)
    options = {"mask_id": MASK, "steps": 2, "trace": True}
    options["keys"] = jax.random.split(jax.random.key(0), ROWS)

    @jax.jit
    def both():
        ways = denoiser, denoiser._replace(prefill=None)
        return [blocks.sample(way, None, canvas, **options) for way in ways]

    got, want = both()
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_array_equal(got[1].step, want[1].step)
    np.testing.assert_array_equal(got[1].evaluations, want[1].evaluations)
    np.testing.assert_allclose(got[1].log_prob, want[1].log_prob, atol=2e-5)


def test_what_does_not_fit_is_refused():
    for denoiser in (in_blocks(), token_by_token()):
        cache, count = denoiser.start(ROWS, LENGTH), np.zeros(ROWS, np.int32)
        for text, of, told in (
            (TOKENS[:2], count, r"text is int32 \[2, 12\]: must be int32 \[4, 12\]"),
            (TOKENS + 13, count, "text holds .*: must be from 0 to 12"),
            (TOKENS, count[:1], r"count is int32 \[1\]: must be int32 \[4\]"),
        ):
            with pytest.raises(ValueError, match=told):
                denoiser.prefill(cache, text, of)
    with pytest.raises(ValueError, match="text has rows of 11 tokens, which blocks of 2"):
        in_blocks().prefill(in_blocks().start(ROWS, LENGTH), TOKENS[:, :11], count)
