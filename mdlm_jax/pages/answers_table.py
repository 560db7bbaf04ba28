"""Answers on a terminal: two lines of references, then a line for each point once measured."""

from collections.abc import Sequence

from mdlm_jax.pages.frontier_table import Column, Table, number, with_error

ITSELF, ANOTHER = "response itself", "another row's"
FOOT = """\
exact: every token and the end; token F1: of the tokens, in any order; length: as many tokens as the
response; BERTScore: precision, recall and F1 by the encoder of {encoder}; all +- standard error
over rows; evals: network evaluations a row. Another row's response scores what text that ignores
the prompt scores: compare BERTScores with that, not with 0."""

_COLUMNS = (
    Column("steps", 5, number("steps", "{:d}")),
    Column("exact", 15, with_error("exact_match", "{:.1%}")),
    Column("token F1", 14, with_error("token_f1")),
    Column("length", 15, with_error("length_right", "{:.1%}")),
    Column("BERTScore P", 14, with_error("bertscore_precision")),
    Column("R", 14, with_error("bertscore_recall")),
    Column("F1", 14, with_error("bertscore_f1")),
    Column("evals", 6, number("evaluations", "{:.1f}")),
)


def table(strategies: Sequence[str]) -> Table:
    """The layout for strategies of these names; see `frontier_table.heads` and `line`."""
    return Table(max(map(len, (ITSELF, ANOTHER, *strategies))), _COLUMNS)
