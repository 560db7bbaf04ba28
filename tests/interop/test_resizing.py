"""A pretrained model in another vocabulary."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models

from mdlm_jax.interop import Pretrained, resize_vocabulary
from mdlm_jax.networks import bert

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = ("the", "cat", "sat", "##s", "on", "mat", ".")


def tokenizer_of(words):
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}))
    special = [w for w in words if w[0] in "[<"]
    made.add_special_tokens([AddedToken(word, special=True) for word in special])
    return made


def pretrained(words=(*SPECIAL, *WORDS), spare=0, tokenizer=True, **changes):
    """A tiny model whose embeddings and biases are all random."""
    config = bert.Config(
        vocab_size=len(words) + spare, mask_id=4, max_length=8, layers=1, width=16, heads=2,
        mlp_width=16, **changes,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: bert.init(jax.random.key(0), config))
    params = jax.tree.map(lambda x: rng.normal(0.5, 1, x.shape).astype(np.float32), shapes)
    return Pretrained(params, config, tokenizer_of(words) if tokenizer else None)


def table(model):
    return np.asarray(model.params["encoder"]["embeddings"]["tokens"])


def bias(model):
    return np.asarray(model.params["head"]["bias"])


@settings(max_examples=10)
@given(st.permutations([*SPECIAL, *WORDS]))
def test_a_shuffled_vocabulary_computes_the_same(words):
    old = pretrained()
    new, found, size = resize_vocabulary(old, tokenizer_of(words))
    assert (found, size) == (12, 12) and new.config.mask_id == words.index("[MASK]")
    place = np.array([words.index(word) for word in (*SPECIAL, *WORDS)])  # of each old id
    tokens = np.array([[5, 6, 4, 8, 11, 3]], np.int32)
    ours = logits(new.params, place[tokens].astype(np.int32))
    np.testing.assert_allclose(ours[..., place], logits(old.params, tokens), atol=1e-5)


@jax.jit
def logits(params, tokens):
    return bert.logits(params, pretrained().config, tokens)


def test_the_same_vocabulary_is_the_same_model_to_the_bit():
    old = pretrained()
    new = resize_vocabulary(old, old.tokenizer).pretrained
    jax.tree.map(np.testing.assert_array_equal, new.params, old.params)
    assert new.config == old.config


def test_rows_that_no_token_has_are_left_out():
    """Of spare rows, and of those that pad a run's vocabulary."""
    old = pretrained(spare=3, vocab_multiple=8)
    assert len(table(old)) == 16
    new = resize_vocabulary(old, old.tokenizer).pretrained
    assert new.config == dataclasses.replace(old.config, vocab_size=12, vocab_multiple=1)
    np.testing.assert_array_equal(table(new), table(old)[:12])
    np.testing.assert_array_equal(bias(new), bias(old)[:12])


def test_a_new_token_is_the_mean_and_as_likely_as_the_others_are_at_most():
    old = pretrained()
    words = [*SPECIAL, *WORDS, "dog", "ran"]
    new, found, size = resize_vocabulary(old, tokenizer_of(words))
    assert (found, size) == (12, 14)
    np.testing.assert_allclose(table(new)[12:], np.tile(table(old).mean(0), (2, 1)), rtol=1e-5)
    np.testing.assert_allclose(bias(new)[12:], bias(old).mean(), rtol=1e-5)
    told = bert.logits(new.params, new.config, jnp.array([[5, 4, 8]], jnp.int32))
    average = jax.nn.logsumexp(told[..., :12], axis=-1) - np.log(12)
    assert np.all(told[..., 12:] <= average[..., None] + 1e-5)


def test_special_tokens_go_by_their_role():
    old = pretrained()
    words = ["<s>", "<pad>", "</s>", "<unk>", "cat", "dog", "<mask>"]
    new, found, _ = resize_vocabulary(old, tokenizer_of(words))
    assert found == 6
    np.testing.assert_array_equal(table(new)[[0, 1, 2, 3, 4, 6]], table(old)[[2, 0, 3, 1, 6, 4]])
    assert new.config.mask_id == 6


def test_a_separator_that_pads_gives_no_padding_its_row():
    old = pretrained(words=("[UNK]", "[CLS]", "[SEP]", "cat", "[MASK]"))
    new, found, _ = resize_vocabulary(old, tokenizer_of(("[PAD]", "[SEP]", "[MASK]")))
    assert found == 2
    np.testing.assert_allclose(table(new)[0], table(old).mean(0), rtol=1e-5)


def test_without_a_tokenizer_the_sizes_must_agree():
    old = pretrained(tokenizer=False)
    same = resize_vocabulary(old, pretrained().tokenizer).pretrained
    np.testing.assert_array_equal(table(same), table(old))
    with pytest.raises(ValueError, match=r"no tokenizer for its 12 tokens: .* and has 3"):
        resize_vocabulary(old, tokenizer_of(("[PAD]", "[SEP]", "[MASK]")))


def test_a_model_without_an_output_bias_has_none_then():
    old = pretrained(use_bias=False)
    new = resize_vocabulary(old, tokenizer_of([*SPECIAL, *WORDS, "dog"])).pretrained
    assert "bias" not in new.params["head"] and len(table(new)) == 13
