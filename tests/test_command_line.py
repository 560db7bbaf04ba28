"""What every command understands: its version, configs by name, file and JSON, keys, paths."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags
from command_runs import TINY, run, write_text

import mdlm_jax
from mdlm_jax import __main__ as mdlm
from mdlm_jax.host import command_line, nearest
from mdlm_jax.runs.experiment import Experiment, as_json

COMMANDS = [
    "compile_check", "convert", "evaluate", "export", "gateway", "generate", "harness", "prepare",
    "registry", "report", "serve", "train",
]  # fmt: skip


def python(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


@pytest.mark.slow
def test_mdlm_lists_the_commands_and_runs_one():
    known = mdlm.commands()
    assert {*COMMANDS} <= {*known} and all(phrase.endswith(".") for phrase in known.values())
    listed = python("-m", "mdlm_jax", "--help").stdout
    assert all(f"  {name} " in listed and phrase in listed for name, phrase in known.items())
    done = python("-m", "mdlm_jax", "train", "--config=quickstart", "--print_config")
    shipped = importlib.import_module("mdlm_jax.configs.quickstart").get_config()
    assert json.loads(done.stdout)["training"]["steps"] == shipped.training.steps, done.stderr
    wrong = python("-m", "mdlm_jax", "trian")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: unknown command trian (do you mean train?): there are")


def test_mdlm_takes_the_words_of_a_command(monkeypatch):
    """Its flags, its exit code, and - for _ in its name."""
    ran = []
    monkeypatch.setattr(mdlm.runpy, "run_module", lambda name, **_: ran.append((name, sys.argv)))
    monkeypatch.setattr(sys, "argv", ["/bin/mdlm", "compile-check", "--topology=v5e:4x4"])
    assert mdlm.main() == 0
    assert ran == [("mdlm_jax.compile_check", ["/bin/mdlm", "--topology=v5e:4x4"])]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_tells_its_version(name):
    assert run(name, "--version").stdout == command_line.version() + "\n"
    assert command_line.version().startswith(f"mdlm_jax {mdlm_jax.__version__} (jax ")


def test_the_printed_config_is_a_config(tmp_path):
    """Of all keys, resolved; a run begins from it as from what made it."""
    changed = ("--config.training.steps=700", "--config.model.width=64")
    printed = run("train", "--config=quickstart", *changed, "--print_config").stdout
    told = json.loads(printed)
    assert (told["training"]["steps"], told["model"]["width"]) == (700, 64)
    assert "layers" in told["model"] and "mesh" in told
    (tmp_path / "mine.json").write_text(printed)
    again = run("train", f"--config={tmp_path}/mine.json", "--print_config").stdout
    assert again == printed
    wrong = run("train", "--config=quickstart", "--config.model.heads=-1", "--print_config", code=2)
    assert wrong.stderr.startswith("error: model.heads=-1: must be at least 1")


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("training.stpes", "training.stpes (do you mean training.steps?): training has accumul"),
        ("trianing.steps", "trianing.steps (do you mean training.steps?): there are data, eval"),
        ("model.learning_rate", "(do you mean optimizer.learning_rate?): model has activation,"),
        ("training.steps.x", "unknown config key training.steps.x: training.steps is no section"),
        ("zzzz", "unknown config key zzzz: there are data, evaluation, mesh, model, objective"),
    ],
)
def test_an_unknown_key_is_told_with_those_that_there_are(key, told):
    done = run("train", "--config=quickstart", "--workdir=x", f"--config.{key}=3", code=2)
    assert told in done.stderr and len(done.stderr.splitlines()) == 1


def test_an_unknown_key_of_a_config_file_is_told_too():
    config = importlib.import_module("mdlm_jax.configs.quickstart").get_config()
    config.training.stpes = 3
    with pytest.raises(ValueError, match=r"key in training: stpes \(do you mean steps\?\): there"):
        Experiment.of(config.to_dict())


def test_the_nearest_name_is_meant_and_no_name_far_away():
    assert nearest.meant("lenght", ["length", "width"]) == " (do you mean length?)"
    assert nearest.meant("lenght", ["layers", "heads"]) == ""


def test_shipped_configs_are_imported_and_extended(tmp_path):
    """In a clone they lie beside the package, in a wheel within it."""
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from mdlm_jax.configs import quickstart\n\n\ndef get_config():\n"
        "    config = quickstart.get_config()\n    config.training.steps = 7777\n"
        "    return config\n"
    )
    told = json.loads(run("train", f"--config={mine}", "--print_config").stdout)
    shipped = importlib.import_module("mdlm_jax.configs.quickstart").get_config()
    shipped.training.steps = 7777
    assert told == json.loads(as_json(Experiment.of(shipped.to_dict())))
    for name in command_line.shipped_configs():
        importlib.import_module(f"mdlm_jax.configs.{name}").get_config()
    with pytest.raises(ModuleNotFoundError, match=r"mdlm_jax\.configs\.nothing"):
        importlib.import_module("mdlm_jax.configs.nothing")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own_config")
    text = write_text(folder / "text.txt")
    env = {"MDLM_JAX_CACHE": str(folder / "cache"), "HOME": str(folder)}
    done = run("train", *TINY, "--workdir=~/run", text=text, env=env)
    assert done.stdout.splitlines()[-2:] == [
        f"report: {folder}/run/report.html",
        f"next: python -m mdlm_jax.generate --workdir={folder}/run",
    ]
    assert "nats" in (folder / "run" / "report.html").read_text()
    assert (folder / "run" / "config.json").is_file()  # and no folder of the name ~
    return folder, env


@pytest.mark.slow
def test_a_run_goes_on_without_its_config(trained):
    folder, env = trained
    done = run("train", f"--workdir={folder}/run", env=env)
    assert "is done: it has 4 of 4 steps" in done.stdout
    config = (folder / "run" / "config.json").read_bytes()
    done = run("train", f"--workdir={folder}/run", "--config.training.log_every=1", env=env)
    assert "is done" in done.stdout and "training.log_every: 2 -> 1" in done.stdout
    assert (folder / "run" / "config.json").read_bytes() == config
    before = json.loads((folder / "run" / "config.json").read_text())
    done = run("train", "--config.training.steps=6", "--workdir", "~/run", env=env)
    assert "resuming at step 4" in done.stdout and "training.steps: 4 -> 6" in done.stdout
    after = json.loads((folder / "run" / "config.json").read_text())
    assert after["training"].pop("steps") == 6 and before["training"].pop("steps") == 4
    assert after == before
    none = run("train", f"--workdir={folder}/none", code=2)
    assert f"and {folder}/none is none" in none.stderr and not (folder / "none").exists()


@pytest.mark.slow
def test_another_run_begins_from_the_config_of_a_run(trained):
    _, env = trained
    other = ("--config=~/run/config.json", "--config.training.seed=5", "--print_config")
    told = json.loads(run("train", *other, env=env).stdout)
    assert (told["training"]["seed"], told["model"]["width"]) == (5, 16)


@pytest.mark.slow
def test_home_is_written_out_wherever_a_path_is_taken(trained):
    folder, env = trained
    page = run("generate", "--workdir=~/run", "--html=~/page.html", "--steps=1", env=env)
    assert "page.html" in page.stdout and (folder / "page.html").is_file()
    run("generate", "--workdir=~/run", "--output=~/out.jsonl", "--steps=1", env=env)
    assert len((folder / "out.jsonl").read_text().splitlines()) == 1
    run("report", "~/run", env=env)
    run("export", "--workdir=~/run", "--output=~/exported", env=env)
    assert (folder / "run" / "report.html").is_file() and (folder / "exported").is_dir()
    assert not Path("~").exists()


def test_a_path_flag_is_of_the_command_that_asks_for_it():
    """Or --help of a command would not show it."""
    done = run("generate", "--help")
    assert "--workdir: Folder of the run." in done.stdout
    assert "--version prints the version" in done.stdout
    assert not flags.FLAGS.get_key_flags_for_module("mdlm_jax.host.command_line")
