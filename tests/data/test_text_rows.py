"""Files become rows in which every token stands once."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdlm_jax import data

WORDS = ("the", "river", "runs", "past", "an", "old", "stone", "mill", "and", "market")


@pytest.fixture(scope="module")
def tokenizer():
    return data.train_tokenizer(
        [" ".join(WORDS)] * 3, kind="wordpiece", vocab_size=120, lowercase=True
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("text_rows")


@settings(max_examples=25)
@given(
    texts=st.lists(
        st.lists(st.sampled_from(WORDS), min_size=1, max_size=9), min_size=1, max_size=5
    ),
    length=st.integers(2, 12),
)
def test_rows_hold_every_token_once_and_in_order(tokenizer, folder, texts, length):
    lines = [" ".join(words) for words in texts]
    (folder / "text.txt").write_text("\n".join(lines))
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in lines))
    expected = np.concatenate(list(data.encode_documents(tokenizer, lines)))
    for files, documents in (("text.txt", "line"), ("text.jsonl", "file")):
        rows = data.read_rows(str(folder / files), tokenizer, length, documents=documents)
        assert rows.tokens.shape == (-(-len(expected) // length), length)
        np.testing.assert_array_equal(rows.tokens[rows.counted], expected)
        batches = data.eval_batches(rows, batch_size=2)
        assert sum(batch["maskable"].sum() for batch in batches) == len(expected)
        assert (rows.sizes is None) == (len(expected) % length == 0)


def test_text_that_is_not_there_is_refused(tokenizer, folder):
    with pytest.raises(ValueError, match=r"gone\.txt' matches no file"):
        data.read_rows(str(folder / "gone.txt"), tokenizer, 8)
    (folder / "blank.txt").write_text(" \n")
    with pytest.raises(ValueError, match=r"blank\.txt' hold no text"):
        data.read_rows(str(folder / "blank.txt"), tokenizer, 8)
