"""The frontier: what samples are worth and what they cost, for strategies, steps and temperatures.

A point describes rows that the model wrote, beside as many rows of real text: how predictable they
are to another model (nats), how diverse they are (entropy, distinct-n, repetition), and how many
network evaluations and seconds they took. Compare samplers by the frontier of nats and entropy, not
by either alone (Pynadath et al. 2026, "Generative Frontiers"): a lower temperature trades entropy
for nats at any quality.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from mdlm_jax import data
from mdlm_jax.evaluation.samples import memorisation, naive_bayes, text_metrics
from mdlm_jax.evaluation.samples.scorers import Scorer

Point = dict[str, Any]

_DISTINCT = (1, 2, 3)  # the n of distinct-n
_REPEATED = 4  # the n of repetition


class Judges(NamedTuple):
    """What rows are measured with.

    Attributes:
      scorer: gives the nats of each row under another model.
      train: the training split, from which samples may repeat runs of tokens.
      classifier: for models with classes, else None.
      mauve: gives the MAUVE of rows against real text; None without an encoder.
    """

    scorer: Scorer
    train: data.Rows
    classifier: naive_bayes.NaiveBayes | None = None
    mauve: Callable[[data.Rows], float] | None = None


def reference_rows(rows: data.Rows, count: int) -> data.Rows:
    """Rows of real text to compare with, evenly spaced, and of all labels alike where they can be.

    Args:
      rows: a split.
      count: how many rows; if the split has fewer, all of them.
    """
    turn = np.empty(len(rows))
    for label in np.unique(rows.labels):
        of_label = np.flatnonzero(rows.labels == label)
        # Any prefix of this order is spread over the label's rows.
        turn[of_label] = np.argsort(np.argsort(_spread(len(of_label)), kind="stable"))
    chosen = np.sort(np.argsort(turn, kind="stable")[:count])
    return rows[chosen]


def describe(rows: data.Rows, judges: Judges) -> Point:
    """The metrics of rows, samples or real text; errors are standard errors over rows.

    Returns:
      rows, tokens; nats (per token of the rows, by the scorer), nats_error; entropy, entropy_error;
      distinct_1, distinct_2, distinct_3; repetition; memorised (the longest run of tokens of a row
      that stands in the training split, the mean over rows), memorised_error, memorised_longest;
      with an encoder mauve; and with a classifier class_accuracy (the share of rows that it gives
      their label), class_accuracy_error. None where it is undefined.
    """
    nats = text_metrics.mean(judges.scorer(rows), rows.lengths)
    entropy = text_metrics.mean(text_metrics.unigram_entropy(rows))
    figures = {
        "rows": len(rows),
        "tokens": int(rows.lengths.sum()),
        "nats": nats.value,
        "nats_error": nats.error,
        "entropy": entropy.value,
        "entropy_error": entropy.error,
        **{f"distinct_{n}": text_metrics.distinct(rows, n) for n in _DISTINCT},
        "repetition": text_metrics.mean(text_metrics.repetition(rows, _REPEATED)).value,
    }
    overlaps = memorisation.longest_overlaps(rows, judges.train)
    memorised = text_metrics.mean(overlaps.astype(float))
    figures |= {
        "memorised": memorised.value,
        "memorised_error": memorised.error,
        "memorised_longest": int(overlaps.max()),
    }
    if judges.mauve is not None:
        figures["mauve"] = judges.mauve(rows)
    if judges.classifier is not None:
        right = naive_bayes.classify(judges.classifier, rows) == rows.labels
        accuracy = text_metrics.mean(right.astype(float))
        figures |= {"class_accuracy": accuracy.value, "class_accuracy_error": accuracy.error}
    return {name: None if value != value else value for name, value in figures.items()}


def _spread(count: int) -> np.ndarray:
    """Numbers in [0, 1) that sort 0..count-1 so that any prefix is spread out."""
    bits = max(count - 1, 1).bit_length()
    places = np.arange(count)
    return sum(((places >> i) & 1) / 2.0 ** (i + 1) for i in range(bits))
