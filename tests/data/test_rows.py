"""Rows: which of their tokens count for what, and how they are read and checked."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdlm_jax import data

KINDS = ("packed", "padded", "pairs")


@st.composite
def some_rows(draw, kinds=KINDS):
    """Rows of each kind, and the lists that they were made of: (prompt, rest, filler) of each."""
    kind = draw(st.sampled_from(kinds))
    count, length = draw(st.integers(1, 4)), draw(st.integers(2, 6))
    tokens = np.arange(count * length).reshape(count, length)
    within = st.integers(1, length - 1)
    prompts = np.array([draw(within) if kind == "pairs" else 0 for _ in range(count)])
    sizes = np.array(
        [length if kind == "packed" else draw(st.integers(n + 1, length)) for n in prompts]
    )
    parts = [
        (row[:prompt].tolist(), row[prompt:size].tolist(), row[size:].tolist())
        for row, prompt, size in zip(tokens, prompts, sizes, strict=True)
    ]
    rows = data.Rows(
        tokens.astype(np.uint16),
        np.zeros(count, np.int32),
        None if kind == "packed" else sizes.astype(np.int32),
        prompts.astype(np.int32) if kind == "pairs" else None,
    )
    return kind, rows, parts


def chosen(rows, mask):
    assert mask.dtype == bool and mask.shape == rows.tokens.shape
    return [row[which].tolist() for row, which in zip(rows.tokens, mask, strict=True)]


@given(some_rows())
def test_which_tokens_count(drawn):
    kind, rows, parts = drawn
    assert chosen(rows, rows.text) == [prompt + rest for prompt, rest, _ in parts]
    assert chosen(rows, rows.counted) == [rest for _, rest, _ in parts]
    filled = [rest + filler if kind == "pairs" else rest for _, rest, filler in parts]
    assert chosen(rows, rows.maskable) == filled
    if kind == "padded":
        assert chosen(rows, rows.valid) == [rest for _, rest, _ in parts]
    else:
        assert rows.valid is None
    assert rows.lengths.tolist() == rows.text.sum(axis=1).tolist()
    assert rows.counts.tolist() == rows.counted.sum(axis=1).tolist()
    assert rows.counts.dtype == np.int32
    assert [each.tolist() for each in rows.texts()] == chosen(rows, rows.text)


@given(some_rows(), st.integers(1, 20))
def test_chunks_are_all_rows_in_order(drawn, size):
    _, rows, _ = drawn
    parts = list(rows.chunks("rows", size))
    length = rows.tokens.shape[1]
    assert all(part.tokens.size <= max(size, length) for part in parts)
    for name in ("tokens", "maskable", "counted", "labels"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(joined, getattr(rows, name))


@pytest.mark.parametrize("sizes", [None, np.arange(5)])
def test_a_slice_of_rows_is_rows(sizes):
    rows = data.Rows(np.arange(10).reshape(5, 2), np.arange(5), sizes)[1:3]
    assert len(rows) == 2
    np.testing.assert_array_equal(rows.tokens, [[2, 3], [4, 5]])
    np.testing.assert_array_equal(rows.labels, [1, 2])
    assert (rows.sizes is None) if sizes is None else list(rows.sizes) == [1, 2]


def rows_of(tokens, sizes=None):
    tokens = np.array(tokens)
    return data.Rows(tokens, np.zeros(len(tokens), np.int32), sizes)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (rows_of([1, 2]), r"rows must be a matrix of token ids that is not empty, got \(2,\)"),
        (rows_of(np.zeros((0, 3), int)), r"rows must be a matrix .* got \(0, 3\)"),
        (rows_of([[0, -1]]), "rows must hold ids of 0 or more, got -1"),
        (rows_of([[0, 7]]), "rows must hold ids below 7, the size of the vocabulary, got 7"),
        (rows_of([[0, 1]] * 2, np.array([1, 0])), "rows must have from 1 to 2 tokens, got 0 to"),
        (rows_of([[0, 1]], np.array([3])), "rows must have from 1 to 2 tokens, got 3 to 3"),
    ],
)
def test_what_is_no_text_is_refused(rows, message):
    for check in (rows.check, lambda name, size: list(rows.chunks(name, 2, size))):
        with pytest.raises(ValueError, match=message):
            check("rows", 7)
