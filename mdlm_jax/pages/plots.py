"""The figures of a run, as SVG for a page; drawn without pyplot and its global state."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, PercentFormatter

from mdlm_jax.evaluation.bounds.rate_curves import BERT_RATE

Records = Sequence[Mapping[str, Any]]

# In the SVG each colour becomes a CSS variable (`_VARIABLES`), so that a page may be dark.
INK, _FAINT, _TRAINING = "#1c2024", "#d8dce1", "#8fb3d9"
_MODEL, _UNIGRAM, _BIGRAM = "#0b5cad", "#8a6d1a", "#b0452f"
# Of compared runs: Okabe and Ito's colours, which colour-blind readers distinguish, a bit darker.
RUN_COLORS = (
    "#0072b1",
    "#d55e01",
    "#009e72",
    "#cc79a6",
    "#b8860c",
    "#3aa0d8",
    "#6a51a4",
    "#7f7f80",
)
MARKERS = "osD^vP*X"
_DASHES = (("-", "solid"), ("--", "dashed"), (":", "dotted"))  # in SVG, in CSS
_VARIABLES = {
    INK: "--ink",
    _FAINT: "--faint",
    _TRAINING: "--training",
    _MODEL: "--model",
    _UNIGRAM: "--unigram",
    _BIGRAM: "--bigram",
    **{color: f"--run{i}" for i, color in enumerate(RUN_COLORS)},
}
STYLE = {
    "font.size": 11,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _FAINT,
    "grid.linewidth": 0.7,
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "mdlm_jax",  # the same figure is the same file
}
_BARS = {"fmt": "o-", "markersize": 4, "elinewidth": 1.2, "capsize": 3, "color": _MODEL}


def training_svg(
    train: Records,
    evaluations: Records,
    unigram: float | None = None,
    bigram: float | None = None,
    *,
    loss: str = "training loss",
    validation: str = "validation NELBO",
) -> str:
    """Training loss and validation likelihood over steps, in nats per token.

    Args:
      train: records of kind "train". Those without a loss (all updates skipped) are left out.
      evaluations: records of kind "eval". The bars are their `text_error`. Those without a number
        are left out.
      unigram: cross-entropy of a unigram on the validation tokens, drawn as a line.
      bigram: cross-entropy of a bigram.
      loss: the name of the training loss in the legend.
      validation: the name of the evaluations in the legend.

    Returns:
      An `<svg>` element.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure()
        losses = [(each["step"], each["loss"]) for each in train if each.get("loss") is not None]
        if losses:
            axes.plot(*zip(*losses, strict=True), color=_TRAINING, label=loss)
        finite = [each for each in evaluations if each["nats_per_token"] is not None]
        if finite:
            axes.errorbar(
                [each["step"] for each in finite],
                [each["nats_per_token"] for each in finite],
                [each.get("text_error") or 0.0 for each in finite],
                label=validation,
                **_BARS,
            )
        for name, value, color in (("unigram", unigram, _UNIGRAM), ("bigram", bigram, _BIGRAM)):
            if value is not None:
                axes.axhline(value, color=color, linestyle="--", label=f"{name} {value:.2f}")
        axes.set_xlim(left=0)
        axes.set(xlabel="step", ylabel="nats per token")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        return _svg(figure, f"Training loss and {validation} over steps")


def rate_curve_svg(curve: Records, nelbo: float) -> str:
    """Cross-entropy of a masked token against the mask rate, in nats; its average is the NELBO.

    Args:
      curve: points `{"rate": in (0, 1], "nats": ..., "error": standard error or None}`.
      nelbo: nats per token, drawn as a line.

    Returns:
      An `<svg>` element.
    """
    curve = sorted(curve, key=lambda point: point["rate"])
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure()
        axes.errorbar(
            [point["rate"] for point in curve],
            [point["nats"] for point in curve],
            [point.get("error") or 0.0 for point in curve],
            label="masked token",
            **_BARS,
        )
        axes.axhline(nelbo, color=_MODEL, linestyle="--", label=f"NELBO {nelbo:.2f}")
        _mark_bert(axes)
        axes.set(ylabel="nats per masked token")
        return _svg(figure, "Cross-entropy of a masked token against the mask rate")


def calibration_svg(curve: Records) -> str:
    """Accuracy and mean confidence of the most likely token, by mask rate.

    Args:
      curve: points `{"rate": in (0, 1], "accuracy": ..., "confidence": ...}`.

    Returns:
      An `<svg>` element.
    """
    curve = sorted(curve, key=lambda point: point["rate"])
    rates = [point["rate"] for point in curve]
    accuracy, confidence = ([point[name] for point in curve] for name in ("accuracy", "confidence"))
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure()
        axes.fill_between(rates, accuracy, confidence, color=_TRAINING, alpha=0.35, linewidth=0)
        axes.plot(rates, accuracy, "o-", markersize=4, color=_MODEL, label="accuracy")
        axes.plot(rates, confidence, "o--", markersize=4, color=_UNIGRAM, label="confidence")
        _mark_bert(axes)
        axes.set_ylim(bottom=0)
        axes.set(ylabel="of the masked tokens")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
        return _svg(figure, "Accuracy and confidence against the mask rate")


def throughput_svg(train: Records) -> str:
    """Throughput over steps, in tokens per second, from zero.

    Args:
      train: records of kind "train" that have `tokens_per_second`.

    Returns:
      An `<svg>` element.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure()
        axes.plot(
            [each["step"] for each in train],
            [each["tokens_per_second"] for each in train],
            color=_MODEL,
            label="throughput",
        )
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.set(xlabel="step", ylabel="tokens per second")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        return _svg(figure, "Throughput over steps")


class Line(NamedTuple):
    """A run in a figure that compares runs: its index in the palette, and its points."""

    index: int
    x: Sequence[float]
    y: Sequence[float]


def comparison_svg(lines: Sequence[Line], *, x: str, y: str, share: bool = False) -> str:
    """One line for each run, in its colour and dash; the page is the legend (`swatch`).

    Args:
      lines: of the runs that have points.
      x: label of the axis.
      y: label of the axis.
      share: whether x is a share in (0, 1], shown in percent, and not a count.

    Returns:
      An `<svg>` element.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure()
        for line in lines:
            axes.plot(
                line.x,
                line.y,
                marker="o",
                markersize=3.5,
                color=RUN_COLORS[line.index % len(RUN_COLORS)],
                linestyle=_DASHES[line.index // len(RUN_COLORS) % len(_DASHES)][0],
            )
        axes.set_xlim((0, 1.02) if share else (0, None))
        axes.set(xlabel=x, ylabel=y)
        shares, counts = PercentFormatter(1.0, symbol=" %"), EngFormatter(sep="")
        axes.xaxis.set_major_formatter(shares if share else counts)
        return _svg(figure, f"{y} over {x}, a line for each run")


def swatch(index: int) -> tuple[str, str]:
    """The style of a run's line as a CSS border style, and the CSS variable of its colour."""
    dash = _DASHES[index // len(RUN_COLORS) % len(_DASHES)][1]
    return dash, _VARIABLES[RUN_COLORS[index % len(RUN_COLORS)]]


def png(figure: Figure) -> bytes:
    """The figure as a file, white behind it."""
    file = io.BytesIO()
    figure.savefig(file, format="png", facecolor="white")
    return file.getvalue()


def _mark_bert(axes: Axes) -> None:
    """Mask rates along x, and a mark at BERT's."""
    axes.axvline(BERT_RATE, color=_BIGRAM, linestyle=":", label="BERT's 15 %")
    axes.set_xlim(0, 1.02)
    axes.set(xlabel="mask rate")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.2, 3.8), layout="constrained")
    return figure, figure.subplots()


def _svg(figure: Figure, description: str) -> str:
    if any(axes.get_legend_handles_labels()[1] for axes in figure.axes):
        figure.legend(loc="outside upper left", ncols=2)
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]  # HTML has no XML declaration
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="\w+_\d+"', "", svg)  # the ids of groups repeat in every figure
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{description}" ', 1)
