"""Measures the likelihood of a split of the corpus under a trained model.

    python -m mdlm_jax.evaluate --workdir=runs/quickstart --split=test

Prints the NELBO, an upper bound of the negative log-likelihood, in nats per token with two standard
errors (of drawing masks, and of the choice of text), beside n-gram cross-entropies over the same
tokens, and the cross-entropy against the mask rate. Writes evaluation_SPLIT.json and
report.html into the workdir.

    python -m mdlm_jax.evaluate --workdir=runs/quickstart --frontier --steps=4,16,64

--frontier measures what the model writes instead: for every strategy, number of steps, temperature
and guidance weight the samples' likelihood under another model, their diversity and their cost,
beside real text. Writes frontier.json and frontier.png into the workdir.
"""

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import flags
from etils import epath

from mdlm_jax import command_line, data, decoding, workdir
from mdlm_jax.evaluation import (
    features,
    frontier,
    frontier_table,
    likelihoods,
    mauve,
    naive_bayes,
    ngrams,
    scorers,
    text_sizes,
)
from mdlm_jax.evaluation.frontier_plot import frontier_png
from mdlm_jax.evaluation.report import write_report
from mdlm_jax.experiment import SCHEDULES

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_SPLIT = flags.DEFINE_enum("split", "test", ["train", "validation", "test"], "Which text.")
_DRAWS = flags.DEFINE_integer("draws", 8, "Corruptions of each row; more shrink the error.", 2)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Rows evaluated, or sampled, at a time.", 1)
_WEIGHTS = flags.DEFINE_enum("weights", "ema", ["ema", "params"], "Averaged or raw weights.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the draws, or of the samples.", 0)
_FRONTIER = flags.DEFINE_bool("frontier", False, "Measure samples, not the likelihood.")
_STRATEGIES = flags.DEFINE_string(
    "strategies",
    "exact_count; ancestral; confidence; threshold(0.9)",
    "Of the frontier, separated by semicolons, as generate --strategy takes them.",
)
_STEPS = flags.DEFINE_string("steps", "4,16,64", "Of the frontier: network evaluations at most.")
_TEMPERATURES = flags.DEFINE_string(
    "temperatures", "1", "Of the frontier: below 1 is sharper, 0 takes the most likely tokens."
)
_GUIDANCE = flags.DEFINE_string(
    "guidance", "", "Of the frontier: weights of classifier-free guidance, for models with classes."
)
_SAMPLES = flags.DEFINE_integer("samples", 64, "Of the frontier: rows of each point.", 1)
_SCORER = flags.DEFINE_string(
    "scorer",
    "trigram",
    "Of the frontier: trigram (counted on the training split), or hf:NAME_OR_FOLDER of a causal "
    "language model of Hugging Face.",
)
_FEATURES = flags.DEFINE_string(
    "features", "", "Of the frontier: folder of a run whose encoder reads the rows for MAUVE."
)
_OF_FRONTIER = ("strategies", "steps", "temperatures", "guidance", "samples", "scorer", "features")
command_line.require("workdir")


def main() -> int:
    """Prints and writes what the flags ask for; returns the exit code."""
    with command_line.bad_input():
        if _FRONTIER.value:
            _refuse(("draws",), "is for the likelihood, not for --frontier")
        else:
            _refuse(_OF_FRONTIER, "is for --frontier, which is not given")
    folder = epath.Path(_WORKDIR.value)
    return _frontier(folder) if _FRONTIER.value else _likelihood(folder)


def _refuse(names: tuple[str, ...], reason: str) -> None:
    for name in names:
        if flags.FLAGS[name].present:
            raise ValueError(f"--{name} {reason}")


def _likelihood(folder: epath.Path) -> int:
    with command_line.bad_input():
        trained = workdir.load(folder, weights=_WEIGHTS.value)
        prepared = workdir.load_data(trained)
    rows = prepared.splits[_SPLIT.value]
    mask_id = trained.encoder.mask_id
    of_batch = likelihoods.denoiser_of(trained.encoder)

    of_rows = likelihoods.make_nelbo(
        of_batch, mask_id=mask_id, seed=_SEED.value, draws=_DRAWS.value
    )
    told = likelihoods.summary(of_rows(trained.params, rows, _BATCH_SIZE.value))
    size = text_sizes.text_size(rows, trained.tokenizer)
    told |= likelihoods.per_text_unit(told["nats_per_token"], told["tokens"], size)
    counted = prepared.splits["train"], rows, prepared.vocab_size
    told = {
        "split": _SPLIT.value,
        "step": trained.step,
        "weights": _WEIGHTS.value,
        "draws": _DRAWS.value,
        **told,
        "unigram": ngrams.unigram_cross_entropy(*counted),
        "bigram": ngrams.bigram_cross_entropy(*counted),
        "trigram": ngrams.trigram_cross_entropy(*counted),
        "rate_curve": likelihoods.rate_curve(
            of_batch,
            trained.params,
            rows,
            mask_id=mask_id,
            seed=_SEED.value,
            batch_size=_BATCH_SIZE.value,
        ),
    }
    path = folder / f"evaluation_{_SPLIT.value}.json"
    path.write_text(json.dumps(told, indent=2) + "\n")
    print(_table(told))
    print(f"written: {path}, {write_report(folder)}")
    return 0


def _table(told: dict) -> str:
    lines = [
        f"{told['split']} split, {told['weights']} weights of step {told['step']}: "
        f"{told['tokens']:,} tokens in {told['rows']:,} rows, {told['draws']} draws a row",
        f"  NELBO    {told['nats_per_token']:.3f} nats/token  +- {told['mc_error']:.3f} (masks)  "
        f"+- {told['text_error']:.3f} (text)",
    ]
    if told["interval"]:
        low, high = told["interval"]
        lines.append(f"           {low:.3f} to {high:.3f} with 95 % confidence, for such text")
    lines += [
        f"           {told['bits_per_token']:.3f} bits/token, perplexity {told['perplexity']:.1f}",
        f"           {told['bits_per_word']:.2f} bits/word, "
        f"{told['bits_per_character']:.3f} bits/character",
        *(f"  {name:<9}{told[name]:.3f} nats/token" for name in ("unigram", "bigram", "trigram")),
        "  mask rate    nats per masked token    right",
    ]
    for point in told["rate_curve"]:
        error = "" if point["error"] is None else f" +- {point['error']:.3f}"
        mark = "  <- BERT" if point["rate"] == 0.15 else ""
        nats = f"{point['nats']:.3f}{error}"
        lines.append(f"  {point['rate']:8.0%}     {nats:<23} {point['accuracy']:6.1%}{mark}")
    return "\n".join(lines)


def _frontier(folder: epath.Path) -> int:
    with command_line.bad_input():
        grid = frontier.Grid(
            samples=_SAMPLES.value,
            steps=_values("steps", int),
            temperatures=_values("temperatures", float),
            guidance=_values("guidance", float),
        )
        if _SPLIT.value == "train":
            raise ValueError(
                "--split=train is what the scorer was made of: take validation or test"
            )
        trained = workdir.load(folder, weights=_WEIGHTS.value)
        schedule = SCHEDULES[trained.config["objective"]["schedule"]]()
        strategies = {spec: decoding.strategy(spec, schedule) for spec in _specs()}
        if grid.guidance:
            frontier.check_guidance(trained.encoder)
        prepared = workdir.load_data(trained)
        reference = frontier.reference_rows(prepared.splits[_SPLIT.value], grid.samples)
        judges = _judges(trained, prepared, len(reference))
    told = {
        "split": _SPLIT.value,
        "step": trained.step,
        "weights": _WEIGHTS.value,
        "scorer": _SCORER.value,
        "features": _FEATURES.value or None,
        "samples": grid.samples,
        "seed": _SEED.value,
        "batch_size": _BATCH_SIZE.value,
        "device": jax.devices()[0].device_kind,
        "reference": frontier.describe(reference, judges),
        "points": [],
    }
    paths = folder / "frontier.json", folder / "frontier.png"
    table = frontier_table.table(
        strategies,
        guided=bool(grid.guidance),
        classes=judges.classifier is not None,
        mauve=judges.mauve is not None,
    )
    print(_heading(told), frontier_table.heads(table), sep="\n")
    print(frontier_table.line(table, told["reference"]), flush=True)
    for point in frontier.measure(
        trained.params,
        trained.encoder,
        strategies,
        grid,
        reference,
        judges,
        seed=_SEED.value,
        batch_size=_BATCH_SIZE.value,
    ):
        told["points"].append(point)
        paths[0].write_text(json.dumps(told, indent=2) + "\n")  # what is there survives a stop
        print(frontier_table.line(table, point), flush=True)
    paths[1].write_bytes(frontier_png(told["points"], told["reference"], _SCORER.value))
    print(frontier_table.FOOT)
    if judges.classifier is not None:
        print(frontier_table.CLASS_FOOT)
    print(f"written: {paths[0]}, {paths[1]}")
    return 0


def _heading(told: dict[str, Any]) -> str:
    there = told["reference"]["rows"]
    lines = [
        f"{told['samples']:,} samples a point, {told['weights']} weights of step {told['step']}; "
        f"scorer {told['scorer']}; real text: {there:,} rows of the {told['split']} split"
    ]
    if there < told["samples"]:
        lines.append(
            "distinct-n falls with the number of rows, and the split has no more: compare it at "
            f"--samples={there}"
        )
    return "\n".join(lines)


def _judges(trained: workdir.Trained, prepared: data.Prepared, count: int) -> frontier.Judges:
    """What measures the rows; MAUVE compares with `count` others of real text."""
    train, size = prepared.splits["train"], prepared.vocab_size
    classes = trained.encoder.classes
    other = "validation" if _SPLIT.value == "test" else "test"
    real = frontier.reference_rows(prepared.splits[other], count)
    return frontier.Judges(
        scorers.scorer(_SCORER.value, train, trained.tokenizer, size),
        train,
        naive_bayes.fit(train, size, classes) if classes else None,
        _mauve(trained, real) if _FEATURES.value else None,
    )


def _mauve(trained: workdir.Trained, real: data.Rows) -> Callable[[data.Rows], float]:
    """MAUVE of rows against real text, both read by the encoder of --features."""
    theirs = workdir.load(epath.Path(_FEATURES.value))

    def featurise(rows: data.Rows) -> np.ndarray:
        read = features.reencode(
            rows, trained.tokenizer, theirs.tokenizer, theirs.encoder.max_length
        )
        return features.of_rows(theirs.params, theirs.encoder, read, batch_size=_BATCH_SIZE.value)

    of_real = featurise(real)
    # As many of both: how many clusters there are, and so the score, depends on it.
    return lambda rows: mauve.score(of_real, featurise(rows[: len(real)])).score


def _specs() -> list[str]:
    specs = [spec.strip() for spec in _STRATEGIES.value.split(";")]
    if not any(specs):
        raise ValueError("--strategies is empty: give at least one, separated by semicolons")
    return [spec for spec in specs if spec]


def _values(name: str, kind: Callable[[str], Any]) -> tuple[Any, ...]:
    """The numbers of a flag, each once."""
    text = flags.FLAGS[name].value
    try:
        return tuple(dict.fromkeys(kind(word) for word in text.split(",") if word.strip()))
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise ValueError(f"--{name} must be {what} separated by commas, not {text!r}") from None


if __name__ == "__main__":
    command_line.run(main)
