import builtins
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.training.metrics import MetricsWriter, read_metrics


def test_records_are_json_lines(tmp_path):
    with MetricsWriter(tmp_path / "run") as writer:
        writer.write(1, "train", {"loss": np.float32(0.5), "skipped": 0, "norm": math.inf})
        assert len(read_metrics(tmp_path / "run")) == 1  # before closing: a crash loses nothing
        writer.write(2, "sample", {"text": ["a", "b"], "nelbo": jnp.float32(1.5)})
    assert read_metrics(tmp_path / "run") == [
        {"step": 1, "kind": "train", "loss": 0.5, "skipped": 0, "norm": None},
        {"step": 2, "kind": "sample", "text": ["a", "b"], "nelbo": 1.5},
    ]


def test_going_on_drops_what_is_later_than_the_restored_step(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        for step in (2, 4, 6):
            writer.write(step, "train", {"loss": step})
            writer.write(step, "eval", {"nelbo": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "kind": "tr')  # killed within a line
    with MetricsWriter(tmp_path, step=4) as writer:
        writer.write(4, "eval", {"nelbo": 40})
    assert [(r["step"], r["kind"], r.get("nelbo")) for r in read_metrics(tmp_path)] == [
        (2, "train", None),
        (2, "eval", 2),
        (4, "train", None),
        (4, "eval", 40),
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_only_process_0_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    with MetricsWriter(tmp_path / "run") as writer:
        writer.write(1, "train", {"loss": 1.0})
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
    assert "\n" not in str(error.value)


def test_tensorboard_writes_events_beside_the_records(tmp_path):
    pytest.importorskip("tensorboardX")
    with MetricsWriter(tmp_path, tensorboard=True) as writer:
        writer.write(1, "train", {"loss": 0.5, "text": "not a number"})
    (events,) = tmp_path.glob("events.out.tfevents.*")
    assert b"train/loss" in events.read_bytes()
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["loss"] == 0.5
