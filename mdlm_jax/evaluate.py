"""Measures the likelihood of a split of the corpus under a trained model.

    python -m mdlm_jax.evaluate --workdir=runs/quickstart --split=test

Prints the NELBO, an upper bound of the negative log-likelihood, in nats per token with two standard
errors (of drawing masks, and of the choice of text), beside the unigram and bigram cross-entropies
over the same tokens, and the cross-entropy against the mask rate. Writes evaluation_SPLIT.json and
report.html into the workdir.
"""

import json

from absl import flags
from etils import epath

from mdlm_jax import command_line, workdir
from mdlm_jax.evaluation import likelihoods, ngrams
from mdlm_jax.evaluation.report import write_report

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_SPLIT = flags.DEFINE_enum("split", "test", ["train", "validation", "test"], "Which text.")
_DRAWS = flags.DEFINE_integer("draws", 8, "Corruptions of each row; more shrink the error.", 2)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Rows evaluated at a time.", 1)
_WEIGHTS = flags.DEFINE_enum("weights", "ema", ["ema", "params"], "Averaged or raw weights.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the draws.", 0)
command_line.require("workdir")


def main() -> int:
    """Prints and writes the likelihood of the split; returns the exit code."""
    with command_line.bad_input():
        folder = epath.Path(_WORKDIR.value)
        trained = workdir.load(folder, weights=_WEIGHTS.value)
        prepared = workdir.load_data(trained)
    rows = prepared.splits[_SPLIT.value]
    mask_id = trained.encoder.mask_id
    of_batch = likelihoods.denoiser_of(trained.encoder)

    of_rows = likelihoods.make_nelbo(
        of_batch, mask_id=mask_id, seed=_SEED.value, draws=_DRAWS.value
    )
    told = likelihoods.summary(of_rows(trained.params, rows, _BATCH_SIZE.value))
    counted = prepared.splits["train"], rows, prepared.vocab_size
    told = {
        "split": _SPLIT.value,
        "step": trained.step,
        "weights": _WEIGHTS.value,
        "draws": _DRAWS.value,
        **told,
        "unigram": ngrams.unigram_cross_entropy(*counted),
        "bigram": ngrams.bigram_cross_entropy(*counted),
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
        f"           {told['bits_per_token']:.3f} bits/token, perplexity {told['perplexity']:.1f}",
        f"  unigram  {told['unigram']:.3f} nats/token",
        f"  bigram   {told['bigram']:.3f} nats/token",
        "  mask rate    nats per masked token",
    ]
    for point in told["rate_curve"]:
        error = "" if point["error"] is None else f" +- {point['error']:.3f}"
        mark = "  <- BERT" if point["rate"] == 0.15 else ""
        lines.append(f"  {point['rate']:8.0%}     {point['nats']:.3f}{error}{mark}")
    return "\n".join(lines)


if __name__ == "__main__":
    command_line.run(main)
