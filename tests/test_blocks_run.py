"""A run of blocks, from full diffusion to its samples, as a user runs it."""

import json
import math

import jax
import numpy as np
import pytest
from command_runs import TINY, write_text
from command_runs import run as run_command

import mdlm_jax
from mdlm_jax import blocks
from mdlm_jax.host import parallel
from mdlm_jax.runs import models
from mdlm_jax.writing.answering import Answerer

pytestmark = pytest.mark.slow

FULL = ("--config.model.attention=full", "--config.model.window=0")
FROM_WEIGHTS = tuple(argument for argument in TINY if "config.model." not in argument)
BLOCKS = ("--config.objective.name=block", "--config.objective.block_size=4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blocks")
    write_text(folder / "text.txt")
    return folder


@pytest.fixture(scope="module")
def run(folder):
    env = {"MDLM_JAX_CACHE": str(folder / "cache")}

    def run(name, *arguments, code=0):
        places = {"text": folder / "text.txt", "folder": folder}
        return run_command(name, *arguments, code=code, env=env, **places)

    return run


@pytest.fixture(scope="module")
def trained(run, folder):
    """Full diffusion first, then blocks from its weights."""
    run("train", *TINY, *FULL, "--workdir={folder}/full")
    done = run(
        "train", *FROM_WEIGHTS, *BLOCKS, "--config.start.checkpoint={folder}/full",
        "--workdir={folder}/blocks",
    )  # fmt: skip
    assert "starting from" in done.stdout and "validation NELBO" in done.stdout
    return folder / "blocks"


def test_it_shows_a_sample_and_resumes_to_more_steps(run, trained):
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert {each["kind"] for each in lines} == {"train", "eval", "sample"}
    done = run("train", "--workdir={folder}/blocks", "--config.training.steps=6")
    assert "resuming at step 4" in done.stdout


def test_evaluate_says_the_size_of_blocks_and_the_rates_within_one(run, trained):
    done = run("evaluate", "--workdir={folder}/blocks", "--draws=2")
    assert "in blocks of 4" in done.stdout and "NELBO" in done.stdout
    figures = json.loads((trained / "evaluation_test.json").read_text())
    assert figures["block_size"] == 4
    assert [point["rate"] for point in figures["rate_curve"]] == [0.25, 0.5, 0.75, 1.0]
    assert "blocks of 4 tokens" in (trained / "report.html").read_text()


def test_evaluate_takes_other_text_in_rows_of_whole_blocks(run, trained):
    of_text = ("evaluate", "--workdir={folder}/blocks", "--text={text}", "--draws=2")
    done = run(*of_text, "--length=8")
    assert "in blocks of 4" in done.stdout and "rows, 2 draws a row" in done.stdout
    done = run(*of_text, "--length=10", code=2)
    assert done.stderr == "error: --length must be a multiple of 4, the model's blocks, not 10\n"


def test_an_export_keeps_its_blocks_and_writes_the_same(run, trained, folder):
    run("export", "--workdir={folder}/blocks", "--output={folder}/export")
    exported, own = mdlm_jax.load(folder / "export"), mdlm_jax.load(trained)
    texts = [model.fill("the river {mask:6}", seed=3) for model in (exported, own)]
    assert texts[0] == texts[1] and exported.denoiser.block_size == 4


def test_generate_fills_prompts_and_spreads_its_steps(run, trained):
    done = run(
        "generate", "--workdir={folder}/blocks", "--prompt=the river {{mask:6}}", "--json",
        "--steps=8", "--temperature=0.9", "--top_p=0.9", "--repetition_penalty=1.3",
    )  # fmt: skip
    (record,) = map(json.loads, done.stdout.splitlines())
    assert record["text"].startswith("the river") and record["evaluations"] <= 8


def test_generate_goes_on_past_the_length_of_training(run, trained):
    done = run("generate", "--workdir={folder}/blocks", "--length=40", "--json", "--steps=40")
    (record,) = map(json.loads, done.stdout.splitlines())
    assert record["length"] == 40 and record["evaluations"] >= 30


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--blocks=2", "--blocks is for models of whole rows"),
        ("--cache=dual", "--cache is for models of whole rows"),
        ("--guidance=2", "--guidance is for models with classes"),
    ],
)
def test_generate_refuses_in_one_line_what_blocks_do_not_take(run, trained, flags, says):
    done = run("generate", "--workdir={folder}/blocks", flags, code=2)
    assert says in done.stderr and done.stderr.count("\n") == 1


def test_the_frontier_is_measured_by_the_sampler_of_blocks(run, trained):
    run(
        "evaluate", "--workdir={folder}/blocks", "--frontier", "--steps=4,16", "--samples=4",
        "--strategies=exact_count",
    )  # fmt: skip
    points = json.loads((trained / "frontier.json").read_text())["points"]
    assert [point["evaluations"] for point in points] == [4, 16]


def test_a_program_has_its_texts_likelihoods_and_denoiser(trained):
    model = mdlm_jax.load(trained)
    assert model.fill("the river [MASK] [MASK]", seed=1).startswith("the river")
    assert np.isfinite(model.likelihood("the river runs past").nats).all()
    tokens = jax.random.randint(jax.random.key(0), (2, 16), 5, 100)
    found = blocks.nelbo(model.denoiser, jax.random.key(1), tokens, mask_id=model.mask_id, draws=2)
    assert np.isfinite(found.nats).all()


def test_the_harness_scores_by_blocks(trained):
    mesh = parallel.make_mesh(devices=jax.devices()[:1])
    answerer = Answerer(models.load(str(trained), mesh), mesh, draws=4, steps=8)
    scored = answerer.continuations([("the river", " runs past"), ("the", " mill")], greedy=True)
    assert (scored.nats > 0).all() and scored.greedy.dtype == bool
    # Nothing that follows the continuation counts: it is alone in its row.
    assert all(map(math.isfinite, answerer.texts(["the river runs past an old stone mill"])))
    assert len(answerer.answers(["the river"], tokens=4)) == 1


def test_compile_check_takes_an_experiment_of_blocks(run):
    pytest.importorskip("libtpu")
    done = run("compile_check", *TINY, *FULL, *BLOCKS, "--topology=v5e:2x2")
    assert "training step" in done.stdout and "sampler" in done.stdout
