"""The frontier as lines of a terminal: real text first, then a line as each point is measured."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

REAL_TEXT = "real text"
FOOT = """\
nats: per token, under the scorer, +- standard error; entropy: of a row's tokens, likewise;
distinct-n, rep-4: shares of n-grams; overlap: the longest run of a row that stands in the
training text, in tokens; evals: network evaluations a row; seconds: of all samples, compilation
excluded. Fewer nats with less entropy is plainer text, not better text."""
CLASS_FOOT = "class: rows that naive Bayes, made of the training split, gives the class asked for."


class _Column(NamedTuple):
    head: str
    width: int
    cell: Callable[[Mapping[str, Any]], str]


def _number(name: str, layout: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda row: "" if row.get(name) is None else layout.format(row[name])


def _with_error(name: str, layout: str = "{:.3f}") -> Callable[[Mapping[str, Any]], str]:
    def cell(row):
        value, error = row[name], row[f"{name}_error"]
        return layout.format(value) + ("" if error is None else f" +- {layout.format(error)}")

    return cell


_SETTING = (
    _Column("steps", 5, _number("steps", "{:d}")),
    _Column("temp", 5, _number("temperature", "{:g}")),
)
_GUIDANCE = (_Column("guidance", 8, _number("guidance", "{:g}")),)
_METRICS = (
    _Column("nats", 15, _with_error("nats")),
    _Column("entropy", 14, _with_error("entropy")),
    _Column("distinct-1", 10, _number("distinct_1", "{:.3f}")),
    _Column("-2", 5, _number("distinct_2", "{:.3f}")),
    _Column("-3", 5, _number("distinct_3", "{:.3f}")),
    _Column("rep-4", 6, _number("repetition", "{:.1%}")),
    _Column("overlap", 11, _with_error("memorised", "{:.1f}")),
)
_MAUVE = (_Column("mauve", 6, _number("mauve", "{:.3f}")),)
_CLASS = (_Column("class", 10, _with_error("class_accuracy", "{:.0%}")),)
_COST = (
    _Column("evals", 6, _number("evaluations", "{:.1f}")),
    _Column("seconds", 7, _number("seconds", "{:.2f}")),
)


class Table(NamedTuple):
    """The layout of the lines.

    Attributes:
      name_width: characters of the first column.
      columns: the others.
    """

    name_width: int
    columns: tuple[_Column, ...]


def table(names: Sequence[str], *, guided: bool, classes: bool, mauve: bool) -> Table:
    """The layout for strategies of these names."""
    return Table(
        max(map(len, (REAL_TEXT, *names))),
        (
            *_SETTING,
            *(_GUIDANCE if guided else ()),
            *_METRICS,
            *(_MAUVE if mauve else ()),
            *(_CLASS if classes else ()),
            *_COST,
        ),
    )


def heads(layout: Table) -> str:
    """The heads of the columns."""
    cells = [column.head.rjust(column.width) for column in layout.columns]
    return "  ".join(["".ljust(layout.name_width), *cells])


def line(layout: Table, point: Mapping[str, Any]) -> str:
    """A point of `frontier.measure`, or real text as `frontier.describe` tells it."""
    cells = [column.cell(point).rjust(column.width) for column in layout.columns]
    name = point.get("strategy", REAL_TEXT).ljust(layout.name_width)
    return "  ".join([name, *cells]).rstrip()
