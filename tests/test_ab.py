import json

import exported
import pytest
from command_runs import run

from mdlm_jax.serving.versions import registry
from mdlm_jax.writing.requests import Options

GAPS = [
    {"prompt": "the {mask:2} mill", "reference": "the a b mill"},
    {"prompt": "[MASK] mill", "reference": "a mill"},
]


def written(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return exported.write(tmp_path_factory.mktemp("run") / "run")


@pytest.mark.slow
def test_one_step_and_many_are_compared(run_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    client = registry.connect()
    for steps in (1, 4):
        registry.register(client, "tiny", str(run_folder), Options(steps=steps))
    registry.promote(client, "tiny", 2)
    prompts = written(tmp_path / "asked.jsonl", *GAPS * 4)
    sides = ("--a=models:/tiny/1", "--b=models:/tiny@champion", f"--prompts={prompts}")
    how = ("--output=kept", "--draws=4", "--batch_size=4")
    done = run("ab", *sides, *how)
    assert done.stdout.startswith("a: tiny/1, steps 1, strategy exact_count, dtype float32\n")
    assert "reference, nats/token, in its steps" in done.stdout
    record = json.loads((tmp_path / "kept" / "ab.json").read_text())
    assert record["differences"]["evaluations"]["a"] == 1.0
    assert record["differences"]["evaluations"]["b"] == 1.5
    assert record["differences"]["reference_nats"]["high"] == 0.0
    lines = (tmp_path / "kept" / "ab_prompts.jsonl").read_text().splitlines()
    assert len(lines) == 8
    assert json.loads(lines[0])["evaluations"] == [1.0, 2.0]
    assert (tmp_path / "kept" / "ab.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_folders_are_compared_with_the_names_of_their_data(tmp_path, monkeypatch):
    """Runs of pairs: their own names of prompts and responses do."""
    monkeypatch.chdir(tmp_path)
    card = {"config": {"prompt_field": "ask", "text_field": "say"}}
    for name, width in (("one", 32), ("two", 48)):
        exported.write(tmp_path / name, card=card, mlp_width=width)
    prompts = written(tmp_path / "asked.jsonl", {"ask": "a", "say": "b"}, {"ask": "b", "say": "a"})
    done = run("ab", "--a=one", "--b=two", f"--prompts={prompts}", "--draws=2")
    assert "left out: reference, nats/token, in its steps: answers end" in done.stdout
    assert "2 prompts, seed 0" in done.stdout


@pytest.mark.parametrize(
    "flags, told",
    [
        (["--a=models:/a/b", "--b=c"], "'models:/a/b' names no version: write models:/name"),
        (["--a=c"], "--b is required"),
        (["--a=c", "--b=c", "--draws=1"], "draws"),
    ],
)
def test_bad_input_is_one_line(flags, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run("ab", *flags, "--prompts=asked.jsonl", code=2)
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and told in line
    assert not [*tmp_path.iterdir()]


@pytest.mark.slow
def test_the_same_version_has_nothing_to_be_compared_with(run_folder, tmp_path):
    prompts = written(tmp_path / "asked.jsonl", *GAPS)
    done = run("ab", "--a={run}", "--b={run}", f"--prompts={prompts}", run=run_folder, code=2)
    assert done.stderr == f"error: --b={run_folder}: both are the same version\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "record, told",
    [
        ({"prompt": "the [MASK]"}, 'line 1 has no text "reference"'),
        ({"prompt": "the [MASK]", "reference": "the mill"}, "must be the whole text"),
        ({"prompt": "the", "reference": "the"}, "has nothing to fill"),
    ],
)
def test_prompts_without_what_is_wanted_are_refused(record, told, run_folder, tmp_path):
    other = exported.write(tmp_path / "other", mlp_width=48)
    prompts = written(tmp_path / "asked.jsonl", record)
    sides = ("--a={run}", "--b={other}", f"--prompts={prompts}")
    done = run("ab", *sides, run=run_folder, other=other, code=2)
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and told in line
