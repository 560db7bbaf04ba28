"""The frontier: what samples are worth and what they cost, for strategies, steps and temperatures.

Every point is rows that the model wrote, beside as many rows of real text: how plain they are to
another model (nats), how diverse they are (entropy, distinct-n, repetition), and the network
evaluations and seconds that they took. The frontier of nats and entropy, and not either of them
alone, compares samplers (Pynadath et al. 2026, "Generative Frontiers"): lower temperature buys nats
with entropy at any quality.
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
    """What rows are measured by, beside themselves.

    Attributes:
      scorer: nats of each row under another model.
      train: the training split, whose runs of tokens samples may repeat.
      classifier: of models with classes, else None.
      mauve: of rows, against real text; None where no encoder reads them.
    """

    scorer: Scorer
    train: data.Rows
    classifier: naive_bayes.NaiveBayes | None = None
    mauve: Callable[[data.Rows], float] | None = None


def reference_rows(rows: data.Rows, count: int) -> data.Rows:
    """Rows of real text to compare with: evenly spaced, and as evenly of all labels as there are.

    Args:
      rows: a split.
      count: how many are wanted; all are taken where there are fewer.
    """
    turn = np.empty(len(rows))
    for label in np.unique(rows.labels):
        of_label = np.flatnonzero(rows.labels == label)
        # Any first so many of these are spread over the label's rows.
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
    told = {
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
    told |= {
        "memorised": memorised.value,
        "memorised_error": memorised.error,
        "memorised_longest": int(overlaps.max()),
    }
    if judges.mauve is not None:
        told["mauve"] = judges.mauve(rows)
    if judges.classifier is not None:
        right = naive_bayes.classify(judges.classifier, rows) == rows.labels
        accuracy = text_metrics.mean(right.astype(float))
        told |= {"class_accuracy": accuracy.value, "class_accuracy_error": accuracy.error}
    return {name: None if value != value else value for name, value in told.items()}


def _spread(count: int) -> np.ndarray:
    """Numbers in [0, 1) whose order visits 0..count-1 so that any beginning is spread out."""
    bits = max(count - 1, 1).bit_length()
    places = np.arange(count)
    return sum(((places >> i) & 1) / 2.0 ** (i + 1) for i in range(bits))
