"""Commands that the launchers call, replaced by ones that record their calls and act as told; and
the names of what a server tells Prometheus.
"""

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Process I of a job counts by itself. Without an act left, it ends well. `python -c`, which imports
# the package, does not count.
FAKE = """#!/bin/bash
place={place}/{name}${{PROCESS_ID:-}}
if [ "$1" = -c ]; then
  [ ! -f {place}/import.act ] || source {place}/import.act
  exit 0
fi
n=$(cat $place.count 2>/dev/null || echo 0)
echo $((n + 1)) >$place.count
printf '%s\\0' "$@" >$place.$n.args
env -0 >$place.$n.tmp && mv $place.$n.tmp $place.$n.env
[ ! -f $place.$n.act ] || source $place.$n.act
"""


class Call(NamedTuple):
    args: list[str]
    env: dict[str, str]


class Fakes:
    """Commands in `folder/bin`, and what became of them."""

    root = ROOT

    def __init__(self, folder):
        self.folder = folder
        (folder / "bin").mkdir()
        (folder / "records").mkdir()
        self._sessions = []

    def make(self, name):
        path = self.folder / "bin" / name
        path.write_text(FAKE.format(place=self.folder / "records", name=name))
        path.chmod(0o755)

    def act(self, name, *acts):
        """What the command does at its first call, its second...; process I is called name{I}."""
        for i, act in enumerate(acts):
            (self.folder / "records" / f"{name}.{i}.act").write_text(act)

    def act_at_import(self, act):
        """What `python -c` does."""
        (self.folder / "records" / "import.act").write_text(act)

    def calls(self, name):
        records = self.folder / "records"
        count = sum(1 for path in records.glob(f"{name}.*.env"))
        return [self._call(records / f"{name}.{i}") for i in range(count)]

    def _call(self, place):
        args = place.with_name(place.name + ".args").read_text().split("\0")[:-1]
        env = place.with_name(place.name + ".env").read_text().split("\0")[:-1]
        return Call(args, dict(line.split("=", 1) for line in env if "=" in line))

    def start(self, script, *arguments, env=None, cwd=None):
        """Starts a launcher in a session of its own, that Ctrl-C reaches even if it does not us."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SLURM_", "CUDA_")) and name != "PROCESS_ID"
        }
        process = subprocess.Popen(
            ["bash", str(ROOT / "launch" / script), *arguments],
            cwd=cwd or self.folder,
            env={
                **kept,
                "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
                "JAX_PLATFORMS": "cpu",
                "VIRTUAL_ENV": "fakes",
                **(env or {}),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self._sessions.append(process.pid)
        return process

    def run(self, script, *arguments, code=0, env=None, cwd=None):
        return self.finish(self.start(script, *arguments, env=env, cwd=cwd), code)

    def finish(self, process, code, seconds=60):
        """Waits for a launcher to end with that exit code."""
        out, err = process.communicate(timeout=seconds)
        assert process.returncode == code, out + err
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def wait_for(self, true, seconds=60):
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline, "it never came"
            time.sleep(0.05)

    def end(self):
        """Ends what a failed test left running."""
        for session in self._sessions:
            subprocess.run(["pkill", "-KILL", "-s", str(session)], check=False)


@pytest.fixture
def fakes(tmp_path):
    fakes = Fakes(tmp_path)
    yield fakes
    fakes.end()


PARTS = {"histogram": ("_bucket", "_count", "_sum"), "counter": ("_total",), "gauge": ("",)}


@pytest.fixture(scope="session")
def told():
    """Names of all that a server tells Prometheus, each with its labels."""
    from mdlm_jax.serving.batching.engine import Engine
    from mdlm_jax.serving.offering.offers import Fixed
    from mdlm_jax.serving.watching import metrics

    with Engine() as engine:
        watching = metrics.Metrics(engine, Fixed({}))
        request = {"path": "/v1/completions", "status": 200, "ms": 2, "first_ms": 1}
        watching.tell(request)
        families = [*watching.registry.collect()]
    return {
        family.name + part: {*getattr(family, "_labelnames", ())}.union(
            *(each.labels for each in family.samples)
        )
        for family in families
        for part in PARTS[family.type]
    }
