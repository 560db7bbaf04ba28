"""`evaluate --frontier`: what the samples of a run are worth, and what they cost."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import flags
from etils import epath
from jax.sharding import Mesh

from mdlm_jax import data
from mdlm_jax.diffusion import Strategy
from mdlm_jax.evaluation.samples import features, frontier, mauve, naive_bayes, scorers
from mdlm_jax.host import command_line, paths
from mdlm_jax.measuring import points
from mdlm_jax.pages import frontier_table
from mdlm_jax.pages.frontier_plot import frontier_png
from mdlm_jax.runs import workdir
from mdlm_jax.runs.experiment import SCHEDULES
from mdlm_jax.writing import decoding, prompts

_STRATEGIES = flags.DEFINE_string(
    "strategies",
    None,
    "Of the frontier and of answers, separated by semicolons, as generate --strategy takes them. "
    "By default exact_count; ancestral; confidence; threshold(0.9), of answers exact_count; "
    "greedy.",
)
_STEPS = flags.DEFINE_string(
    "steps", "4,16,64", "Of the frontier and of answers: network evaluations at most."
)
_TEMPERATURES = flags.DEFINE_string(
    "temperatures", "1", "Of the frontier: below 1 is sharper, 0 takes the most likely tokens."
)
_GUIDANCE = flags.DEFINE_string(
    "guidance", "", "Of the frontier: weights of classifier-free guidance, for models with classes."
)
_SAMPLES = flags.DEFINE_integer(
    "samples", 64, "Rows of each point: of the frontier, or that are answered.", 1
)
_SCORER = flags.DEFINE_string(
    "scorer",
    "trigram",
    "Of the frontier: trigram (counted on the training split), or hf:NAME_OR_FOLDER of a causal "
    "language model of Hugging Face.",
)
_FEATURES = flags.DEFINE_string(
    "features",
    "",
    "Folder of a run whose encoder reads the rows: of the frontier for MAUVE, which is left out "
    "without; of answers for BERTScore, by default the run's own.",
)
FLAGS = ("strategies", "steps", "temperatures", "guidance", "samples", "scorer", "features")

_DEFAULT = "exact_count; ancestral; confidence; threshold(0.9)"


def measure(
    folder: epath.Path,
    *,
    split: str,
    weights: str,
    step: str | None,
    seed: int,
    batch_size: int,
    mesh: Mesh,
) -> int:
    """Measures the samples of a run by the flags, prints and writes. Returns the exit code."""
    with command_line.bad_input():
        grid = points.Grid(
            samples=_SAMPLES.value,
            steps=values("steps", int),
            temperatures=values("temperatures", float),
            guidance=values("guidance", float),
        )
        if split == "train":
            raise ValueError(
                "--split=train is what the scorer was made of: take validation or test"
            )
        written = folder / "frontier.json", folder / "frontier.png"
        for path in written:
            paths.check_output(path)
        if _FEATURES.value:
            mauve.check_installed()
        trained = workdir.load(folder, weights=weights, step=step, mesh=mesh)
        if prompts.asking(workdir.data_card(folder), trained.tokenizer) is not None:
            raise ValueError(
                f"{folder} was trained on pairs: it never wrote without a prompt, which "
                "--frontier is of; measure its --answers"
            )
        start_id = None
        if trained.family.is_causal:
            grid, strategies = _of_causal(trained, grid)
            start_id = data.special_ids(trained.tokenizer).sep
        else:
            strategies = strategies_of(trained, _DEFAULT)
        if grid.guidance:
            points.check_guidance(trained.encoder)
        in_blocks = trained.family.blocks(trained.objective)
        prepared = workdir.load_data(trained, folder)
        reference = frontier.reference_rows(prepared.splits[split], grid.samples)
        judges = _judges(trained, prepared, len(reference), split, batch_size, mesh)
    record = {
        "split": split,
        "step": trained.step,
        "weights": weights,
        "scorer": _SCORER.value,
        "features": _FEATURES.value or None,
        "samples": grid.samples,
        "seed": seed,
        "batch_size": batch_size,
        "device": jax.devices()[0].device_kind,
        "devices": mesh.size,
        "reference": frontier.describe(reference, judges),
        "points": [],
    }
    table = frontier_table.table(
        strategies,
        guided=bool(grid.guidance),
        classes=judges.classifier is not None,
        mauve=judges.mauve is not None,
    )
    print(_heading(record), frontier_table.heads(table), sep="\n")
    print(frontier_table.line(table, record["reference"]), flush=True)
    for point in points.measure(
        trained.params,
        trained.encoder,
        strategies,
        grid,
        reference,
        judges,
        seed=seed,
        batch_size=batch_size,
        mesh=mesh,
        start_id=start_id,
        in_blocks=in_blocks,
    ):
        record["points"].append(point)
        # Finished points survive a stop.
        paths.write(written[0], json.dumps(record, indent=2) + "\n")
        print(frontier_table.line(table, point), flush=True)
    paths.write(written[1], frontier_png(record["points"], record["reference"], _SCORER.value))
    print(frontier_table.FOOT)
    if judges.classifier is not None:
        print(frontier_table.CLASS_FOOT)
    print(f"written: {written[0]}, {written[1]}")
    return 0


def _of_causal(
    trained: workdir.Trained, grid: points.Grid
) -> tuple[points.Grid, dict[str, Strategy]]:
    """A causal run writes in one way: from left to right, a token an evaluation."""
    for name in ("strategies", "steps"):
        if flags.FLAGS[name].present:
            raise ValueError(
                f"--{name} is for models that fill masks: this run was trained autoregressively, "
                "it writes from left to right, a token an evaluation"
            )
    length = trained.config["data"]["length"]
    strategy = decoding.strategy("left_to_right", SCHEDULES[trained.objective.schedule]())
    return dataclasses.replace(grid, steps=(length,)), {"left_to_right": strategy}


def _heading(made: dict[str, Any]) -> str:
    there = made["reference"]["rows"]
    lines = [
        f"{made['samples']:,} samples a point, {made['weights']} weights of step {made['step']}; "
        f"scorer {made['scorer']}; real text: {there:,} rows of the {made['split']} split"
    ]
    if there < made["samples"]:
        lines.append(
            "distinct-n falls with the number of rows, and the split has no more: compare it at "
            f"--samples={there}"
        )
    return "\n".join(lines)


def _judges(
    trained: workdir.Trained,
    prepared: data.Prepared,
    count: int,
    split: str,
    batch_size: int,
    mesh: Mesh,
) -> frontier.Judges:
    """The judges of the rows; MAUVE compares with `count` other rows of real text."""
    train, size = prepared.splits["train"], prepared.vocab_size
    classes = trained.encoder.classes
    other = "validation" if split == "test" else "test"
    real = frontier.reference_rows(prepared.splits[other], count)
    return frontier.Judges(
        scorers.scorer(_SCORER.value, train, trained.tokenizer, size),
        train,
        naive_bayes.fit(train, size, classes) if classes else None,
        _mauve(trained, real, batch_size, mesh) if _FEATURES.value else None,
    )


def _mauve(
    trained: workdir.Trained, real: data.Rows, batch_size: int, mesh: Mesh
) -> Callable[[data.Rows], float]:
    """MAUVE of rows against real text, both read by the encoder of --features."""
    theirs = workdir.load(epath.Path(_FEATURES.value), mesh=mesh)

    def featurise(rows: data.Rows) -> np.ndarray:
        read = features.reencode(
            rows, trained.tokenizer, theirs.tokenizer, theirs.encoder.max_length
        )
        return features.of_rows(
            theirs.params, theirs.encoder, read, batch_size=batch_size, mesh=mesh
        )

    of_real = featurise(real)
    # Equally many of both: the number of clusters, and so the score, depends on it.
    return lambda rows: mauve.score(of_real, featurise(rows.spread(len(real)))).score


def strategies_of(trained: workdir.Trained, default: str) -> dict[str, Strategy]:
    """The strategies of --strategies by their names, with the schedule of the run.

    Args:
      trained: the run.
      default: where the flag is not given.

    Raises:
      ValueError: there is none, or as `decoding.strategy`.
    """
    named = default if _STRATEGIES.value is None else _STRATEGIES.value
    specs = [spec.strip() for spec in named.split(";")]
    if not any(specs):
        raise ValueError("--strategies is empty: give at least one, separated by semicolons")
    schedule = SCHEDULES[trained.config["objective"]["schedule"]]()
    return {spec: decoding.strategy(spec, schedule) for spec in specs if spec}


def values(name: str, kind: Callable[[str], Any]) -> tuple[Any, ...]:
    """The numbers of a flag, each once.

    Raises:
      ValueError: there is something else in it.
    """
    text = flags.FLAGS[name].value
    try:
        return tuple(dict.fromkeys(kind(word) for word in text.split(",") if word.strip()))
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise ValueError(f"--{name} must be {what} separated by commas, not {text!r}") from None
