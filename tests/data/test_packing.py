import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdlm_jax import data

documents_and_labels = st.lists(
    st.tuples(st.lists(st.integers(0, 99), min_size=1, max_size=12), st.integers(0, 3)), max_size=20
)


@given(documents_and_labels, st.integers(2, 9))
def test_rows_are_the_documents_end_to_end(pairs, length):
    rows = data.pack([np.array(d) for d, _ in pairs], [label for _, label in pairs], length)
    flat = [token for label in range(4) for d, own in pairs if own == label for token in d]
    assert rows.tokens.shape == (len(flat) // length, length)
    np.testing.assert_array_equal(rows.tokens.ravel(), flat[: len(rows) * length])


@given(documents_and_labels, st.integers(2, 9))
def test_label_is_that_of_most_tokens(pairs, length):
    rows = data.pack([np.array(d) for d, _ in pairs], [label for _, label in pairs], length)
    flat = [label for label in range(4) for d, own in pairs if own == label for _ in d]
    for i, label in enumerate(rows.labels):
        row = flat[i * length : (i + 1) * length]
        assert row.count(label) == max(map(row.count, row))


def test_border_row_by_hand():
    rows = data.pack([np.array([7, 8, 9]), np.array([1, 2, 3, 4, 5])], [1, 0], 4)
    np.testing.assert_array_equal(rows.tokens, [[1, 2, 3, 4], [5, 7, 8, 9]])
    np.testing.assert_array_equal(rows.labels, [0, 1])


def test_nearly_every_row_of_the_default_corpus_has_one_label(wikipedia):
    labels = wikipedia.splits["train"].labels
    assert (np.diff(labels) >= 0).all()
    assert (np.diff(labels) > 0).sum() == len(wikipedia.label_names) - 1


def test_no_documents_give_no_rows():
    rows = data.pack([], [], 4)
    assert rows.tokens.shape == (0, 4)
    assert rows.labels.shape == (0,)
    assert len(rows) == 0


def test_len_is_the_number_of_rows():
    assert len(data.pack([np.arange(12)], [0], 4)) == pytest.approx(3)
