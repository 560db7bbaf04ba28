"""Trains a masked diffusion language model.

    python -m mdlm_jax.train --config=quickstart --workdir=runs/quickstart

Any key of the config can be changed: --config.training.steps=2000. Started again with the same
workdir, a run goes on from its newest checkpoint, or says that it is done.
--config.profile_steps=10:13 leaves a trace of steps 10, 11 and 12. Exit codes: 0 training complete;
75 stopped by a signal with everything saved; 2 bad input, nothing started; 1 the updates stopped
being finite, or a crash.
"""

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from absl import flags

from mdlm_jax import command_line, data, parallel, workdir
from mdlm_jax.diffusion import corrupt, corrupt_mlm, corrupted_loss, sample, strategies
from mdlm_jax.evaluation import likelihoods, ngrams
from mdlm_jax.experiment import SCHEDULES, Experiment, profile_range
from mdlm_jax.networks import bert
from mdlm_jax.training import checkpoints
from mdlm_jax.training.loop import LoopConfig, Profile, fit
from mdlm_jax.training.metrics import MetricsWriter, read_metrics
from mdlm_jax.training.optimizer import make_optimizer
from mdlm_jax.training.state import abstract_state, init_state, state_shardings
from mdlm_jax.training.step import make_step

_CONFIG = command_line.define_config()
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run, made if it does not exist.")
command_line.require("config", "workdir")
flags.declare_key_flag("config")


class Job(NamedTuple):
    """All that a run needs, checked and open."""

    experiment: Experiment
    mesh: jax.sharding.Mesh
    prepared: data.Prepared
    encoder: bert.Config
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    batches: data.TrainBatches
    workdir: Path


def main() -> int:
    """Trains, or goes on with, the run of the flags; returns the exit code."""
    with contextlib.ExitStack() as claimed:
        with command_line.bad_input():
            job = plan(command_line.chosen_config(_CONFIG), Path(_WORKDIR.value))
            changes = claimed.enter_context(
                workdir.claim(job.workdir, job.experiment, job.encoder, job.prepared)
            )
        for change in changes:
            _say(f"changed since the last start: {change}")
        return train(job)


def plan(config: Mapping[str, Any], folder: Path) -> Job:
    """Checks all that can be checked before anything is compiled or written.

    Raises:
      ValueError: what is wrong, in one line.
      OSError: a file or folder cannot be read.
    """
    experiment = Experiment.of(config)
    mesh = parallel.make_mesh(**dataclasses.asdict(experiment.mesh))
    prepared = data.prepare(experiment.data)
    encoder = experiment.encoder(prepared)
    optimizer, schedule = make_optimizer(experiment.optimizer, experiment.training.steps)
    batches = data.train_batches(
        prepared.splits["train"],
        batch_size=experiment.training.batch_size,
        seed=experiment.training.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    parallel.put_batch(batches.at(0), mesh)  # says now if the rows do not split over the devices
    return Job(experiment, mesh, prepared, encoder, optimizer, schedule, batches, folder)


def train(job: Job) -> int:
    """Trains from the newest checkpoint, or from the start; returns the exit code."""
    training, optimizer = job.experiment.training, job.optimizer
    shapes = jax.eval_shape(lambda: bert.init(jax.random.key(0), job.encoder))
    placed = parallel.shardings(job.mesh, bert.logical_axes(job.encoder), shapes)
    shardings = state_shardings(placed, shapes, optimizer)
    step = make_step(
        make_loss(job.encoder),
        optimizer,
        seed=training.seed,
        ema_decay=training.ema_decay,
        accumulation=training.accumulation,
        prepare=make_corruption(job.experiment, job.encoder, job.mesh),
        schedule=job.schedule,
        shardings=shardings,
    )
    with checkpoints.open_checkpoints(
        job.workdir / "checkpoints", keep_last=training.keep_last
    ) as checkpointer:
        start = checkpoints.latest_step(checkpointer) or 0
        if start >= training.steps:
            _say(f"{job.workdir} is done: it has {start} of {training.steps} steps")
            return 0
        if start:
            with command_line.bad_input():
                abstract = abstract_state(shapes, optimizer, shardings)
                state = checkpoints.restore(checkpointer, abstract)
        else:
            params = bert.init(jax.random.key(training.seed), job.encoder)
            state = init_state(params, optimizer, shardings)
        count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
        _say(
            f"{count:,} parameters, {len(job.batches.rows):,} rows of "
            f"{job.experiment.data.length} tokens, {job.mesh.size} {jax.devices()[0].platform} "
            "device(s), " + (f"resuming at step {start}" if start else f"logging to {job.workdir}")
        )
        with MetricsWriter(job.workdir, step=start, tensorboard=training.tensorboard) as metrics:
            try:
                outcome = fit(
                    state,
                    step,
                    job.batches,
                    config=LoopConfig(
                        steps=training.steps,
                        log_every=training.log_every,
                        eval_every=job.experiment.evaluation.every,
                        save_every=training.save_every,
                        max_bad_steps=training.max_bad_steps,
                    ),
                    put=functools.partial(parallel.put_batch, mesh=job.mesh),
                    tokens_per_step=training.batch_size * job.experiment.data.length,
                    metrics=metrics,
                    checkpointer=checkpointer,
                    summarize=lambda aux: {"accuracy": float(aux.accuracy)},
                    hooks=make_hooks(job.experiment, job.encoder, job.prepared),
                    profile=Profile(profile_range(job.experiment.profile_steps), job.workdir),
                )
            except FloatingPointError as error:
                print(f"error: {error}; the checkpoints are intact", file=sys.stderr)
                return 1
    if outcome.stopped:
        _say(f"stopped at step {int(outcome.state.step)}, all is saved: start again to go on")
        return command_line.STOPPED
    _say(_last_words(job.workdir))
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
        kept = {name: batch[name] for name in ("label", "valid") if name in batch}
        return {"corrupted": corrupted, **kept}

    return prepare


def make_loss(encoder: bert.Config):
    """`(params, key, batch) -> (loss, aux)` of what the corruption prepared."""

    def loss_fn(params, key, batch):
        stochastic = encoder.dropout > 0 or encoder.class_dropout > 0
        denoiser = bert.denoiser(
            params,
            encoder,
            valid=batch.get("valid"),
            label=batch["label"] if encoder.classes else None,
            dropout_key=key if stochastic else None,
        )
        return corrupted_loss(denoiser, batch["corrupted"])

    return loss_fn


def make_hooks(experiment: Experiment, encoder: bert.Config, prepared: data.Prepared) -> dict:
    """What is done every `evaluation.every` steps: the validation NELBO, and a sample."""
    settings = experiment.evaluation
    few = prepared.splits["validation"][: settings.rows]
    counted = prepared.splits["train"], few, prepared.vocab_size
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
