import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mdlm_jax import data
from mdlm_jax.evaluation.bounds import ngrams


def rows_of(tokens, sizes=None):
    tokens = np.array(tokens)
    return data.Rows(tokens, np.zeros(len(tokens), np.int32), sizes)


def unigram_cross_entropy(train, test, vocab_size):
    return ngrams.unigram_cross_entropy(rows_of(train), rows_of(test), vocab_size)


def bigram_cross_entropy(train, test, vocab_size):
    return ngrams.bigram_cross_entropy(rows_of(train), rows_of(test), vocab_size)


VOCAB = 4
TRAIN = np.array([[0, 1, 0], [1, 0, 2]])
# c(0) = 3, c(1) = 2, c(2) = 1, N = 6: p = 4/10, 3/10, 2/10, 1/10.
# Pairs within rows: (0, 1), (1, 0), (1, 0), (0, 2): c(0.) = 2, T(0) = 2; c(1.) = 2, T(1) = 1.

matrices = hnp.arrays(
    np.int64, st.tuples(st.integers(1, 5), st.integers(1, 6)), elements=st.integers(0, VOCAB - 1)
)


def pair_probability(train, v, w):
    """p(w | v), read off the cross-entropy of the single row [v, w]."""
    both = 2 * bigram_cross_entropy(train, np.array([[v, w]]), VOCAB)
    return math.exp(unigram_cross_entropy(train, np.array([[v]]), VOCAB) - both)


def test_unigram_by_hand():
    test = np.array([[0, 1], [2, 3]])
    expected = -sum(map(math.log, (0.4, 0.3, 0.2, 0.1))) / 4
    assert unigram_cross_entropy(TRAIN, test, VOCAB) == pytest.approx(expected)


def test_bigram_by_hand():
    test = np.array([[0, 1, 0], [2, 3, 3]])
    probabilities = [
        0.4,  # first of its row
        (1 + 2 * 0.3) / (2 + 2),  # 1 after 0
        (2 + 1 * 0.4) / (2 + 1),  # 0 after 1
        0.2,  # first of its row
        0.1,  # 2 was never followed
        0.1,  # nor was 3
    ]
    expected = -sum(map(math.log, probabilities)) / 6
    assert bigram_cross_entropy(TRAIN, test, VOCAB) == pytest.approx(expected)


@settings(deadline=None)
@given(matrices)
def test_unigram_probabilities_sum_to_one(train):
    total = sum(math.exp(-unigram_cross_entropy(train, [[w]], VOCAB)) for w in range(VOCAB))
    assert total == pytest.approx(1)


@settings(deadline=None)
@given(matrices, st.integers(0, VOCAB - 1))
def test_bigram_probabilities_sum_to_one(train, v):
    assert sum(pair_probability(train, v, w) for w in range(VOCAB)) == pytest.approx(1)


@settings(deadline=None)
@given(matrices, matrices)
def test_bigram_is_the_plain_loop(train, test):
    counts = np.zeros((VOCAB, VOCAB))
    for row in train:
        for v, w in itertools.pairwise(row):
            counts[v, w] += 1
    unigram = [((train == w).sum() + 1) / (train.size + VOCAB) for w in range(VOCAB)]
    nats = 0.0
    for row in test:
        nats -= math.log(unigram[row[0]])
        for v, w in itertools.pairwise(row):
            distinct = (counts[v] > 0).sum()
            total = counts[v].sum() + distinct
            p = (counts[v, w] + distinct * unigram[w]) / total if total else unigram[w]
            nats -= math.log(p)
    assert bigram_cross_entropy(train, test, VOCAB) == pytest.approx(nats / test.size)


@settings(deadline=None)
@given(matrices, matrices, st.data())
def test_padding_is_neither_counted_nor_scored(train, test, draw):
    def padded(tokens):
        width = st.integers(1, tokens.shape[1])
        sizes = np.array(draw.draw(st.lists(width, min_size=len(tokens), max_size=len(tokens))))
        return rows_of(tokens, sizes), [row[:size] for row, size in zip(tokens, sizes, strict=True)]

    (train, train_rows), (test, test_rows) = padded(train), padded(test)
    flat = np.concatenate(train_rows)
    unigram = [((flat == w).sum() + 1) / (flat.size + VOCAB) for w in range(VOCAB)]
    nats = [-math.log(unigram[w]) for row in test_rows for w in row]
    assert ngrams.unigram_cross_entropy(train, test, VOCAB) == pytest.approx(np.mean(nats))

    pairs = [pair for row in train_rows for pair in itertools.pairwise(row)]
    nats = []
    for row in test_rows:
        nats.append(-math.log(unigram[row[0]]))
        for v, w in itertools.pairwise(row):
            distinct = len({pair for pair in pairs if pair[0] == v})
            total = sum(pair[0] == v for pair in pairs) + distinct
            p = (pairs.count((v, w)) + distinct * unigram[w]) / total if total else unigram[w]
            nats.append(-math.log(p))
    assert ngrams.bigram_cross_entropy(train, test, VOCAB) == pytest.approx(np.mean(nats))


@pytest.mark.parametrize("score", [ngrams.unigram_cross_entropy, ngrams.bigram_cross_entropy])
def test_chunks_change_nothing(score, monkeypatch):
    random = np.random.default_rng(0)
    train, test = (rows_of(random.integers(0, VOCAB, (50, 7))) for _ in range(2))
    at_once = score(train, test, VOCAB)
    monkeypatch.setattr(ngrams, "_CHUNK", 20)
    assert score(train, test, VOCAB) == pytest.approx(at_once)


def test_long_text_is_counted_in_evenly_spaced_rows(monkeypatch):
    monkeypatch.setattr(ngrams, "COUNTED", 12)
    train = np.repeat([[0], [1], [2], [1]] * 2, 6, axis=1)  # 48 tokens: every fourth row
    assert unigram_cross_entropy(train, [[0]], VOCAB) == pytest.approx(-math.log(13 / 16))


def test_context_helps_where_there_is_any():
    train = np.tile([0, 1, 2, 3], (50, 5))
    assert unigram_cross_entropy(train, train, VOCAB) == pytest.approx(math.log(4))
    assert bigram_cross_entropy(train, train, VOCAB) < 0.1


@pytest.mark.parametrize("score", [unigram_cross_entropy, bigram_cross_entropy])
@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (TRAIN, [[0, 4]], "test must hold ids below 4, the size of the vocabulary, got 4"),
        ([[-1, 0]], TRAIN, "train must hold ids of 0 or more, got -1"),
        ([0, 1], TRAIN, r"train must be a matrix of token ids that is not empty, got \(2,\)"),
        (TRAIN, np.zeros((0, 3)), r"test must be a matrix .* got \(0, 3\)"),
    ],
)
def test_wrong_rows_are_refused(score, train, test, message):
    with pytest.raises(ValueError, match=message):
        score(train, test, VOCAB)
