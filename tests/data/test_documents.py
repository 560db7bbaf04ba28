"""Texts that come in pieces, of which every reader makes what it makes of the whole."""

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdlm_jax import data
from mdlm_jax.data import preparation, reading
from mdlm_jax.data.corpora import documents, text_files
from mdlm_jax.data.corpora.holding_out import hold_out, way
from mdlm_jax.data.tokens import encoding, tokenization, unknowns

LETTERS = "ab é\n "
TOKENIZER = data.train_tokenizer(["ab ba aa"] * 9, kind="characters", vocab_size=9, lowercase=True)


def cut_up(text, places):
    borders = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[first:last] for first, last in itertools.pairwise(borders)]


@st.composite
def corpora(draw):
    """Documents, and the same in pieces, some of them empty."""
    texts = draw(st.lists(st.text(LETTERS, max_size=40), max_size=6))
    wholes, pieces = [], []
    for number, text in enumerate(texts):
        label = ["b", "a"][number % 2]
        parts = cut_up(text, draw(st.lists(st.integers(0, 40), max_size=4)))
        wholes.append(data.Document(text, label, place=f"{number}"))
        pieces += [wholes[-1]._replace(text=part, more=True) for part in parts[:-1]]
        pieces.append(wholes[-1]._replace(text=parts[-1]))
    return wholes, pieces


@pytest.fixture(autouse=True, scope="module")
def short():
    """Pieces of tokenization are of eight characters, so that texts have many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenization, "_PIECE", 8)
        yield


@given(corpora(), st.none() | st.integers(1, 50))
def test_joined_pieces_are_the_texts(corpus, most):
    wholes, pieces = corpus
    found = list(documents.whole(pieces, most=most))
    assert [each._replace(text="") for each in found] == [d._replace(text="") for d in wholes]
    for each, document in zip(found, wholes, strict=True):
        # A text that came whole is left as it is.
        assert document.text.startswith(each.text) and len(each.text) >= min(
            len(document.text), most or 10**9
        )


@given(corpora())
def test_of_nothing_but_white_space_no_piece_is_left(corpus):
    wholes, pieces = corpus
    found = list(documents.without_blank(pieces))
    assert list(documents.whole(found)) == [d for d in wholes if d.text.strip()]
    assert len(found) <= len(pieces)


@given(corpora(), st.floats(0.01, 0.49), st.sampled_from(["documents", "position"]))
def test_pieces_are_held_out_as_the_texts_are(corpus, share, by):
    wholes, pieces = ({"train": each} for each in corpus)
    expected = hold_out(wholes, share=share, by=by)
    for split, found in hold_out(pieces, share=share, by=by).items():
        assert list(documents.whole(found)) == list(expected[split])
    assert way(pieces, share=share, by=by) == way(wholes, share=share, by=by)


@given(corpora())
def test_pieces_are_cut_as_the_texts_are(corpus):
    wholes, pieces = corpus
    expected = [piece for document in wholes for piece in tokenization.cut(document.text)]
    found = list(tokenization.cut_pieces((each.text, each.more) for each in pieces))
    assert [piece for piece, _ in found] == expected
    assert sum(is_last for _, is_last in found) == len(wholes)


@settings(max_examples=40)
@given(corpora())
def test_tokens_of_pieces_are_those_of_the_texts(tmp_path_factory, corpus):
    folder = tmp_path_factory.mktemp("tokens")
    expected, found = (
        encoding.write_tokens(folder / name, each, TOKENIZER)
        for name, each in zip(("whole", "pieces"), corpus, strict=True)
    )
    np.testing.assert_array_equal(found.tokens(), expected.tokens())
    for name, value in expected._replace(path=None)._asdict().items():
        np.testing.assert_array_equal(getattr(found._replace(path=None), name), value)
    told = [
        unknowns.measure(each, encoded, TOKENIZER)
        for each, encoded in zip(corpus, (expected, found), strict=True)
    ]
    assert told[0] == told[1]


@given(corpora(), st.integers(0, 90))
def test_a_tokenizer_is_trained_on_the_same(corpus, characters):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparation, "TRAINING_CHARACTERS", characters)
        expected, found = (list(preparation._TrainingTexts(each)) for each in corpus)
    assert "".join(found) == "".join(expected)
    # Behind the last character that counts, nothing is read any more.
    assert [text for text in found if text] == [text for text in expected if text]


def prepared(tmp_path, name, **fields):
    config = data.Config(files=f"{tmp_path}/*.txt", length=8, vocab_size=150, **fields)
    return data.prepare(config, tmp_path / name)


@pytest.mark.parametrize("files", [1, 40])
@pytest.mark.parametrize("kind", ["wordpiece", "characters"])
def test_rows_do_not_depend_on_the_pieces_of_a_file(tmp_path, monkeypatch, files, kind):
    text = "".join(f"word{i % 7} é, then\n\n {i % 11} more. " for i in range(400))
    for number in range(files):
        (tmp_path / f"{number}.txt").write_text(text[number:], encoding="utf-8")
    whole = prepared(tmp_path, "whole", tokenizer=kind)
    monkeypatch.setattr(reading, "_BLOCK", 53)
    in_pieces = prepared(tmp_path, "pieces", tokenizer=kind)
    assert in_pieces.fingerprint == whole.fingerprint
    assert in_pieces.card["splits"] == whole.card["splits"]


def documents_of(path):
    return text_files.open_text_files(
        {"files": str(path)}, documents="file", text_field="text", label_field=""
    ).read(None)


def test_of_a_long_file_little_is_in_memory(tmp_path, monkeypatch):
    path = tmp_path / "long.txt"
    with path.open("w") as file:
        for number in range(2**13):
            file.write(f"{number:8}" + " of a long text" * 68 + "\n")
    size = path.stat().st_size
    assert size > 2**23
    monkeypatch.setattr(reading, "_BLOCK", 2**16)
    monkeypatch.setattr(tokenization, "_PIECE", 2**14)
    monkeypatch.setattr(tokenization, "_CHUNK", 2**16)
    tracemalloc.start()
    splits = hold_out(documents_of(path), share=0.05, by="position")
    encoded = encoding.encode_splits(tmp_path, splits, TOKENIZER)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    characters = [each.counts["characters"] for each in encoded.values()]
    assert sum(characters) == size and [len(each.sizes) for each in encoded.values()] == [1] * 3
    assert most < 2**22
