import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from mdlm_jax import data
from mdlm_jax.evaluation.bounds import likelihoods, text_sizes

TEXTS = ["one two three", "a", "four five", "six seven eight nine ten"] * 300


@pytest.fixture(scope="module")
def tokenizer():
    """A character is a token; white space is written as it is."""
    letters = sorted(set("".join(TEXTS)))
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
    model = models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]")
    made = Tokenizer(model)
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.decoder = decoders.Fuse()
    made.add_special_tokens(names[:5])
    return made


def rows_of(tokenizer, length):
    separator = data.special_ids(tokenizer).sep
    stream = [i for text in TEXTS for i in (*tokenizer.encode(text).ids, separator)]
    rows = np.array(stream[: len(stream) // length * length], np.int32).reshape(-1, length)
    return data.Rows(rows, np.zeros(len(rows), np.int32)), stream[rows.size :]


@pytest.mark.parametrize("length", [7, 50])
def test_words_that_rows_share_count_once(tokenizer, length):
    rows, cut = rows_of(tokenizer, length)
    size = text_sizes.text_size(rows, tokenizer)
    assert len(rows) > 256  # several pieces
    lost = len(cut)
    assert size.characters == sum(len(text) + 1 for text in TEXTS) - lost
    assert abs(size.words - sum(len(text.split()) for text in TEXTS)) <= lost


def test_padding_is_no_text(tokenizer):
    rows = np.zeros((3, 9), np.int32)
    sizes = np.array([3, 1, 5], np.int32)
    for row, text in zip(rows, ("one", "a", "a six"), strict=True):
        row[: len(text)] = tokenizer.encode(text).ids
    size = text_sizes.text_size(data.Rows(rows, np.zeros(3, np.int32), sizes), tokenizer)
    assert size == (4, 9)


def test_units_hold_the_same_nats():
    told = likelihoods.per_text_unit(2.0, 60, text_sizes.TextSize(words=24, characters=120))
    assert told["nats_per_word"] == 5.0 and told["nats_per_character"] == 1.0
    assert told["bits_per_character"] == pytest.approx(1 / np.log(2))
