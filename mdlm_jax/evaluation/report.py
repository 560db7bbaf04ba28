"""The page of a run: `report.html`, one file that needs nothing else, made of what the run left."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from mdlm_jax.evaluation import plots, template
from mdlm_jax.training import metrics

FILE = "report.html"

Record = Mapping[str, Any]


class Run(NamedTuple):
    """What a run left in its folder; what is not there is empty.

    Attributes:
      name: of the folder.
      config: `config.json`, by section.
      train: records of kind "train" in `metrics.jsonl`.
      evaluated: those of kind "eval".
      sampled: those of kind "sample".
      evaluations: `evaluation_*.json` by split.
      samples: `samples.json`.
      card: `data.json`.
    """

    name: str
    config: Record
    train: Sequence[Record]
    evaluated: Sequence[Record]
    sampled: Sequence[Record]
    evaluations: Mapping[str, Record]
    samples: Sequence[Record]
    card: Record

    @property
    def final(self) -> Record:
        """The evaluation that the page is about: of the test split, or of what there is."""
        return self.evaluations.get("test") or next(iter(self.evaluations.values()), {})


def write_report(workdir: str | Path) -> Path:
    """Writes `report.html` into the folder of a run; an old one is replaced at once.

    Every file but `config.json` may be missing: its section is then left out.

    Args:
      workdir: holds `config.json`, `metrics.jsonl`, `evaluation_*.json`, `samples.json` and
        `data.json`.

    Returns:
      The path of the page.

    Raises:
      ValueError: `workdir` is not the folder of a run.
    """
    workdir = Path(workdir)
    page = _page(_read(workdir))
    path = workdir / FILE
    incomplete = path.with_suffix(".tmp")
    incomplete.write_text(page, encoding="utf-8")
    incomplete.replace(path)
    return path


def _read(workdir: Path) -> Run:
    if not (workdir / "config.json").is_file():
        raise ValueError(f"{workdir} is not the folder of a run: it has no config.json")
    records = metrics.read_metrics(workdir) if (workdir / metrics.FILE).exists() else []
    evaluations = [_json(path, {}) for path in sorted(workdir.glob("evaluation_*.json"))]
    return Run(
        name=workdir.resolve().name,
        config=_json(workdir / "config.json", {}),
        train=[each for each in records if each["kind"] == "train"],
        evaluated=[each for each in records if each["kind"] == "eval"],
        sampled=[each for each in records if each["kind"] == "sample"],
        evaluations={each["split"]: each for each in evaluations},
        samples=_json(workdir / "samples.json", []),
        card=_json(workdir / "data.json", {}),
    )


def _json(path: Path, missing: Any) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else missing


def _page(run: Run) -> str:
    body = "\n".join(
        section
        for make in (_heading, _headline, _figures, _table, _samples, _progress, _data, _config)
        if (section := make(run))
    )
    return template.page(f"{run.name} · mdlm_jax", body)


def _heading(run: Run) -> str:
    model = run.config.get("model", {})
    sizes = [f"{model[key]} {key}" for key in ("layers", "heads") if key in model]
    sizes += [f"width {model['width']}"] if "width" in model else []
    encoder = "A BERT encoder" + (f" ({', '.join(sizes)})" if sizes else "")
    return (
        f"<header><h1>{escape(run.name)}</h1>\n"
        f"<p>{escape(encoder)} trained over all mask rates, which makes the network that fills "
        "in blanks a masked diffusion language model: it has a likelihood, and writes text from "
        "nothing but masks.</p></header>"
    )


def _headline(run: Run) -> str:
    tiles = list(_tiles(run))
    return f'<section class="tiles">{"".join(tiles)}</section>' if tiles else ""


def _tiles(run: Run) -> Iterator[str]:
    final = run.final
    if final:
        split = f"{final['split']} split"
        notes = [split, *_errors(final)]
        yield _tile("NELBO", f"{final['nats_per_token']:.3f}", "nats/token", notes, main=True)
        for name in ("bigram", "unigram"):
            if final.get(name) is not None:
                below = final[name] - final["nats_per_token"]
                side = "below" if below >= 0 else "above"
                notes = ["the same tokens", f"the NELBO is {abs(below):.2f} {side}"]
                yield _tile(f"{name} cross-entropy", f"{final[name]:.3f}", "nats/token", notes)
    if run.train:
        steps = run.train[-1]["step"]
        skipped = sum(each.get("skipped", 0) for each in run.train)
        notes = [f"{steps:,} steps"] + ([f"{skipped:,} updates skipped"] if skipped else [])
        tokens = _tokens_per_step(run.config)
        if tokens is None:
            yield _tile("trained for", f"{steps:,}", "steps", notes[1:])
            return
        yield _tile("trained on", _count(steps * tokens), "tokens", notes)
        seconds = _training_seconds(run.train, tokens)
        if seconds:
            notes = [
                f"{_count(steps * tokens / seconds)} tokens/s",
                "compilation and evaluation left out",
            ]
            yield _tile("training time", *_duration(seconds), notes)


def _tile(name: str, value: str, unit: str, notes: Sequence[str], main: bool = False) -> str:
    lines = "".join(f"<p>{escape(note)}</p>" for note in notes)
    return (
        f'<div class="tile{" main" if main else ""}"><h2>{escape(name)}</h2>'
        f'<p class="value"><b>{escape(value)}</b> {escape(unit)}</p>{lines}</div>\n'
    )


def _errors(evaluation: Record) -> Iterator[str]:
    if evaluation.get("mc_error") is not None:
        yield f"± {evaluation['mc_error']:.3f} from drawing masks: more draws shrink it"
    if evaluation.get("text_error") is not None:
        yield f"± {evaluation['text_error']:.3f} from the choice of text: more rows shrink it"


def _tokens_per_step(config: Record) -> int | None:
    batch_size = config.get("training", {}).get("batch_size")
    length = config.get("data", {}).get("length")
    return batch_size * length if batch_size and length else None


def _training_seconds(train: Sequence[Record], tokens_per_step: int) -> float:
    """The steps of each record at the pace it tells; a record of a single step tells none."""
    seconds, before, pace = 0.0, 0, 0.0
    for record in train:
        if record.get("tokens_per_second"):
            pace = tokens_per_step / record["tokens_per_second"]
        seconds += (record["step"] - before) * pace
        before = record["step"]
    return seconds


def _figures(run: Run) -> str:
    figures = []
    if run.evaluated or any(each.get("loss") is not None for each in run.train):
        validation = run.evaluated[-1] if run.evaluated else {}
        svg = plots.training_svg(
            run.train, run.evaluated, validation.get("unigram"), validation.get("bigram")
        )
        caption = (
            "The loss is an estimate of the NELBO on training text, from one draw of masks. Bars: "
            "one standard error over texts."
        )
        if "unigram" in validation:
            caption += (
                " Dashed: what counting tokens and pairs of tokens in the training text reaches on "
                "the validation text."
            )
        figures.append(_figure("Training", svg, caption))
    if curve := run.final.get("rate_curve"):
        svg = plots.rate_curve_svg(curve, run.final["nats_per_token"])
        at_bert = next((each["nats"] for each in curve if abs(each["rate"] - 0.15) < 1e-6), None)
        value = "" if at_bert is None else f", {at_bert:.2f} nats per masked token"
        caption = (
            f"BERT's loss is this curve's value at 15 %{value}; the NELBO is the curve's average "
            f"over all mask rates. Text: the {run.final['split']} split. Bars: one standard error."
        )
        figures.append(_figure("A masked token, by mask rate", svg, caption))
    return f'<section class="figures">{"".join(figures)}</section>' if figures else ""


def _figure(title: str, svg: str, caption: str) -> str:
    return (
        f"<figure><h2>{escape(title)}</h2>\n{svg}\n<figcaption>{escape(caption)}</figcaption>"
        "</figure>\n"
    )


_COLUMNS = (
    ("NELBO, nats/token", "nats_per_token", "{:.3f}"),
    ("± masks", "mc_error", "{:.3f}"),
    ("± text", "text_error", "{:.3f}"),
    ("bits/token", "bits_per_token", "{:.3f}"),
    ("perplexity", "perplexity", "{:,.1f}"),
    ("bigram, nats/token", "bigram", "{:.3f}"),
    ("unigram, nats/token", "unigram", "{:.3f}"),
    ("tokens", "tokens", "{:,}"),
    ("rows", "rows", "{:,}"),
    ("draws a row", "draws", "{:,}"),
    ("step", "step", "{:,}"),
    ("weights", "weights", "{}"),
)


def _table(run: Run) -> str:
    if not run.evaluations:
        return ""
    rows = [
        [split] + [_cell(layout, evaluation.get(key)) for _, key, layout in _COLUMNS]
        for split, evaluation in run.evaluations.items()
    ]
    table = template.table(["split", *(name for name, _, _ in _COLUMNS)], rows)
    return (
        f"<section><h2>Likelihood</h2>{table}"
        "<p>The NELBO is an upper bound of the negative log-likelihood, so bits and perplexity are "
        "upper bounds too; errors are standard errors, in nats/token. The n-grams are counted on "
        "the training text and score the same tokens.</p></section>"
    )


def _cell(layout: str, value: Any) -> str:
    return "–" if value is None else layout.format(value)


def _samples(run: Run) -> str:
    free = [each for each in run.samples if not _given(each["prompt"])]
    filled = [each for each in run.samples if _given(each["prompt"])]
    parts = [
        f"<h2>{title}</h2>\n{''.join(map(_sample, samples))}"
        for title, samples in (("Infilling", filled), ("Text from nothing but masks", free))
        if samples
    ]
    if not parts:
        return ""
    note = "<p>The model wrote what is <mark>marked</mark>; the rest was given.</p>\n"
    return f"<section>{note}{''.join(parts)}</section>"


def _given(prompt: str) -> str:
    """The text of a prompt, without its masks."""
    return prompt.replace("[MASK]", "").strip()


def _sample(sample: Record) -> str:
    text = "".join(
        f"<mark>{escape(piece)}</mark>" if generated else escape(piece)
        for piece, generated in sample["pieces"]
    )
    steps = "1 step" if sample["steps"] == 1 else f"{sample['steps']:,} steps"
    notes = [steps, sample["strategy"].replace("_", " ")]
    if _given(sample["prompt"]):
        notes.insert(0, re.sub(r"\[MASK\](?: ?\[MASK\])+", _counted_masks, sample["prompt"]))
    return f"<blockquote><p>{text}</p><footer>{escape(' · '.join(notes))}</footer></blockquote>\n"


def _counted_masks(run_of_masks: re.Match[str]) -> str:
    return f"[MASK] × {run_of_masks[0].count('[MASK]')}"


def _progress(run: Run) -> str:
    samples = [(f"step {each['step']:,}", each["text"]) for each in run.sampled if "text" in each]
    if not samples:
        return ""
    return (
        "<section><details><summary>Samples during training</summary>"
        f"{template.facts(samples)}</details></section>"
    )


_SIZES = (
    ("documents", "documents"),
    ("rows", "rows"),
    ("tokens", "tokens"),
    ("unknown tokens", "unknown_tokens"),
    ("characters", "characters"),
    ("bytes", "bytes"),
)


def _data(run: Run) -> str:
    card = run.card
    if not card:
        return ""
    facts = {
        "source": f"{card['source']}, version {card['version']}",
        "licence and attribution": card["license"],
        **{name: value for name, value in card["config"].items() if name != "source"},
        "fingerprint": card["fingerprint"],
    }
    rows = [
        [split] + [_cell("{:,}", sizes.get(key)) for _, key in _SIZES]
        for split, sizes in card["splits"].items()
    ]
    table = template.table(["split", *(name for name, _ in _SIZES)], rows)
    return f"<section><h2>Data</h2>{template.facts(facts.items())}{table}</section>"


def _config(run: Run) -> str:
    loose = {key: value for key, value in run.config.items() if not isinstance(value, Mapping)}
    nested = {key: value for key, value in run.config.items() if isinstance(value, Mapping)}
    parts = [template.facts(loose.items())] if loose else []
    parts += [
        f"<h3>{escape(key)}</h3>{template.facts(_flat(value))}" for key, value in nested.items()
    ]
    return (
        "<section><details><summary>Configuration</summary>"
        f'<div class="columns">{"".join(f"<div>{part}</div>" for part in parts)}</div>'
        "</details></section>"
    )


def _flat(config: Record, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves with their dotted names."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _count(number: float) -> str:
    for size, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f} {name}"
    return f"{number:.0f}"


def _duration(seconds: float) -> tuple[str, str]:
    for size, name in ((3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f}", name
    return f"{seconds:.0f}", "seconds"
