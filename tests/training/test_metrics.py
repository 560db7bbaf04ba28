import builtins
import contextlib
import html
import json
import math
import re
import resource
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.training import metrics
from mdlm_jax.training.metrics import MetricsWriter, read_metrics, require_tensorboard
from mdlm_jax.training.report import Report, peak_memory


def test_records_are_json_lines(tmp_path):
    with MetricsWriter(tmp_path / "run") as writer:
        writer.write(1, "train", {"loss": np.float32(0.5), "skipped": 0, "norm": math.inf})
        assert len(read_metrics(tmp_path / "run")) == 1  # before closing: a crash loses nothing
        writer.write(2, "sample", {"text": ["a", "b"], "nelbo": jnp.float32(1.5)})
    assert read_metrics(tmp_path / "run") == [
        {"step": 1, "kind": "train", "loss": 0.5, "skipped": 0, "norm": None},
        {"step": 2, "kind": "sample", "text": ["a", "b"], "nelbo": 1.5},
    ]


def test_of_a_run_that_is_writing_the_whole_records_are_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("")
    assert read_metrics(tmp_path) == []
    path.write_text('{"step": 1, "kind": "a"}\n{"step": 2, "kind": "a"}\n{"st')
    assert read_metrics(tmp_path) == [{"step": 1, "kind": "a"}, {"step": 2, "kind": "a"}]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"st', "is not JSON"),
        ("[3]", "is no record"),
        ('{"step": 2}', "is no record"),
        ("", "JSON"),
    ],
)
def test_a_line_that_is_no_record_is_named_and_left_there(tmp_path, line, told):
    path = tmp_path / "metrics.jsonl"
    path.write_text(text := f'{{"step": 1, "kind": "a"}}\n{line}\n{{"step": 3, "kind": "a"}}\n')
    for read in (read_metrics, MetricsWriter):
        with pytest.raises(ValueError, match=rf"metrics\.jsonl, line 2 .*{told}"):
            read(tmp_path)
    assert path.read_text() == text


def test_going_on_drops_what_is_later_than_the_restored_step(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, "sample", {"nelbo": 1})
        for step in (2, 4, 6):
            writer.write(step, "train", {"loss": step})
            writer.write(step, "eval", {"nelbo": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "kind": "tr')  # killed within a line
    with MetricsWriter(tmp_path, step=4) as writer:
        lacking = [kind for kind in ("train", "eval", "sample") if writer.lacks(kind)]
        writer.write(4, "sample", {"nelbo": 40})
    assert lacking == ["sample"]
    assert [(r["step"], r["kind"], r.get("nelbo")) for r in read_metrics(tmp_path)] == [
        (1, "sample", 1),
        (2, "train", None),
        (2, "eval", 2),
        (4, "train", None),
        (4, "eval", 4),
        (4, "sample", 40),
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_in_a_bucket_records_follow_those_before_within_10_seconds(tmp_path, monkeypatch):
    """An object cannot grow, it is written anew: at a sync, at the end, else every 10 seconds."""
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, "train", {})
    monkeypatch.setattr("mdlm_jax.host.paths.is_local", lambda path: False)
    now = 1000.0
    monkeypatch.setattr(metrics, "time", SimpleNamespace(monotonic=lambda: now))
    seen = []
    with MetricsWriter(tmp_path, step=1) as writer:
        for step, passed in ((2, 0), (3, 5), (4, 6), (5, 1)):
            now += passed
            writer.write(step, "train", {})
            seen.append(len(read_metrics(tmp_path)))
        writer.sync()
        seen.append(len(read_metrics(tmp_path)))
        writer.write(6, "train", {})
    assert seen == [2, 2, 4, 4, 5]
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_throughput_is_of_the_time_between_steps_without_pauses(tmp_path, monkeypatch):
    seconds = iter([10.0, 12.0, 20.0, 23.0])  # step 1, step 2, the end of a pause, step 3
    monkeypatch.setattr(
        "mdlm_jax.training.report.time", SimpleNamespace(perf_counter=lambda: next(seconds))
    )
    step = {"bad_steps": 0, "loss": 1.0, "grad_norm": 1.0, "aux": {}}
    with MetricsWriter(tmp_path) as writer:
        report = Report(
            writer, steps=5, log_every=3, max_bad_steps=1, tokens_per_step=8, summarize=dict
        )
        report.add(1, step)
        report.add(2, step)
        with report.paused():
            pass
        report.add(3, step)
    (record,) = read_metrics(tmp_path)
    assert record["tokens_per_second"] == pytest.approx(8 / 2.5)
    assert record["seconds_left"] == pytest.approx(2 * 2.5)


def test_only_process_0_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    with MetricsWriter(tmp_path / "run") as writer:
        writer.write(1, "train", {"loss": 1.0})
        assert not writer.lacks("eval")  # it is process 0 that knows
    assert not (tmp_path / "run").exists()


def test_tensorboard_without_the_package_names_the_extra(tmp_path, monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name == "tensorboardX":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=r"pip install 'mdlm_jax\[tensorboard\]'") as error:
        MetricsWriter(tmp_path, tensorboard=True)
    with pytest.raises(ImportError, match=r"training\.tensorboard needs tensorboardX"):
        require_tensorboard()
    assert "\n" not in str(error.value)


def test_tensorboard_writes_events_beside_the_records(tmp_path):
    pytest.importorskip("tensorboardX")
    with MetricsWriter(tmp_path, tensorboard=True) as writer:
        writer.write(1, "train", {"loss": 0.5, "text": "not a number"})
    (events,) = tmp_path.glob("events.out.tfevents.*")
    assert b"train/loss" in events.read_bytes()
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["loss"] == 0.5


class Device:
    def __init__(self, stats):
        self._stats = stats

    def memory_stats(self):
        return self._stats


def test_the_peak_of_host_memory_is_in_bytes_and_never_falls():
    before = peak_memory()["host_memory_bytes"]
    block = np.ones(64 * 2**20, np.uint8)  # touched, so resident
    after = peak_memory()["host_memory_bytes"]
    del block
    assert 2**26 < before <= after < 2**40
    if not Path("/proc/self/status").exists():
        return  # not Linux
    resident = int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
    assert peak_memory()["host_memory_bytes"] == pytest.approx(resident, rel=0.05)


@pytest.mark.parametrize(("platform", "unit"), [("darwin", 1), ("linux", 1024)])
def test_the_unit_of_host_memory_is_the_platforms(monkeypatch, platform, unit):
    monkeypatch.setattr("sys.platform", platform)
    told = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert peak_memory()["host_memory_bytes"] >= told * unit
    assert peak_memory()["host_memory_bytes"] < told * unit * 1.5


@pytest.mark.parametrize(
    ("stats", "peak"),
    [
        ([{"peak_bytes_in_use": 3, "bytes_in_use": 9}, {"peak_bytes_in_use": 5}], 5),
        ([{"peak_bytes_in_use": 3}, None], 3),
        ([{"bytes_in_use": 9}], None),
        ([None], None),
    ],
)
def test_device_memory_is_that_of_the_fullest_or_left_out(monkeypatch, stats, peak):
    monkeypatch.setattr("jax.local_devices", lambda: [Device(each) for each in stats])
    assert peak_memory().get("device_memory_bytes") == peak


def test_training_records_hold_the_memory_and_the_terminal_shows_gibibytes(tmp_path, capsys):
    with MetricsWriter(tmp_path) as writer:
        report = Report(
            writer, steps=1, log_every=1, max_bad_steps=1, tokens_per_step=8, summarize=dict
        )
        report.add(1, {"bad_steps": 0, "loss": 1.0, "grad_norm": 1.0, "aux": {}})
    (record,) = read_metrics(tmp_path)
    assert record["host_memory_bytes"] == pytest.approx(peak_memory()["host_memory_bytes"], rel=0.1)
    gibibytes = f"{record['host_memory_bytes'] / 2**30:.2f} GiB"
    assert f"host_memory {gibibytes}" in " ".join(capsys.readouterr().err.split())


TEXT = "the <b>river</b> & *hill* _a_ [1](x)\n# 2. of `it` \\ 1 + 1 - 2 | </script>"


@pytest.mark.slow
def test_tensorboard_shows_what_the_records_hold(tmp_path):
    """A real TensorBoard on localhost, asked what its pages ask."""
    for package in ("tensorboardX", "tensorboard"):
        pytest.importorskip(package)
    with MetricsWriter(tmp_path, tensorboard=True) as writer:
        for step in (10, 20):
            writer.write(step, "train", {"loss": 1 / step, "skipped": 0})
            writer.write(step, "sample", {"text": f"{step}: {TEXT}"})
    with serving(tmp_path) as ask:
        scalars = ask("scalars/tags")["."]
        assert set(scalars) == {"train/loss", "train/skipped"}
        (text,) = ask("text/tags")["."]
        assert text.startswith("sample/text")
        for record in read_metrics(tmp_path):
            if record["kind"] == "sample":
                continue
            for name in ("loss", "skipped"):
                events = ask("scalars/scalars", run=".", tag=f"train/{name}")
                values = {step: value for _, step, value in events}
                assert values[record["step"]] == pytest.approx(record[name], rel=1e-6)
        shown = {each["step"]: each["text"] for each in ask("text/text", run=".", tag=text)}
    wanted = {each["step"]: each["text"] for each in read_metrics(tmp_path) if "text" in each}
    for step, text in wanted.items():
        bare = html.unescape(re.sub(r"</?(br|p|table|tbody|tr|td)\b[^>]*>", "", shown[step]))
        assert bare.split() == text.split()


@contextlib.contextmanager
def serving(folder):
    """Yields `ask(plugin path, **query)`; the data of a run may take it some seconds to load."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port=0"]
    process = subprocess.Popen(
        [*command, "--load_fast=false"], stderr=subprocess.PIPE, text=True, bufsize=1
    )
    try:
        line = next(line for line in process.stderr if "http://" in line)
        address = re.search(r"http://\S+?:\d+/", line)[0]

        def ask(path, **query):
            url = f"{address}data/plugin/{path}?{urllib.parse.urlencode(query)}"
            for _ in range(60):
                with urllib.request.urlopen(url) as answer:
                    if told := json.load(answer):
                        return told
                time.sleep(0.5)
            raise AssertionError(f"TensorBoard has nothing at {url}")

        yield ask
    finally:
        process.terminate()
        process.wait()
