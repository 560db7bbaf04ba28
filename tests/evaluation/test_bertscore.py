import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdlm_jax import data
from mdlm_jax.evaluation.samples import bertscore

VOCAB = 6


def rows_of(tokens, sizes=None):
    tokens = np.array(tokens)
    return data.Rows(tokens, np.zeros(len(tokens), np.int32), sizes)


def draw(seed, count=4, lengths=(5, 7), width=3):
    """Candidates and references with states."""
    random = np.random.default_rng(seed)

    def one(length):
        sizes = random.integers(1, length + 1, count)
        rows = rows_of(random.integers(0, VOCAB, (count, length)), sizes)
        return rows, random.normal(size=(count, length, width)).astype(np.float32)

    return (*one(lengths[0]), *one(lengths[1]))


def plainly(candidates, candidate_states, references, reference_states):
    """Equation 1 of the paper, token by token."""

    def cosine(x, y):
        return float(x @ y) / math.sqrt(float(x @ x) * float(y @ y))

    def matched(states, others):
        best = [max(cosine(state, other) for other in others) for state in states]
        return sum(best) / len(best)

    told = []
    for i in range(len(candidates)):
        n, m = candidates.sizes[i], references.sizes[i]
        y, x = candidate_states[i, :n], reference_states[i, :m]
        precision, recall = matched(y, x), matched(x, y)
        told.append((precision, recall, 2 * precision * recall / (precision + recall)))
    return np.array(told).T


@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_plain_loop(seed):
    pairs = draw(seed)
    np.testing.assert_allclose(bertscore.score(*pairs), plainly(*pairs), rtol=1e-4)


def test_by_hand():
    # Reference: east, north; candidate: east, east.
    states = np.array([[[2.0, 0], [0, 1]]]), np.array([[[1.0, 0], [3, 0]]])
    told = bertscore.score(rows_of([[0, 1]]), states[1], rows_of([[2, 3]]), states[0])
    assert (told.precision, told.recall) == (1, 1 / 2)
    assert told.f1 == pytest.approx(2 / 3)


@given(st.integers(0, 2**32 - 1))
def test_the_roles_can_be_exchanged(seed):
    candidates, y, references, x = draw(seed)
    told = bertscore.score(candidates, y, references, x)
    back = bertscore.score(references, x, candidates, y)
    np.testing.assert_allclose(told.precision, back.recall, rtol=1e-6)
    np.testing.assert_allclose(told.f1, back.f1, rtol=1e-6)
    assert (np.abs(told.precision) < 1 + 1e-6).all()


def test_equal_rows_score_one():
    rows, states, _, _ = draw(0)
    for each in bertscore.score(rows, states, rows, states * 7):
        np.testing.assert_allclose(each, 1, rtol=1e-6)


def test_what_stands_in_padding_says_nothing():
    pairs = draw(0)
    told = bertscore.score(*pairs)
    for rows, states in (pairs[:2], pairs[2:]):
        rows.tokens[np.arange(states.shape[1]) >= rows.sizes[:, None]] = 0
        states[np.arange(states.shape[1]) >= rows.sizes[:, None]] = 1e9
    np.testing.assert_array_equal(bertscore.score(*pairs), told)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: rows_of([[0] * 5] * 3)}, "3 candidates and 4 references"),
        (
            {1: np.ones((4, 4, 3))},
            r"candidate_states have shape \(4, 4, 3\): the rows are \(4, 5\)",
        ),
        ({3: np.ones((4, 7, 2))}, "width 3 and reference_states 2: both .* the same encoder"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    pairs = draw(0)
    pairs = [change.get(i, part) for i, part in enumerate(pairs)]
    with pytest.raises(ValueError, match=message):
        bertscore.score(*pairs)


def test_it_is_the_authors_on_the_same_features():
    """`pip install bert-score`."""
    theirs = pytest.importorskip("bert_score.utils")
    import torch

    # To them a text of two tokens, a start and an end, is empty, and padding matches by 0 whatever
    # matches by less: states of real encoders have a large part in common, and never do.
    candidates, y, references, x = draw(3, lengths=(9, 8), width=16)
    y, x = y + 0.5, x + 0.5
    for rows in (candidates, references):
        rows.sizes[:] = np.maximum(rows.sizes, 3)

    def parts(rows, states):
        valid = torch.tensor(np.arange(states.shape[1]) < rows.sizes[:, None])
        return torch.tensor(states), valid, valid.float()  # without idf every token weighs 1

    told = theirs.greedy_cos_idf(*parts(references, x), *parts(candidates, y))
    ours = bertscore.score(candidates, y, references, x)
    np.testing.assert_allclose(ours, np.stack(told), rtol=1e-5)
