"""A picture of several models: the cross-entropy of a masked token against the mask rate."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
from etils import epath
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from mdlm_jax.data import json_text
from mdlm_jax.evaluation.bounds.rate_curves import BERT_RATE
from mdlm_jax.pages.plots import INK, MARKERS, RUN_COLORS, STYLE, png

Evaluation = Mapping[str, Any]


def read_evaluations(paths: Sequence[str | epath.Path]) -> dict[str, Evaluation]:
    """What `evaluate` wrote, by names that are unique: the folders' names if these are.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a file is given twice, or was not written by `evaluate`.
    """
    files = [epath.Path(path).resolve() for path in paths]
    if twice := [str(path) for path in files if files.count(path) > 1]:
        raise ValueError(f"{twice[0]} is given twice")
    evaluations = []
    for file in files:
        evaluation = json_text.load(file, finite=False)
        if not {"nats_per_token", "tokens"} <= evaluation.keys():
            raise ValueError(
                f"{file} holds no likelihood: give what evaluate writes, evaluation_*.json"
            )
        evaluations.append(evaluation)
    names = [file.parent.name for file in files]
    if len({*names}) < len(names):
        names = [f"{file.parent.name}/{file.stem}" for file in files]
    if len({*names}) < len(names):
        names = [str(file) for file in files]
    return dict(zip(names, evaluations, strict=True))


def curves_png(evaluations: Mapping[str, Evaluation]) -> bytes:
    """One line for each model, with bars of one standard error and its likelihood in the legend.

    A model that was trained autoregressively has no mask rates: its exact cross-entropy is a level
    line. BERT's 15 % is marked. If all evaluations have the same unigram, it is a dashed line.

    Args:
      evaluations: by the name of the model.

    Returns:
      A PNG.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 5.2), layout="constrained", dpi=150)
        axes = figure.subplots()
        axes.axvline(BERT_RATE, color=INK, linestyle=":", linewidth=1)
        axes.annotate(
            "BERT's 15 %",
            (BERT_RATE, 1),
            xycoords=("data", "axes fraction"),
            xytext=(4, -2),
            textcoords="offset points",
            va="top",
            fontsize=9,
        )
        handles = [
            _draw(axes, index, name, evaluation)
            for index, (name, evaluation) in enumerate(evaluations.items())
        ]
        unigrams = {evaluation.get("unigram") for evaluation in evaluations.values()}
        if len(unigrams) == 1 and None not in unigrams:
            (unigram,) = unigrams
            style = {"color": INK, "linestyle": "--", "linewidth": 1}
            handles.append(axes.axhline(unigram, label=f"unigram: {unigram:.2f}", **style))
        axes.set_xlim(0, 1.02)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
        axes.set(xlabel="mask rate", ylabel="nats per masked token")
        if not _same_tokens(evaluations.values()):
            axes.set_title(
                "texts or tokenizers differ: compare shapes, not heights", fontsize=9, loc="right"
            )
        figure.legend(handles=handles, loc="outside upper left", ncols=2)
        return png(figure)


def _draw(axes: Axes, index: int, name: str, evaluation: Evaluation) -> Artist:
    """Draws the line of a model; returns its artist for the legend."""
    nats = evaluation["nats_per_token"]
    color = RUN_COLORS[index % len(RUN_COLORS)]
    if not evaluation.get("rate_curve"):
        return axes.axhline(nats, color=color, linewidth=1.6, label=f"{name}: exact {nats:.2f}")
    curve = sorted(evaluation["rate_curve"], key=lambda point: point["rate"])
    return axes.errorbar(
        [point["rate"] for point in curve],
        [point["nats"] for point in curve],
        [point["error"] or 0.0 for point in curve],
        label=f"{name}: NELBO {nats:.2f}",
        color=color,
        marker=MARKERS[index % len(MARKERS)],
        markersize=5,
        linewidth=1.4,
        elinewidth=1,
        capsize=2.5,
    )


def _same_tokens(evaluations: Iterable[Evaluation]) -> bool:
    """Whether all scored the same number of tokens and words: one text by one tokenizer."""
    return len({(each["tokens"], each.get("words")) for each in evaluations}) == 1
