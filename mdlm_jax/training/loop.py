"""The training loop."""

import contextlib
import dataclasses
import os
import signal
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, Protocol

import jax

from mdlm_jax.training import best, checkpoints
from mdlm_jax.training.best import Standing, Validation
from mdlm_jax.training.metrics import MetricsWriter
from mdlm_jax.training.report import Report
from mdlm_jax.training.state import TrainState
from mdlm_jax.training.watchdog import Watchdog

PyTree = Any


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """The length of a run and its cadences, in steps.

    Attributes:
      steps: length of the run.
      log_every: steps that one training record averages.
      eval_every: steps between calls of the hooks.
      save_every: steps between checkpoints.
      max_bad_steps: this many skipped updates in a row end the run.
      keep_best: keeps the checkpoint of the best evaluation, and saves one at each evaluation that
        is better than those before it.
      patience: ends the run after this many evaluations in a row without a new best; 0 for never.
      watchdog_seconds: ends the process if no step finishes for this long; 0 for never.
      watchdog_startup_seconds: the same before the first step and in hooks, which compile.

    Raises:
      ValueError: if a length or cadence is not positive, or the patience is negative.
    """

    steps: int
    log_every: int = 100
    eval_every: int = 1000
    save_every: int = 1000
    max_bad_steps: int = 10
    keep_best: bool = False
    patience: int = 0
    watchdog_seconds: int = 0
    watchdog_startup_seconds: int = 0

    def __post_init__(self):
        for name in ("steps", "log_every", "eval_every", "save_every", "max_bad_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"loop.{name} must be at least 1, not {getattr(self, name)!r}")
        if self.patience < 0:
            raise ValueError(f"loop.patience must be at least 0, not {self.patience!r}")


class BatchSource(Protocol):
    """Where batches come from."""

    def iterate(self, start_step: int) -> Iterator[dict[str, Any]]:
        """Yields the batches of the steps `start_step`, `start_step + 1`, ..., as numpy arrays."""
        ...


class Profile(NamedTuple):
    """The steps to trace, and the folder of the trace, for Perfetto and xprof.

    Attributes:
      steps: numbers of steps, from 0; those that are run are traced.
      directory: holds `plugins/profile/<time>/` afterwards.
    """

    steps: range
    directory: Path


class Outcome(NamedTuple):
    """How a run ended. Everything is saved.

    Attributes:
      state: the last.
      stopped: whether a signal left steps or hooks undone.
      early: whether the evaluations ended it, by `patience`.
      best: the state of the evaluations; only in process 0, and only if they were compared.
      kept: the step of the checkpoint that `keep_best` keeps; None for none.
    """

    state: TrainState
    stopped: bool
    early: bool = False
    best: Standing = Standing()
    kept: int | None = None


def fit(
    state: TrainState,
    step: Callable[[TrainState, PyTree], tuple[TrainState, dict[str, Any]]],
    batches: BatchSource,
    *,
    config: LoopConfig,
    put: Callable[[dict[str, Any]], PyTree],
    tokens_per_step: int,
    metrics: MetricsWriter,
    checkpointer: checkpoints.Checkpointer,
    summarize: Callable[[PyTree], Mapping[str, Any]] = dict,
    hooks: Mapping[str, Callable[[TrainState, int], Mapping[str, Any]]] | None = None,
    profile: Profile | None = None,
    vote: Callable[[bool], Any] = bool,
) -> Outcome:
    """Trains from `state.step` to `config.steps`.

    The order of a step: batch, update, the metrics of the step before (so that the host never waits
    for the device), checkpoint, hooks. A training record is the mean over the steps since the last
    one, or since the start of this process, without skipped updates. Its throughput excludes
    compilation and hooks.

    SIGTERM or SIGINT to any process of the job ends the run after the present step, or the next,
    with a checkpoint. A second signal kills at once. When `fit` returns, all checkpoints are on
    disk. The first checkpoint of a new run is waited for and read back.

    With `keep_best` or `patience` the records of the hook "eval" are compared by their
    "nats_per_token", with those of earlier starts. So a run that resumes keeps and ends at the same
    steps as one that never stopped. Process 0 decides for all.

    Args:
      state: from `init_state` or `checkpoints.restore`; donated.
      step: from `make_step`.
      batches: the source of batches.
      config: lengths and cadences.
      put: moves a batch to the devices, such as `partial(put_batch, mesh=mesh, batch_size=B)`.
      tokens_per_step: tokens in a global batch, for the throughput.
      metrics: gets the records.
      checkpointer: gets the checkpoints.
      hooks: by kind of record (`{"eval": evaluate, "sample": sample}`), called as
        `hook(state, step)` every `eval_every` steps and after the last step, and at a restored step
        of these if the metrics lack its record. A hook returns the record's values.
      profile: steps to trace, None for none.
      vote: whether any process of the job must stop, given whether this one must; with several
        processes `distributed.make_vote(mesh)`.

    Raises:
      FloatingPointError: after `max_bad_steps` skipped updates in a row.
      OSError: the system refuses to write, or a written file cannot be read back.
      ValueError: if `state` is beyond the last step or is not the newest checkpoint, if the batches
        end early, or if there is nothing by which to keep the best or to end.
    """
    start = int(state.step)
    if start > config.steps:
        raise ValueError(f"the state is at step {start}, beyond the run's {config.steps} steps")
    if checkpoints.latest_step(checkpointer) not in (None, start):
        raise ValueError(
            f"the state is at step {start}, but {checkpointer.directory} holds a checkpoint of "
            f"step {checkpoints.latest_step(checkpointer)}: restore it, or use another folder"
        )
    validation = None
    if config.keep_best or config.patience:
        if best.KIND not in (hooks or {}):
            raise ValueError(f"keep_best and patience need a hook {best.KIND!r}")
        saved = checkpoints.saved_steps(checkpointer)
        validation = Validation(metrics.evaluations, saved, patience=config.patience, vote=vote)
        if config.keep_best:
            checkpointer.mark(validation.kept_step)
    report = Report(
        metrics,
        steps=config.steps,
        log_every=config.log_every,
        max_bad_steps=config.max_bad_steps,
        tokens_per_step=tokens_per_step,
        summarize=summarize,
    )

    def due(done: int, every: int) -> bool:
        return done == config.steps or (done > 0 and done % every == 0)

    def run_hooks(state: TrainState, done: int, lacking: Container[str]) -> None:
        for kind, hook in (hooks or {}).items():
            if kind not in lacking:
                continue
            try:
                with dog.patience():
                    values = hook(state, done)
            except Exception:
                checkpoints.save(checkpointer, state)
                checkpointer.wait()
                raise
            report.record(done, kind, values)
            if validation and kind == best.KIND:
                is_best = validation.add(done, values[best.FIGURE])
                if is_best and config.keep_best:
                    checkpointer.mark(done)
                    store(state)

    def is_over(done: int) -> bool:
        return validation is not None and done < config.steps and validation.is_over()

    def store(state: TrainState) -> None:
        nonlocal trusted
        metrics.sync()  # or a run that ends here would lack the last records
        checkpoints.save(checkpointer, state)
        if not trusted:
            with report.paused(), dog.patience():
                checkpoints.read_back(checkpointer, state)
            trusted = True

    def finish(done: int, values: dict[str, Any]) -> None:
        report.add(done, values)
        dog.beat(done)

    dog = Watchdog(config.watchdog_seconds, config.watchdog_startup_seconds)
    stopped, early, pending = False, False, None
    trusted = checkpoints.latest_step(checkpointer) is not None  # a checkpoint was read here
    profiled = range(0) if profile is None else profile.steps
    with (
        dog,
        report.running(start),
        _stop_signals() as signalled,
        contextlib.ExitStack() as trace,
        checkpoints.rescuing(checkpointer, lambda: state),
    ):
        if due(start, config.eval_every):
            run_hooks(state, start, lacking(hooks or {}, metrics, vote))
        early = is_over(start)
        last = start if early else config.steps
        source = batches.iterate(start) if start < last else iter(())
        for done in range(start + 1, last + 1):
            batch = next(source, None)
            if batch is None:
                raise ValueError(f"the batches ended before step {done} of {config.steps}")
            if done - 1 == max(profiled.start, start) and done - 1 in profiled:
                trace.enter_context(
                    jax.profiler.trace(profile.directory, create_perfetto_trace=True)
                )
            # Asked before the step and read after it, when the answer is there.
            answer = vote(bool(signalled))
            with jax.profiler.StepTraceAnnotation("train", step_num=done - 1):
                placed = put(batch)
                with jax.transfer_guard("disallow"):  # nothing else moves from or to the host
                    state, values = step(state, placed)
            if done == profiled.stop:
                jax.block_until_ready(values)
                trace.close()
            if pending is not None:
                finish(*pending)
            pending = done, values

            stopped = bool(jax.device_get(answer))
            saving = stopped or due(done, config.save_every)
            evaluating = not stopped and due(done, config.eval_every)
            if saving or evaluating:  # these wait for the device anyway
                finish(*pending)
                pending = None
            checkpoints.check(checkpointer)
            if saving:
                store(state)
            if evaluating:
                with report.paused():
                    run_hooks(state, done, hooks or {})
                early = is_over(done)
                if early:
                    store(state)
            if stopped or early:
                break
        with dog.patience():
            checkpointer.wait()
    if validation is None:
        return Outcome(state, stopped)
    kept = validation.kept_step if config.keep_best else None
    return Outcome(state, stopped, early, validation.all, kept)


def lacking(
    kinds: Iterable[str], metrics: MetricsWriter, vote: Callable[[bool], Any] = bool
) -> list[str]:
    """The kinds of records that the metrics lack at the restored step.

    Every process must call it, and all get the answer of process 0.

    Args:
      kinds: of records.
      metrics: of the run that resumes.
      vote: as in `fit`.
    """
    return [kind for kind in kinds if bool(jax.device_get(vote(metrics.lacks(kind))))]


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Yields a list that receives SIGTERM or SIGINT, once; the next one kills."""
    received: list[int] = []
    signals = (signal.SIGTERM, signal.SIGINT)

    def receive(number: int, frame: FrameType | None) -> None:
        del frame
        received.append(number)
        os.write(2, b"\nstopping after the step at hand; once more kills at once\n")
        for each in signals:
            signal.signal(each, signal.SIG_DFL)

    before = {each: signal.signal(each, receive) for each in signals}
    try:
        yield received
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
