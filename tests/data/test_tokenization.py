import string

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mdlm_jax import data
from mdlm_jax.data.corpora import wikipedia as source
from mdlm_jax.data.tokens import tokenization
from mdlm_jax.data.tokens.tokenization import cut

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


@given(st.text().filter(lambda s: "[" not in s))
@example("\n    return x\n")
def test_bpe_round_trip_is_exact(bpe, text):
    assert data.decode(bpe, bpe.encode(text).ids) == text


@given(st.text(string.printable).filter(lambda s: "[UNK]" not in s))  # it is what it says
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
    # Where a row begins or ends with separators there is no other text to part from.
    assert data.decode(tokenizer, [3, *ids, 3, 3]) == "one river\ntwo towns"
    assert data.decode(tokenizer, [3, 0, 3]) == data.decode(tokenizer, []) == ""


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
    with pytest.raises(ValueError, match="one of wordpiece, bpe, characters, got 'unigram'"):
        data.train_tokenizer(texts, kind="unigram", vocab_size=600, lowercase=True)


@pytest.fixture(scope="module")
def characters(texts):
    return data.train_tokenizer(texts, kind="characters", vocab_size=500, lowercase=False)


def test_characters_of_text8_take_32_entries():
    text = "the quick brown fox jumps over the lazy dog"
    tokenizer = data.train_tokenizer([text], kind="characters", vocab_size=4096, lowercase=True)
    assert tokenizer.get_vocab_size() == data.vocabulary_size(tokenizer) == 32
    assert [tokenizer.id_to_token(i) for i in range(5, 32)] == [*" abcdefghijklmnopqrstuvwxyz"]


@given(st.data())
def test_characters_decode_exactly(characters, texts, data_):
    known = [c for c in characters.get_vocab() if len(c) == 1]
    text = data_.draw(st.text(known) | st.text(" \n"))
    (ids,) = data.encode_documents(characters, [text])
    assert len(ids) == len(text) + 1
    assert data.decode(characters, ids) == text


def test_characters_know_the_most_frequent():
    tokenizer = data.train_tokenizer(
        ["zzzzzzAAaa", "bbbz\n"], kind="characters", vocab_size=8, lowercase=True
    )
    assert [tokenizer.id_to_token(i) for i in range(5, 8)] == ["a", "b", "z"]
    (ids,) = data.encode_documents(tokenizer, ["Bc\nZ[MASK]"])
    assert list(ids) == [6, 1, 1, 7, 1, 1, 5, 1, 1, 1, 3]


def test_mask_among_characters_leaves_the_space_before_it(characters):
    tokens = characters.encode("a [MASK] [MASK][MASK]b").tokens
    assert tokens == ["a", " ", "[MASK]", " ", "[MASK]", "[MASK]", "b"]


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "characters"])
def test_long_documents_are_encoded_as_if_whole(request, texts, kind):
    tokenizer = request.getfixturevalue(kind)
    long = " ".join(texts)[:100_000]
    assert len(list(cut(long))) > 4 and "".join(cut(long)) == long
    first, *found, last = data.encode_documents(tokenizer, ["one", long, "x" * 40_000, "two"])
    np.testing.assert_array_equal(found[0][:-1], tokenizer.encode(long).ids)
    separator = data.special_ids(tokenizer).sep
    assert [ids[-1] for ids in (first, *found, last)] == [separator] * 4
    np.testing.assert_array_equal(last[:-1], tokenizer.encode("two").ids)


@given(st.text(), st.integers(1, 20))
def test_pieces_of_a_text_are_the_text(text, most):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenization, "_PIECE", most)
        pieces = list(cut(text))
    assert "".join(pieces) == text
    assert all(0 < len(piece) <= most for piece in pieces) or pieces == [""]


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "characters"])
@given(ids=st.lists(st.integers(0, 400), max_size=30))
def test_pieces_of_tokens_are_the_text(request, kind, ids):
    tokenizer = request.getfixturevalue(kind)
    pieces = data.token_pieces(tokenizer, ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == data.decode(tokenizer, ids)


def test_pieces_of_tokens_are_the_tokens_own(wordpiece, bpe):
    text = "the well-known mill isn't far, [MASK] 1,000 km"
    ids = wordpiece.encode(text).ids
    pieces = data.token_pieces(wordpiece, ids)
    tokens = [token.removeprefix("##").strip() for token in wordpiece.encode(text).tokens]
    assert [piece.strip() for piece in pieces] == tokens
    assert pieces[:2] == ["the", " well"] and " [MASK]" in pieces
    ids = bpe.encode("a ☃ b").ids
    pieces = data.token_pieces(bpe, ids)
    assert len(pieces) > 4 and [piece for piece in pieces if piece.strip()] == ["a", "☃", " b"]


def test_pieces_show_where_a_document_ends(wordpiece):
    ids = np.concatenate(list(data.encode_documents(wordpiece, ["one", "two"])))
    assert data.token_pieces(wordpiece, [*ids, 0, 0]) == ["one", "\n", "two", "", "", ""]


def test_mask_token_is_spelt_as_the_tokenizer_does(wordpiece):
    assert data.mask_token(wordpiece) == "[MASK]"


def test_a_row_that_begins_within_a_word_shows_no_marks():
    texts = ["the rivers ran past the old mills"] * 4
    tokenizer = data.train_tokenizer(texts, kind="wordpiece", vocab_size=110, lowercase=True)
    ids = np.concatenate(list(data.encode_documents(tokenizer, texts[:1])))
    inner = next(i for i, index in enumerate(ids) if tokenizer.id_to_token(index)[:2] == "##")
    row = data.decode(tokenizer, ids[inner:])
    assert "#" not in row and texts[0].endswith(row)
    assert "".join(data.token_pieces(tokenizer, ids[inner:])) == row
