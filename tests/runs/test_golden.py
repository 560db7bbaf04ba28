"""Runs that an earlier version made go on working: they are resumed, evaluated and sampled.

`golden/runs.tar.gz` holds two runs of two steps (TINY of `command_runs`, 120 documents of
`write_text`) as commit 1ef01dc left them, with the config keys of its day. The figures below are
what that commit made of them on a CPU.
"""

import json
import tarfile
from pathlib import Path

import pytest
from command_runs import run as run_command

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parent / "golden" / "runs.tar.gz"
LIKELIHOOD = {"diffusion": 4.838562, "causal": 4.781933}  # of the validation split, nats a token
SAMPLE = "the riverz old > >"
# Of the steps 3 and 4, with a last evaluation after them.
RESUMED = {
    "diffusion": {"train": 4.816491, "eval": 4.769256, "sample": "= m thel anf 2 th1 n1m @ i; ("},
    "causal": {"train": 4.778192, "eval": 4.731124},
}
KEYS = {"train": "loss", "eval": "nats_per_token", "sample": "text"}


@pytest.fixture(params=["diffusion", "causal"])
def workdir(request, tmp_path):
    with tarfile.open(GOLDEN) as archive:
        archive.extractall(tmp_path, filter="data")
    path = tmp_path / request.param
    config = json.loads((path / "config.json").read_text())
    config["data"]["files"] = str(tmp_path / "text.txt")
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_a_run_of_an_earlier_version_goes_on(workdir):
    kind = workdir.name

    def run(name, *arguments):
        env = {"MDLM_JAX_CACHE": str(workdir.parent / "cache")}
        return run_command(name, f"--workdir={workdir}", *arguments, env=env).stdout

    drawn = ["--draws=2"] if kind == "diffusion" else []
    run("evaluate", "--split=validation", *drawn)
    told = json.loads((workdir / "evaluation_validation.json").read_text())
    assert told["nats_per_token"] == pytest.approx(LIKELIHOOD[kind], abs=1e-5)
    if kind == "diffusion":
        prompt = "--prompt=the river [MASK] [MASK] old [MASK] [MASK]"
        assert run("generate", prompt, "--steps=4", "--seed=3") == f"{SAMPLE}\n"
    run("train", "--config.training.steps=4")  # with its own config
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    last = {r["kind"]: r[KEYS[r["kind"]]] for r in records if r["step"] == 4}
    expected = RESUMED[kind]
    assert {name: last[name] for name in expected} == pytest.approx(expected, abs=1e-5)
