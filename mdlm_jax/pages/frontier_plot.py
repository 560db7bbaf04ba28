"""A picture of the frontier: nats of samples against their cost, and against their diversity."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, PercentFormatter, ScalarFormatter

from mdlm_jax.pages.plots import INK, MARKERS, RUN_COLORS, STYLE, png

Point = Mapping[str, Any]

_VARIED = ("steps", "guidance", "temperature")
_COST = {  # x and y of the left axes, by what varies along the lines
    "steps": ("evaluations", "nats"),
    "guidance": ("guidance", "class_accuracy"),
    "temperature": ("temperature", "nats"),
}
_LABELS = {
    "nats": "nats per token under {scorer}",
    "entropy": "entropy of a sample, nats",
    "evaluations": "network evaluations a row",
    "guidance": "guidance weight",
    "temperature": "temperature",
    "class_accuracy": "of the class asked for",
}


def frontier_png(points: Sequence[Point], reference: Point, scorer: str) -> bytes:
    """Nats against entropy, beside nats against evaluations.

    Points that differ only in their steps are joined, with the number of steps at both ends. If all
    points have the same steps, those that differ only in guidance are joined; if the guidance is
    the same too, those that differ in temperature. The left axes then show class accuracy against
    guidance, or nats against temperature. Bars are standard errors. The star and the dotted lines
    are real text.

    Args:
      points: of `frontier.measure`.
      reference: of `frontier.describe`, real text.
      scorer: the name of the scorer, for the label of the axis.

    Returns:
      A PNG.
    """
    along = next((name for name in _VARIED if len({p[name] for p in points}) > 1), "steps")
    axes_of = (_COST[along], ("entropy", "nats"))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.4, 4.6), layout="constrained", dpi=130)
        every = figure.subplots(1, 2)
        for axes, (x, y) in zip(every, axes_of, strict=True):
            _mark_reference(axes, reference, x, y)
            for line, label, style in _lines(points, along):
                _draw(axes, line, x, y, label, style)
                if x == "entropy":
                    _write_ends(axes, line, x, y, along)
            if x == "entropy":
                axes.set_title(f"at the ends of the lines: {along}", fontsize=9, loc="right")
            axes.set(xlabel=_LABELS[x], ylabel=_LABELS[y].format(scorer=scorer))
        if along == "guidance":
            every[0].set_ylim(bottom=0)
            every[0].yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
        elif along == "steps":
            every[0].set_xscale("log", base=2)
            every[0].xaxis.set_major_formatter(ScalarFormatter())
            every[0].xaxis.set_minor_formatter(NullFormatter())
        handles, labels = every[-1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=3)
        return png(figure)


def _lines(points: Sequence[Point], along: str):
    """The points of each line, its name, and its style."""
    fixed = [name for name in _VARIED if name != along and len({p[name] for p in points}) > 1]

    def key(point):
        return (point["strategy"], *(point[name] for name in fixed))

    keys = list(dict.fromkeys(key(point) for point in points))
    strategies = list(dict.fromkeys(point["strategy"] for point in points))
    variants = list(dict.fromkeys(each[1:] for each in keys))
    for each in keys:
        color = strategies.index(each[0]) % len(RUN_COLORS)
        variant = variants.index(each[1:])
        values = [f"{name} {value:g}" for name, value in zip(fixed, each[1:], strict=True)]
        style = {
            "color": RUN_COLORS[color],
            "marker": MARKERS[variant % len(MARKERS)],
            "linestyle": ("-", "--", ":", "-.")[variant % 4],
        }
        yield [p for p in points if key(p) == each], ", ".join([each[0], *values]), style


def _draw(axes: Axes, line: Sequence[Point], x: str, y: str, label: str, style: dict) -> None:
    axes.errorbar(
        [point[x] for point in line],
        [point[y] for point in line],
        [point.get(f"{y}_error") or 0.0 for point in line],
        [point.get(f"{x}_error") or 0.0 for point in line],
        label=label,
        markersize=5,
        linewidth=1.2,
        elinewidth=1,
        **style,
    )


def _write_ends(axes: Axes, line: Sequence[Point], x: str, y: str, along: str) -> None:
    for point in (line[0], line[-1]) if len(line) > 1 else line:
        axes.annotate(
            f"{point[along]:g}",
            (point[x], point[y]),
            xytext=(5, 4),
            textcoords="offset points",
            fontsize=8,
        )


def _mark_reference(axes: Axes, reference: Point, x: str, y: str) -> None:
    line = {"color": INK, "linestyle": ":", "linewidth": 1}
    if reference.get(y) is not None:
        axes.axhline(reference[y], **line)
    if reference.get(x) is not None:
        axes.axvline(reference[x], **line)
        axes.plot(
            reference[x], reference[y], "*", color=INK, markersize=13, label="real text", zorder=5
        )
