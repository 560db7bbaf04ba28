import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from networks.tiny import BASE, params_of
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from mdlm_jax import data
from mdlm_jax.evaluation.samples import features
from mdlm_jax.networks import bert

PARAMS = params_of(BASE)
TOKENS = np.random.default_rng(0).integers(4, BASE.vocab_size, (5, BASE.max_length))
SIZES = np.array([8, 3, 1, 5, 8], np.int32)


def rows_of(tokens, sizes=None):
    tokens = np.array(tokens, np.int32)
    return data.Rows(tokens, np.zeros(len(tokens), np.int32), sizes)


@pytest.fixture(scope="module")
def states():
    """Of padded rows, 4 at a time, so that the last batch is filled up."""
    return features.of_tokens(PARAMS, BASE, rows_of(TOKENS, SIZES), batch_size=4)


def test_states_are_the_encoders(states):
    assert states.shape == (5, 8, BASE.width) and states.dtype == np.float32
    assert not states[np.arange(8) >= SIZES[:, None]].any()
    for i in (3, 4):  # one that is padded, and one of the batch that is filled up
        tokens = jnp.array(TOKENS[i : i + 1, : SIZES[i]], jnp.int32)
        alone = bert.hidden_states(PARAMS, BASE, tokens)
        np.testing.assert_allclose(states[i, : SIZES[i]], alone[0], rtol=1e-4, atol=1e-5)


def test_rows_are_the_means_of_their_tokens(states):
    means = [of_row[:size].mean(axis=0) for of_row, size in zip(states, SIZES, strict=True)]
    told = features.of_rows(PARAMS, BASE, rows_of(TOKENS, SIZES), batch_size=4)
    np.testing.assert_allclose(told, means, rtol=1e-5, atol=1e-6)


def test_what_stands_in_padding_says_nothing(states):
    other = np.where(np.arange(8) < SIZES[:, None], TOKENS, 5)
    told = features.of_tokens(PARAMS, BASE, rows_of(other, SIZES), batch_size=4)
    np.testing.assert_array_equal(told, states)


def test_packed_rows_are_read_whole():
    full = np.full(5, 8, np.int32)
    packed = features.of_rows(PARAMS, BASE, rows_of(TOKENS), batch_size=4)
    padded = features.of_rows(PARAMS, BASE, rows_of(TOKENS, full), batch_size=4)
    np.testing.assert_allclose(packed, padded, rtol=1e-5, atol=1e-6)


def test_time_and_classes_are_seen_to():
    config = dataclasses.replace(BASE, time_conditioning=True, classes=2, dtype="bfloat16")
    told = features.of_rows(params_of(config), config, rows_of(TOKENS), batch_size=4)
    assert told.shape == (5, BASE.width) and told.dtype == np.float32
    assert np.isfinite(told).all()


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.zeros(3), r"rows must be a matrix .* got \(3,\)"),
        (np.zeros((2, 9)), "rows have length 9: max_length is 8"),
        ([[0, 13]], "rows must hold ids below 13, the size of the vocabulary, got 13"),
        ([[-1, 2]], "rows must hold ids of 0 or more, got -1"),
    ],
)
def test_rows_that_cannot_be_read_are_refused(tokens, message):
    with pytest.raises(ValueError, match=message):
        features.of_rows(PARAMS, BASE, rows_of(tokens))


def tokenizer(*pieces):
    """Splits at white space, and words into the pieces it knows."""
    words = ["[PAD]", "[UNK]", "[SEP]", "[MASK]", *pieces]
    made = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.decoder = decoders.WordPiece()
    made.add_special_tokens(words[:4])
    return made


OURS = tokenizer("good", "morning", "night")  # 4, 5, 6
THEIRS = tokenizer("morn", "##ing", "night", "good")  # 4, 5, 6, 7


def test_rows_in_the_tokens_of_another_tokenizer():
    rows = rows_of([[4, 5, 2, 4, 6], [2, 5, 2, 0, 0], [5, 5, 5, 5, 5]], np.array([5, 3, 5]))
    rows = dataclasses.replace(rows, labels=np.array([1, 0, 2], np.int32))
    told = features.reencode(rows, OURS, THEIRS, 7)
    assert told.tokens.tolist() == [
        [7, 4, 5, 2, 7, 6, 0],
        [2, 4, 5, 2, 0, 0, 0],
        [4, 5, 4, 5, 4, 5, 4],  # cut off
    ]
    assert told.sizes.tolist() == [6, 4, 7]
    assert told.labels.tolist() == [1, 0, 2]


def test_a_row_without_text_keeps_a_separator():
    told = features.reencode(rows_of([[0, 0], [2, 2]], np.array([1, 2])), OURS, THEIRS, 3)
    assert told.tokens.tolist() == [[2, 0, 0], [2, 2, 0]]
    assert told.sizes.tolist() == [1, 2]


def test_rows_of_the_same_tokenizer_stay():
    rows = rows_of([[4, 5], [6, 2]])
    assert features.reencode(rows, OURS, Tokenizer.from_str(OURS.to_str()), 2) is rows
    assert features.reencode(rows, OURS, OURS, 1).tokens.tolist() == [[4], [6]]
