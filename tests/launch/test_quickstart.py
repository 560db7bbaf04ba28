"""launch/quickstart.sh, with `uv`, `nvidia-smi` and a `python` that ends as told."""

import os
import re
import shutil
import subprocess

import pytest


@pytest.fixture
def quickstart(fakes):
    """Runs the script in a folder of its own, whose environment has the faked python."""
    for name in ("python", "uv"):
        fakes.make(name)
    root = fakes.folder / "checkout"
    shutil.copytree(fakes.root / "launch", root / "launch")
    (root / "pyproject.toml").write_text("[project]")
    (root / ".venv/bin").mkdir(parents=True)
    (root / ".venv/bin/activate").write_text("")
    shutil.copy(fakes.folder / "bin/python", root / ".venv/bin/python")

    def run(*options):
        done = subprocess.run(
            ["bash", str(root / "launch/quickstart.sh"), *options],
            env={"PATH": f"{fakes.folder / 'bin'}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done

    return run


def commands(fakes):
    return [call.args[1] for call in fakes.calls("python")]


STEPS = ["mdlm_jax.train", "mdlm_jax.evaluate", "mdlm_jax.generate"]


def test_it_says_each_part_and_its_time_and_what_to_do_next(fakes, quickstart):
    done = quickstart("--config.training.steps=7")
    assert commands(fakes) == STEPS
    assert fakes.calls("python")[0].args[2:] == [
        "--config=quickstart", "--workdir=runs/quickstart", "--config.training.steps=7",
    ]  # fmt: skip
    parts = re.findall(r"^== (\d) of 4: .* \(.*(?:minute|once).*\)$", done.stdout, re.MULTILINE)
    assert parts == ["1", "2", "3", "4"]
    last = done.stdout.splitlines()[-4:]
    assert last[0].strip() == "source .venv/bin/activate"
    assert all(line.strip().startswith("python -m mdlm_jax.") for line in last[1:])


def test_it_takes_the_gpu_where_there_is_one(fakes, quickstart):
    fakes.make("nvidia-smi")
    assert "train on the GPU" in quickstart().stdout
    (install,) = [call for call in fakes.calls("uv") if "install" in call.args]
    assert ".[quickstart,gpu]" in install.args
    assert all("JAX_PLATFORMS" not in call.env for call in fakes.calls("python"))


def test_a_driver_without_a_gpu_is_none(fakes, quickstart):
    fakes.make("nvidia-smi")
    fakes.act("nvidia-smi", "exit 9")
    assert "train on 2 CPU cores" in quickstart().stdout
    (install,) = [call for call in fakes.calls("uv") if "install" in call.args]
    assert ".[quickstart]" in install.args


@pytest.mark.slow
def test_installing_shows_that_it_goes_on_and_a_failure_ends_it(fakes, quickstart):
    fakes.act("uv", "/bin/sleep 15.5")
    assert re.search(r"installing: 15 s, \d+ packages are there", quickstart().stderr)
    (fakes.folder / "checkout/.venv/.mdlm_jax").unlink()
    fakes.act("uv", "", "echo no such package >&2; exit 3")
    with pytest.raises(AssertionError, match="no such package"):
        quickstart()
    assert commands(fakes) == STEPS  # of the first run alone
