"""Trains a masked diffusion language model.

    python -m mdlm_jax.train --config=quickstart --workdir=runs/quickstart
    python -m mdlm_jax.train --workdir=runs/quickstart    # goes on, with the run's own config

Any key of the config can be changed: --config.training.steps=2000. Started again with the same
workdir, a run resumes from its newest checkpoint, finishes what its last step lacks, or says that
it is done. --config=runs/quickstart/config.json begins another run from what that one was trained
with. --print_config prints all keys, as JSON that --config takes again, and ends.
--config.profile_steps=10:13 leaves a trace of steps 10, 11 and 12. Exit codes: 0 training complete;
75 stopped by a signal with everything saved; 2 bad input, nothing started; 76 the updates stopped
being finite, and would again; else a crash.
"""

import contextlib
import dataclasses
import functools
import math
import shlex
import sys
from typing import Any

import jax
from absl import flags
from etils import epath

from mdlm_jax import data
from mdlm_jax.host import command_line, distributed, endings, host_memory, parallel
from mdlm_jax.runs import following, hooks, starting, workdir
from mdlm_jax.runs.experiment import Experiment, TrainingConfig, as_json, profile_range
from mdlm_jax.runs.families import network_of
from mdlm_jax.runs.planning import Job, load_start, plan
from mdlm_jax.runs.program import could_pair_rows, pairs_rows
from mdlm_jax.training import checkpoints
from mdlm_jax.training.loop import LoopConfig, Outcome, Profile, fit, lacking
from mdlm_jax.training.metrics import MetricsWriter, read_metrics
from mdlm_jax.training.optimizer import make_optimizer

_CONFIG = command_line.define_config()
_WORKDIR = command_line.define_path(
    "workdir", None, "Folder of the run, made if it does not exist."
)
_PRINT_CONFIG = flags.DEFINE_bool(
    "print_config", False, "Print the whole config, as JSON that --config takes, and end."
)


def main() -> int:
    """Trains or resumes the run of the flags, and returns the exit code."""
    with contextlib.ExitStack() as claimed:
        with command_line.bad_input():
            experiment, follows = _experiment()
            if _PRINT_CONFIG.value:
                experiment.planned_encoder(starting.architecture(experiment.start))  # checks it
                print(as_json(experiment))
                return 0
            if _WORKDIR.value is None:
                raise ValueError("--workdir is required: the folder of the run")
            command_line.join_job(experiment.training.heartbeat_seconds)
            for line in follows:
                _say(line)
            with distributed.failing_together():
                job, encoder = plan(experiment, epath.Path(_WORKDIR.value))
            distributed.require_same("the fingerprint of the data", job.prepared.fingerprint)
            if warning := data.unknown_warning(job.prepared.card, job.prepared.tokenizer):
                _say(f"warning: {warning}")
            weights = load_start(job, _say)
            claim = None
            with distributed.failing_together():
                if jax.process_index() == 0:  # for all processes
                    claim = claimed.enter_context(
                        workdir.claim(job.workdir, experiment, encoder, job.prepared)
                    )
                    for change in claim.changes:
                        _say(f"changed since the last start: {change}")
        host_memory.keep_freed()
        return train(job, weights, claim)


def _experiment() -> tuple[Experiment, list[str]]:
    """The experiment of the flags, and the keys that follow others."""
    if _CONFIG.value is None:
        raise ValueError(
            "--config is required: the name of a shipped config or a file; --workdir of a run goes "
            "on without it" + ("" if _WORKDIR.value is None else f", and {_WORKDIR.value} is none")
        )
    chosen = command_line.chosen_config(_CONFIG)
    return following.experiment_of(chosen, command_line.given_keys(_CONFIG))


def train(job: Job, weights: Any = None, claim: workdir.Claim | None = None) -> int:
    """Trains from the newest checkpoint or from the start, and returns the exit code.

    Args:
      job: from `plan`.
      weights: from `load_start`, which are donated; None for fresh ones.
      claim: of the folder, in the process that holds it.
    """
    program, experiment = job.program, job.program.experiment
    training, mesh = experiment.training, program.mesh
    with checkpoints.open_checkpoints(
        job.workdir / "checkpoints",
        keep_last=training.keep_last,
        keep_every=training.keep_every or None,
    ) as checkpointer:
        if checkpoints.latest_step(checkpointer) is None:
            state = program.init() if weights is None else program.init_from(weights)
        else:
            with command_line.bad_input():
                padded = network_of(program.encoder).padded_leaves(program.encoder)
                state = checkpoints.restore(checkpointer, program.abstract_state(), padded=padded)
        start, vote = int(state.step), distributed.make_vote(mesh)
        with command_line.bad_input():
            metrics = MetricsWriter(job.workdir, step=start, tensorboard=training.tensorboard)
        with metrics:
            # After the last step a run may have ended before it was measured and shown.
            kinds = hooks.KINDS if start == training.steps else ()
            if start >= training.steps and not lacking(kinds, metrics, vote):
                _say(f"{job.workdir} is done: it has {start} of {training.steps} steps")
                return 0
            with command_line.bad_input():
                metrics.open_wandb(training.wandb, dataclasses.asdict(experiment))
            for line in _begin(job, start, claim):
                _say(line)
            try:
                outcome = fit(
                    state,
                    program.step,
                    job.batches,
                    config=LoopConfig(
                        steps=training.steps,
                        log_every=training.log_every,
                        eval_every=experiment.evaluation.every,
                        save_every=training.save_every,
                        max_bad_steps=training.max_bad_steps,
                        keep_best=training.keep_best,
                        patience=training.patience,
                        watchdog_seconds=training.watchdog_seconds,
                        watchdog_startup_seconds=training.watchdog_startup_seconds,
                    ),
                    put=functools.partial(
                        parallel.put_batch, mesh=mesh, batch_size=training.batch_size
                    ),
                    tokens_per_step=training.batch_size * experiment.data.length,
                    metrics=metrics,
                    checkpointer=checkpointer,
                    summarize=lambda aux: {"accuracy": float(aux.accuracy)},
                    hooks=hooks.make_hooks(program, job.prepared),
                    profile=Profile(profile_range(experiment.profile_steps), job.workdir),
                    vote=vote,
                )
            except FloatingPointError as error:
                print(f"error: {error}; the checkpoints are intact", file=sys.stderr)
                return command_line.NOT_FINITE
    if outcome.stopped:
        _say(f"stopped at step {int(outcome.state.step)}, all is saved: start again to go on")
        return command_line.STOPPED
    if jax.process_index() == 0:  # which wrote the metrics
        for line in _of_validation(outcome, training):
            _say(line)
        _say(_last_words(job.workdir))
        _report(job.workdir)
        _say(f"next: {_next_command(job)}")
    return 0


def _of_validation(outcome: Outcome, training: TrainingConfig) -> list[str]:
    """Why a run ended early, and where its best weights are."""
    words, best = [], outcome.best
    if outcome.early:
        than = "is finite"
        if best.step is not None:
            than = f"improved on the {best.figure:.3f} nats per token of step {best.step}"
        words.append(
            f"stopped early at step {int(outcome.state.step)} of {training.steps}: none of the "
            f"last {best.since} evaluations {than} (training.patience)"
        )
    if outcome.kept is not None:
        words.append(f"the best evaluation is that of step {outcome.kept}: --step=best reads it")
    return words


def _report(folder: epath.Path) -> None:
    """Writes the page of the run, which is complete without it."""
    from mdlm_jax.pages.report import write_report  # matplotlib: seconds

    try:
        _say(f"report: {write_report(folder)}")
    except (OSError, ValueError) as error:
        print(f"warning: no report was written: {endings.one_line(error)}", file=sys.stderr)


def _next_command(job: Job) -> str:
    """The command that samples the run; with pairs, it answers the first validation prompt."""
    words = ["python", "-m", "mdlm_jax.generate", f"--workdir={job.workdir}"]
    first = job.prepared.splits["validation"][:1]
    if first.prompts is not None:
        ids = first.tokens[0, : first.prompts[0] - 1]  # without the separator
        # What a chat template made of messages is not what one asks.
        is_text = bool(job.program.experiment.data.prompt_field)
        words.append(f"--prompt={data.decode(job.prepared.tokenizer, ids) if is_text else '...'}")
    return shlex.join(words)


def _begin(job: Job, start: int, claim: workdir.Claim | None = None) -> list[str]:
    """Lines about the run that begins."""
    if claim is not None and job.goes_on:
        claim.record()
    steps, before = job.program.experiment.training.steps, job.steps_before
    words = [_first_words(job, start)]
    if before is None or before == steps or start == steps:
        return words
    if jax.process_index() == 0:
        workdir.record_steps(job.workdir, steps)
    words.append(f"changed since the last start: training.steps: {before} -> {steps}")
    optimizer = job.program.experiment.optimizer
    was, is_now = (float(make_optimizer(optimizer, n)[1](start)) for n in (before, steps))
    if not math.isclose(was, is_now, rel_tol=0.01):
        words.append(
            f"the learning rate decays over all of training.steps: at step {start} it was "
            f"{was:.3g}, and {'rises' if is_now > was else 'falls'} to {is_now:.3g} now; to choose "
            "it yourself, begin another --workdir from these weights: "
            f"--config.start.checkpoint={job.workdir} --config.optimizer.learning_rate=..."
        )
    return words


def _first_words(job: Job, start: int) -> str:
    program = job.program
    count = sum(leaf.size for leaf in jax.tree.leaves(program.shapes))
    sizes = ", ".join(f"{axis}={size}" for axis, size in program.mesh.shape.items())
    devices = f"{program.mesh.size} {jax.devices()[0].platform} device(s)"
    if program.mesh.size > 1:
        devices += f" ({sizes})"
    if jax.process_count() > 1:
        devices += f" of {jax.process_count()} processes"
    words = (
        f"{count:,} parameters, {len(job.batches.rows):,} rows of "
        f"{program.experiment.data.length} tokens, {devices}, "
        + (f"resuming at step {start}" if start else f"logging to {job.workdir}")
    )
    if could_pair_rows(program.experiment) and not pairs_rows(program.experiment, program.mesh):
        words += "\nrows a device are odd: unpaired, the vocabulary projection does twice the work"
    return words


def _last_words(folder: epath.Path) -> str:
    """The last validation likelihood, beside n-grams on the same tokens."""
    last = [each for each in read_metrics(folder) if each["kind"] == "eval"][-1]
    if last["nats_per_token"] is None:  # as the file has what is not finite
        return "the validation likelihood is not finite: take a lower optimizer.learning_rate"
    nats = f"{last['nats_per_token']:.3f}"
    if last.get("likelihood") == "exact":
        figure = f"cross-entropy {nats} (exact)"
    else:
        figure = f"NELBO {nats} +- {last['mc_error']:.3f} (masks)"
    if last["text_error"] is not None:  # of a single row
        figure += f" +- {last['text_error']:.3f} (text)"
    return (
        f"validation {figure} nats/token over {last['tokens']:,} tokens; the corpus's unigram has "
        f"{last['unigram']:.3f} there, its bigram {last['bigram']:.3f}"
    )


def _say(line: str) -> None:
    if jax.process_index() == 0:
        print(line, flush=True)


if __name__ == "__main__":
    command_line.run(main, goes_on=True)
