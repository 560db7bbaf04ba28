"""The commands as a user runs them, on the real corpus with a tiny encoder."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

TINY = (
    "--config=quickstart",
    "--config.data.vocab_size=300",
    "--config.data.length=32",
    "--config.model.width=16",
    "--config.model.heads=2",
    "--config.model.mlp_width=32",
    "--config.optimizer.warmup_steps=2",
    "--config.training.steps=6",
    "--config.training.save_every=4",
    "--config.training.log_every=2",
    "--config.evaluation.every=4",
    "--config.evaluation.rows=16",
    "--config.evaluation.batch_size=8",
    "--config.evaluation.sample_steps=4",
)


def run(command, *arguments, code=0):
    done = subprocess.run(
        [sys.executable, "-m", f"mdlm_jax.{command}", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("commands")
    os.environ["MDLM_JAX_CACHE"] = str(folder / "cache")
    done = run("train", *TINY, f"--workdir={folder}/run")
    assert "validation NELBO" in done.stdout and "unigram" in done.stdout
    return folder / "run"


def metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_training_leaves_what_it_promises(workdir):
    kinds = [(each["step"], each["kind"]) for each in metrics(workdir)]
    assert kinds == [
        (2, "train"), (4, "train"), (4, "eval"), (4, "sample"), (6, "train"), (6, "eval"),
        (6, "sample"),
    ]  # fmt: skip
    config = json.loads((workdir / "config.json").read_text())
    assert config["model"]["vocab_size"] == 300 and config["training"]["steps"] == 6
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["4", "6"]
    assert (workdir / "tokenizer.json").exists() and (workdir / "data.json").exists()


def test_a_second_start_says_done_and_more_steps_go_on(workdir):
    assert "is done: it has 6 of 6 steps" in run("train", *TINY, f"--workdir={workdir}").stdout
    more = (*TINY, "--config.training.steps=8", f"--workdir={workdir}")
    done = run("train", *more)
    assert "resuming at step 6" in done.stdout
    assert "training.steps: 6 -> 8" in done.stdout
    assert metrics(workdir)[-1]["step"] == 8


def test_evaluate_writes_the_likelihood_and_the_report(workdir):
    done = run("evaluate", f"--workdir={workdir}", "--split=test", "--draws=2", "--batch_size=256")
    told = json.loads((workdir / "evaluation_test.json").read_text())
    card = json.loads((workdir / "data.json").read_text())
    assert told["rows"] == card["splits"]["test"]["rows"]
    assert told["tokens"] == told["rows"] * 32
    assert f"{told['nats_per_token']:.3f}" in done.stdout
    assert 0 < told["mc_error"] < 1 and 0 < told["text_error"] < 1
    assert told["bigram"] < told["unigram"] < told["nats_per_token"] + 1
    assert [point["rate"] for point in told["rate_curve"]][-1] == 1.0
    assert "NELBO" in (workdir / "report.html").read_text()


def test_generate_fills_the_masks_and_keeps_the_rest(workdir):
    flags = (f"--workdir={workdir}", "--steps=4", "--save")
    done = run("generate", *flags, "--prompt=the city of [MASK] [MASK]", "--prompt=")
    first = done.stdout.splitlines()[0]
    assert first.startswith("the city of") and "[MASK]" not in done.stdout
    assert (workdir / "samples.txt").read_text().startswith(first)
    filled, free = json.loads((workdir / "samples.json").read_text())
    assert [generated for _, generated in filled["pieces"]] == [False, True]
    assert [generated for _, generated in free["pieces"]] == [True]
    assert "".join(text for text, _ in filled["pieces"]) == first
    again = run("generate", *flags, "--prompt=the city of [MASK] [MASK]", "--prompt=")
    assert again.stdout == done.stdout
    other = run("generate", *flags, "--prompt=the city of [MASK] [MASK]", "--prompt=", "--seed=1")
    assert other.stdout != done.stdout


@pytest.mark.parametrize("command", ["train", "evaluate", "generate"])
def test_help_begins_with_the_command(command):
    done = run(command, "--help")
    assert f"python -m mdlm_jax.{command} --" in done.stdout
    assert "--workdir" in done.stdout


REFUSED = [
    ("train", ["--config=quickstat", "--workdir=x"], "the shipped configs are quickstart"),
    ("train", ["--config=quickstart"], "--workdir is required"),
    ("train", ["--config=quickstart", "--workdir=x", "--config.model.widht=3"], '"width"'),
    ("train", [*TINY, "--workdir=x", "--config.model.heads=3"], "model.heads=3.*divisor"),
    ("train", [*TINY, "--workdir=x", "--config.model.norm=none"], "model.norm='none'.*rmsnorm"),
    ("train", [*TINY, "--workdir=x", "--config.training.batch_size=99999"], "batch_size 99999"),
    ("train", [*TINY, "--workdir=x", "--config.mesh.fsdp=3"], "mesh data=-1, fsdp=3"),
    ("train", [*TINY, "--workdir={workdir}", "--config.training.seed=3"], "training.seed is 0"),
    ("train", [*TINY, "--workdir={workdir}/checkpoints"], "is not empty and holds no run"),
    ("generate", ["--workdir=nowhere"], "nowhere is not the folder of a run"),
    ("generate", ["--workdir={workdir}", "--prompt=no gap"], "nothing to fill"),
    ("generate", ["--workdir={workdir}", "--prompt=" + "[MASK] " * 33], "33 tokens.*has 32"),
    ("generate", ["--workdir={workdir}", "--prompt=漢 [MASK]"], "tokenizer does not know"),
    ("generate", ["--workdir={workdir}", "--steps=0"], "steps"),
    ("evaluate", ["--workdir={workdir}", "--draws=1"], "draws"),
    ("evaluate", ["--workdir={workdir}", "extra"], "unexpected argument 'extra'"),
]


@pytest.mark.parametrize(("command", "arguments", "message"), REFUSED)
def test_bad_input_is_one_line_and_changes_nothing(workdir, command, arguments, message):
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*")}
    done = run(command, *(a.format(workdir=workdir) for a in arguments), code=2)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert re.search(message, lines[0]), lines[0]
    assert {p: p.stat().st_mtime_ns for p in workdir.rglob("*")} == before


@pytest.mark.slow
def test_a_signal_saves_exits_75_and_the_run_goes_on(workdir, tmp_path):
    folder = tmp_path / "stopped"
    arguments = (*TINY, "--config.training.steps=3000", f"--workdir={folder}")
    command = [sys.executable, "-m", "mdlm_jax.train", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (folder / "metrics.jsonl").exists() or len(metrics(folder)) < 10:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "all is saved: start again to go on" in output
    stopped = max(int(p.name) for p in (folder / "checkpoints").iterdir())

    steps = stopped + 2
    done = run("train", *TINY, f"--config.training.steps={steps}", f"--workdir={folder}")
    assert f"resuming at step {stopped}" in done.stdout
    assert metrics(folder)[-1]["step"] == steps


@pytest.mark.slow
def test_losses_depend_neither_on_microbatches_nor_on_the_mesh(workdir, tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
    mesh = ("--config.mesh.data=1", "--config.mesh.fsdp=2", "--config.mesh.tensor=2")
    run("train", *TINY, *mesh, f"--workdir={tmp_path}/mesh")
    run("train", *TINY, "--config.training.accumulation=2", *mesh, f"--workdir={tmp_path}/both")

    def told(folder):
        records = [each for each in metrics(folder) if each["step"] <= 6]
        losses = {each["step"]: each["loss"] for each in records if each["kind"] == "train"}
        bounds = {
            each["step"]: each["nats_per_token"] for each in records if each["kind"] == "eval"
        }
        return [losses[2], losses[4], losses[6], bounds[4], bounds[6]]

    assert told(tmp_path / "mesh") == pytest.approx(told(workdir), rel=1e-4)
    assert told(tmp_path / "both") == pytest.approx(told(workdir), rel=1e-4)


@pytest.mark.slow
def test_updates_that_stay_non_finite_end_the_run_with_the_step_named(workdir, tmp_path):
    folder = tmp_path / "diverged"
    wild = ("--config.optimizer.learning_rate=1e30", "--config.training.max_bad_steps=3")
    done = run("train", *TINY, *wild, "--config.training.steps=40", f"--workdir={folder}", code=1)
    assert re.search(
        r"error: step \d+: 3 updates in a row .* the checkpoints are intact", done.stderr
    )
