"""`evaluate --answers` as a user runs it, on a tiny run that was trained on pairs."""

import json
import re
from pathlib import Path

import exported
import pytest
from command_runs import TINY
from command_runs import run as run_command
from etils import epath

from mdlm_jax import data
from mdlm_jax.runs import workdir

pytestmark = pytest.mark.slow

METRICS = Path(__file__).parents[1] / "docs" / "metrics.md"
ANSWERS = ("--workdir={run}", "--answers", "--samples=16", "--batch_size=8")
STEPS = 200  # a second of training, enough for some answers to be right
PAIRS = [(f"{word} {i}", word[0] * (1 + i % 2)) for i in range(80) for word in ("salt", "wool")]


TRAINING = (
    *(f for f in TINY if not re.search("data.(documents|files|vocab_size|length)", f)),
    "--config.data.files={folder}/pairs.jsonl", "--config.data.length=24",
    "--config.data.prompt_field=prompt", "--config.data.text_field=response",
    "--config.data.rows=padded", "--config.data.tokenizer={folder}/tokenizer.json",
    "--config.training.batch_size=8", f"--config.training.steps={STEPS}",
    f"--config.training.log_every={STEPS}", f"--config.training.save_every={STEPS}",
    f"--config.evaluation.every={STEPS}", "--config.optimizer.learning_rate=1e-2",
    "--config.model.attention=full", "--config.model.window=0",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("answers")
    lines = [json.dumps({"prompt": prompt, "response": text}) for prompt, text in PAIRS]
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    texts = [text for pair in PAIRS for text in pair]
    tokenizer = data.train_tokenizer(texts, kind="characters", vocab_size=40, lowercase=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def run(folder):
    """`run(command, *arguments)`, with {folder} and {run} filled in, a cache of its own."""

    def run(name, *arguments, code=0, devices=1):
        flags = f"--xla_force_host_platform_device_count={devices}"
        env = {"MDLM_JAX_CACHE": str(folder / "cache"), "XLA_FLAGS": flags}
        return run_command(name, *arguments, code=code, env=env, folder=folder, run=folder / "run")

    run("train", *TRAINING, "--workdir={run}")
    return run


@pytest.fixture(scope="module")
def measured(run, folder):
    """What the command printed, and what it wrote, on 4 devices that share the rows."""
    done = run("evaluate", *ANSWERS, "--split=train", "--steps=2,8", devices=4)
    return done.stdout, json.loads((folder / "run" / "answers.json").read_text())


def test_training_shows_an_answer_with_its_prompt(run, folder):
    lines = map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines())
    (sample,) = [each for each in lines if each["kind"] == "sample"]
    assert sample["text"].split("\n")[0] in {prompt for prompt, _ in PAIRS}


def test_every_point_is_told_and_written_beside_two_references(measured):
    printed, told = measured
    points = [(point["strategy"], point["steps"]) for point in told["points"]]
    assert points == [(name, steps) for name in ("exact_count", "greedy") for steps in (2, 8)]
    assert (told["split"], told["weights"], told["step"]) == ("train", "ema", STEPS)
    assert told["devices"] == 4
    for name in ("exact_match", "token_f1", "length_right", "bertscore_f1"):
        assert told["itself"][name] == pytest.approx(1, abs=1e-5)
        assert told["itself"][f"{name}_error"] < 1e-5
    assert 0 < told["another"]["exact_match"] < 1  # of four responses
    assert told["another"]["exact_match"] < told["another"]["token_f1"] < 1
    for point in (told["another"], *told["points"]):
        assert point["rows"] == 16 and -1 <= point["bertscore_recall"] < 1
        assert f"{point['bertscore_f1']:.3f} +- {point['bertscore_f1_error']:.3f}" in printed
    assert all(1 <= point["evaluations"] <= point["steps"] for point in told["points"])
    lines = printed.splitlines()
    assert lines[0].startswith("16 rows of the train split")
    assert [line[:15] for line in lines[2:4]] == ["response itself", "another row's  "]


def test_every_key_is_told(measured):
    told = set(re.findall(r"^\| `(\w+)` \|", METRICS.read_text(), flags=re.MULTILINE))
    _, written = measured
    assert {*written, *written["another"], *written["points"][0]} <= told


def test_samples_from_nothing_are_refused(run):
    done = run("evaluate", "--workdir={run}", "--frontier", code=2)
    assert "was trained on pairs" in done.stderr and "--answers" in done.stderr
    assert len(done.stderr.splitlines()) == 1 and not done.stdout


def test_data_come_back_without_the_tokenizers_file(run, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("MDLM_JAX_CACHE", str(tmp_path / "cache"))
    trained = workdir.load(epath.Path(folder / "run"))
    kept = folder / "tokenizer.json"
    kept.rename(folder / "elsewhere.json")
    try:
        prepared = workdir.load_data(trained, epath.Path(folder / "run"))
    finally:
        (folder / "elsewhere.json").rename(kept)
    assert prepared.fingerprint == trained.config["data_fingerprint"]
    assert str(prepared.path).startswith(str(tmp_path))


@pytest.mark.parametrize("name", ["run", "blocks"])
def test_the_answers_are_those_that_generate_writes(name, run, folder):
    """Which are the same for any seed: so are the shares of them that are right, or as long."""
    place = f"--workdir={folder}/{name}"
    if name == "blocks":
        run("train", *TRAINING, "--config.objective.name=block",
            "--config.objective.block_size=4", place)  # fmt: skip
    run("evaluate", place, *ANSWERS[1:], "--split=train", "--steps=8", "--strategies=greedy")
    told = json.loads((folder / name / "answers.json").read_text())
    card = json.loads((folder / name / "data.json").read_text())
    prepared = data.find_prepared(card["fingerprint"], folder / "cache")
    rows = prepared.splits["train"].spread(16)
    texts = [data.decode(prepared.tokenizer, row).split("\n") for row in rows.tokens]
    (folder / "asked.txt").write_text("\n".join(prompt for prompt, _ in texts))
    done = run(
        "generate", place, "--prompts={folder}/asked.txt", "--strategy=greedy", "--steps=8",
        "--json",
    )  # fmt: skip
    written = [json.loads(line)["text"] for line in done.stdout.splitlines()]
    (point,) = told["points"]
    right = [ours == wanted for ours, (_, wanted) in zip(written, texts, strict=True)]
    assert 0 < sum(right) < 16 and point["exact_match"] == pytest.approx(sum(right) / 16)


@pytest.mark.slow
def test_an_encoder_of_another_tokenizer_reads_them(run, folder, measured):
    exported.write(folder / "other")
    run("evaluate", *ANSWERS, "--split=train", "--steps=2", "--features={folder}/other")
    told = json.loads((folder / "run" / "answers.json").read_text())
    _, own = measured
    assert told["features"].endswith("other") and own["features"] is None
    assert told["itself"]["bertscore_f1"] == pytest.approx(1, abs=1e-5)
    assert told["another"]["bertscore_f1"] != pytest.approx(own["another"]["bertscore_f1"])
    for name in ("exact_match", "token_f1"):
        assert told["points"][0][name] == own["points"][0][name]
