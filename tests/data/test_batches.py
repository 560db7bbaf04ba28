import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdlm_jax import data


def make_rows(count, length=6):
    """Rows whose first token and label are their own index."""
    tokens = np.arange(count)[:, None] + np.arange(length) * 1000
    return data.Rows(tokens.astype(np.uint16), np.arange(count, dtype=np.int32))


def make_padded(count, length=6):
    rows = make_rows(count, length)
    return data.Rows(rows.tokens, rows.labels, np.arange(count, dtype=np.int32) % length + 1)


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_batch_has_fixed_shapes_and_types():
    rows = make_rows(10)
    batch = data.train_batches(rows, batch_size=4, seed=0).at(3)
    assert {name: (x.shape, x.dtype.name) for name, x in batch.items()} == {
        "tokens": ((4, 6), "int32"),
        "maskable": ((4, 6), "bool"),
        "label": ((4,), "int32"),
    }
    assert batch["maskable"].all()
    np.testing.assert_array_equal(batch["tokens"], rows.tokens[batch["label"]])


@settings(max_examples=15)
@given(st.integers(4, 20), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_every_epoch_visits_every_row_once(count, batch_size, seed):
    batches = data.train_batches(make_rows(count), batch_size=batch_size, seed=seed)
    seen = np.concatenate([batches.at(step)["label"] for step in range(3 * count // batch_size)])
    for epoch in np.split(seen[: seen.size // count * count], seen.size // count):
        assert sorted(epoch) == list(range(count))


def test_epochs_and_seeds_differ():
    rows = make_rows(64)
    batches = data.train_batches(rows, batch_size=64, seed=0)
    orders = [tuple(batches.at(step)["label"]) for step in range(4)]
    others = [
        tuple(data.train_batches(rows, batch_size=64, seed=seed).at(0)["label"])
        for seed in range(1, 5)
    ]
    assert len({*orders, *others, tuple(range(64))}) == 9


@settings(max_examples=5)
@given(st.permutations(range(25)), st.integers(0, 5))
def test_batch_is_independent_of_what_was_read_before(steps, seed):
    visited, straight = (
        data.train_batches(make_rows(101), batch_size=5, seed=seed) for _ in range(2)
    )
    batches = {step: visited.at(step) for step in steps}
    for step in range(25):
        assert_same(batches[step], straight.at(step))


@pytest.mark.parametrize("start", [0, 1, 7, 40])
def test_iterating_from_any_step_continues_the_straight_run(start):
    batches = data.train_batches(make_rows(101), batch_size=5, seed=3)
    resumed = itertools.islice(batches.iterate(start), 12)
    for step, batch in enumerate(resumed, start):
        assert_same(batch, batches.at(step))


@pytest.mark.parametrize("processes", [2, 3])
def test_slices_of_the_processes_are_the_whole_batch(processes):
    rows = make_rows(23)
    whole = data.train_batches(rows, batch_size=6, seed=1)
    slices = [
        data.train_batches(rows, batch_size=6, seed=1, local=local)
        for local in np.split(np.arange(6), processes)
    ]
    for step in range(9):
        parts = [part.at(step) for part in slices]
        assert {len(part["label"]) for part in parts} == {6 // processes}
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        assert_same(joined, whole.at(step))


def test_a_process_reads_only_its_rows():
    class Recorded(np.ndarray):
        read = 0

        def __getitem__(self, ids):
            Recorded.read += len(ids)
            return np.asarray(self)[ids]

    rows = make_rows(23)
    recorded = data.Rows(rows.tokens.view(Recorded), rows.labels)
    data.train_batches(recorded, batch_size=6, seed=1, local=[1, 4]).at(2)
    assert Recorded.read == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": 24}, "batch_size 24 exceeds the corpus: it has 23 rows"),
        ({"batch_size": 4, "seed": -1}, r"seed must be in \[0, 2\*\*32\), got -1"),
        (
            {"batch_size": 4, "local": [3, 4]},
            r"local must be rows in \[0, batch_size=4\), got \[3 4\]",
        ),
    ],
)
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        data.train_batches(make_rows(23), **{"seed": 0, **arguments})


@given(st.integers(1, 20), st.integers(1, 8))
def test_evaluation_visits_every_row_once_in_order(count, batch_size):
    rows = make_rows(count)
    batches = list(data.eval_batches(rows, batch_size=batch_size))
    assert {batch["tokens"].shape for batch in batches} == {(batch_size, 6)}
    joined = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    real = joined["maskable"].any(axis=1)
    np.testing.assert_array_equal(joined["maskable"], np.repeat(real[:, None], 6, axis=1))
    np.testing.assert_array_equal(joined["rows"], np.arange(len(real)))
    np.testing.assert_array_equal(np.flatnonzero(real), np.arange(count))
    np.testing.assert_array_equal(joined["tokens"][real], rows.tokens)
    np.testing.assert_array_equal(joined["label"][real], rows.labels)
    assert not joined["tokens"][~real].any()


def test_evaluation_batches_have_the_types_of_training_batches():
    batch = next(data.eval_batches(make_rows(3), batch_size=2))
    types = {name: values.dtype.name for name, values in batch.items()}
    assert types == {"tokens": "int32", "maskable": "bool", "label": "int32", "rows": "int32"}


def test_evaluation_refuses_an_empty_batch_at_once():
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        data.eval_batches(make_rows(3), batch_size=0)


def test_padding_of_a_batch_is_neither_valid_nor_maskable():
    rows = make_padded(20)
    batch = data.train_batches(rows, batch_size=8, seed=0).at(1)
    sizes = rows.sizes[batch["label"]]
    expected = [[i < size for i in range(6)] for size in sizes]
    np.testing.assert_array_equal(batch["valid"], expected)
    np.testing.assert_array_equal(batch["maskable"], expected)
    assert batch["valid"].dtype == bool


def test_padded_rows_are_evaluated_once_and_filled_up_with_nothing():
    rows = make_padded(7)
    batches = list(data.eval_batches(rows, batch_size=3))
    valid = np.concatenate([batch["valid"] for batch in batches])
    np.testing.assert_array_equal(valid.sum(axis=1), [*rows.sizes, 0, 0])
    np.testing.assert_array_equal(valid, np.concatenate([b["maskable"] for b in batches]))


def make_pairs(count, length=6):
    """Prompts of 1 to 3 tokens, separators included; the separator is 7."""
    rows = make_padded(count, length)
    prompts = np.arange(count, dtype=np.int32) % 3 + 1
    return data.Rows(rows.tokens, rows.labels, np.maximum(rows.sizes, prompts + 1), prompts)


def test_of_a_pair_all_behind_the_prompt_is_maskable_and_nothing_is_padding():
    rows = make_pairs(20)
    batch = data.train_batches(rows, batch_size=8, seed=0).at(1)
    expected = [[i >= prompt for i in range(6)] for prompt in rows.prompts[batch["label"]]]
    np.testing.assert_array_equal(batch["maskable"], expected)
    assert batch.keys() == {"tokens", "maskable", "label"}


def test_pairs_are_evaluated_once():
    rows = make_pairs(7)
    batches = list(data.eval_batches(rows, batch_size=3))
    maskable = np.concatenate([batch["maskable"] for batch in batches])
    np.testing.assert_array_equal(maskable.sum(axis=1), [*(6 - rows.prompts), 0, 0])
    assert all("valid" not in batch for batch in batches)
