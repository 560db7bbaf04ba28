"""The frontier on a terminal: a line of real text, then a line for each point once measured."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

REAL_TEXT = "real text"
FOOT = """\
nats: per token, under the scorer, +- standard error; entropy: of a row's tokens, likewise;
distinct-n, rep-4: shares of n-grams; overlap: the longest run of a row that occurs in the
training text, in tokens; evals: network evaluations a row; seconds: of all samples, compilation
excluded. Fewer nats with less entropy mean plainer text, not better text."""
CLASS_FOOT = "class: the share of rows in the wanted class, by naive Bayes of the training split."


class Column(NamedTuple):
    """A column of a table of points: its head, its width, and its cell of a point."""

    head: str
    width: int
    cell: Callable[[Mapping[str, Any]], str]


def number(name: str, layout: str) -> Callable[[Mapping[str, Any]], str]:
    """The cell of a number; empty if it is missing."""
    return lambda row: "" if row.get(name) is None else layout.format(row[name])


def with_error(name: str, layout: str = "{:.3f}") -> Callable[[Mapping[str, Any]], str]:
    """The cell of a number and its `NAME_error`."""

    def cell(row):
        value, error = row[name], row[f"{name}_error"]
        return layout.format(value) + ("" if error is None else f" +- {layout.format(error)}")

    return cell


_SETTING = (
    Column("steps", 5, number("steps", "{:d}")),
    Column("temp", 5, number("temperature", "{:g}")),
)
_GUIDANCE = (Column("guidance", 8, number("guidance", "{:g}")),)
_METRICS = (
    Column("nats", 15, with_error("nats")),
    Column("entropy", 14, with_error("entropy")),
    Column("distinct-1", 10, number("distinct_1", "{:.3f}")),
    Column("-2", 5, number("distinct_2", "{:.3f}")),
    Column("-3", 5, number("distinct_3", "{:.3f}")),
    Column("rep-4", 6, number("repetition", "{:.1%}")),
    Column("overlap", 11, with_error("memorised", "{:.1f}")),
)
_MAUVE = (Column("mauve", 6, number("mauve", "{:.3f}")),)
_CLASS = (Column("class", 10, with_error("class_accuracy", "{:.0%}")),)
_COST = (
    Column("evals", 6, number("evaluations", "{:.1f}")),
    Column("seconds", 7, number("seconds", "{:.2f}")),
)


class Table(NamedTuple):
    """The layout of the lines.

    Attributes:
      name_width: characters of the first column.
      columns: the others.
    """

    name_width: int
    columns: tuple[Column, ...]


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
    """The line of a point of `points.measure`, or of real text from `frontier.describe`."""
    cells = [column.cell(point).rjust(column.width) for column in layout.columns]
    name = point.get("strategy", REAL_TEXT).ljust(layout.name_width)
    return "  ".join([name, *cells]).rstrip()
