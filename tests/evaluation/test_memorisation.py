import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mdlm_jax import data
from mdlm_jax.evaluation.samples import memorisation


def rows_of(tokens, sizes=None):
    tokens = np.array(tokens)
    sizes = None if sizes is None else np.array(sizes)
    return data.Rows(tokens, np.zeros(len(tokens), np.int32), sizes)


def texts(rows):
    """The rows without their padding, as lists."""
    sizes = [rows.tokens.shape[1]] * len(rows) if rows.sizes is None else rows.sizes
    return [row[:size].tolist() for row, size in zip(rows.tokens, sizes, strict=True)]


def plainly(rows, train):
    """The longest overlaps by trying every run of every row."""
    runs = {
        tuple(text[i:j])
        for text in texts(train)
        for i in range(len(text))
        for j in range(i + 1, len(text) + 1)
    }
    return [
        max(
            j - i
            for i in range(len(text))
            for j in range(i, len(text) + 1)
            if j == i or tuple(text[i:j]) in runs
        )
        for text in texts(rows)
    ]


@st.composite
def some_rows(draw, most_rows, most_tokens, ids):
    """Rows of few different tokens, so that they share runs; half of them padded."""
    shape = draw(st.tuples(st.integers(1, most_rows), st.integers(1, most_tokens)))
    tokens = draw(hnp.arrays(np.uint16, shape, elements=st.integers(0, ids - 1)))
    width = st.integers(1, shape[1])
    sizes = st.lists(width, min_size=shape[0], max_size=shape[0])
    return rows_of(tokens, draw(st.none() | sizes))


@settings(max_examples=400)
@given(some_rows(5, 12, 3), some_rows(6, 12, 4))
def test_it_is_the_longest_of_all_runs(rows, train):
    assert memorisation.longest_overlaps(rows, train).tolist() == plainly(rows, train)


@settings(max_examples=100)
@given(some_rows(4, 40, 2), some_rows(4, 40, 2))
def test_it_is_so_of_long_repetitive_rows(rows, train):
    assert memorisation.longest_overlaps(rows, train).tolist() == plainly(rows, train)


def test_by_hand():
    train = rows_of([[1, 2, 3, 4], [5, 6, 7, 8]])
    samples = rows_of([[9, 2, 3, 4], [4, 5, 6, 9], [5, 6, 7, 8], [9, 9, 9, 9]])
    # 234 stands there; 456 only across the border of two rows; the third is a whole row.
    assert memorisation.longest_overlaps(samples, train).tolist() == [3, 2, 4, 0]


def test_padding_is_no_text():
    train = rows_of([[1, 2, 0, 0, 0]], [2])
    assert memorisation.longest_overlaps(rows_of([[1, 2, 0, 0, 0]], [3]), train).tolist() == [2]
    assert memorisation.longest_overlaps(rows_of([[2, 0, 0, 0, 0]], [1]), train).tolist() == [1]


def test_a_planted_run_is_found_in_a_long_text(tmp_path):
    random = np.random.default_rng(0)
    path = tmp_path / "train.npy"
    np.save(path, random.integers(0, 500, (2000, 50)).astype(np.uint16))
    train = data.Rows(np.load(path, mmap_mode="r"), np.zeros(2000, np.int32))
    samples = random.integers(500, 600, (8, 30))
    for i, row in enumerate(samples):
        row[3 : 3 + 2 * i] = train.tokens[1999 - 100 * i, 20 : 20 + 2 * i]
    overlaps = memorisation.longest_overlaps(rows_of(samples), train)
    assert overlaps.tolist() == [0, 2, 4, 6, 8, 10, 12, 14]


def test_many_tokens_that_all_differ():
    # So many states and symbols that the number of an edge takes more than 32 bits.
    rows = rows_of(np.random.default_rng(0).permutation(60_000).reshape(600, 100))
    train = rows_of(rows.tokens[::-1, 10:60])
    assert (memorisation.longest_overlaps(rows, train) == 50).all()


@pytest.mark.parametrize("name", ["_CHUNK", "_BLOCK"])
def test_chunks_and_blocks_change_nothing(name, monkeypatch):
    random = np.random.default_rng(0)
    rows, train = rows_of(random.integers(0, 5, (20, 9))), rows_of(random.integers(0, 5, (60, 7)))
    at_once = memorisation.longest_overlaps(rows, train)
    monkeypatch.setattr(memorisation, name, 25)
    np.testing.assert_array_equal(memorisation.longest_overlaps(rows, train), at_once)


@pytest.mark.parametrize(
    ("rows", "train", "message"),
    [
        (rows_of([1, 2]), rows_of([[1]]), r"rows must be a matrix .* got \(2,\)"),
        (rows_of([[1]]), rows_of(np.zeros((0, 3))), r"train must be a matrix .* got \(0, 3\)"),
        (rows_of([[1]]), rows_of([[-1]]), "train must hold ids of 0 or more, got -1"),
        (rows_of([[1, 2]], [0]), rows_of([[1]]), "rows must have from 1 to 2 tokens, got 0 to 0"),
    ],
)
def test_wrong_rows_are_refused(rows, train, message):
    with pytest.raises(ValueError, match=message):
        memorisation.longest_overlaps(rows, train)
