"""Two versions on a terminal: a line for each figure, with the paired difference."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from mdlm_jax.evaluation.samples.paired import RESAMPLES

Record = Mapping[str, Any]


class Figure(NamedTuple):
    """How a figure is called and written.

    Attributes:
      name: for people.
      layout: of a value.
      more: whether more is better.
    """

    name: str
    layout: str
    more: bool = False


FIGURES = {
    "exact": Figure("exact, share of prompts", "{:.1%}", more=True),
    "token_f1": Figure("token F1", "{:.3f}", more=True),
    "reference_nats": Figure("reference, nats/token, model", "{:.3f}"),
    "reference_nats_in_steps": Figure("reference, nats/token, in its steps", "{:.3f}"),
    "written_nats": Figure("written, nats/token, judged by a", "{:.3f}"),
    "evaluations": Figure("network evaluations", "{:.1f}"),
    "milliseconds": Figure("milliseconds a text", "{:.2f}"),
}
_FOOT = """\
Differences are paired by prompt; 95 % intervals by the BCa bootstrap over prompts ({resamples:,}
resamples), of the time over batches. reference: bounds of -log p of what was wanted, given the
prompt: of the model, whatever its steps, and of what it writes in its steps. written: the same of
what was written, by the model of a."""


def table(record: Record) -> str:
    """The lines of a record of `comparing.compare`."""
    shown = [name for name in FIGURES if name in record["differences"]]
    rows = [("", "a", "b", "b - a", "95 % interval", "better")]
    rows += [_row(name, record["differences"][name]) for name in shown]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"{side}: {told(record[side])}" for side in ("a", "b")]
    samples = f", {record['samples']} texts of each" if record["samples"] > 1 else ""
    lines += [f"{record['prompts']:,} prompts{samples}, seed {record['seed']}", ""]
    lines += [_line(row, widths) for row in rows]
    lines += [f"left out: {FIGURES[name].name}: {why}" for name, why in record["left_out"].items()]
    return "\n".join([*lines, _FOOT.format(resamples=RESAMPLES)])


def told(side: Mapping[str, Any]) -> str:
    """A version with its options."""
    options = {name: value for name, value in side.items() if name not in ("name", "digest")}
    return ", ".join([side["name"], *(f"{name} {value}" for name, value in options.items())])


def interval(name: str, difference: Mapping[str, float]) -> str:
    """The interval of a difference; empty where there is none."""
    if math.isnan(difference["low"]):
        return ""
    layout = FIGURES[name].layout
    return f"{_signed(layout, difference['low'])} to {_signed(layout, difference['high'])}"


def better(name: str, difference: Mapping[str, float]) -> str:
    """Which of the two is better, where the interval is on one side of 0."""
    low, high = difference["low"], difference["high"]
    if not (low > 0 or high < 0):
        return ""
    return "b" if (low > 0) == FIGURES[name].more else "a"


def _row(name: str, difference: Mapping[str, float]) -> tuple[str, ...]:
    figure = FIGURES[name]
    return (
        figure.name,
        figure.layout.format(difference["a"]),
        figure.layout.format(difference["b"]),
        _signed(figure.layout, difference["difference"]),
        interval(name, difference),
        better(name, difference),
    )


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    name, *cells = row
    padded = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
    return "  ".join([name.ljust(widths[0]), *padded]).rstrip()


def _signed(layout: str, value: float) -> str:
    return layout.replace("{:", "{:+").format(value + 0.0)
