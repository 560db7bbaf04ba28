"""Trains a masked diffusion language model.

    python -m mdlm_jax.train --config=quickstart --workdir=runs/quickstart

Any key of the config can be changed: --config.training.steps=2000. Started again with the same
workdir, a run goes on from its newest checkpoint, or says that it is done. Exit codes: 0 training
complete; 75 stopped by a signal with everything saved; 2 bad input, nothing started; 1 the updates
stopped being finite, or a crash.
"""

import dataclasses
import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import flags

from mdlm_jax import command_line, data, parallel, workdir
from mdlm_jax.diffusion import corrupt, corrupt_mlm, corrupted_loss, sample, strategies
from mdlm_jax.evaluation import likelihoods, ngrams
from mdlm_jax.experiment import SCHEDULES, Experiment
from mdlm_jax.networks import bert
from mdlm_jax.training import checkpoints
from mdlm_jax.training.loop import LoopConfig, fit
from mdlm_jax.training.metrics import MetricsWriter, read_metrics
from mdlm_jax.training.optimizer import make_optimizer
from mdlm_jax.training.state import abstract_state, init_state, state_shardings
from mdlm_jax.training.step import make_step

_CONFIG = command_line.define_config()
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run, made if it does not exist.")
command_line.require("config", "workdir")
flags.declare_key_flag("config")


def main() -> int:
    """Trains, or goes on with, the run of the flags; returns the exit code."""
    with command_line.bad_input():
        experiment = Experiment.of(_CONFIG.value.to_dict())
        mesh = parallel.make_mesh(**dataclasses.asdict(experiment.mesh))
        prepared = data.prepare(experiment.data)
        encoder = experiment.encoder(prepared)
        training = experiment.training
        optimizer, schedule = make_optimizer(experiment.optimizer, training.steps)
        batches = data.train_batches(
            prepared.splits["train"],
            batch_size=training.batch_size,
            seed=training.seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        put = functools.partial(parallel.put_batch, mesh=mesh)
        put(batches.at(0))  # says now if the rows do not split over the devices
        folder = Path(_WORKDIR.value)
        for change in workdir.begin(folder, experiment, encoder, prepared):
            _say(f"changed since the last start: {change}")

    shapes = jax.eval_shape(lambda: bert.init(jax.random.key(0), encoder))
    placed = parallel.shardings(mesh, bert.logical_axes(encoder), shapes)
    shardings = state_shardings(placed, shapes, optimizer)
    step = make_step(
        make_loss(encoder),
        optimizer,
        seed=training.seed,
        ema_decay=training.ema_decay,
        accumulation=training.accumulation,
        prepare=make_corruption(experiment, encoder, mesh),
        schedule=schedule,
        shardings=shardings,
    )
    with checkpoints.open_checkpoints(
        folder / "checkpoints", keep_last=training.keep_last
    ) as checkpointer:
        start = checkpoints.latest_step(checkpointer)
        if start is None:
            state = init_state(
                bert.init(jax.random.key(training.seed), encoder), optimizer, shardings
            )
        else:
            state = checkpoints.restore(checkpointer, abstract_state(shapes, optimizer, shardings))
        if (start or 0) >= training.steps:
            _say(f"{folder} is done: it has {start} of {training.steps} steps")
            return 0
        count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
        _say(
            f"{count:,} parameters, {len(prepared.splits['train']):,} rows of "
            f"{experiment.data.length} tokens, {mesh.size} {jax.devices()[0].platform} device(s), "
            + (f"resuming at step {start}" if start else f"logging to {folder}")
        )
        with MetricsWriter(folder, step=start or 0, tensorboard=training.tensorboard) as metrics:
            try:
                outcome = fit(
                    state,
                    step,
                    batches,
                    config=LoopConfig(
                        steps=training.steps,
                        log_every=training.log_every,
                        eval_every=experiment.evaluation.every,
                        save_every=training.save_every,
                        max_bad_steps=training.max_bad_steps,
                    ),
                    put=put,
                    tokens_per_step=training.batch_size * experiment.data.length,
                    metrics=metrics,
                    checkpointer=checkpointer,
                    summarize=lambda aux: {"accuracy": float(aux.accuracy)},
                    hooks=make_hooks(experiment, encoder, prepared),
                )
            except FloatingPointError as error:
                print(f"error: {error}; the checkpoints are intact", file=sys.stderr)
                return 1
    if outcome.stopped:
        _say(f"stopped at step {int(outcome.state.step)}, all is saved: start again to go on")
        return command_line.STOPPED
    _say(_last_words(folder))
    return 0


def make_corruption(experiment: Experiment, encoder: bert.Config, mesh: jax.sharding.Mesh):
    """`(key, batch) -> batch` that draws all masks of the global batch at once."""
    objective = experiment.objective
    # A pair of rows must stay in one microbatch and on one device.
    parts = 2 * experiment.training.accumulation * mesh.shape["data"] * mesh.shape["fsdp"]
    paired = objective.corruption == "exact" and experiment.training.batch_size % parts == 0
    if objective.name == "diffusion" and objective.corruption == "exact" and not paired:
        _say("rows a device are odd: unpaired, the vocabulary projection does twice the work")

    def prepare(key, batch):
        shared = {"mask_id": encoder.mask_id, "maskable": batch["maskable"]}
        if objective.name == "mlm":
            corrupted = corrupt_mlm(
                key, batch["tokens"], vocab_size=encoder.vocab_size, rate=objective.rate, **shared
            )
        else:
            corrupted = corrupt(
                key,
                batch["tokens"],
                schedule=SCHEDULES[objective.schedule](),
                corruption=objective.corruption,
                weighting=objective.weighting,
                paired=paired,
                **shared,
            )
        return {"corrupted": corrupted, "label": batch["label"]}

    return prepare


def make_loss(encoder: bert.Config):
    """`(params, key, batch) -> (loss, aux)` of what the corruption prepared."""

    def loss_fn(params, key, batch):
        stochastic = encoder.dropout > 0 or encoder.class_dropout > 0
        denoiser = bert.denoiser(
            params,
            encoder,
            label=batch["label"] if encoder.classes else None,
            dropout_key=key if stochastic else None,
        )
        return corrupted_loss(denoiser, batch["corrupted"])

    return loss_fn


def make_hooks(experiment: Experiment, encoder: bert.Config, prepared: data.Prepared) -> dict:
    """What is done every `evaluation.every` steps: the validation NELBO, and a sample."""
    settings = experiment.evaluation
    rows, count = prepared.splits["validation"], settings.rows
    few = data.Rows(rows.tokens[:count], rows.labels[:count])
    counted = prepared.splits["train"].tokens, few.tokens, prepared.vocab_size
    baselines = {
        "unigram": ngrams.unigram_cross_entropy(*counted),
        "bigram": ngrams.bigram_cross_entropy(*counted),
    }
    of_rows = likelihoods.make_nelbo(
        likelihoods.denoiser_of(encoder),
        mask_id=encoder.mask_id,
        seed=experiment.training.seed,
        draws=settings.draws,
    )

    @jax.jit
    def write(params, key):
        canvas = jnp.full((1, experiment.data.length), encoder.mask_id)
        return sample(
            bert.denoiser(params, encoder),
            key,
            canvas,
            mask_id=encoder.mask_id,
            steps=settings.sample_steps,
            strategy=strategies.exact_count(),
        )

    def evaluate(state, step):
        likelihood = of_rows(state.ema, few, settings.batch_size)
        told = likelihoods.summary(likelihood)
        shown = {key: told[key] for key in ("nats_per_token", "mc_error", "text_error", "tokens")}
        return {**shown, **baselines}

    def show(state, step):
        key = jax.random.fold_in(jax.random.key(experiment.training.seed), step)
        tokens = jax.device_get(write(state.ema, key))[0]
        return {"text": data.decode(prepared.tokenizer, tokens)}

    return {"eval": evaluate, "sample": show}


def _last_words(folder: Path) -> str:
    """The last validation NELBO beside what counting reaches on the same tokens."""
    last = [each for each in read_metrics(folder) if each["kind"] == "eval"][-1]
    return (
        f"validation NELBO {last['nats_per_token']:.3f} +- {last['mc_error']:.3f} (masks) +- "
        f"{last['text_error']:.3f} (text) nats/token over {last['tokens']:,} tokens; the corpus's "
        f"unigram has {last['unigram']:.3f} there, its bigram {last['bigram']:.3f}"
    )


def _say(line: str) -> None:
    if jax.process_index() == 0:
        print(line, flush=True)


if __name__ == "__main__":
    command_line.run(main)
