import json
import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdlm_jax import data
from mdlm_jax.data import wikipedia as source

ORDINARY = [
    "the well-known composer's works (about 1,000 of them) were not played until 1901.",
    "it isn't far: 3.14 km; or so, they say!",
    "the war of 1939-1945 cost $5 or more: 50% of it [citation needed].",
]


@pytest.fixture(scope="module")
def texts():
    return [article["extract"] for article in source.load_summaries()[:400]]


@pytest.fixture(scope="module")
def wordpiece(texts):
    return data.train_tokenizer(texts, kind="wordpiece", vocab_size=1000, lowercase=True)


@pytest.fixture(scope="module")
def bpe(texts):
    return data.train_tokenizer(texts, kind="bpe", vocab_size=1000, lowercase=False)


@pytest.fixture(params=["wordpiece", "bpe"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


def test_special_tokens_come_first_and_vocabulary_is_filled(tokenizer):
    assert data.special_ids(tokenizer) == (0, 1, 2, 3, 4)
    assert tokenizer.get_vocab_size() == 1000
    assert sorted(tokenizer.get_vocab().values()) == list(range(1000))


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_training_twice_gives_the_same_tokenizer(texts, kind):
    first, second = (
        data.train_tokenizer(texts, kind=kind, vocab_size=600, lowercase=True).to_str()
        for _ in range(2)
    )
    assert first == second


@pytest.mark.parametrize("text", ORDINARY)
def test_round_trip_of_ordinary_text(tokenizer, text):
    assert data.decode(tokenizer, tokenizer.encode(text).ids) == text


@given(st.text(min_size=1).map(str.strip).filter(lambda s: "[" not in s))
def test_bpe_round_trip_is_exact(bpe, text):
    assert data.decode(bpe, bpe.encode(text).ids) == text


@given(st.text(string.printable))
def test_wordpiece_knows_all_of_ascii(wordpiece, text):
    assert data.special_ids(wordpiece).unk not in wordpiece.encode(text).ids


@given(st.lists(st.text(string.ascii_lowercase, min_size=1), min_size=1).map(" ".join))
def test_wordpiece_round_trip_of_words(wordpiece, text):
    assert data.decode(wordpiece, wordpiece.encode(text).ids) == text


def test_lowercase_folds_case(wordpiece, bpe):
    assert data.decode(wordpiece, wordpiece.encode("The Alps").ids) == "the alps"
    assert data.decode(bpe, bpe.encode("The Alps").ids) == "The Alps"


def test_mask_in_a_prompt_is_the_mask(tokenizer):
    mask = data.special_ids(tokenizer).mask
    assert tokenizer.encode("[MASK] [MASK]").ids == [mask, mask]
    assert tokenizer.encode("[MASK][MASK]").ids == [mask, mask]
    ids = tokenizer.encode("the [MASK] of [MASK].").ids
    words = (tokenizer.encode(word).ids for word in ("the", " of", "."))
    assert ids == [
        i for part in zip(words, ([mask], [mask], []), strict=True) for p in part for i in p
    ]


def test_masks_survive_the_round_trip(tokenizer):
    ids = tokenizer.encode("the [MASK] [MASK] of it").ids
    assert tokenizer.encode(data.decode(tokenizer, ids)).ids == ids


def test_documents_end_in_a_separator_and_hold_no_other_special(tokenizer):
    special = data.special_ids(tokenizer)
    (ids,) = data.encode_documents(tokenizer, ["a [MASK] and [SEP] or [PAD] in the text"])
    assert ids[-1] == special.sep
    assert not set(ids[:-1]) & {special.pad, special.cls, special.sep, special.mask}


def test_decode_shows_documents_on_lines_of_their_own(tokenizer):
    first, second = data.encode_documents(tokenizer, ["one river", "two towns"])
    ids = np.concatenate([[2], first, second, [0, 0]])
    assert data.decode(tokenizer, ids) == "one river\ntwo towns"


def test_load_gives_the_saved_tokenizer(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    loaded = data.load_tokenizer(path)
    ids = loaded.encode(ORDINARY[0] + " [MASK]").ids
    assert ids == tokenizer.encode(ORDINARY[0] + " [MASK]").ids
    assert data.decode(loaded, ids) == data.decode(tokenizer, ids)


@pytest.mark.parametrize(("kind", "size"), [("wordpiece", 60), ("bpe", 260)])
def test_too_small_vocabulary_names_the_least(texts, kind, size):
    with pytest.raises(
        ValueError, match=rf"vocab_size {size} is too small: .* take (\d+)"
    ) as error:
        data.train_tokenizer(texts, kind=kind, vocab_size=size, lowercase=True)
    assert "\n" not in str(error.value)


def test_least_vocabulary_of_bpe_is_the_bytes(texts):
    tokenizer = data.train_tokenizer(texts, kind="bpe", vocab_size=261, lowercase=True)
    assert tokenizer.get_vocab_size() == 261


def test_unknown_kind_is_named(texts):
    with pytest.raises(ValueError, match="one of wordpiece, bpe, got 'unigram'"):
        data.train_tokenizer(texts, kind="unigram", vocab_size=600, lowercase=True)


def test_file_without_mask_is_named(wordpiece, tmp_path):
    path = tmp_path / "tokenizer.json"
    contents = json.loads(wordpiece.to_str())
    contents["added_tokens"] = [t for t in contents["added_tokens"] if t["content"] != "[MASK]"]
    del contents["model"]["vocab"]["[MASK]"]
    path.write_text(json.dumps(contents))
    with pytest.raises(ValueError, match=r"tokenizer\.json: the tokenizer has no \[MASK\] in"):
        data.load_tokenizer(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no tokenizer at .*none\.json"):
        data.load_tokenizer(tmp_path / "none.json")
