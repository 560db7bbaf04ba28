"""One page that compares runs: their curves, figures and samples, and the keys that set them apart.

Nats per token are comparable where the tokens are the same. Where they are not, the page says so
and compares bits per character of the text.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import jax
from etils import epath

from mdlm_jax.host import paths
from mdlm_jax.networks import bert
from mdlm_jax.pages import animation, plots, template
from mdlm_jax.pages.runs import Record, Run, flat, read_run

Runs = Mapping[str, Run]  # by the name that the page calls them


def write_comparison(workdirs: Sequence[epath.Path], path: epath.Path) -> epath.Path:
    """Writes the page; one file that needs nothing else.

    Args:
      workdirs: folders of runs, at least two.
      path: of the page; an old one is replaced at once.

    Returns:
      `path`.

    Raises:
      ValueError: a folder is not that of a run, is given twice, or is the only one.
    """
    folders = [epath.Path(each) for each in workdirs]
    resolved = [each.resolve() for each in folders]
    if twice := [str(each) for each in folders if resolved.count(each.resolve()) > 1]:
        raise ValueError(f"{twice[0]} is given twice, a comparison needs different runs")
    if len(folders) < 2:
        raise ValueError(f"a comparison needs at least two runs, not {len(folders)}")
    runs = dict(zip(_names(resolved), map(read_run, folders), strict=True))
    paths.write(path, _page(runs))
    return epath.Path(path)


def _names(folders: Sequence[epath.Path]) -> list[str]:
    """Names of folders, with as many of their parents as it takes to tell them apart."""
    parts = 1
    while len({each.parts[-parts:] for each in folders}) < len(folders):
        parts += 1
    return ["/".join(each.parts[-parts:]) for each in folders]


def _page(runs: Runs) -> str:
    split = _common_split(runs)
    sections = (
        f"<header><h1>{len(runs)} runs compared</h1></header>",
        f'<section><ul class="runs">{"".join(map(_run_name, range(len(runs)), runs))}</ul>',
        *_warnings(runs, split),
        "</section>",
        _figures(runs, split),
        _table(runs, split),
        _differences(runs),
        _samples(runs),
    )
    return template.page(f"{', '.join(runs)} · mdlm_jax", "\n".join(filter(None, sections)))


def _run_name(index: int, name: str) -> str:
    return f"<li>{plots.swatch(index)}{escape(name)}</li>"


# What may be compared.


def _common_split(runs: Runs) -> str | None:
    """The split that every run was evaluated on, the test split before others."""
    common = set.intersection(*(set(run.evaluations) for run in runs.values()))
    return min(common, key=lambda split: (split != "test", split), default=None)


def _evaluation(run: Run, split: str | None) -> Record:
    return run.final if split is None else run.evaluations[split]


def _same_tokens(runs: Runs) -> bool:
    return len({run.config.get("data_fingerprint") for run in runs.values()}) == 1


def _bound(runs: Runs) -> str:
    """What the runs' likelihoods are called together."""
    return " or exact ".join(sorted({run.bound for run in runs.values()}))


def _warnings(runs: Runs, split: str | None) -> list[str]:
    warnings = []
    if not _same_tokens(runs):
        warnings.append(
            "The runs were trained and measured on different data or with different tokenizers: "
            "nats per token, perplexities and n-grams are not comparable between them. Bits per "
            "character are closer to it, where the raw text is the same and no tokenizer hides "
            "characters ([UNK], folded case)."
        )
    told = {name: _evaluation(run, split).get("split") for name, run in runs.items()}
    if missing := [name for name, of in told.items() if of is None]:
        warnings.append(
            f"Not evaluated: {', '.join(missing)} (python -m mdlm_jax.evaluate --workdir=...)."
        )
    if len({of for of in told.values() if of}) > 1:
        splits = ", ".join(f"{name}: {of}" for name, of in told.items() if of)
        warnings.append(f"The runs were evaluated on different splits ({splits}): not comparable.")
    return [f'<p class="warning">{escape(warning)}</p>' for warning in warnings]


# Figures.


def _figures(runs: Runs, split: str | None) -> str:
    per_character = not _same_tokens(runs) and all(
        each.get("bits_per_character") for run in runs.values() for each in run.evaluated
    )
    y = "bits per character" if per_character else "nats per token"
    over_steps, over_tokens, over_rates = [], [], []
    for index, run in enumerate(runs.values()):
        records = [each for each in run.evaluated if each["nats_per_token"] is not None]
        steps = [each["step"] for each in records]
        figure = "bits_per_character" if per_character else "nats_per_token"
        values = [each[figure] for each in records]
        if steps:
            over_steps.append(plots.Line(index, steps, values))
        if steps and run.tokens_per_step:
            tokens = [step * run.tokens_per_step for step in steps]
            over_tokens.append(plots.Line(index, tokens, values))
        evaluation = _evaluation(run, split)
        if evaluation.get("likelihood") == "exact":
            level = [evaluation["nats_per_token"]] * 2
            over_rates.append(plots.Line(index, [0.0, 1.0], level))
        elif curve := evaluation.get("rate_curve"):
            points = sorted((point["rate"], point["nats"]) for point in curve)
            over_rates.append(plots.Line(index, *zip(*points, strict=True)))
    figures = []
    for x, lines in (("steps", over_steps), ("tokens", over_tokens)):
        if lines:
            svg = plots.comparison_svg(lines, x=x, y=y)
            caption = f"The validation {_bound(runs)} during training, over {x}: lower is better."
            figures.append(template.figure(f"Validation {_bound(runs)} over {x}", svg, caption))
    if over_rates:
        svg = plots.comparison_svg(over_rates, x="mask rate", y="nats per masked token", share=True)
        text = f"the {split} split" if split else "the split that each was evaluated on"
        caption = (
            f"The average of a curve over all mask rates is the run's NELBO. Text: {text}."
            + ("" if _bound(runs) == "NELBO" else " Level lines are of autoregressive runs.")
            + ("" if _same_tokens(runs) else " The tokens differ: compare shapes, not heights.")
        )
        figures.append(template.figure("A masked token, by mask rate", svg, caption))
    return f'<section class="figures">{"".join(figures)}</section>' if figures else ""


# Tables, a column a run.

_LIKELIHOOD = (
    ("split", "split", "{}"),
    ("{bound}, nats/token", "nats_per_token", "{:.3f}"),
    ("± masks", "mc_error", "{:.3f}"),
    ("± text", "text_error", "{:.3f}"),
    ("bits/token", "bits_per_token", "{:.3f}"),
    ("bits/character", "bits_per_character", "{:.3f}"),
    ("perplexity", "perplexity", "{:,.1f}"),
    ("bigram, nats/token", "bigram", "{:.3f}"),
    ("unigram, nats/token", "unigram", "{:.3f}"),
    ("evaluated at step", "step", "{:,}"),
    ("weights", "weights", "{}"),
)


def _table(runs: Runs, split: str | None) -> str:
    evaluations = [_evaluation(run, split) for run in runs.values()]
    rows = [
        [
            name.format(bound=_bound(runs)),
            *(template.cell(layout, each.get(key)) for each in evaluations),
        ]
        for name, key, layout in _LIKELIHOOD
    ]
    training = [_training(run) for run in runs.values()]
    rows += [[name, *(each[name] for each in training)] for name in training[0]]
    rows = [row for row in rows if set(row[1:]) != {template.NOTHING}]
    return (
        f"<section><h2>Figures</h2>{template.table(['', *runs], rows)}"
        "<p>The NELBO is an upper bound of the negative log-likelihood; its errors are standard "
        "errors, in nats/token. Bits per character: of the text that was scored.</p></section>"
    )


def _training(run: Run) -> dict[str, str]:
    steps, seconds = run.steps, run.training_seconds()
    tokens = steps * run.tokens_per_step if run.tokens_per_step else None
    memory = {place: run.peak_memory(place) for place in ("device", "host")}
    return {
        "parameters": template.cell("{:,}", _parameters(run)),
        "steps": template.cell("{:,}", steps or None),
        "tokens trained on": template.count(tokens) if tokens else template.NOTHING,
        "training time": " ".join(template.duration(seconds)) if seconds else template.NOTHING,
        "tokens/s": template.cell("{:,.0f}", tokens / seconds if seconds else None),
        **{
            f"peak {place} memory": " ".join(template.memory(size)) if size else template.NOTHING
            for place, size in memory.items()
        },
    }


def _parameters(run: Run) -> int | None:
    """Counted from the shapes alone, which the config decides."""
    if "model" not in run.config:
        return None
    encoder = bert.Config(**run.config["model"])
    shapes = jax.eval_shape(lambda: bert.init(jax.random.key(0), encoder))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def _differences(runs: Runs) -> str:
    configs = [flat(run.config) for run in runs.values()]
    keys = dict.fromkeys(key for config in configs for key in config)
    rows = [
        [key, *(_short(config.get(key)) for config in configs)]
        for key in keys
        if any(config.get(key) != configs[0].get(key) for config in configs)
    ]
    if not rows:
        return "<section><h2>Configuration</h2><p>The same in all runs.</p></section>"
    return (
        "<section><h2>Configuration: what differs</h2>"
        f"{template.table(['key', *runs], rows)}</section>"
    )


def _short(value: Any) -> str:
    text = template.cell("{}", value)
    return text if len(text) <= 32 else f"{text[:12]}…"  # a fingerprint


def _samples(runs: Runs) -> str:
    """One of each run, of a prompt that all have where there is one."""
    sampled = {name: run.samples for name, run in runs.items() if run.samples}
    if not sampled:
        return ""
    prompts = [{each["prompt"] for each in samples} for samples in sampled.values()]
    first = next(iter(sampled.values()))
    shared = [each for each in first if each["prompt"] in set.intersection(*prompts)]
    # Text from nothing but masks before others: there is more to see.
    prompt = min(shared, key=animation.given, default=first[0])["prompt"]
    chosen = {
        name: max(samples, key=lambda each: (each["prompt"] == prompt, each["steps"]))
        for name, samples in sampled.items()
    }
    return f"<section><h2>Samples</h2>\n{animation.side_by_side(chosen)}</section>"
