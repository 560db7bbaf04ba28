"""`evaluate --frontier` as a user runs it, on a text of our own with a tiny encoder."""

import json
import os
import re
import sys
from pathlib import Path

import pytest
from command_runs import TINY, write_text
from command_runs import run as run_command

DOCS = Path(__file__).parents[1] / "docs"
FRONTIER = ("--workdir={run}", "--frontier")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("frontier")


@pytest.fixture(scope="module")
def run(folder):
    """`run(command, *arguments)`, with {text}, {folder} and {run} filled in, a cache of its own."""
    env = {"MDLM_JAX_CACHE": str(folder / "cache")}
    places = {"folder": folder, "text": folder / "text.txt", "run": folder / "run"}

    def run(name, *arguments, code=0, devices=1):
        flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        return run_command(name, *arguments, code=code, env={**env, **flags}, **places)

    write_text(folder / "text.txt")
    run("train", *TINY, "--workdir={run}")
    return run


@pytest.fixture(scope="module")
def measured(run, folder):
    """What the command printed, and what it wrote, on 4 devices that share the rows."""
    done = run(
        "evaluate", *FRONTIER, "--strategies=exact_count; threshold(0.5)", "--steps=2,4",
        "--temperatures=1,0.1", "--samples=8", "--batch_size=8", "--features={run}",
        devices=4,
    )  # fmt: skip
    return done.stdout, json.loads((folder / "run" / "frontier.json").read_text())


@pytest.mark.slow
def test_every_point_is_told_and_written_beside_real_text(measured, folder):
    printed, told = measured
    points = [(p["strategy"], p["temperature"], p["steps"]) for p in told["points"]]
    strategies = ("exact_count", "threshold(0.5)")
    assert points == [(s, t, n) for s in strategies for t in (1, 0.1) for n in (2, 4)]
    for point in (told["reference"], *told["points"]):
        assert f"{point['nats']:.3f} +- {point['nats_error']:.3f}" in printed
        assert f"{point['entropy']:.3f} +- {point['entropy_error']:.3f}" in printed
        assert point["rows"] == 8 and "class_accuracy" not in point
        assert 0 < point["mauve"] <= 1 and point["memorised"] <= point["memorised_longest"] <= 16
    lines = printed.splitlines()
    assert lines[2].startswith("real text") and lines[3].startswith("exact_count ")
    assert told["devices"] == 4
    assert told["split"] == "test" and told["scorer"] == "trigram" and told["step"] == 4
    assert (folder / "run" / "frontier.png").read_bytes().startswith(b"\x89PNG")
    assert not list((folder / "run").glob("evaluation_*"))


def test_steps_bound_the_evaluations(measured):
    for point in measured[1]["points"]:
        exact = point["strategy"] == "exact_count"
        assert (
            point["evaluations"] == point["steps"]
            if exact
            else (1 <= point["evaluations"] <= point["steps"])
        )


def test_sharper_samples_are_less_diverse(measured):
    points = {(p["strategy"], p["temperature"], p["steps"]): p for p in measured[1]["points"]}
    warm, cold = (points["exact_count", t, 4] for t in (1.0, 0.1))
    assert cold["distinct_2"] < warm["distinct_2"] and cold["entropy"] < warm["entropy"]


def test_every_key_is_told_in_the_guide(measured):
    page = (DOCS / "frontier.md").read_text()
    told = set(re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE))
    _, written = measured
    keys = {*written, *written["reference"], *written["points"][0]}
    assert keys <= told
    assert {"class_accuracy", "class_accuracy_error"} <= told


CASES = {
    "needs the flag": (["--workdir={run}", "--steps=4"], "--steps is for --frontier"),
    "draws": ([*FRONTIER, "--draws=4"], "--draws is for the likelihood, not for --frontier"),
    "train": ([*FRONTIER, "--split=train"], "--split=train .* take validation or test"),
    "no steps": ([*FRONTIER, "--steps="], "steps is empty"),
    "zero steps": ([*FRONTIER, "--steps=4,0"], "steps must be at least 1, not 0"),
    "words": ([*FRONTIER, "--steps=4,many"], "--steps must be whole numbers .* not '4,many'"),
    "cold": ([*FRONTIER, "--temperatures=-1"], "temperatures must be 0 or more, not -1"),
    "samples": ([*FRONTIER, "--samples=0"], "samples=0.*positive"),
    "no strategies": ([*FRONTIER, "--strategies=;"], "--strategies is empty"),
    "strategy": ([*FRONTIER, "--strategies=exact_cuont"], "exact_cuont.*one of .*exact_count"),
    "guidance": ([*FRONTIER, "--guidance=1,2"], "guidance is for models with classes"),
    "features": ([*FRONTIER, "--features=/nowhere"], "/nowhere"),
    "scorer": ([*FRONTIER, "--scorer=bigram"], "scorer 'bigram' must be trigram, or hf:"),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_line(run, name):
    arguments, expected = CASES[name]
    done = run("evaluate", *arguments, code=2)
    assert re.search(expected, done.stderr), done.stderr
    assert len(done.stderr.splitlines()) == 1 and not done.stdout


@pytest.mark.slow
def test_guidance_and_classes_are_measured(run, folder):
    lines = [
        {"text": f"{word} {word} {word} {i}", "kind": word}
        for i in range(300)
        for word in ("salt", "wool")
    ]
    (folder / "kinds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = [flag for flag in TINY if "data.documents" not in flag and "data.files" not in flag]
    run(
        "train", *flags, "--config.data.files={folder}/kinds.jsonl",
        "--config.data.label_field=kind", "--config.model.classes=2",
        "--config.model.class_dropout=0.2", "--config.training.steps=300",
        "--config.optimizer.learning_rate=1e-2", "--config.evaluation.every=300",
        "--config.training.save_every=300", "--workdir={folder}/kinds",
    )  # fmt: skip
    done = run(
        "evaluate", "--workdir={folder}/kinds", "--frontier", "--strategies=exact_count",
        "--steps=8", "--guidance=0,1,3", "--samples=64", "--batch_size=64",
    )  # fmt: skip
    told = json.loads((folder / "kinds" / "frontier.json").read_text())
    none, one, three = (point["class_accuracy"] for point in told["points"])
    assert told["reference"]["class_accuracy"] > 0.95
    assert abs(none - 0.5) < 4 * (0.25 / 64) ** 0.5  # chance, but in one run of 10,000
    assert one > 0.75 and three >= one - 0.1
    assert "by naive Bayes of the training split" in done.stdout and "guidance" in done.stdout


def test_features_without_scikit_learn_are_refused_before_anything_is_read(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['sklearn'] = None")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    arguments = (f"--workdir={tmp_path}", "--frontier", "--features=/nowhere")
    done = run_command("evaluate", *arguments, code=2, env={"PYTHONPATH": path})
    assert done.stderr == "error: MAUVE needs scikit-learn: pip install 'mdlm_jax[mauve]'\n"
