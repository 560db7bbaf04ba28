"""A picture of two versions: of each figure the paired difference with its interval."""

import re
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from mdlm_jax.pages import ab_table
from mdlm_jax.pages.plots import INK, RUN_COLORS, STYLE, png

_NEITHER, _OTHER = RUN_COLORS[7], {"a": RUN_COLORS[1], "b": RUN_COLORS[0]}
_ROW = 0.72  # inches


def ab_png(record: Mapping[str, Any]) -> bytes:
    """A row for each figure: the values of both, and the difference with its 95 % interval.

    Blue is where b is better, orange where a is, grey where the interval holds 0. Each row has a
    scale of its own, with 0 in its middle.

    Args:
      record: of `comparing.compare`.

    Returns:
      A PNG.
    """
    shown = [name for name in ab_table.FIGURES if name in record["differences"]]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.6, 0.9 + _ROW * len(shown)), layout="constrained", dpi=130)
        rows = figure.subplots(len(shown), 1, squeeze=False)[:, 0]
        for axes, name in zip(rows, shown, strict=True):
            _draw(axes, name, record["differences"][name])
        rows[-1].set_xlabel("b - a, with its 95 % interval", fontsize=9)
        heads = [f"{side}: {ab_table.told(record[side])}" for side in ("a", "b")]
        figure.suptitle("\n".join(heads), x=0.01, ha="left", fontsize=9)
        return png(figure)


def _draw(axes: Axes, name: str, difference: Mapping[str, float]) -> None:
    told = ab_table.FIGURES[name]
    color = _OTHER.get(ab_table.better(name, difference), _NEITHER)
    middle = difference["difference"]
    ends = np.nan_to_num([difference["low"], difference["high"]], nan=middle)
    axes.axvline(0, color=INK, linewidth=1)
    axes.plot(ends, [0, 0], color=color, linewidth=2.4, solid_capstyle="butt")
    axes.plot(middle, 0, "o", color=color, markersize=7)
    reach = 1.25 * max(np.abs([*ends, middle]).max(), _least(told.layout))
    axes.set(xlim=(-reach, reach), ylim=(-1, 1), yticks=[])
    axes.spines["left"].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(7, symmetric=True))
    if "%" in told.layout:
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    axes.set_ylabel(told.name, rotation=0, ha="right", va="center", fontsize=9)
    values = "\n".join(f"{side} {told.layout.format(difference[side])}" for side in ("a", "b"))
    axes.text(1.02, 0.5, values, transform=axes.transAxes, va="center", fontsize=8)


def _least(layout: str) -> float:
    """Some units of the last digit that is written: a smaller scale would show nothing."""
    (digits,) = re.findall(r"\.(\d)", layout)
    return 5 * 10.0 ** -(int(digits) + 2 * ("%" in layout))
