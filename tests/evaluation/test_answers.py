"""Answers against responses, counted by hand and by brute force."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdlm_jax import data
from mdlm_jax.evaluation.samples import answers, bertscore

SEP, LENGTH = 9, 8
ROWS = np.array(
    [
        [1, SEP, 4, 5, 4, SEP, SEP, SEP],
        [1, 2, SEP, SEP, SEP, SEP, SEP, SEP],  # an empty response
        [1, 2, 3, SEP, 6, 6, 7, 8],  # one that is cut
        [1, SEP, 4, SEP, SEP, SEP, SEP, SEP],
    ]
)
PROMPTS = np.array([2, 3, 4, 2], np.int32)
WANTED = answers.responses(ROWS, PROMPTS, SEP)


def written(*texts):
    """Answers of these tokens, as a model may leave them: text of its own behind the separator."""
    rows = ROWS.copy()
    for row, first, text in zip(rows, PROMPTS, texts, strict=True):
        row[first:] = ([*text, SEP] + [3] * LENGTH)[: LENGTH - first]
    return answers.responses(rows, PROMPTS, SEP)


def by_tokens(candidates, references):
    """BERTScore of states that tell tokens apart and nothing else."""
    states = np.eye(SEP + 1)
    pair = candidates, states[candidates.tokens], references, states[references.tokens]
    return bertscore.score(*pair)


def test_a_response_goes_to_its_separator_or_the_rows_end():
    assert WANTED.tokens.tolist() == [
        [4, 5, 4, SEP, SEP, SEP, SEP, SEP],
        [SEP] * 8,
        [6, 6, 7, 8, SEP, SEP, SEP, SEP],
        [4, SEP, SEP, SEP, SEP, SEP, SEP, SEP],
    ]
    assert WANTED.sizes.tolist() == [4, 1, 4, 2]
    same = written([4, 5, 4], [], [6, 6, 7, 8], [4])
    np.testing.assert_array_equal(same.tokens, WANTED.tokens)
    np.testing.assert_array_equal(same.sizes, WANTED.sizes)


def test_by_hand():
    made = written([4, 4, 7], [6], [6, 6, 7], [4, 4])
    assert answers.exact_match(made, WANTED).tolist() == [0, 0, 0, 0]
    # Two of three and three; none; three of three and four; one of two and one.
    f1 = [2 * 2 / 6, 0, 2 * 3 / 7, 2 * 1 / 3]
    np.testing.assert_allclose(answers.token_f1(made, WANTED, SEP), f1)
    assert answers.length_right(made, WANTED, SEP).tolist() == [1, 0, 0, 0]

    half = written([4, 5, 4], [], [6, 6, 7, 7], [5])
    assert answers.exact_match(half, WANTED).tolist() == [1, 1, 0, 0]
    assert answers.length_right(half, WANTED, SEP).tolist() == [1, 1, 1, 1]
    told = answers.describe(half, WANTED, SEP, by_tokens)
    assert (told["rows"], told["exact_match"], told["length_right"]) == (4, 0.5, 1)
    assert told["exact_match_error"] == pytest.approx((1 / 3) ** 0.5 / 2)
    assert told["token_f1"] == pytest.approx((1 + 1 + 2 * 3 / 8 + 0) / 4)
    # Precision: all; the separator; all, 7 twice; the separator alone. Recall: of 8 not.
    assert told["bertscore_precision"] == pytest.approx((1 + 1 + 1 + 1 / 2) / 4)
    assert told["bertscore_recall"] == pytest.approx((1 + 1 + 3 / 4 + 1 / 2) / 4)


def test_a_response_is_all_that_it_should_be():
    itself = answers.describe(WANTED, WANTED, SEP, by_tokens)
    assert itself.pop("rows") == 4
    assert itself == {
        key: 0 if key.endswith("_error") else pytest.approx(1, abs=1e-6) for key in itself
    }
    with pytest.raises(ValueError, match="at least 2 rows are needed, not 1"):
        answers.another(WANTED[:1], seed=0)


@given(st.integers(2, 9), st.integers(0, 2**32 - 1))
def test_another_response_is_never_the_rows_own(count, seed):
    tokens = np.tile(np.arange(count)[:, None], 3)
    some = data.Rows(tokens, np.zeros(count, np.int32), np.full(count, 3, np.int32))
    other = answers.another(some, seed).tokens[:, 0]
    assert sorted(other) == list(range(count)) and (other != np.arange(count)).all()


def test_of_a_single_row_no_error_is_known():
    told = answers.describe(WANTED[:1], WANTED[:1], SEP, by_tokens)
    assert all(told[key] is None for key in told if key.endswith("_error"))


texts = st.lists(st.integers(0, 3), max_size=6)


@given(st.lists(st.tuples(st.integers(1, 5), texts, texts), min_size=1, max_size=4))
def test_it_is_the_plain_loop(cases):
    prompts = np.array([first for first, _, _ in cases], np.int32)

    def laid_out(which):
        rows = np.full((len(cases), 12), SEP)
        for row, case in zip(rows, cases, strict=True):
            row[case[0] : case[0] + len(case[which])] = case[which]
        return answers.responses(rows, prompts, SEP)

    made, wanted = laid_out(1), laid_out(2)
    assert made.sizes.tolist() == [len(ours) + 1 for _, ours, _ in cases]
    assert answers.exact_match(made, wanted).tolist() == [a == b for _, a, b in cases]
    lengths = [len(a) == len(b) for _, a, b in cases]
    assert answers.length_right(made, wanted, SEP).tolist() == lengths
    for f1, (_, ours, theirs) in zip(answers.token_f1(made, wanted, SEP), cases, strict=True):
        both = sum(min(ours.count(token), theirs.count(token)) for token in range(4))
        precision, recall = both / max(len(ours), 1), both / max(len(theirs), 1)
        harmonic = 2 * precision * recall / (precision + recall) if both else float(ours == theirs)
        assert f1 == pytest.approx(harmonic)
