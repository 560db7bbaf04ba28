"""Commands of a run that ended early, and whose best checkpoint was kept."""

import json

import pytest
from command_runs import TINY, run, write_text

# Nothing is learned, so that no evaluation is better than the first.
STILL = (
    *TINY,
    "--workdir={folder}/run",
    "--config.optimizer.learning_rate=1e-30",
    "--config.training.steps=20",
    "--config.training.save_every=4",
    "--config.training.keep_last=1",
    "--config.training.keep_best=True",
    "--config.training.patience=3",
    "--config.evaluation.every=2",
)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("best")
    env = {"MDLM_JAX_CACHE": str(folder / "cache")}
    return {"folder": folder, "text": write_text(folder / "text.txt"), "env": env}


@pytest.fixture(scope="module")
def ended(places):
    return run("train", *STILL, **places)


def test_a_run_that_no_longer_improves_says_why_it_ended(ended, places):
    lines = ended.stdout.splitlines()
    (why,) = (line for line in lines if line.startswith("stopped early at step 8 of 20: none "))
    assert "none of the last 3 evaluations improved on the " in why
    assert why.endswith("nats per token of step 2 (training.patience)")
    assert "the best evaluation is that of step 2: --step=best reads it" in lines
    kept = sorted(path.name for path in (places["folder"] / "run" / "checkpoints").iterdir())
    assert kept == ["2", "8"]


def test_started_again_it_has_ended(ended, places):
    records = (places["folder"] / "run" / "metrics.jsonl").read_text()
    again = run("train", *STILL, **places)
    assert "resuming at step 8" in again.stdout and "stopped early at step 8 of 20" in again.stdout
    assert (places["folder"] / "run" / "metrics.jsonl").read_text() == records


@pytest.mark.slow
def test_commands_read_the_best_or_any_checkpoint(ended, places):
    workdir, folder = "--workdir={folder}/run", places["folder"]
    evaluated = folder / "run" / "evaluation_test.json"
    for asked, step in (("best", 2), ("8", 8), (None, 8)):
        flags = [workdir, "--draws=2"] + ([f"--step={asked}"] if asked else [])
        run("evaluate", *flags, **places)
        assert json.loads(evaluated.read_text())["step"] == step
    sampled = run("generate", workdir, "--step=best", "--steps=2", "--json", **places)
    assert json.loads(sampled.stdout)["checkpoint"] == 2
    run("export", workdir, "--output={folder}/out", "--step=best", **places)
    assert [path.name for path in (folder / "out" / "checkpoints").iterdir()] == ["2"]
    # What was exported has one checkpoint, and no evaluations by which it is the best.
    refused = run("generate", "--workdir={folder}/out", "--step=best", code=2, **places)
    assert "has no checkpoint that was evaluated" in refused.stderr


@pytest.mark.parametrize(
    ("step", "told"),
    [
        ("worst", "step must be the number of one, or 'best', not 'worst'"),
        ("-1", "step must be the number of one, or 'best', not '-1'"),
        ("7", r"no checkpoint of step 7 in .*, but of [2, 8]"),
    ],
)
def test_a_step_that_is_none_is_refused(ended, places, step, told):
    done = run("export", "--workdir={folder}/run", "--output={folder}/no", f"--step={step}",
               code=2, **places)  # fmt: skip
    assert done.stderr.count("\n") == 1
    begin, _, end = told.partition(".*")
    assert begin in done.stderr and end in done.stderr
    assert not (places["folder"] / "no").exists()
