import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdlm_jax.data.corpora.documents import Document
from mdlm_jax.data.corpora.holding_out import hold_out, way

texts = st.text("abc \n", min_size=1)
documents = st.lists(st.tuples(texts, st.integers(0, 2)).map(lambda d: Document(*d)), max_size=30)
MANY = [Document(f"document {i}", 0) for i in range(4000)]


@given(documents, st.floats(0.01, 0.49))
def test_every_document_is_in_one_split_and_order_is_kept(train, share):
    splits = hold_out({"train": train}, share=share, by="documents")
    assert list(splits) == ["train", "validation", "test"]
    where = {each: name for name, part in splits.items() for each in part}
    for name, part in splits.items():
        assert list(part) == [each for each in train if where[each] == name]


def test_shares_of_documents_are_met():
    splits = hold_out({"train": MANY}, share=0.1, by="documents")
    sizes = [len(list(part)) / len(MANY) for part in splits.values()]
    assert sizes == pytest.approx([0.8, 0.1, 0.1], abs=0.02)


def test_documents_stay_when_others_are_added():
    few = hold_out({"train": MANY[:1000]}, share=0.1, by="documents")
    all_of_them = hold_out({"train": MANY}, share=0.1, by="documents")
    for name in few:
        assert set(few[name]) <= set(all_of_them[name])


@given(documents, st.floats(0.01, 0.49))
def test_positions_cut_the_characters_in_order(train, share):
    splits = hold_out({"train": train}, share=share, by="position")
    whole = [(c, label) for text, label, *_ in train for c in text]
    held = round(len(whole) * share)
    borders = [0, len(whole) - 2 * held, len(whole) - held, len(whole)]
    for part, (first, last) in zip(splits.values(), itertools.pairwise(borders), strict=True):
        found = [(c, label) for text, label, *_ in part for c in text if not c.isspace()]
        assert found == [pair for pair in whole[first:last] if not pair[0].isspace()]


def test_text8_is_cut_at_ninety_and_ninety_five_per_cent():
    text = "".join(chr(97 + i % 26) for i in range(1000))
    splits = hold_out({"train": [Document(text, 0)]}, share=0.05, by="position")
    assert {name: [text for text, *_ in part] for name, part in splits.items()} == {
        "train": [text[:900]],
        "validation": [text[900:950]],
        "test": [text[950:]],
    }


@pytest.mark.parametrize("by", ["documents", "position"])
def test_only_what_is_missing_is_held_out(by):
    named = [Document("named", 0)]
    splits = hold_out({"train": MANY, "validation": named}, share=0.1, by=by)
    assert splits["validation"] == named
    sizes = [len(list(splits[name])) / len(MANY) for name in ("train", "test")]
    assert sizes == pytest.approx([0.9, 0.1], abs=0.02)
    given = {"train": MANY, "validation": named, "test": named}
    assert hold_out(given, share=0.1, by=by) == given


@given(documents, st.floats(0.01, 0.49), st.sampled_from([(), ("validation",), ("test",)]))
def test_a_hash_that_leaves_a_split_empty_gives_way_to_position(train, share, named):
    given = {"train": train, **{name: [Document("named", 0)] for name in named}}
    by_hash = hold_out(given, share=share, by="documents")
    filled = all(list(part) for part in by_hash.values())
    assert way(given, share=share, by="documents") == ("documents" if filled else "position")
    assert way(given, share=share, by="position") == "position"


def test_pairs_and_given_splits_are_left_as_asked():
    pair = [Document("a", 0, prompt="b")]
    assert way({"train": pair}, share=0.05, by="documents") == "documents"
    one = [Document("a", 0)]
    splits = {"train": one, "validation": one, "test": one}
    assert way(splits, share=0.05, by="documents") == "documents"
