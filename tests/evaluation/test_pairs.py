"""Likelihoods and baselines of supervised pairs: of the response and its end, given the prompt."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax import data
from mdlm_jax.diffusion import as_denoiser
from mdlm_jax.evaluation.bounds import likelihoods, ngrams, text_sizes

V, LENGTH, SEP, MASK = 9, 10, 7, 8


def rows_of(count=60):
    """Prompts of 2 to 4 tokens, answered by as many; the separators that end them included."""
    draw = np.random.default_rng(0)
    prompts = draw.integers(2, 5, count).astype(np.int32)
    tokens = draw.integers(0, SEP, (count, LENGTH))
    places = np.arange(LENGTH)
    tokens[(places == prompts[:, None] - 1) | (places >= 2 * prompts[:, None] - 1)] = SEP
    return data.Rows(tokens, np.zeros(count, np.int32), 2 * prompts, prompts)


def test_nelbo_is_of_the_rest_of_the_row_and_told_per_token_of_the_response():
    rows = rows_of()

    def nelbo(denoiser):
        of_rows = likelihoods.make_nelbo(lambda *_: denoiser, mask_id=MASK, seed=0, draws=4)
        return of_rows(None, rows, 16)

    uniform = nelbo(as_denoiser(lambda tokens, t: jnp.zeros((*tokens.shape, V)), MASK))
    np.testing.assert_array_equal(uniform.tokens, rows.prompts)  # a response is as long
    every = (LENGTH - rows.prompts) * math.log(V - 1)  # the mask is never drawn
    np.testing.assert_allclose(uniform.nats, every, rtol=1e-5)
    told = likelihoods.summary(uniform)
    assert told["tokens"] == rows.prompts.sum() and told["rows"] == len(rows)
    assert told["nats_per_token"] == pytest.approx(every.sum() / rows.prompts.sum(), rel=1e-5)

    # A model that knows each separator pays for nothing but the response's own tokens.
    is_end = jnp.asarray(rows.tokens == SEP)

    def ends_are_certain(tokens, t):
        certain = jnp.where(jnp.arange(V) == SEP, 0.0, -1e9)
        uniform = jnp.where(jnp.arange(V) == SEP, -1e9, 0.0)
        return jnp.where(is_end[: tokens.shape[0], :, None], certain, uniform)

    of_rows = likelihoods.make_nelbo(
        lambda *_: as_denoiser(ends_are_certain, MASK), mask_id=MASK, seed=0, draws=64
    )
    found = of_rows(None, rows, len(rows))
    letters = (rows.prompts - 1) * math.log(SEP)
    error = np.sqrt(found.mc_variance.sum())
    assert abs(found.nats.sum() - letters.sum()) < 4 * error  # false alarm below 1e-4
    assert error < 0.05 * letters.sum()


def test_ngrams_score_responses_in_the_context_of_their_prompts():
    rows = rows_of()
    whole = dataclasses.replace(rows, prompts=None)
    model = ngrams.fit(whole, V, 3)
    nats = ngrams.token_nats(model, rows)
    expected = np.where(rows.counted, ngrams.token_nats(model, whole), 0.0)
    np.testing.assert_array_equal(nats, expected)
    assert (nats > 0).sum() == rows.counts.sum()

    counted = ngrams.fit(rows, V, 2)
    seen = np.bincount(rows.tokens[rows.counted], minlength=V) + 1
    np.testing.assert_allclose(counted.unigram, seen / seen.sum())
    assert counted.orders[0].counts.sum() == rows.counts.sum()  # the first has its prompt's end
    ends = rows.tokens[np.arange(len(rows)), rows.prompts - 1]
    assert (ends == SEP).all() and SEP in counted.orders[0].contexts
    cross_entropy = ngrams.unigram_cross_entropy(rows, rows, V)
    per_token = ngrams.token_nats(ngrams.fit(rows, V, 1), rows).sum() / rows.counts.sum()
    assert cross_entropy == pytest.approx(per_token)


def test_words_and_characters_are_of_the_responses():
    texts = ["ask me", "two words", "and why", "one"]
    tokenizer = data.train_tokenizer(texts, kind="characters", vocab_size=40, lowercase=True)
    prompt, response, *others = data.encode_documents(tokenizer, texts)
    pairs = [np.concatenate([prompt, response]), np.concatenate(others)]
    tokens = np.full((2, 32), data.special_ids(tokenizer).sep)
    for row, pair in zip(tokens, pairs, strict=True):
        row[: len(pair)] = pair
    sizes = np.array([len(pair) for pair in pairs], np.int32)
    prompts = np.array([len(prompt), len(others[0])], np.int32)
    rows = data.Rows(tokens, np.zeros(2, np.int32), sizes, prompts)
    size = text_sizes.text_size(rows, tokenizer)
    assert size == text_sizes.TextSize(words=3, characters=len("two words|one|"))
