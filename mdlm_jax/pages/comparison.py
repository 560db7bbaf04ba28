"""One page that compares runs: their curves, figures and samples, and the keys that differ.

Nats per token are comparable only if the tokens are the same. If they are not, the page says so and
compares bits per character of the text.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath
from markupsafe import Markup

from mdlm_jax.host import paths
from mdlm_jax.pages import animation, plots, template
from mdlm_jax.pages.runs import Record, Run, flat, read_run

Runs = Mapping[str, Run]  # by their names on the page


def write_comparison(workdirs: Sequence[epath.Path], path: epath.Path) -> epath.Path:
    """Writes the page, a single file that loads nothing.

    Args:
      workdirs: folders of runs, at least two.
      path: of the page; an old one is replaced at once.

    Returns:
      `path`.

    Raises:
      ValueError: a folder holds no run, is given twice, or is the only one.
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
    """Names of the folders, with as many parents as make them unique."""
    parts = 1
    while len({each.parts[-parts:] for each in folders}) < len(folders):
        parts += 1
    return ["/".join(each.parts[-parts:]) for each in folders]


def _page(runs: Runs) -> str:
    split = _common_split(runs)
    return template.render(
        "comparison.html.j2",
        title=f"{', '.join(runs)} · mdlm_jax",
        runs=list(runs),
        swatches=[(name, plots.swatch(index)) for index, name in enumerate(runs)],
        same_tokens=_same_tokens(runs),
        splits=[(name, _evaluation(run, split).get("split")) for name, run in runs.items()],
        split=split,
        bound=_bound(runs),
        over=_over_training(runs),
        rates=_rates_svg(runs, split),
        figures=_figures(runs, split),
        differences=_differences(runs),
        filling=_samples(runs),
    )


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
    """The name of the runs' likelihoods."""
    return " or exact ".join(sorted({run.bound for run in runs.values()}))


# Drawings.


def _over_training(runs: Runs) -> list[tuple[str, Markup]]:
    """Validation likelihoods over steps and over tokens: what they are over, and the `<svg>`."""
    per_character = not _same_tokens(runs) and all(
        each.get("bits_per_character") for run in runs.values() for each in run.evaluated
    )
    y = "bits per character" if per_character else "nats per token"
    figure = "bits_per_character" if per_character else "nats_per_token"
    lines: dict[str, list[plots.Line]] = {"steps": [], "tokens": []}
    for index, run in enumerate(runs.values()):
        records = [each for each in run.evaluated if each["nats_per_token"] is not None]
        steps = [each["step"] for each in records]
        values = [each[figure] for each in records]
        if steps:
            lines["steps"].append(plots.Line(index, steps, values))
        if steps and run.tokens_per_step:
            tokens = [step * run.tokens_per_step for step in steps]
            lines["tokens"].append(plots.Line(index, tokens, values))
    return [(x, Markup(plots.comparison_svg(each, x=x, y=y))) for x, each in lines.items() if each]


def _rates_svg(runs: Runs, split: str | None) -> Markup:
    """The cross-entropy of a masked token by mask rate; "" if no run has a curve."""
    lines = []
    for index, run in enumerate(runs.values()):
        evaluation = _evaluation(run, split)
        if evaluation.get("likelihood") == "exact":
            level = [evaluation["nats_per_token"]] * 2
            lines.append(plots.Line(index, [0.0, 1.0], level))
        elif curve := evaluation.get("rate_curve"):
            points = sorted((point["rate"], point["nats"]) for point in curve)
            lines.append(plots.Line(index, *zip(*points, strict=True)))
    if not lines:
        return Markup()
    svg = plots.comparison_svg(lines, x="mask rate", y="nats per masked token", share=True)
    return Markup(svg)


# Tables, a column a run.

_LIKELIHOOD = (
    ("split", "split", ""),
    ("{bound}, nats/token", "nats_per_token", ".3f"),
    ("± masks", "mc_error", ".3f"),
    ("± text", "text_error", ".3f"),
    ("bits/token", "bits_per_token", ".3f"),
    ("bits/character", "bits_per_character", ".3f"),
    ("perplexity", "perplexity", ",.1f"),
    ("bigram, nats/token", "bigram", ".3f"),
    ("unigram, nats/token", "unigram", ".3f"),
    ("evaluated at step", "step", ","),
    ("weights", "weights", ""),
)
_TRAINING = (
    ("parameters", "parameters", ","),
    ("steps", "steps", ","),
    ("tokens trained on", "tokens", ""),
    ("training time", "time", ""),
    ("tokens/s", "pace", ",.0f"),
    ("peak device memory", "device", ""),
    ("peak host memory", "host", ""),
)


def _figures(runs: Runs, split: str | None) -> list[list[str]]:
    likelihood = [(head.format(bound=_bound(runs)), *rest) for head, *rest in _LIKELIHOOD]
    evaluations = [_evaluation(run, split) for run in runs.values()]
    return template.rows(likelihood, evaluations) + template.rows(
        _TRAINING, map(_training, runs.values())
    )


def _training(run: Run) -> dict[str, Any]:
    steps, seconds = run.steps, run.training_seconds()
    tokens = steps * run.tokens_per_step if run.tokens_per_step else None
    memory = {place: run.peak_memory(place) for place in ("device", "host")}
    return {
        "parameters": _parameters(run),
        "steps": steps or None,
        "tokens": template.count(tokens) if tokens else None,
        "time": " ".join(template.duration(seconds)) if seconds else None,
        "pace": tokens / seconds if tokens and seconds else None,
        **{
            place: " ".join(template.memory(size)) if size else None
            for place, size in memory.items()
        },
    }


def _parameters(run: Run) -> int | None:
    """The number of parameters, from their shapes; the config determines these."""
    if "model" not in run.config:
        return None
    network = run.family.network
    config = network.configure(run.config["model"])
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), config))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def _differences(runs: Runs) -> list[list[str]]:
    configs = [flat(run.config) for run in runs.values()]
    keys = dict.fromkeys(key for config in configs for key in config)
    return [
        [key, *(_short(config.get(key)) for config in configs)]
        for key in keys
        if any(config.get(key) != configs[0].get(key) for config in configs)
    ]


def _short(value: Any) -> str:
    text = template.number(value)
    return text if len(text) <= 32 else f"{text[:12]}…"  # a fingerprint


def _samples(runs: Runs) -> Markup:
    """One sample of each run, of a prompt that all have if there is one."""
    sampled = {name: run.samples for name, run in runs.items() if run.samples}
    if not sampled:
        return Markup()
    prompts = [{each["prompt"] for each in samples} for samples in sampled.values()]
    first = next(iter(sampled.values()))
    shared = [each for each in first if each["prompt"] in set.intersection(*prompts)]
    # Prefer text from nothing but masks: more of it is written.
    prompt = min(shared, key=animation.given, default=first[0])["prompt"]
    chosen = {
        name: max(samples, key=lambda each: (each["prompt"] == prompt, each["steps"]))
        for name, samples in sampled.items()
    }
    return animation.side_by_side(chosen)
