"""Two processes that train as one job through launch/local.sh, and what faults do to them."""

import functools
import json
import os
import re
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from command_runs import TINY, write_text

from mdlm_jax.runs import workdir

STEPS = 100
FLAGS = (
    *TINY,
    f"--config.training.steps={STEPS}",
    "--config.training.save_every=10",
    "--config.training.log_every=1",
    f"--config.evaluation.every={STEPS}",
)


def train(fakes, shared, folder):
    write_text(shared / "text.txt")
    flags = [flag.format(text=shared / "text.txt") for flag in FLAGS]
    return fakes.start(
        "local.sh", "--processes", "2", "--pause", "1", "--grace", "2", "--restarts", "3", "--",
        *flags, f"--workdir={folder}", env={"MDLM_JAX_CACHE": str(shared / "cache")},
    )  # fmt: skip


def pid_of(process, session):
    """The system's number of a process of the job, None while there is none."""
    for entry in Path("/proc").iterdir():
        try:
            if os.getsid(int(entry.name)) == session:
                told = (entry / "environ").read_bytes().split(b"\0")
                called = (entry / "cmdline").read_bytes().split(b"\0")
                if f"PROCESS_ID={process}".encode() in told and b"mdlm_jax.train" in called:
                    return int(entry.name)
        except (ValueError, OSError):
            continue  # no process, or one that has just ended
    return None


def saved(folder):
    """The steps whose checkpoints are whole."""
    names = [path.name for path in folder.glob("checkpoints/*")]
    return {int(name) for name in names if name.isdigit()}


def records(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    timed = re.compile("second|memory|utilization")
    return [
        {name: value for name, value in json.loads(line).items() if not timed.search(name)}
        for line in lines
    ]


@pytest.mark.slow
def test_a_job_of_two_processes_survives_a_stop_and_a_kill(fakes, tmp_path):
    straight, hurt = tmp_path / "straight", tmp_path / "hurt"
    fakes.finish(train(fakes, tmp_path, straight), 0, seconds=600)

    process = train(fakes, tmp_path, hurt)
    for index, sent in ((1, signal.SIGTERM), (0, signal.SIGKILL)):
        before = saved(hurt)
        pid = functools.partial(pid_of, index, process.pid)
        fakes.wait_for(lambda before=before, pid=pid: saved(hurt) - before and pid(), 300)
        ended = pid()
        os.kill(ended, sent)
        fakes.wait_for(lambda ended=ended, pid=pid: pid() not in (ended, None), 300)
    done = fakes.finish(process, 0, seconds=600)

    # The stop was agreed on and saved by both; the kill ended the other process too.
    assert "the job ended with code 75: restart 1 of 3" in done.stderr
    assert "process 0 ended with code 137" in done.stderr
    assert "the job ended with code 137: restart 2 of 3" in done.stderr
    stopped = int(re.search(r"stopped at step (\d+), all is saved", done.stdout)[1])
    first, second = map(int, re.findall(r"resuming at step (\d+)", done.stdout))
    assert first == stopped and stopped < second < STEPS and second % 10 == 0

    steps = [record["step"] for record in records(hurt) if record["kind"] == "train"]
    assert steps == [*range(1, STEPS + 1)]
    assert records(hurt) == records(straight)
    for weights in ("params", "ema"):
        ours, theirs = (workdir.load(each, weights=weights) for each in (hurt, straight))
        assert ours.step == theirs.step == STEPS
        jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
