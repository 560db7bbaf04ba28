"""BERTScore: how similar two texts are, by an encoder's hidden states of their tokens.

    states = [features.of_tokens(params, encoder, rows) for rows in (written, wanted)]
    bertscore.score(written, states[0], wanted, states[1]).f1  # f64[N]

(Zhang et al. 2020, "BERTScore: Evaluating Text Generation with BERT".) Row i is compared with row
i, so it suits text that has a counterpart: filled in, rewritten, translated. The scores depend on
the encoder. They are far from 0 for unrelated text: report the scores of other real text beside
them.
"""

from typing import NamedTuple

import numpy as np

from mdlm_jax.data import Rows


class BertScore(NamedTuple):
    """Scores of N pairs of rows, f64[N] each, in [-1, 1].

    Attributes:
      precision: how well the reference matches the tokens of the candidate.
      recall: how well the candidate matches the tokens of the reference.
      f1: their harmonic mean; 0 where their sum is 0.
    """

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray


def score(
    candidates: Rows,
    candidate_states: np.ndarray,
    references: Rows,
    reference_states: np.ndarray,
) -> BertScore:
    """Scores each candidate by the reference of the same number.

    With x the states of the reference's tokens and y those of the candidate's, of unit length:
    `recall = mean_i max_j x_i . y_j`, `precision = mean_j max_i x_i . y_j` and
    `f1 = 2 precision recall / (precision + recall)` (Zhang et al. 2020, section 3, without idf).
    Separators count as other tokens do, padding does not. Nothing is rescaled by a baseline.

    Args:
      candidates: N rows.
      candidate_states: f[N, L, D], the states of their tokens.
      references: N rows.
      reference_states: f[N, M, D].

    Raises:
      ValueError: the shapes do not fit together.
    """
    if len(candidates) != len(references):
        raise ValueError(
            f"there are {len(candidates)} candidates and {len(references)} references: there must "
            "be one reference for each"
        )
    ours = _texts("candidate", candidates, candidate_states)
    theirs = _texts("reference", references, reference_states)
    if candidate_states.shape[2] != reference_states.shape[2]:
        raise ValueError(
            f"candidate_states have width {candidate_states.shape[2]} and reference_states "
            f"{reference_states.shape[2]}: both must come from the same encoder"
        )
    precision, recall = np.empty(len(ours)), np.empty(len(ours))
    for i, (y, x) in enumerate(zip(ours, theirs, strict=True)):
        similarity = y @ x.T  # [tokens of the candidate, of the reference]
        precision[i] = similarity.max(axis=1).mean(dtype=np.float64)
        recall[i] = similarity.max(axis=0).mean(dtype=np.float64)
    total = precision + recall
    return BertScore(precision, recall, 2 * precision * recall / np.where(total == 0, 1.0, total))


def _texts(name: str, rows: Rows, states: np.ndarray) -> list[np.ndarray]:
    """Of each row the states of its tokens, of unit length: f[tokens, D]."""
    if states.ndim != 3 or states.shape[:2] != rows.tokens.shape:
        raise ValueError(
            f"{name}_states have shape {states.shape}: the rows are {rows.tokens.shape}, and each "
            "of their tokens must have one state"
        )
    norms = np.linalg.norm(states, axis=-1, keepdims=True)
    units = states / np.where(norms > 0, norms, 1.0)
    return [unit[there] for unit, there in zip(units, rows.text, strict=True)]
