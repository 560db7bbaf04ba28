"""Work at intervals of the training: measuring the likelihood and showing a text."""

from typing import Any

import jax
import numpy as np

from mdlm_jax import data
from mdlm_jax.diffusion import noise, strategies
from mdlm_jax.evaluation.bounds import likelihoods, ngrams, text_sizes
from mdlm_jax.host import parallel
from mdlm_jax.runs.experiment import SCHEDULES
from mdlm_jax.runs.program import Program
from mdlm_jax.runs.sampler import Method, make_writer
from mdlm_jax.runs.shaping import Shaping

KINDS = ("eval", "sample")

_SHOWN = (  # of a validation likelihood
    "nats_per_token",
    "mc_error",
    "text_error",
    "tokens",
    "characters",
    "bits_per_character",
)


def make_hooks(program: Program, prepared: data.Prepared) -> dict:
    """The hooks of every `evaluation.every` steps, by `KINDS`: `(state, step) -> record`."""
    experiment, encoder, mesh = program.experiment, program.encoder, program.mesh
    settings, seed = experiment.evaluation, experiment.training.seed
    few = prepared.splits["validation"].spread(settings.rows)
    counted = prepared.splits["train"], few, prepared.vocab_size
    baselines = {
        "unigram": ngrams.unigram_cross_entropy(*counted),
        "bigram": ngrams.bigram_cross_entropy(*counted),
    }
    size = text_sizes.text_size(few, prepared.tokenizer)
    measure = experiment.family.make_measure(
        experiment.objective,
        encoder,
        start_id=prepared.sep_id,
        seed=seed,
        draws=settings.draws,
        mesh=mesh,
    )
    canvas, is_text = _canvas(few, encoder.mask_id)
    method = _method(program, prepared)
    write = make_writer(encoder, mesh, method)

    def evaluate(state: Any, step: int) -> dict[str, Any]:
        figures = measure.of_rows(state.ema, few, settings.batch_size)
        figures |= likelihoods.per_text_unit(figures["nats_per_token"], figures["tokens"], size)
        shown = {key: figures[key] for key in ("likelihood", *_SHOWN)}
        return {**shown, **baselines}

    def show(state: Any, step: int) -> dict[str, Any]:
        key = noise.derive(noise.seed_key(seed), "shown", step)
        # One row for each device: the least number that they share evenly.
        copies = parallel.row_shards(mesh)
        batch = {name: np.repeat(leaf, copies, axis=0) for name, leaf in canvas.items()}
        if encoder.classes:
            batch["label"] = np.full(copies, -1, np.int32)
        put = parallel.put_rows(batch, mesh)
        tokens, _ = jax.device_get(write(state.ema, key, put, method.steps, method.strengths()))
        return {"text": data.decode(prepared.tokenizer, tokens[0][is_text])}

    return {"eval": evaluate, "sample": show}


def _method(program: Program, prepared: data.Prepared) -> Method:
    """How the text is written: in `evaluation.sample_steps`, or token by token if causal."""
    experiment = program.experiment
    schedule = SCHEDULES[experiment.objective.schedule]()
    if experiment.family.is_causal:
        return Method(
            strategies.left_to_right(schedule),
            Shaping(),
            steps=experiment.data.length,
            start_id=prepared.sep_id,
        )
    steps = experiment.evaluation.sample_steps
    return Method(
        strategies.exact_count(schedule),
        Shaping(),
        steps=steps,
        in_blocks=experiment.family.blocks(experiment.objective),
    )


def _canvas(rows: data.Rows, mask_id: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """One row of masks, as long as the first; with pairs, behind its prompt.

    Returns:
      A batch of one row for the writer, and bool[L], the part of it that is text.
    """
    first = next(data.eval_batches(rows[:1], batch_size=1))
    maskable = first["maskable"]
    batch = {
        "tokens": np.where(maskable, np.int32(mask_id), first["tokens"]),
        "fill": maskable,
        "maskable": maskable,
        "number": np.zeros(1, np.int32),
    }
    if "valid" in first:
        batch["valid"] = first["valid"]
    return batch, first.get("valid", np.ones_like(maskable))[0]
