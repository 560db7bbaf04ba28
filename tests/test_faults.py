"""Runs that are killed, full or damaged: nothing committed is lost, and the end is the same."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from buckets import serve_bucket
from command_runs import TINY, command, run, write_text
from orbax.checkpoint import v1

pytestmark = pytest.mark.slow

STEPS = 30
FLAGS = (
    *TINY,
    f"--config.training.steps={STEPS}",
    f"--config.evaluation.every={STEPS}",
    "--config.training.save_every=3",
    "--config.training.log_every=1",
    "--config.model.dropout=0.1",
)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """What fills the commands' {places}, and a run that was left alone."""
    folder = tmp_path_factory.mktemp("faults")
    env = {"MDLM_JAX_CACHE": str(folder / "cache")}
    places = {"text": write_text(folder / "text.txt"), "straight": folder / "straight", "env": env}
    run("train", *FLAGS, "--workdir={straight}", **places)
    return places


def records(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def losses(workdir):
    return [(each["step"], each["loss"]) for each in records(workdir) if each["kind"] == "train"]


def saved(workdir):
    """Steps of the committed checkpoints."""
    return sorted(int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdecimal())


def half_saved(workdir):
    return list((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"))


def state_of(workdir):
    """All arrays of the newest checkpoint."""
    newest = workdir / "checkpoints" / str(saved(workdir)[-1])
    return jax.device_get(v1.load_checkpointables(newest))


def has_logged(step):
    def reached(workdir):
        path = workdir / "metrics.jsonl"
        return path.exists() and path.read_text().count("\n") >= step

    return reached


@contextlib.contextmanager
def training(places, workdir, *flags):
    """A training process, in which nothing may be left when the `with` ends."""
    process = subprocess.Popen(
        command("train", [*FLAGS, *flags, f"--workdir={workdir}"], **places),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **places["env"]},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def interrupt(places, workdir, number, when, *flags):
    """Sends a signal when `when(workdir)`; returns the exit code and what was printed."""
    with training(places, workdir, *flags) as process:
        while process.poll() is None and not when(workdir):
            time.sleep(0.0005)
        process.send_signal(number)
        output, errors = process.communicate()
        return process.returncode, output + errors


def assert_ends_like_the_straight_run(places, workdir):
    before = max(saved(workdir), default=0)
    done = run("train", *FLAGS, f"--workdir={workdir}", **places)
    assert f"resuming at step {before}" in done.stdout or before in (0, STEPS)
    assert losses(workdir) == losses(places["straight"])
    assert [step for step, _ in losses(workdir)] == [*range(1, STEPS + 1)]
    mine, straight = state_of(workdir), state_of(places["straight"])
    assert jax.tree.structure(mine) == jax.tree.structure(straight)
    jax.tree.map(np.testing.assert_array_equal, mine, straight)
    assert not half_saved(workdir)


def test_after_sigterm_the_run_ends_as_if_left_alone(places, tmp_path):
    draw = random.Random(0)
    for first in (1, 10):
        when = has_logged(draw.randint(first, first + 8))
        code, output = interrupt(places, tmp_path / "run", signal.SIGTERM, when)
        assert code == 75, output
        stopped = int(re.search(r"stopped at step (\d+), all is saved", output)[1])
        assert saved(tmp_path / "run")[-1] == stopped
    assert_ends_like_the_straight_run(places, tmp_path / "run")


def test_after_sigkill_at_any_step_the_run_ends_as_if_left_alone(places, tmp_path):
    draw = random.Random(1)
    for first in (2, 10, 18):
        before = max(saved(tmp_path / "run"), default=0)
        when = has_logged(draw.randint(first, first + 7))
        code, output = interrupt(places, tmp_path / "run", signal.SIGKILL, when)
        assert code == -signal.SIGKILL
        assert f"resuming at step {before}" in output or not before
        # Nothing committed is lost, whatever was in the making.
        assert max(saved(tmp_path / "run"), default=0) >= before
    assert_ends_like_the_straight_run(places, tmp_path / "run")


def test_after_sigkill_inside_a_save_the_run_ends_as_if_left_alone(places, tmp_path):
    workdir, inside = tmp_path / "run", 0
    for committed in (0, 6, 12):

        def saving(workdir, committed=committed):
            return max(saved(workdir), default=0) >= committed and half_saved(workdir)

        interrupt(places, workdir, signal.SIGKILL, saving)
        inside += bool(half_saved(workdir))
    assert inside, "no kill came within a save"
    assert_ends_like_the_straight_run(places, workdir)


def test_a_damaged_newest_checkpoint_is_set_aside_and_its_steps_done_again(places, tmp_path):
    shutil.copytree(places["straight"], tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / str(STEPS) / "ema" / "manifest.ocdbt").write_bytes(b"")

    read = run("generate", f"--workdir={tmp_path}/run", "--steps=2", "--json", **places)
    told = rf"warning: checkpoint .*/{STEPS} is damaged \(.*\): going back to step {STEPS - 3}"
    assert re.fullmatch(told, read.stderr.strip())

    done = run("train", *FLAGS, f"--workdir={tmp_path}/run", **places)
    assert re.match(told, done.stderr) and f"resuming at step {STEPS - 3}" in done.stdout
    assert losses(tmp_path / "run") == losses(places["straight"])
    assert saved(tmp_path / "run")[-1] == STEPS
    assert (tmp_path / "run" / "checkpoints" / f"{STEPS}.damaged").is_dir()
    jax.tree.map(
        np.testing.assert_array_equal, state_of(tmp_path / "run"), state_of(places["straight"])
    )


def test_checkpoints_are_kept_as_the_config_says(places, tmp_path):
    flags = ("--config.training.keep_every=6", "--config.training.keep_last=1")
    run("train", *FLAGS, "--config.training.steps=15", *flags, f"--workdir={tmp_path}/r", **places)
    assert saved(tmp_path / "r") == [6, 12, 15]


def test_an_exported_model_writes_and_is_measured_as_the_run(places, tmp_path):
    model = tmp_path / "model"
    done = run("export", "--workdir={straight}", f"--output={model}", **places)
    assert done.stdout == f"written: {model}, the ema weights of step {STEPS}\n"

    def size(folder):
        return sum(path.stat().st_size for path in folder.rglob("*"))

    assert size(model / "checkpoints") < size(places["straight"] / "checkpoints" / str(STEPS)) / 2
    for name, *flags in (("generate", "--steps=4", "--json"), ("evaluate", "--draws=2")):
        told = [
            run(name, f"--workdir={folder}", *flags, **places).stdout.splitlines()
            for folder in (places["straight"], model)
        ]
        assert told[0][:1] == told[1][:1] and len(told[0]) == len(told[1])
    raw = run(
        "export", "--workdir={straight}", f"--output={tmp_path}/raw", "--weights=params",
        f"--step={STEPS - 3}", **places,
    )  # fmt: skip
    assert f"the params weights of step {STEPS - 3}" in raw.stdout


@pytest.fixture
def bucket(tmp_path):
    with serve_bucket(tmp_path) as env:
        yield env


def test_a_workdir_and_the_data_may_be_in_a_bucket(places, bucket, tmp_path):
    env = {"MDLM_JAX_CACHE": "gs://bucket/prepared", "XDG_CACHE_HOME": str(tmp_path / "copies")}
    places = {**places, "env": {**env, **bucket}}
    done = run("prepare", *TINY, **places)
    name = re.search(r", a copy of gs://bucket/prepared/(\S+)", done.stdout)[1]
    shutil.rmtree(tmp_path / "copies")
    workdir = "--workdir=gs://bucket/runs/one"
    run("train", *FLAGS, "--config.training.steps=6", workdir, **places)
    # With its own config, from the bucket.
    done = run("train", "--config.training.steps=9", workdir, **places)
    assert "resuming at step 6" in done.stdout
    assert [path.name for path in (tmp_path / "copies/mdlm_jax").glob("text_files-*")] == [name]
    done = run("generate", workdir, "--steps=2", "--save", **places)
    assert "written: gs://bucket/runs/one/report.html" in done.stdout
    done = run("export", workdir, f"--output={tmp_path}/model", **places)
    assert "weights of step 9" in done.stdout
    done = run("export", f"--workdir={tmp_path}/model", "--output=gs://bucket/model", **places)
    assert "weights of step 9" in done.stdout


# What happens to the file system of a run that trains, from then on one line and exit code 1.


@contextlib.contextmanager
def mounted(*arguments):
    """A mount, or a skipped test where mounting is not allowed."""
    done = subprocess.run(["mount", *map(str, arguments)], check=False, capture_output=True)
    if done.returncode:
        pytest.skip("needs to mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", arguments[-1]], check=False)


LONG = (
    "--config.training.steps=100000",
    "--config.training.save_every=1000",
    "--config.training.log_every=100",
)


def test_a_checkpoint_folder_that_cannot_be_written_is_said_before_training(places, tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text((places["straight"] / "config.json").read_text())
    with mounted("--bind", folder, folder), mounted("-o", "remount,bind,ro", folder):
        done = run("train", *FLAGS, f"--workdir={tmp_path}/run", **{**places, "code": 1})
    assert re.fullmatch(
        r"error: .*/checkpoints: the folder cannot be written; .*", done.stderr.strip()
    )
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_full_disk_is_said_at_the_save_that_it_fails(places, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    (tmp_path / "small").mkdir()
    with mounted("-t", "tmpfs", "-o", "size=400k", "tmpfs", tmp_path / "small"):
        workdir = tmp_path / "small" / "run"
        with training(places, workdir, *LONG) as process:
            _, errors = process.communicate()
        assert process.returncode == 1
        assert re.match("error: .*No space left on device; what was", errors.splitlines()[-1])
        assert "Traceback" not in errors
        failed = max(saved(workdir), default=0) + 1000
        assert failed <= losses(workdir)[-1][0] < failed + 1000  # before the next save is due
        kept = re.search(r"step (\d+) is saved in (\S+): to go on .* into (\S+)\n", errors)
        assert int(kept[1]) >= failed
        subprocess.run(["mount", "-o", "remount,size=30m", tmp_path / "small"], check=True)
        shutil.move(Path(kept[2]) / kept[1], kept[3])
        steps = f"--config.training.steps={int(kept[1]) + 1}"
        done = run("train", *FLAGS, steps, f"--workdir={workdir}", **places)
        assert f"resuming at step {kept[1]}" in done.stdout


def test_a_folder_that_is_gone_is_said_at_once(places, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    lost = tmp_path / "lost"
    lost.mkdir()
    with (
        mounted("-t", "tmpfs", "-o", "size=30m", "tmpfs", lost),
        training(places, lost / "run", *LONG) as process,
    ):
        while process.poll() is None and not has_logged(2)(lost / "run"):
            time.sleep(0.01)
        subprocess.run(["umount", "-l", lost], check=True)
        _, errors = process.communicate()
    assert process.returncode == 1
    assert re.match("error: .*/run/checkpoints: the folder is gone", errors.splitlines()[-1])
    assert re.search(rf"is saved in {tmp_path}/mdlm_jax-run-\w+: to go on", errors)
    assert "Traceback" not in errors
    assert not [*lost.iterdir()]  # nothing was written to the disk below
