"""The page of a run: `report.html`, one file that needs nothing else, made of what the run left."""

from collections.abc import Iterator, Mapping
from html import escape

from etils import epath

from mdlm_jax.host import paths
from mdlm_jax.pages import animation, plots, template
from mdlm_jax.pages.runs import Record, Run, flat, read_run

FILE = "report.html"


def write_report(workdir: str | epath.Path) -> epath.Path:
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
    workdir = epath.Path(workdir)
    page = _page(read_run(workdir))
    paths.write(workdir / FILE, page)
    return workdir / FILE


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
    if run.bound != "NELBO":
        encoder = encoder.replace("A BERT", "A causal")
        told = (
            "trained autoregressively, to predict each token from those before it. Its likelihood "
            "is exact: the baseline of masked diffusion language models."
        )
    elif run.mlm_rate is None:
        told = (
            "trained over all mask rates, which makes the network that fills in blanks a masked "
            "diffusion language model: it has a likelihood, and writes text from nothing but masks."
        )
    else:
        told = (
            f"trained as BERT is, to predict {_percent(run.mlm_rate)} of the tokens from the rest. "
            "It is measured here as a masked diffusion language model, over all mask rates, most "
            "of which it never saw."
        )
    return f"<header><h1>{escape(run.name)}</h1>\n<p>{escape(encoder)} {told}</p></header>"


def _headline(run: Run) -> str:
    tiles = list(_tiles(run))
    return f'<section class="tiles">{"".join(tiles)}</section>' if tiles else ""


def _tiles(run: Run) -> Iterator[str]:
    final = run.final
    if final:
        notes = [_text(final), *_errors(final)]
        yield template.tile(
            run.bound, f"{final['nats_per_token']:.3f}", "nats/token", notes, main=True
        )
        for name in ("bigram", "unigram"):
            if final.get(name) is not None:
                below = final[name] - final["nats_per_token"]
                side = "below" if below >= 0 else "above"
                notes = ["the same tokens", f"the {run.bound} is {abs(below):.2f} {side}"]
                yield template.tile(
                    f"{name} cross-entropy", f"{final[name]:.3f}", "nats/token", notes
                )
    yield from _training_tiles(run)


def _training_tiles(run: Run) -> Iterator[str]:
    if not run.train:
        return
    skipped = sum(each.get("skipped", 0) for each in run.train)
    notes = [f"{skipped:,} updates skipped"] if skipped else []
    if run.tokens_per_step is None:
        yield template.tile("trained for", f"{run.steps:,}", "steps", notes)
    else:
        tokens = run.steps * run.tokens_per_step
        padded = ["padding included"] if run.card.get("config", {}).get("rows") == "padded" else []
        notes = [f"{run.steps:,} steps", *padded, *notes]
        yield template.tile("trained on", template.count(tokens), "tokens", notes)
        if seconds := run.training_seconds():
            notes = [
                f"{template.count(tokens / seconds)} tokens/s",
                "compilation and evaluation left out",
            ]
            yield template.tile("training time", *template.duration(seconds), notes)
    device, host = run.peak_memory("device"), run.peak_memory("host")
    if device:
        notes = ["of the fullest local device"]
        notes += [f"host process: {' '.join(template.memory(host))}"] if host else []
        yield template.tile("peak memory", *template.memory(device), notes)
    elif host:
        yield template.tile("peak memory", *template.memory(host), ["of the host process"])


def _text(evaluation: Record) -> str:
    """Which text was measured."""
    split = f"{evaluation['split']} split"
    return f"text of {evaluation['files']}" if "files" in evaluation else split


def _errors(evaluation: Record) -> Iterator[str]:
    if evaluation.get("likelihood") == "exact":
        yield "exact: nothing was drawn"
    elif evaluation.get("mc_error") is not None:
        yield f"± {evaluation['mc_error']:.3f} from drawing masks: more draws shrink it"
    if evaluation.get("text_error") is not None:
        yield f"± {evaluation['text_error']:.3f} from the choice of text: more rows shrink it"


def _figures(run: Run) -> str:
    figures = "".join(make(run) for make in _FIGURES)
    return f'<section class="figures">{figures}</section>' if figures else ""


def _training_figure(run: Run) -> str:
    if not run.evaluated and all(each.get("loss") is None for each in run.train):
        return ""
    validation = run.evaluated[-1] if run.evaluated else {}
    baselines = [validation.get(name) for name in ("unigram", "bigram")]
    if run.bound != "NELBO":
        loss = "training loss"
        caption = "The training loss is the cross-entropy of training text, with dropout."
    elif run.mlm_rate is not None:
        loss = f"BERT's loss at {_percent(run.mlm_rate)}"
        caption = (
            "The training loss is in nats per selected token, at one mask rate: it is no estimate "
            "of the NELBO, which averages over all of them."
        )
    elif run.config.get("objective", {}).get("weighting") == "flat":
        loss = "training loss"
        caption = "The training loss weighs all mask rates alike: it is no estimate of the NELBO."
    else:
        loss = "training loss"
        caption = (
            "The training loss is an estimate of the NELBO on training text, from one draw of "
            "masks."
        )
    if run.evaluated:
        caption += " Bars: one standard error over texts."
    if "unigram" in validation:
        caption += (
            " Dashed: what counting tokens and pairs of tokens in the training text reaches on "
            "the validation text."
        )
    svg = plots.training_svg(
        run.train, run.evaluated, *baselines, loss=loss, validation=f"validation {run.bound}"
    )
    return template.figure("Training", svg, caption)


def _rate_figure(run: Run) -> str:
    curve = run.final.get("rate_curve")
    if not curve:
        return ""
    at_bert = next((each["nats"] for each in curve if abs(each["rate"] - 0.15) < 1e-6), None)
    value = "" if at_bert is None else f", {at_bert:.2f} nats per masked token"
    caption = (
        f"The loss of a BERT at 15 % is this curve's value there{value}; the NELBO is the curve's "
        f"average over all mask rates. Text: {_text(run.final)}. Bars: one standard error."
    )
    if run.mlm_rate is not None:
        caption += f" This run was trained at {_percent(run.mlm_rate)} alone."
    svg = plots.rate_curve_svg(curve, run.final["nats_per_token"])
    return template.figure("A masked token, by mask rate", svg, caption)


def _calibration_figure(run: Run) -> str:
    curve = run.final.get("rate_curve", ())
    if not all(point.get("calibration_error") is not None for point in curve) or not curve:
        return ""
    worst = max(curve, key=lambda point: point["calibration_error"])
    caption = (
        "How often the most likely token is right, and how probable the model finds it: where the "
        "lines meet, it knows what it knows. Apart by confidence they are furthest at "
        f"{_percent(worst['rate'])} masked (expected calibration error "
        f"{_percent(round(worst['calibration_error'], 3))})."
    )
    return template.figure("Right and sure, by mask rate", plots.calibration_svg(curve), caption)


def _throughput_figure(run: Run) -> str:
    told = [each for each in run.train if each.get("tokens_per_second")]
    if len(told) < 2:
        return ""
    caption = "Mean over the steps of each record; compilation and evaluation are left out."
    return template.figure("Throughput", plots.throughput_svg(told), caption)


_FIGURES = (_training_figure, _rate_figure, _calibration_figure, _throughput_figure)


def _percent(rate: float) -> str:
    return f"{100 * rate:g}\N{NO-BREAK SPACE}%"


_COLUMNS = (
    ("nats/token", "nats_per_token", "{:.3f}"),
    ("± masks", "mc_error", "{:.3f}"),
    ("± text", "text_error", "{:.3f}"),
    ("bits/token", "bits_per_token", "{:.3f}"),
    ("bits/character", "bits_per_character", "{:.3f}"),
    ("perplexity", "perplexity", "{:,.1f}"),
    ("trigram, nats/token", "trigram", "{:.3f}"),
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
        [split] + [template.cell(layout, evaluation.get(key)) for _, key, layout in _COLUMNS]
        for split, evaluation in run.evaluations.items()
    ]
    heads = ["split", f"{run.bound}, nats/token", *(name for name, _, _ in _COLUMNS[1:])]
    table = template.table(heads, rows)
    if run.bound == "NELBO":
        told = (
            "The NELBO is an upper bound of the negative log-likelihood, so bits and perplexity "
            "are upper bounds too"
        )
    else:
        told = "The likelihood is exact, by the chain rule, over the tokens that a bound counts"
    return (
        f"<section><h2>Likelihood</h2>{table}<p>{told}; errors are standard errors, in nats/token. "
        "The n-grams are counted on the training text and score the same tokens.</p></section>"
    )


def _samples(run: Run) -> str:
    if not run.samples:
        return ""
    note = (
        "The model wrote what is coloured; the rest was given. Play shows in which order, the "
        "colour how probable the model found each token when it wrote it."
    )
    return f"<section><h2>Samples</h2><p>{note}</p>\n{animation.animation(run.samples)}</section>"


def _progress(run: Run) -> str:
    samples = [(f"step {each['step']:,}", each["text"]) for each in run.sampled if "text" in each]
    if not samples:
        return ""
    return (
        "<section><details><summary>Samples during training</summary>"
        f"{template.facts(samples)}</details></section>"
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
    sizes = list(dict.fromkeys(key for split in card["splits"].values() for key in split))
    rows = [
        [name] + [template.cell("{:,}", split.get(key)) for key in sizes]
        for name, split in card["splits"].items()
    ]
    table = template.table(["split", *(key.replace("_", " ") for key in sizes)], rows)
    return f"<section><h2>Data</h2>{template.facts(facts.items())}{table}</section>"


def _config(run: Run) -> str:
    loose = {key: value for key, value in run.config.items() if not isinstance(value, Mapping)}
    nested = {key: value for key, value in run.config.items() if isinstance(value, Mapping)}
    parts = [template.facts(loose.items())] if loose else []
    parts += [
        f"<h3>{escape(key)}</h3>{template.facts(flat(value).items())}"
        for key, value in nested.items()
    ]
    return (
        "<section><details><summary>Configuration</summary>"
        f'<div class="columns">{"".join(f"<div>{part}</div>" for part in parts)}</div>'
        "</details></section>"
    )
