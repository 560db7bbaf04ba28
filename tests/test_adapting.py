"""Runs that start from a checkpoint: on a mesh, resumed without it, and written back."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from command_runs import run, write_text

from mdlm_jax import data, interop
from mdlm_jax.networks import bert
from mdlm_jax.runs import starting, workdir
from mdlm_jax.runs.start_config import StartConfig

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A text, and a tiny BERT with a tokenizer of it, as Hugging Face has it."""
    folder = tmp_path_factory.mktemp("adapting")
    text = write_text(folder / "text.txt")
    words = text.read_text().split("\n\n")
    tokenizer = data.train_tokenizer(words, kind="wordpiece", vocab_size=120, lowercase=True)
    write_bert(folder / "bert", tokenizer)
    return folder


def write_bert(path, tokenizer, seed=5):
    config = bert.Config(
        vocab_size=data.vocabulary_size(tokenizer),
        mask_id=data.special_ids(tokenizer).mask,
        max_length=24,
        layers=2,
        width=16,
        heads=2,
        mlp_width=24,
        dropout=0.3,
    )
    params = bert.init(jax.random.key(seed), config)
    interop.save_pretrained(path, interop.Pretrained(params, config, tokenizer))


def prepared(folder, tokenizer):
    return data.prepare(
        data.Config(
            source="text_files",
            files=str(folder / "text.txt"),
            documents="paragraph",
            tokenizer=str(tokenizer),
            length=16,
        ),
        cache_dir=folder / "cache",
    )


def test_the_architecture_is_read_without_weights(folder, tmp_path):
    (tmp_path / "config.json").write_text((folder / "bert" / "config.json").read_text())
    told = starting.architecture(StartConfig(str(tmp_path)))
    assert (told.layers, told.width, told.max_length, told.dropout) == (2, 16, 24, 0.3)
    assert starting.architecture(StartConfig()) is None


def test_weights_come_in_the_vocabulary_of_the_data(folder):
    source = folder / "bert"
    theirs = jax.device_get(interop.load_pretrained(source).params)
    same = starting.load(StartConfig(str(source)), prepared(folder, source))
    assert same.found == same.size == 120
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(same.pretrained.params))
    jax.tree.map(np.testing.assert_array_equal, same.pretrained.params, theirs)
    other = starting.load(StartConfig(str(source)), prepared(folder, "characters"))
    assert 0 < other.found < other.size
    sizes = jax.tree.map(lambda a, b: a.shape == b.shape, other.pretrained.params, theirs)
    assert not sizes["encoder"]["embeddings"]["tokens"] and sizes["head"]["transform"]["kernel"]


OF_CONFIG = (
    "--config=adapt_bert",
    "--config.start.checkpoint={folder}/source",
    "--config.data.source=text_files",
    "--config.data.documents=paragraph",
    "--config.data.files={folder}/text.txt",
    "--config.data.length=16",
    "--config.objective.curriculum_steps=2",
    "--config.optimizer.warmup_steps=1",
    "--config.optimizer.freeze=embeddings/positions",
    "--config.training.batch_size=8",
    "--config.training.save_every=1",
    "--config.evaluation.every=10",
    "--config.evaluation.rows=8",
    "--config.evaluation.batch_size=8",
    "--config.evaluation.sample_steps=2",
)


@pytest.mark.slow
def test_a_run_starts_from_a_checkpoint_and_goes_on_without_it(folder):
    shutil.copytree(folder / "bert", folder / "source")
    env = {"MDLM_JAX_CACHE": str(folder / "run_cache")}

    def train(steps, *more, code=0):
        flags = (*OF_CONFIG, "--workdir={folder}/run", f"--config.training.steps={steps}", *more)
        return run("train", *flags, folder=folder, env=env, code=code)

    told = train(2)
    assert "source, which knows all 120 tokens\n" in told.stdout
    began = interop.load_pretrained(folder / "bert")
    trained = workdir.load(folder / "run", weights="params")
    positions = lambda model: model.params["encoder"]["embeddings"]["positions"]  # noqa: E731
    np.testing.assert_array_equal(positions(trained), positions(began))
    kernels = [m.params["head"]["transform"]["kernel"] for m in (trained, began)]
    assert 0 < np.abs(kernels[0] - kernels[1]).max() < 1e-3  # two steps from there
    assert trained.encoder == dataclasses.replace(
        began.config, dropout=0.1, dtype="bfloat16", scan=False
    )

    told = train(3, "--config.start.fresh_weights", code=2)
    assert "start.fresh_weights is False there, True here" in told.stderr
    shutil.rmtree(folder / "source")
    saved = json.loads((folder / "run" / "config.json").read_text())
    del saved["objective"]["keep"]  # as a version that knew no such key would have left it
    (folder / "run" / "config.json").write_text(json.dumps(saved))
    assert "resuming at step 2" in train(4).stdout
    shutil.rmtree(folder / "run_cache")  # then the rows are made anew, by the run's own tokenizer
    assert "resuming at step 4" in train(5).stdout

    # By default rows are as long as in training, though there are positions for 24 tokens.
    fill = ("--steps=2", "--json", f"--workdir={folder}/run")
    assert json.loads(run("generate", *fill, "--prompt={{mask:16}}").stdout)["text"]
    told = run("generate", *fill, "--prompt={{mask:17}}", code=2)
    assert "17 tokens, a row has 16" in told.stderr
    assert json.loads(run("generate", *fill, "--length=24").stdout)["text"]
    run("convert", f"--source={folder}/run", f"--target={folder}/converted")
    assert interop.load_pretrained(folder / "converted").config.max_length == 24
    evaluated = run("evaluate", f"--workdir={folder}/run", "--split=test", "--draws=2", env=env)
    assert "nats" in evaluated.stdout

    again = ("--config.start.checkpoint={folder}/run", "--config.data.tokenizer=characters")
    flags = (*OF_CONFIG, "--workdir={folder}/again", "--config.training.steps=1", *again)
    told = run("train", *flags, folder=folder, env=env)
    assert "tokens; the others begin as the mean of its tokens" in told.stdout


@pytest.fixture(scope="module")
def cube(tmp_path_factory):
    done = subprocess.run(
        [sys.executable, str(TESTS / "adapting_on_eight_devices.py"), tmp_path_factory.mktemp("c")],
        env={
            **os.environ,
            "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
            "JAX_PLATFORMS": "cpu",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_a_mesh_begins_where_it_is_told_and_changes_nothing(cube):
    assert cube["began"] == 0 and cube["in_place"]
    assert cube["losses"] < 1e-5 and cube["params"] < 1e-5


@pytest.mark.slow
def test_what_is_frozen_stays_and_the_rest_moves_by_its_depth(cube):
    moved = cube["moved"]
    for name, most in moved.items():
        frozen = "/embeddings/" in name or "/blocks/mlp/" in name
        assert (most == 0) == frozen, name
    blocks, head = moved["encoder/blocks/attention/qkv/kernel"], moved["head/transform/kernel"]
    assert 0.4 < blocks / head < 0.6  # of the upper block


@pytest.mark.slow
def test_a_checkpoint_with_frozen_parts_is_restored_on_any_mesh(cube):
    assert cube["restored"] and cube["restored_elsewhere"] == 0


@pytest.mark.slow
def test_a_pretrained_bert_goes_on_in_blocks(folder):
    env = {"MDLM_JAX_CACHE": str(folder / "run_cache")}
    flags = [each for each in OF_CONFIG if "curriculum" not in each and "start.check" not in each]
    flags += ["--config.start.checkpoint={folder}/bert", "--config.objective.curriculum_steps=0"]
    flags += ["--config.objective.name=block", "--config.objective.block_size=4"]
    flags += ["--config.training.steps=2", "--workdir={folder}/blocks"]
    told = run("train", *flags, folder=folder, env=env)
    assert "bert, which knows all 120 tokens\n" in told.stdout
    began = interop.load_pretrained(folder / "bert")
    trained = workdir.load(folder / "blocks", weights="params")
    kernels = [m.params["encoder"]["blocks"]["mlp"]["up"]["kernel"] for m in (trained, began)]
    assert 0 < np.abs(kernels[0] - kernels[1]).max() < 1e-2  # two steps from there
    record = run("generate", "--workdir={folder}/blocks", "--steps=8", "--json", folder=folder)
    assert json.loads(record.stdout)["text"]
    longer = run("generate", "--workdir={folder}/blocks", "--length=28", folder=folder, code=2)
    assert "--length must be from 1 to 24, not 28: learned positions end there" in longer.stderr
