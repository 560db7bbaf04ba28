"""Tokens of documents that are encoded in parts, and the parts that documents come in."""

import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdlm_jax import data
from mdlm_jax.data.corpora import text_files
from mdlm_jax.data.corpora.documents import parts_of
from mdlm_jax.data.corpora.holding_out import hold_out
from mdlm_jax.data.tokens import encoding

WORDS = ["the", "river", "runs", "past", "an", "old", "stone", "mill"]
TOKENIZER = data.train_tokenizer(WORDS[:6] * 9, kind="wordpiece", vocab_size=110, lowercase=True)
texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=5).map(" ".join)


def batches(document):
    return st.lists(st.lists(document, max_size=4), max_size=4)


def documents(labels, prompts):
    return st.builds(data.Document, texts, labels, prompts, st.just(""), st.just(False))


kinds = st.one_of(
    batches(documents(st.integers(0, 3), st.none())),
    batches(documents(st.sampled_from(["b", "a", "10"]), st.none())),
    batches(documents(st.just(0), texts)),
)


@settings(max_examples=20)
@given(kinds)
def test_joined_batches_are_what_all_documents_give(tmp_path_factory, each):
    folder = tmp_path_factory.mktemp("join")
    whole = encoding.write_tokens(folder / "whole", [*itertools.chain(*each)], TOKENIZER)
    parts = [
        encoding.write_tokens(folder / str(number), part, TOKENIZER)
        for number, part in enumerate(each)
    ]
    joined = encoding.join(folder / "joined", ((part.tokens(), part) for part in parts), TOKENIZER)
    assert (folder / "joined").read_bytes() == (folder / "whole").read_bytes()
    for name, value in whole._replace(path=None)._asdict().items():
        np.testing.assert_array_equal(getattr(joined._replace(path=None), name), value)


def test_parts_of_files_are_their_documents_and_can_be_pickled(tmp_path):
    for name in ("a", "b", "c"):
        lines = (f'{{"text": "{name} {line}", "kind": "{line % 3}"}}' for line in range(40))
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    corpus = text_files.open_text_files(
        {"files": f"{tmp_path}/*.jsonl"}, documents="file", text_field="text", label_field="kind"
    )
    check_parts(corpus.read(tmp_path)["train"], 3)
    for documents in hold_out(corpus.read(tmp_path), share=0.2, by="documents").values():
        check_parts(documents, 3)
    for documents in hold_out(corpus.read(tmp_path), share=0.2, by="position").values():
        check_parts(documents, 1)


def check_parts(documents, count):
    parts = pickle.loads(pickle.dumps(parts_of(documents)))
    assert len(parts) == count
    assert [each for part in parts for each in part] == list(documents) != []


@pytest.mark.parametrize("documents", [[], [data.Document("a", 0)]])
def test_documents_that_know_no_parts_are_one(documents):
    assert parts_of(documents) == [documents]
