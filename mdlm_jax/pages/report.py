"""The page of a run: `report.html`, a single file that loads nothing, made of the run's files."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath
from markupsafe import Markup

from mdlm_jax.evaluation.bounds.rate_curves import BERT_RATE
from mdlm_jax.host import paths
from mdlm_jax.pages import animation, plots, template
from mdlm_jax.pages.runs import Record, Run, flat, read_run

FILE = "report.html"

Entries = list[tuple[str, Any]]

_LIKELIHOOD = (
    ("± masks", "mc_error", ".3f"),
    ("± text", "text_error", ".3f"),
    ("bits/token", "bits_per_token", ".3f"),
    ("bits/character", "bits_per_character", ".3f"),
    ("perplexity", "perplexity", ",.1f"),
    ("trigram, nats/token", "trigram", ".3f"),
    ("bigram, nats/token", "bigram", ".3f"),
    ("unigram, nats/token", "unigram", ".3f"),
    ("tokens", "tokens", ","),
    ("rows", "rows", ","),
    ("draws a row", "draws", ","),
    ("step", "step", ","),
    ("weights", "weights", ""),
)


def write_report(workdir: str | epath.Path) -> epath.Path:
    """Writes `report.html` into the folder of a run; an old one is replaced at once.

    Every file but `config.json` may be missing; its section is then left out.

    Args:
      workdir: holds `config.json`, `metrics.jsonl`, `evaluation_*.json`, `samples.json` and
        `data.json`.

    Returns:
      The path of the page.

    Raises:
      ValueError: `workdir` is not the folder of a run.
    """
    workdir = epath.Path(workdir)
    page = _page(read_run(workdir))
    paths.write(workdir / FILE, page)
    return workdir / FILE


def _page(run: Run) -> str:
    curve = run.final.get("rate_curve") or ()
    likelihood = (f"{run.bound}, nats/token", "nats_per_token", ".3f"), *_LIKELIHOOD
    return template.render(
        "report.html.j2",
        title=f"{run.name} · mdlm_jax",
        run=run,
        sizes=list(_sizes(run.config.get("model", {}))),
        tokens=run.tokens_per_step and run.steps * run.tokens_per_step,
        drawings=_drawings(run, curve),
        bert_nats=next(
            (each["nats"] for each in curve if abs(each["rate"] - BERT_RATE) < 1e-6), None
        ),
        worst=max(curve, key=lambda point: point.get("calibration_error") or 0.0, default=None),
        likelihood=template.rows(likelihood, run.evaluations.values()),
        filling=animation.animation(run.samples) if run.samples else "",
        card_facts=list(_card_facts(run.card)),
        sizes_of_splits=_sizes_of_splits(run.card),
        config=list(_config(run.config)),
    )


def _sizes(model: Record) -> Iterator[str]:
    for key, one in (("layers", "layer"), ("heads", "head")):
        if key in model:
            yield f"{model[key]} {one if model[key] == 1 else key}"
    if "width" in model:
        yield f"width {model['width']}"


def _drawings(run: Run, curve: Sequence[Record]) -> dict[str, Markup]:
    """The figures as `<svg>`, "" where there is nothing to draw; an empty dict if all are ""."""
    paced = [each for each in run.train if each.get("tokens_per_second")]
    calibrated = all(point.get("calibration_error") is not None for point in curve)
    drawings = {
        "training": _training_svg(run),
        "rates": plots.rate_curve_svg(curve, run.final["nats_per_token"]) if curve else "",
        "calibration": plots.calibration_svg(curve) if curve and calibrated else "",
        "throughput": plots.throughput_svg(paced) if len(paced) > 1 else "",
    }
    return {name: Markup(svg) for name, svg in drawings.items()} if any(drawings.values()) else {}


def _training_svg(run: Run) -> str:
    if not run.evaluated and all(each.get("loss") is None for each in run.train):
        return ""
    validation = run.evaluated[-1] if run.evaluated else {}
    return plots.training_svg(
        run.train,
        run.evaluated,
        unigram=validation.get("unigram"),
        bigram=validation.get("bigram"),
        loss=run.about.loss,
        validation=f"validation {run.bound}",
    )


def _card_facts(card: Record) -> Iterator[tuple[str, Any]]:
    if not card:
        return
    yield "source", f"{card['source']}, version {card['version']}"
    yield "licence and attribution", card["license"]
    yield from ((name, value) for name, value in card["config"].items() if name != "source")
    yield "fingerprint", card["fingerprint"]


def _sizes_of_splits(card: Record) -> list[list[str]]:
    splits = card.get("splits", {}).values()
    keys = dict.fromkeys(key for split in splits for key in split)
    return template.rows([(key.replace("_", " "), key, ",") for key in keys], splits)


def _config(config: Record) -> Iterator[tuple[str, Entries]]:
    """Sections of the configuration with their keys; keys outside a section come first, as ""."""
    if loose := [(key, each) for key, each in config.items() if not isinstance(each, Mapping)]:
        yield "", loose
    for key, each in config.items():
        if isinstance(each, Mapping):
            yield key, list(flat(each).items())
