import gzip
import json
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
import toy_regression as toy

from mdlm_jax.host import parallel
from mdlm_jax.training import checkpoints
from mdlm_jax.training.loop import LoopConfig, Profile, fit
from mdlm_jax.training.metrics import MetricsWriter, read_metrics

MESH = parallel.make_mesh(devices=jax.devices()[:1])
CONFIG = LoopConfig(steps=toy.STEPS, log_every=2, eval_every=5, save_every=4, max_bad_steps=3)


@pytest.fixture(scope="module")
def step():
    return toy.step(mesh=MESH)


def train(directory, step, *, batches=None, config=CONFIG, hooks=None, profile=None):
    """What a training command does: restore if there is something, then fit."""
    with checkpoints.open_checkpoints(directory / "checkpoints") as checkpointer:
        if checkpoints.latest_step(checkpointer) is None:
            state = toy.state(MESH)
        else:
            state = checkpoints.restore(checkpointer, toy.abstract(MESH))
        with MetricsWriter(directory, step=int(state.step)) as metrics:
            return fit(
                state,
                step,
                batches or toy.Batches(),
                config=config,
                put=lambda batch: toy.put(batch, MESH),
                tokens_per_step=toy.ROWS,
                metrics=metrics,
                checkpointer=checkpointer,
                hooks=hooks,
                profile=profile,
            )


@pytest.fixture(scope="module")
def straight(tmp_path_factory, step):
    """A run without interruption: its folder and its outcome."""
    directory = tmp_path_factory.mktemp("straight")
    outcome = train(directory, step, hooks={"eval": evaluate})
    return directory, jax.device_get(outcome)


def evaluate(state, step):
    return {"norm": float(abs(state.ema["kernel"]).sum()), "at": step}


def never(state, step):
    raise AssertionError("its record is there")


def saved_steps(directory):
    return checkpoints.list_steps(directory / "checkpoints")


def steps_of(directory, kind):
    return [record["step"] for record in read_metrics(directory) if record["kind"] == kind]


def stop_at(wanted, number):
    """A hook that sends this process a signal."""

    def hook(state, step):
        if step == wanted:
            os.kill(os.getpid(), number)
        return evaluate(state, step)

    return {"eval": hook}


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_run_logs_evaluates_and_saves_when_it_should(straight):
    directory, outcome = straight
    assert not outcome.stopped
    assert int(outcome.state.step) == toy.STEPS
    assert steps_of(directory, "train") == [2, 4, 6, 8, 10, 12]
    assert steps_of(directory, "eval") == [5, 10, 12]
    assert saved_steps(directory) == [4, 8, 12]


def test_records_are_on_disk_before_the_checkpoint_that_follows_them(tmp_path, step, monkeypatch):
    order = []

    def watch(owner, name):
        real = getattr(owner, name)
        spy = lambda *arguments: order.append(name) or real(*arguments)  # noqa: E731
        monkeypatch.setattr(owner, name, spy)

    watch(MetricsWriter, "sync")
    watch(checkpoints, "save")
    train(tmp_path, step)
    assert order == ["sync", "save"] * 3


def test_every_step_may_be_logged_evaluated_and_saved(tmp_path, step):
    config = LoopConfig(steps=2, log_every=1, eval_every=1, save_every=1)
    train(tmp_path, step, config=config, hooks={"eval": evaluate})
    assert steps_of(tmp_path, "train") == steps_of(tmp_path, "eval") == [1, 2]
    assert saved_steps(tmp_path) == [1, 2]


def test_a_record_is_the_mean_over_its_steps(straight, step):
    directory, _ = straight
    state, losses = toy.state(MESH), []
    for i in range(4):
        state, metrics = step(state, toy.put(toy.batch(i), MESH))
        losses.append(float(metrics["loss"]))
    records = [record for record in read_metrics(directory) if record["kind"] == "train"]
    assert records[0]["loss"] == pytest.approx(np.mean(losses[:2]), rel=1e-6)
    assert records[1]["loss"] == pytest.approx(np.mean(losses[2:]), rel=1e-6)
    assert records[1]["weight"] == pytest.approx(1.0)
    assert records[1]["learning_rate"] == pytest.approx(float(toy.optimizer()[1](3)))
    assert records[1]["tokens_per_second"] > 0
    assert records[-1]["seconds_left"] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_resumed_run_is_bit_identical(tmp_path, step, straight, number):
    before = signal.getsignal(number)
    outcome = train(tmp_path, step, hooks=stop_at(5, number))
    assert outcome.stopped
    assert int(outcome.state.step) == 6
    assert saved_steps(tmp_path) == [4, 6]
    assert signal.getsignal(number) is before

    resumed = train(tmp_path, step, hooks={"eval": evaluate})
    assert not resumed.stopped
    assert_same(jax.device_get(resumed.state), straight[1].state)
    for kind in ("train", "eval"):
        assert steps_of(tmp_path, kind) == steps_of(straight[0], kind)


def test_a_crash_between_checkpoints_resumes_bit_identically(tmp_path, step, straight):
    with pytest.raises(ValueError, match="the batches ended before step 8 of 12"):
        train(tmp_path, step, batches=toy.Batches(length=7), hooks={"eval": evaluate})
    assert steps_of(tmp_path, "train")[-1] == 6  # beyond the checkpoint
    assert saved_steps(tmp_path) == [4]
    resumed = train(tmp_path, step, hooks={"eval": evaluate})
    assert_same(jax.device_get(resumed.state), straight[1].state)
    for kind in ("train", "eval"):
        assert steps_of(tmp_path, kind) == steps_of(straight[0], kind)


def test_a_second_interrupt_kills_at_once(tmp_path):
    script = """
import os, signal, sys
from mdlm_jax.training.loop import _stop_signals
with _stop_signals() as received:
    os.kill(os.getpid(), signal.SIGINT)
    print("first", len(received), flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    print("second", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "first 1\n"
    assert done.returncode == -signal.SIGINT


def test_a_signal_at_the_last_step_leaves_its_evaluation_to_the_next_run(tmp_path, step):
    class Batches(toy.Batches):
        def iterate(self, start_step):
            for batch in super().iterate(start_step):
                if start_step == toy.STEPS - 1:
                    os.kill(os.getpid(), signal.SIGTERM)
                start_step += 1
                yield batch

    assert train(tmp_path, step, batches=Batches(), hooks={"eval": evaluate}).stopped
    assert steps_of(tmp_path, "eval") == [5, 10]
    assert not train(tmp_path, step, hooks={"eval": evaluate}).stopped
    assert steps_of(tmp_path, "eval") == [5, 10, 12]


def test_running_a_finished_run_again_changes_nothing(tmp_path, step):
    first = train(tmp_path, step, hooks={"eval": evaluate})
    records = read_metrics(tmp_path)
    again = train(tmp_path, step, hooks={"eval": never, "sample": evaluate})
    assert steps_of(tmp_path, "sample") == [12]  # which it lacked
    records.append(read_metrics(tmp_path)[-1])
    assert_same(jax.device_get(again), jax.device_get(first))
    assert read_metrics(tmp_path) == records


def test_bad_steps_in_a_row_stop_the_run_and_leave_the_checkpoints(tmp_path, step, straight):
    with pytest.raises(FloatingPointError, match=r"step 8: 3 updates in a row.*loss nan") as error:
        train(tmp_path, step, batches=toy.Batches(bad=(6, 7, 8)))
    assert "\n" not in str(error.value)
    assert saved_steps(tmp_path) == [4]  # not 8, where the next was due
    # The cause is gone: training goes on from step 4.
    assert_same(jax.device_get(train(tmp_path, step).state), straight[1].state)


def test_fewer_bad_steps_are_skipped_and_left_out_of_the_means(tmp_path, step):
    train(tmp_path, step, batches=toy.Batches(bad=(5, 6, 8, 9)))
    records = {r["step"]: r for r in read_metrics(tmp_path) if r["kind"] == "train"}
    assert [records[n]["skipped"] for n in (2, 4, 6, 8, 10, 12)] == [0, 0, 2, 1, 1, 0]
    assert "loss" not in records[6]
    assert all(np.isfinite(records[n]["loss"]) for n in (2, 4, 8, 10, 12))


def test_a_failing_hook_loses_no_training_and_is_made_up_for_alone(tmp_path, step, straight):
    def fail(state, step):
        raise RuntimeError("no space for plots")

    with pytest.raises(RuntimeError, match="no space for plots"):
        train(tmp_path, step, hooks={"eval": evaluate, "plot": fail, "last": evaluate})
    assert saved_steps(tmp_path) == [4, 5]
    asked = []
    hooks = {
        kind: lambda state, step, kind=kind: asked.append((kind, step)) or evaluate(state, step)
        for kind in ("eval", "plot", "last")
    }
    resumed = train(tmp_path, step, hooks=hooks)
    assert_same(jax.device_get(resumed.state), straight[1].state)
    assert asked[:3] == [("plot", 5), ("last", 5), ("eval", 10)]
    for kind in hooks:
        assert steps_of(tmp_path, kind) == [5, 10, 12]


def test_a_state_that_does_not_belong_is_refused(tmp_path, step, straight):
    train(tmp_path, step)
    shorter = LoopConfig(steps=5)
    with pytest.raises(ValueError, match="step 12, beyond the run's 5 steps"):
        train(tmp_path, step, config=shorter)
    with (
        checkpoints.open_checkpoints(tmp_path / "checkpoints") as checkpointer,
        pytest.raises(ValueError, match=r"at step 0, but .* of step 12: restore it"),
    ):
        fit(
            toy.state(),
            step,
            toy.Batches(),
            config=CONFIG,
            put=lambda batch: batch,
            tokens_per_step=1,
            metrics=MetricsWriter(tmp_path / "other"),
            checkpointer=checkpointer,
        )


@pytest.mark.parametrize(
    "name", ["steps", "log_every", "eval_every", "save_every", "max_bad_steps"]
)
def test_cadences_below_one_are_named(name):
    with pytest.raises(ValueError, match=f"loop.{name} must be at least 1, not 0"):
        LoopConfig(**{"steps": 1, name: 0})


@pytest.mark.slow
def test_a_profile_holds_the_steps_that_were_asked_for(tmp_path, step):
    train(tmp_path, step, profile=Profile(range(3, 5), tmp_path))
    (trace,) = tmp_path.glob("plugins/profile/*/perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    steps = {e["args"]["step_num"] for e in events if "step_num" in e.get("args", {})}
    assert {int(number) for number in steps} == {3, 4}
    assert list(trace.parent.glob("*.xplane.pb"))  # what xprof reads
