"""Weights & Biases, offline: the real package, and what it wrote."""

import contextlib
import math
import sys

import pytest
import wandb
import wandb_files
from command_runs import TINY, run, write_text

from mdlm_jax.training import weights_and_biases
from mdlm_jax.training.metrics import MetricsWriter, read_metrics


@contextlib.contextmanager
def writer_of(folder, *, wandb, step=0, config=None):
    with MetricsWriter(folder, step=step) as writer:
        writer.open_wandb(wandb, config)
        yield writer


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """Nothing of this machine's settings or keys."""
    for name, value in (("WANDB_MODE", "offline"), ("HOME", tmp_path), ("NETRC", tmp_path / "no")):
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    wandb.teardown()  # which read the environment once
    yield
    wandb.teardown()


def test_a_record_is_a_row_whose_axis_is_the_runs_step(tmp_path):
    folder = tmp_path / "run"
    values = {"loss": 0.5, "norm": math.inf, "likelihood": "bound", "curve": [1, 2]}
    with writer_of(folder, wandb="mine", config={"model": {"layers": 2}}) as writer:
        writer.write(10, "train", values)
        writer.write(10, "sample", {"text": "a <b>\n c"})
    (told,) = wandb_files.starts(folder)
    assert (told["project"], told["display_name"], told["exit_code"]) == ("mine", "run", 0)
    assert told["config"]["model"] == {"layers": 2} and ("*", "step") in told["axes"]
    numbers, text = told["history"]
    assert numbers == {"step": 10, "train/loss": 0.5, "train/likelihood": "bound"}
    assert (text["step"], text["sample/text/_type"]) == (10, "html-file")
    (page,) = (folder / "wandb").rglob("*.html")
    assert ">a &lt;b&gt;\n c</pre>" in page.read_text()
    assert len(read_metrics(folder)) == 2


def test_a_run_that_goes_on_is_the_same_run_there(tmp_path):
    for step in (0, 10):
        with writer_of(tmp_path / "a", step=step, wandb="mine", config={"k": step}) as writer:
            writer.write(step + 10, "train", {"loss": 1.0})
    with writer_of(tmp_path / "b", wandb="mine"):
        pass
    first, second = wandb_files.starts(tmp_path / "a")
    (other,) = wandb_files.starts(tmp_path / "b")
    kept = (tmp_path / "a" / weights_and_biases.ID).read_text()
    assert first["id"] == second["id"] == kept.strip() != other["id"]
    assert [each["history"][0]["step"] for each in (first, second)] == [10, 20]
    assert second["config"]["k"] == 10


def test_a_run_that_fails_is_told_so(tmp_path):
    with pytest.raises(KeyError), writer_of(tmp_path / "run", wandb="mine"):
        raise KeyError
    (told,) = wandb_files.starts(tmp_path / "run")
    assert told["exit_code"] == 1


def test_only_process_0_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    with writer_of(tmp_path / "run", wandb="mine") as writer:
        writer.write(1, "train", {"loss": 1.0})
    assert not (tmp_path / "run").exists()


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    for ask in (weights_and_biases.require, MetricsWriter(tmp_path).open_wandb):
        with pytest.raises(
            ImportError, match=r"needs the package wandb: pip .*'mdlm_jax\[wandb\]'"
        ):
            ask("mine")


@pytest.mark.parametrize("name", ["a/b", "x" * 200])
def test_a_name_that_no_project_has_is_refused(name):
    with pytest.raises(ValueError, match=r"^training\.wandb: Invalid project name ") as error:
        weights_and_biases.require(name)
    assert "\n" not in str(error.value)


def test_an_id_that_no_run_has_is_refused(tmp_path):
    (tmp_path / weights_and_biases.ID).write_text("a/b\n")
    with pytest.raises(ValueError, match=r"^training\.wandb: Run ID cannot"):
        MetricsWriter(tmp_path).open_wandb("mine")


@pytest.mark.parametrize(
    ("mode", "told"), [("online", "run `wandb login`, or set WANDB_MODE=offline"), ("bad", "'bad'")]
)
def test_a_machine_that_knows_no_key_is_told_before_anything_starts(monkeypatch, mode, told):
    monkeypatch.setenv("WANDB_MODE", mode)
    wandb.teardown()
    with pytest.raises(ValueError, match=rf"^training\.wandb: .*{told}") as error:
        weights_and_biases.require("mine")
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_run_of_the_command_goes_on_as_one(tmp_path):
    """Two starts, and a wrong name that begins nothing."""
    text = write_text(tmp_path / "text.txt")
    folder = tmp_path / "run"
    flags = [*TINY, f"--workdir={folder}"]
    wrong = run("train", *flags, "--config.training.wandb=a/b", text=text, code=2)
    assert wrong.stderr.startswith("error: training.wandb: Invalid") and not folder.exists()
    for steps in (4, 8):
        own = ["--config.training.wandb=mine", f"--config.training.steps={steps}"]
        run("train", *flags, *own, text=text)
    # A run that is done opens nothing there.
    run("train", *flags, "--config.training.wandb=mine", "--config.training.steps=8", text=text)
    first, second = wandb_files.starts(folder)
    assert first["id"] == second["id"] and first["exit_code"] == second["exit_code"] == 0
    assert first["config"]["training"]["steps"] == 4
    rows = [row for each in (first, second) for row in each["history"]]
    logged = [(row["step"], kind) for row in rows for kind in ("train", "eval", "sample")
              if any(key.startswith(f"{kind}/") for key in row)]  # fmt: skip
    assert logged == [(each["step"], each["kind"]) for each in read_metrics(folder)]
