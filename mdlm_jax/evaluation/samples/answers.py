"""Answers compared with the wanted responses, for models that were trained on pairs.

    wanted = answers.responses(rows.tokens, rows.prompts, separator)
    written = answers.responses(filled, rows.prompts, separator)
    answers.describe(written, wanted, separator, similarity)

Exact match suits questions with one right answer. BERTScore suits those that may be answered in
several ways. Neither means much by itself: report the scores of another row's response beside them.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from mdlm_jax.data import Rows
from mdlm_jax.evaluation.samples import text_metrics
from mdlm_jax.evaluation.samples.bertscore import BertScore

Point = dict[str, Any]
Similarity = Callable[[Rows, Rows], BertScore]


def responses(tokens: np.ndarray, prompts: np.ndarray, separator: int) -> Rows:
    """The tokens after each prompt, up to the first separator or else to the row's end.

    Args:
      tokens: integers [N, L], rows of pairs, as training has them or as a model filled them.
      prompts: i32[N], tokens of each prompt, its separator included; fewer than L.
      separator: its id.

    Returns:
      N rows of L tokens that begin with the response, separators behind it. Their sizes count the
      first separator, so that none is empty.
    """
    count, length = tokens.shape
    places = np.arange(length) + prompts[:, None]
    within = places < length
    moved = np.take_along_axis(np.asarray(tokens), np.minimum(places, length - 1), axis=1)
    ended = np.maximum.accumulate(~within | (moved == separator), axis=1)
    sizes = np.minimum((~ended).sum(axis=1) + 1, length - prompts).astype(np.int32)
    return Rows(np.where(ended, separator, moved), np.zeros(count, np.int32), sizes)


def another(wanted: Rows, seed: int) -> Rows:
    """For each row another row's response, each used once: real text, for another prompt.

    The order is drawn, because rows at a fixed distance may have much in common.

    Raises:
      ValueError: there is a single row.
    """
    if len(wanted) < 2:
        raise ValueError(
            "answers are compared with another row's response: at least 2 rows are needed, "
            f"not {len(wanted)}"
        )
    order = np.random.default_rng(seed).permutation(len(wanted))
    chosen = np.empty_like(order)
    chosen[order] = np.roll(order, 1)
    return wanted[chosen]


def exact_match(written: Rows, wanted: Rows) -> np.ndarray:
    """1 where the answer is the response, token for token, and ends with it, else 0: f64[N].

    SQuAD's exact match (Rajpurkar et al. 2016, section 6.1), but case and punctuation count.
    """
    return np.all(written.tokens == wanted.tokens, axis=1).astype(float)


def token_f1(written: Rows, wanted: Rows, separator: int) -> np.ndarray:
    """The F1 of the tokens of each answer, in any order, without separators: f64[N].

    Twice the number of shared tokens (as multisets) over the number of tokens of both (Rajpurkar et
    al. 2016, section 6.1, who count words). 1 where both are empty.
    """
    f1 = []
    for pair in zip(written.tokens, wanted.tokens, strict=True):
        ours, theirs = (Counter(row[row != separator].tolist()) for row in pair)
        total = ours.total() + theirs.total()
        f1.append(2 * (ours & theirs).total() / total if total else 1.0)
    return np.array(f1)


def length_right(written: Rows, wanted: Rows, separator: int) -> np.ndarray:
    """1 where an answer has as many tokens as the response, else 0: f64[N]."""
    ours, theirs = ((rows.tokens != separator).sum(axis=1) for rows in (written, wanted))
    return (ours == theirs).astype(float)


def describe(written: Rows, wanted: Rows, separator: int, similarity: Similarity) -> Point:
    """The means over rows, with their standard errors.

    Args:
      written: N answers, from `responses`.
      wanted: N responses, likewise.
      separator: its id.
      similarity: BERTScore of the first rows by the second.

    Returns:
      rows; exact_match, token_f1, length_right, bertscore_precision, bertscore_recall and
      bertscore_f1, each with NAME_error, which is None of a single row.
    """
    score = similarity(written, wanted)
    measured = {
        "exact_match": exact_match(written, wanted),
        "token_f1": token_f1(written, wanted, separator),
        "length_right": length_right(written, wanted, separator),
        **{f"bertscore_{name}": values for name, values in score._asdict().items()},
    }
    point: Point = {"rows": len(wanted)}
    for name, values in measured.items():
        mean = text_metrics.mean(values)
        point[name] = mean.value
        point[f"{name}_error"] = None if np.isnan(mean.error) else mean.error
    return point
