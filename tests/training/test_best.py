"""The best checkpoint by validation, and the end of a run that no longer improves."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import toy_regression as toy
from hypothesis import given
from hypothesis import strategies as st

from mdlm_jax.host import parallel
from mdlm_jax.training import checkpoints
from mdlm_jax.training.best import Standing, standing
from mdlm_jax.training.loop import LoopConfig, fit
from mdlm_jax.training.metrics import MetricsWriter, read_metrics

MESH = parallel.make_mesh(devices=jax.devices()[:1])

FIGURES = st.lists(st.none() | st.floats(allow_nan=True) | st.sampled_from([1.0, 2.0, 3.0]))


@given(FIGURES)
def test_the_lowest_finite_figure_stands_and_of_equal_ones_the_first(figures):
    records = [{"step": 10 * i, "kind": "eval", "nats_per_token": x} for i, x in enumerate(figures)]
    others = [{"step": 5, "kind": "train", "loss": 0.0}, {"step": 5, "kind": "sample", "text": ""}]
    found = standing([*others, *records, *others])
    counted = [
        (figure, i) for i, figure in enumerate(figures) if figure is not None and figure < math.inf
    ]
    if not counted:
        assert found == Standing(None, math.inf, len(figures))
        return
    lowest, first = min(counted)
    assert found == Standing(10 * first, lowest, len(figures) - 1 - first)


@pytest.fixture(scope="module")
def step():
    return toy.step(mesh=MESH)


def train(directory, step, figures, *, length=10**6, signal_at=None, keep_last=1, **changed):
    """A start of a run whose evaluations have these figures, one every two steps.

    It ends as a crash does where the batches end before its steps.
    """
    given = {"log_every": 1, "eval_every": 2, "save_every": 3, "steps": toy.STEPS, **changed}

    def evaluate(state, done):
        if done == signal_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"nats_per_token": figures[done // 2 - 1], "sum": float(state.ema["kernel"].sum())}

    folder = directory / "checkpoints"
    with checkpoints.open_checkpoints(folder, keep_last=keep_last) as checkpointer:
        if checkpoints.latest_step(checkpointer) is None:
            state = toy.state(MESH)
        else:
            state = checkpoints.restore(checkpointer, toy.abstract(MESH))
        with MetricsWriter(directory, step=int(state.step)) as metrics:
            outcome = fit(
                state,
                step,
                toy.Batches(length=length),
                config=LoopConfig(**given),
                put=lambda batch: toy.put(batch, MESH),
                tokens_per_step=toy.ROWS,
                metrics=metrics,
                checkpointer=checkpointer,
                hooks={"eval": evaluate, "sample": lambda state, done: {"text": "x"}},
            )
    return jax.device_get(outcome)


def told(directory):
    """What the records say, but for times and memory."""
    names = ("step", "kind", "loss", "nats_per_token", "sum")
    return [{name: each.get(name) for name in names} for each in read_metrics(directory)]


def saved(directory):
    return checkpoints.list_steps(directory / "checkpoints")


FALLING = [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]
RISING = [5.0, 3.0, 4.0, 3.0, 6.0, 7.0]  # of the steps 2, 4, ... 12: the best is that of 4


@pytest.mark.parametrize(
    ("figures", "kept"),
    [
        (RISING, [4, 12]),
        (FALLING, [10, 12]),  # until something else is saved, the best before the last
        ([1.0, *RISING[1:]], [2, 12]),
        ([math.nan, 5.0, math.inf, 6.0, 5.0, 5.0], [4, 12]),
        ([math.nan] * 6, [12]),
    ],
)
def test_the_best_checkpoint_is_kept_beside_the_newest(tmp_path, step, figures, kept):
    outcome = train(tmp_path, step, figures, keep_best=True)
    assert saved(tmp_path) == kept and not outcome.early
    finite = min((x for x in figures if x < math.inf), default=None)
    assert outcome.kept == (None if finite is None else 2 * figures.index(finite) + 2)


def test_without_being_asked_nothing_more_is_kept(tmp_path, step):
    outcome = train(tmp_path, step, RISING)
    assert saved(tmp_path) == [12] and outcome.kept is None


def test_the_best_checkpoint_is_of_the_state_that_was_evaluated(tmp_path, step):
    train(tmp_path, step, RISING, keep_best=True)
    params, found = checkpoints.restore_params(
        tmp_path / "checkpoints", toy.abstract(MESH).params, step=4
    )
    (record,) = (r for r in told(tmp_path) if (r["step"], r["kind"]) == (4, "eval"))
    assert found == 4 and float(params["kernel"].sum()) == record["sum"]


def test_a_run_that_no_longer_improves_ends_with_all_saved(tmp_path, step):
    outcome = train(tmp_path, step, RISING, patience=3)
    # After step 4: those of 6, 8 (as good is not better) and 10.
    assert (int(outcome.state.step), outcome.early, outcome.stopped) == (10, True, False)
    assert outcome.best == Standing(4, 3.0, 3) and saved(tmp_path) == [10]
    kinds = [(each["step"], each["kind"]) for each in told(tmp_path) if each["kind"] != "train"]
    assert kinds == [(n, kind) for n in (2, 4, 6, 8, 10) for kind in ("eval", "sample")]


def test_a_run_that_ended_early_ends_at_once_until_it_has_more_patience(tmp_path, step):
    train(tmp_path, step, RISING, patience=3)
    before = told(tmp_path)
    again = train(tmp_path, step, RISING, patience=3, length=0)
    assert again.early and int(again.state.step) == 10 and told(tmp_path) == before
    more = train(tmp_path, step, RISING, patience=4)
    assert not more.early and int(more.state.step) == 12  # its last step anyway
    assert not train(tmp_path, step, RISING, patience=1).early  # it has all its steps


@pytest.mark.parametrize(("figures", "patience"), [(RISING, 5), (FALLING, 1), (RISING, 0)])
def test_a_run_that_improves_or_has_patience_ends_with_its_steps(tmp_path, step, figures, patience):
    outcome = train(tmp_path, step, figures, patience=patience)
    assert int(outcome.state.step) == 12 and not outcome.early


def test_figures_that_are_none_are_no_improvement(tmp_path, step):
    outcome = train(tmp_path, step, [math.nan] * 6, patience=2)
    assert outcome.early and int(outcome.state.step) == 4
    assert outcome.best == Standing(None, math.inf, 2)


@pytest.fixture(scope="module")
def straight(tmp_path_factory, step):
    """A run that keeps the best and ends early, without interruption."""
    directory = tmp_path_factory.mktemp("straight")
    return directory, train(directory, step, RISING, keep_best=True, patience=3)


@pytest.mark.slow
@pytest.mark.parametrize("crashes", [(1,), (4,), (5,), (3, 3, 6, 8)])
def test_a_run_that_crashes_keeps_and_ends_as_if_it_had_not(tmp_path, step, straight, crashes):
    for length in crashes:
        with pytest.raises(ValueError, match="the batches ended"):
            train(tmp_path, step, RISING, keep_best=True, patience=3, length=length)
    outcome = train(tmp_path, step, RISING, keep_best=True, patience=3)
    jax.tree.map(np.testing.assert_array_equal, outcome, straight[1])
    assert told(tmp_path) == told(straight[0]) and saved(tmp_path) == saved(straight[0]) == [4, 10]


@pytest.mark.slow
@pytest.mark.parametrize("at", [2, 8, 10])
def test_a_run_that_is_stopped_keeps_and_ends_as_if_it_had_not(tmp_path, step, straight, at):
    """Also by a signal in its last evaluation."""
    train(tmp_path, step, RISING, keep_best=True, patience=3, signal_at=at)
    outcome = train(tmp_path, step, RISING, keep_best=True, patience=3)
    jax.tree.map(np.testing.assert_array_equal, outcome, straight[1])
    assert told(tmp_path) == told(straight[0]) and 4 in saved(tmp_path)


def test_the_best_is_of_the_checkpoints_that_there_are(tmp_path, step):
    """Asked for in the middle of a run: what was better once was not kept."""
    train(tmp_path, step, [1.0, 2.0, 3.0], steps=6)
    assert saved(tmp_path) == [6]
    outcome = train(tmp_path, step, [1.0, 2.0, 3.0, 4.0, 2.5, 5.0], keep_best=True)
    assert outcome.kept == 10 and saved(tmp_path) == [10, 12]
    assert outcome.best.step == 2  # by which patience counts


@pytest.mark.parametrize("settings", [{"keep_best": True}, {"patience": 1}])
def test_without_evaluations_there_is_nothing_to_go_by(tmp_path, step, settings):
    with (
        checkpoints.open_checkpoints(tmp_path) as checkpointer,
        pytest.raises(ValueError, match="keep_best and patience need a hook 'eval'"),
    ):
        fit(
            toy.state(MESH),
            step,
            toy.Batches(),
            config=LoopConfig(steps=1, **settings),
            put=lambda batch: batch,
            tokens_per_step=1,
            metrics=MetricsWriter(tmp_path),
            checkpointer=checkpointer,
        )


def test_a_negative_patience_is_refused():
    with pytest.raises(ValueError, match=r"loop\.patience must be at least 0, not -1"):
        LoopConfig(steps=1, patience=-1)


TOGETHER = """
import json, sys
import jax
import toy_regression as toy
from mdlm_jax.host import distributed, parallel
from mdlm_jax.training import checkpoints
from mdlm_jax.training.loop import LoopConfig, fit
from mdlm_jax.training.metrics import MetricsWriter

directory, figures, length = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
distributed.initialize()
mesh = parallel.make_mesh(1, 1, 2)  # all rows in both
if jax.process_index() == 1:
    figures = figures[::-1]  # which must not matter
with checkpoints.open_checkpoints(directory + "/checkpoints", keep_last=1) as checkpointer:
    if checkpoints.latest_step(checkpointer) is None:
        state = jax.device_put(jax.device_get(toy.state()), toy.shardings(mesh))
    else:
        state = checkpoints.restore(checkpointer, toy.abstract(mesh))
    with MetricsWriter(directory, step=int(state.step)) as metrics:
        outcome = fit(
            state, toy.step(mesh=mesh), toy.Batches(),
            config=LoopConfig(
                steps=length, log_every=1, eval_every=2, save_every=3, keep_best=True, patience=3
            ),
            put=lambda batch: toy.put(batch, mesh),
            tokens_per_step=toy.ROWS, metrics=metrics, checkpointer=checkpointer,
            hooks={"eval": lambda state, done: {"nats_per_token": figures[done // 2 - 1]}},
            vote=distributed.make_vote(mesh),
        )
    held = checkpoints.saved_steps(checkpointer)
print(json.dumps([int(outcome.state.step), outcome.early, outcome.kept, held]))
"""


def together(directory, figures, length):
    """Two processes train one run; what each says of its end."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "PYTHONPATH": f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}",
        "COORDINATOR_ADDRESS": address,
        "NUM_PROCESSES": "2",
    }
    command = [sys.executable, "-c", TOGETHER, str(directory), json.dumps(figures), str(length)]
    started = [
        subprocess.Popen(
            command,
            env={**environment, "PROCESS_ID": str(i)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    outputs = [process.communicate() for process in started]
    for process, (_, errors) in zip(started, outputs, strict=True):
        assert process.returncode == 0, errors
    return [json.loads(output.splitlines()[-1]) for output, _ in outputs]


@pytest.mark.slow
def test_all_processes_keep_and_end_at_the_same_steps(tmp_path):
    first, second = together(tmp_path, RISING, 5)
    assert first == second == [5, False, 4, [4, 5]]
    first, second = together(tmp_path, RISING, toy.STEPS)  # process 1 has no records
    # After step 4: those of 5, the shorter run's last, 6 and 8.
    assert first == second == [8, True, 4, [4, 8]]
    assert saved(tmp_path) == [4, 8]
