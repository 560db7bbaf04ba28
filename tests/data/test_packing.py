from unittest import mock

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mdlm_jax import data
from mdlm_jax.data import packing

documents_and_labels = st.lists(
    st.tuples(st.lists(st.integers(0, 99), min_size=1, max_size=12), st.integers(0, 3)), max_size=20
)


def laid_out(how, pairs, length, *pad_id):
    """Rows of (document, label) pairs, from arrays as they lie on disk: in chunks of any size."""
    tokens = np.array([token for document, _ in pairs for token in document], np.uint16)
    sizes = np.array([len(document) for document, _ in pairs], np.int32)
    labels = np.array([label for _, label in pairs], np.int32)
    made = []
    for chunk in (2, 2**22):
        with mock.patch.object(packing, "_CHUNK", chunk):
            stream = how(tokens, sizes, labels, length, *pad_id)
            flat = [chunk.ravel() for chunk in stream.chunks]
        made.append(np.concatenate([np.zeros(0, np.uint16), *flat]).reshape(stream.count, length))
    np.testing.assert_array_equal(*made)
    return data.Rows(made[0], stream.labels, stream.sizes, stream.prompts)


@given(pairs=documents_and_labels, length=st.integers(2, 9))
def test_rows_are_the_documents_end_to_end(pairs, length):
    rows = laid_out(data.pack, pairs, length)
    flat = [token for label in range(4) for d, own in pairs if own == label for token in d]
    assert rows.tokens.shape == (len(flat) // length, length)
    assert rows.sizes is None
    np.testing.assert_array_equal(rows.tokens.ravel(), flat[: len(rows) * length])


@given(pairs=documents_and_labels, length=st.integers(2, 9))
def test_label_is_that_of_most_tokens_of_equals_the_lowest(pairs, length):
    rows = laid_out(data.pack, pairs, length)
    flat = [label for label in range(4) for d, own in pairs if own == label for _ in d]
    for i, label in enumerate(rows.labels):
        row = flat[i * length : (i + 1) * length]
        assert label == max(range(4), key=lambda label: (row.count(label), -label))


def test_border_row_by_hand():
    rows = laid_out(data.pack, [([7, 8, 9], 1), ([1, 2, 3, 4, 5], 0)], 4)
    np.testing.assert_array_equal(rows.tokens, [[1, 2, 3, 4], [5, 7, 8, 9]])
    np.testing.assert_array_equal(rows.labels, [0, 1])


@given(pairs=documents_and_labels, length=st.integers(2, 9))
def test_padded_rows_are_the_documents_one_by_one(pairs, length):
    rows = laid_out(data.pad, pairs, length, 500)
    expected = [(d + [500] * length)[:length] for d, _ in pairs]
    np.testing.assert_array_equal(rows.tokens, np.reshape(expected, (len(pairs), length)))
    np.testing.assert_array_equal(rows.sizes, [min(len(d), length) for d, _ in pairs])
    np.testing.assert_array_equal(rows.labels, [label for _, label in pairs])


SEP = 500
prompts_and_responses = st.lists(
    st.tuples(*2 * [st.lists(st.integers(0, 99), max_size=7)], st.integers(0, 3)), max_size=20
)


def pairs_of(tokens, sizes, labels, length, pairs):
    prompts = np.array([len(prompt) + 1 for prompt, *_ in pairs], np.int32)
    return data.pair(tokens, sizes, prompts, labels, length, SEP)


@given(pairs=prompts_and_responses, length=st.integers(2, 12))
def test_a_pair_fills_its_row_and_is_cut_or_left_out(pairs, length):
    documents = [([*p, SEP, *r, SEP], label) for p, r, label in pairs]
    rows = laid_out(pairs_of, documents, length, pairs)
    # Room for one token behind the prompt and its separator: of the response, or its end.
    fitting = [pair for pair in pairs if len(pair[0]) + 2 <= length]
    expected = [[*p, SEP, *r, *[SEP] * length][:length] for p, r, _ in fitting]
    np.testing.assert_array_equal(rows.tokens, np.reshape(expected, (len(fitting), length)))
    np.testing.assert_array_equal(rows.labels, [label for *_, label in fitting])
    np.testing.assert_array_equal(rows.prompts, [len(p) + 1 for p, *_ in fitting])
    whole = np.array([len(p) + len(r) + 2 for p, r, _ in fitting], int)
    np.testing.assert_array_equal(rows.sizes, np.minimum(whole, length))
    np.testing.assert_array_equal(rows.counts, rows.sizes - rows.prompts)
    np.testing.assert_array_equal(rows.counted.sum(axis=1), rows.counts)
    for i, (_, response, _) in enumerate(fitting):
        counted = [*response, SEP][: length - rows.prompts[i]]
        np.testing.assert_array_equal(rows.tokens[i][rows.counted[i]], counted)


def test_cut_tokens_are_those_of_rows_that_are_there():
    pairs = [([1] * 9, [2], 0), ([1], [2] * 9, 0), ([1], [2], 0)]
    tokens = np.array([t for p, r, _ in pairs for t in [*p, SEP, *r, SEP]], np.uint16)
    sizes, prompts = np.array([12, 12, 4], np.int32), np.array([10, 2, 2], np.int32)
    stream = data.pair(tokens, sizes, prompts, np.zeros(3, np.int32), 8, SEP)
    assert (stream.count, stream.cut_tokens) == (2, 4)
    assert data.pad(tokens, sizes, np.zeros(3, np.int32), 8, 0).cut_tokens == 8


def test_nearly_every_row_of_the_default_corpus_has_one_label(wikipedia):
    labels = wikipedia.splits["train"].labels
    assert (np.diff(labels) >= 0).all()
    assert (np.diff(labels) > 0).sum() == len(wikipedia.label_names) - 1
