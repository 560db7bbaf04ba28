"""A whole run in this process: planned, trained, and gone on with."""

import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from command_runs import write_text
from etils import epath

from mdlm_jax import causal_likelihood, train
from mdlm_jax.networks import bert
from mdlm_jax.runs import workdir
from mdlm_jax.runs.experiment import Experiment, default_config
from mdlm_jax.training import checkpoints
from mdlm_jax.training.metrics import read_metrics

pytestmark = pytest.mark.slow


@pytest.fixture
def configured(tmp_path, monkeypatch):
    """`configured(**training) -> (experiment, folder)` of a text of our own."""
    monkeypatch.setenv("MDLM_JAX_CACHE", str(tmp_path / "cache"))
    text = write_text(tmp_path / "text.txt", documents=60)

    def configured(objective="autoregressive", **training):
        config = default_config()
        config.data.update(
            source="text_files", documents="paragraph", files=str(text), tokenizer="characters",
            length=12,
        )  # fmt: skip
        attention = "causal" if objective == "autoregressive" else "full"
        config.model.update(
            layers=1, width=16, heads=2, mlp_width=16, dropout=0.0, attention=attention
        )
        config.objective.name = objective
        config.optimizer.warmup_steps = 2
        config.training.update(
            {
                "batch_size": 7, "keep_last": 1, "keep_every": 3, "save_every": 1, "log_every": 2,
                "tensorboard": True, **training,
            }
        )  # fmt: skip
        config.evaluation.update(every=4, rows=6, batch_size=6)
        return Experiment.of(config.to_dict()), epath.Path(tmp_path / "run")

    return configured


@pytest.fixture
def start(configured):
    """`start(**training) -> (the job, its exit code)`, as the command does it."""

    def start(**training):
        experiment, folder = configured(**training)
        job, encoder = train.plan(experiment, folder)
        with workdir.claim(folder, experiment, encoder, job.prepared):
            return job, train.train(job, train.load_start(job, print))

    return start


def steps_of(job, kind):
    return [record["step"] for record in read_metrics(job.workdir) if record["kind"] == kind]


def saved(job):
    return checkpoints.list_steps(job.workdir / "checkpoints")


def test_the_first_line_tells_of_devices_and_of_rows_without_a_neighbour(configured):
    job, _ = train.plan(*configured(objective="diffusion", batch_size=7))
    unpaired = "rows a device are odd: unpaired"
    assert unpaired in train._first_words(job, 0)
    job, _ = train.plan(*configured(objective="diffusion", batch_size=8))
    words = train._first_words(job, 0)
    assert "1 cpu device(s), logging" in words and unpaired not in words
    mesh = SimpleNamespace(size=2, shape={"data": 2, "fsdp": 1, "tensor": 1})
    words = train._first_words(job._replace(program=job.program._replace(mesh=mesh)), 3)
    assert "2 cpu device(s) (data=2, fsdp=1, tensor=1), resuming at step 3" in words


def test_a_run_does_what_its_config_says_and_goes_on(start, capsys):
    """Autoregressive, whose first token is told by the separator alone; every number is another."""
    pytest.importorskip("tensorboardX")
    job, code = start(steps=5)
    first, last, report, then = capsys.readouterr().out.splitlines()
    assert report == f"report: {job.workdir / 'report.html'}" and then.startswith("next: ")
    assert code == 0 and not job.goes_on
    assert f", 1 cpu device(s), logging to {job.workdir}" in first
    figure = r"\d+\.\d{3}"
    assert re.fullmatch(
        rf"validation cross-entropy {figure} \(exact\) \+- {figure} \(text\) nats/token over 72 "
        rf"tokens; the corpus's unigram has {figure} there, its bigram {figure}",
        last,
    )
    assert steps_of(job, "train") == [2, 4, 5] and steps_of(job, "eval") == [4, 5]
    assert steps_of(job, "sample") == [4, 5] and saved(job) == [3, 5]
    assert list(job.workdir.glob("events.out.tfevents.*"))
    trained, rows = workdir.load(job.workdir), job.prepared.splits["validation"].spread(6)

    @jax.jit
    def by_hand(params, tokens):
        denoiser = bert.denoiser(params, trained.encoder)
        return causal_likelihood(denoiser, tokens, start_id=job.prepared.sep_id).nats_per_token

    told = [record for record in read_metrics(job.workdir) if record["kind"] == "eval"][-1]
    found = by_hand(trained.params, rows.tokens.astype(np.int32))
    assert told["nats_per_token"] == pytest.approx(float(found), rel=1e-5)
    job, code = start(steps=5)
    assert capsys.readouterr().out == f"{job.workdir} is done: it has 5 of 5 steps\n"
    assert code == 0 and job.goes_on
    job, code = start(steps=7)
    assert code == 0 and ", resuming at step 5" in capsys.readouterr().out
    assert steps_of(job, "train") == [2, 4, 5, 6, 7] and saved(job) == [3, 6, 7]
