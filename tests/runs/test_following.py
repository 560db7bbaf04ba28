"""Keys that follow others: what the user set stays, and what contradicts it gives way."""

import dataclasses
import json
from pathlib import Path

import pytest
from command_runs import run
from hypothesis import given
from hypothesis import strategies as st

from mdlm_jax.runs.experiment import Experiment, default_config
from mdlm_jax.runs.following import RULES, experiment_of, follow
from mdlm_jax.training.optimizer import make_optimizer

BERT = str(Path(__file__).parents[1] / "interop" / "golden" / "bert")


def shipped():
    """A config file with a window, a warm-up and more that is not the default."""
    config = default_config()
    config.model.update(layers=2, width=64, heads=4, attention="local", window=4)
    config.model.update(norm_position="pre", positions="rope", token_types=0)
    config.model.update(scan=False, dropout=0.0)
    config.optimizer.warmup_steps = 50
    config.training.steps = 1000
    return config


def on_the_command_line(config, **keys):
    """The config with these keys set by flags: `model__window=3`."""
    plain = config.to_dict()
    for name, value in keys.items():
        section, key = name.split("__")
        plain[section][key] = value
    return plain, [name.replace("__", ".") for name in keys]


def in_a_file(**keys):
    config = default_config()
    for name, value in keys.items():
        section, key = name.split("__")
        config[section][key] = value
    return config.to_dict(), ()


def usable(config, given):
    """The experiment, with all that is checked before a compile."""
    experiment, notes = experiment_of(config, given)
    experiment.planned_encoder()
    make_optimizer(experiment.optimizer, experiment.training.steps)
    return experiment, notes


@pytest.mark.parametrize(
    ("asked", "followed"),
    [
        ({"model__attention": "full"}, {"window": 0}),
        ({"model__attention": "causal"}, {"window": 0}),
        ({"model__window": 0}, {"attention": "full"}),
        ({"objective__name": "autoregressive"}, {"attention": "causal", "window": 0}),
        ({"training__steps": 20}, {"warmup_steps": 2}),
        ({"training__steps": 5}, {"warmup_steps": 0}),
        ({"training__steps": 60}, {"warmup_steps": 50}),  # no contradiction, no change
        ({"model__norm_position": "post"}, {}),
    ],
)
def test_the_command_line_beats_the_config_file(asked, followed):
    config = shipped()
    experiment, notes = usable(*on_the_command_line(config, **asked))
    plain = dataclasses.asdict(experiment)
    flat = {
        key: value for section in ("model", "optimizer") for key, value in plain[section].items()
    }
    before = {**config.model.to_dict(), **config.optimizer.to_dict()}
    given = {name.split("__")[1] for name in asked}
    for key, value in flat.items():
        if key not in given:
            assert value == followed.get(key, before[key]), key
    assert bool(notes) == any(before[key] != value for key, value in followed.items())
    for name, value in asked.items():
        section, key = name.split("__")
        assert plain[section][key] == value


def test_a_file_beats_a_default():
    experiment, notes = usable(*in_a_file(training__steps=500))
    assert experiment.optimizer.warmup_steps == 50
    assert notes == ["optimizer.warmup_steps is 50, not 1000: it follows training.steps 500"]
    experiment, _ = usable(*in_a_file(objective__name="autoregressive"))
    assert experiment.model["attention"] == "causal"
    of_pairs = {"data__source": "text_files", "data__files": "a.jsonl", "data__prompt_field": "q"}
    assert usable(*in_a_file(**of_pairs))[0].data.rows == "padded"


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (in_a_file(model__window=4), "model.window=4: must be 0 where attention='full'"),
        (in_a_file(optimizer__matrix_learning_rate=0.1), "matrix_learning_rate must be 0 where"),
        (in_a_file(model__attention="causal", model__window=4), "model.window=4: must be 0"),
        (in_a_file(training__steps=5, optimizer__warmup_steps=6), "must be at most the run's 5"),
        (
            on_the_command_line(shipped(), model__attention="full", model__window=3),
            "model.window=3: must be 0 where attention='full'",
        ),
        (
            on_the_command_line(shipped(), training__steps=20, optimizer__warmup_steps=50),
            "must be at most the run's 20 steps, not 50",
        ),
        (
            on_the_command_line(shipped(), objective__name="mlm", objective__curriculum_steps=5),
            "curriculum_steps bounds exact counts",
        ),
    ],
)
def test_two_that_were_set_alike_are_refused(config, told):
    with pytest.raises(ValueError, match=told):
        usable(*config)


LOCAL = {"model__attention": "local", "model__window": 2}
BLOCKS = {"objective__name": "block", "objective__block_size": 2}
CONTRADICTIONS = {  # of a config file, and what of the command line it gives way to
    "model.attention": (LOCAL, {"model__window": 0}),
    "model.window": (LOCAL, {"model__attention": "full"}),
    "model.global_every": (
        {**LOCAL, "model__global_every": 3},
        {"model__attention": "causal"},
    ),
    "model.attention_backend": (
        {**LOCAL, "model__attention_backend": "splash"}, {"model__global_every": 3},
    ),
    "model.class_dropout": (
        {"model__classes": 2, "model__class_dropout": 0.1}, {"model__classes": 0},
    ),
    "model.embedding_norm": (
        {"model__norm_position": "pre", "model__embedding_norm": True},
        {"model__norm_position": "post"},
    ),
    "model.output_bias": (
        {"model__use_bias": False, "model__output_bias": True}, {"model__use_bias": True},
    ),
    "objective.curriculum_steps": (
        {"objective__curriculum_steps": 9}, {"objective__corruption": "bernoulli"},
    ),
    "objective.block_size": (BLOCKS, {"objective__name": "diffusion"}),
    "objective.window": (
        {**BLOCKS, "objective__window": 2}, {"objective__name": "mlm"},
    ),
    "objective.keep": ({"objective__keep": "prefix"}, {"objective__name": "autoregressive"}),
    "optimizer.matrix_learning_rate": (
        {"optimizer__name": "muon", "optimizer__matrix_learning_rate": 0.02},
        {"optimizer__name": "adamw"},
    ),
    "optimizer.name": ({}, {"optimizer__matrix_learning_rate": 0.02}),
    "optimizer.warmup_steps": ({"optimizer__warmup_steps": 50}, {"training__steps": 20}),
    "data.rows": (
        {"data__source": "text_files", "data__files": "a.jsonl"}, {"data__prompt_field": "q"},
    ),
    "start.fresh_weights": (
        {"start__checkpoint": "x", "start__fresh_weights": True}, {"start__checkpoint": ""},
    ),
}  # fmt: skip


def test_every_rule_is_tested_and_described():
    guide = (Path(__file__).parents[2] / "docs" / "commands.md").read_text()
    for rule in RULES:
        assert rule.key in CONTRADICTIONS and f"`{rule.key}" in guide, rule.key


@pytest.mark.parametrize("key", CONTRADICTIONS)
def test_what_would_be_refused_follows(key):
    in_file, flags = CONTRADICTIONS[key]
    config = default_config()
    for name, value in in_file.items():
        section, name = name.split("__")
        config[section][name] = value
    plain, given = on_the_command_line(config, **flags)

    def refused():
        experiment = Experiment.of(plain)
        experiment.planned_encoder()
        make_optimizer(experiment.optimizer, experiment.training.steps)

    with pytest.raises(ValueError):  # without the rules
        refused()
    _, notes = usable(plain, given)
    assert any(key in note for note in notes)


def test_the_architecture_of_a_checkpoint_is_the_runs():
    """But for what the command line asks of it, which is then refused as ever."""
    config = shipped()
    experiment, (note,) = experiment_of(*on_the_command_line(config, start__checkpoint=BERT))
    assert experiment.model == {key: config.model[key] for key in ("scan", "dropout")}
    assert note.startswith("the architecture is that of start.checkpoint: ")
    assert "model.layers" in note and "model.scan" not in note
    wide = on_the_command_line(config, start__checkpoint=BERT, model__width=128)
    assert experiment_of(*wide)[0].model["width"] == 128


@given(
    steps=st.integers(1, 300), warmup=st.integers(0, 300), window=st.integers(0, 3),
    attention=st.sampled_from(["full", "causal", "local"]),
    name=st.sampled_from(["diffusion", "mlm", "autoregressive"]),
    given=st.sets(st.sampled_from([
        "training.steps", "optimizer.warmup_steps", "model.window", "model.attention",
        "objective.name",
    ])),
)  # fmt: skip
def test_following_changes_nothing_that_was_set_and_settles(
    steps, warmup, window, attention, name, given
):
    """What is resolved follows nothing more, and a config without contradictions is as it was."""
    config, _ = in_a_file(
        training__steps=steps, optimizer__warmup_steps=warmup, model__window=window,
        model__attention=attention, objective__name=name,
    )  # fmt: skip
    resolved, notes = follow(config, given)
    for key in given:
        section, key = key.split(".")
        assert resolved[section][key] == config[section][key]
    assert follow(resolved, given) == (resolved, [])
    assert bool(notes) == (resolved != config)


def test_what_is_no_config_is_left_to_its_check():
    for config in (
        {"training": {"steps": "ten"}, "optimizer": {"warmup_steps": 3}, "modell": 3},
        {"training": {"steps": 10}, "optimizer": {"warmup_steps": "many"}},
        {"training": {"steps": 10}, "optimizer": 3},
    ):
        assert follow(config) == (config, [])
    config = {"training": {"steps": 10}, "modell": 3}
    with pytest.raises(ValueError, match=r"unknown section: modell \(do you mean model\?\)"):
        experiment_of(config)


def test_a_command_tells_what_follows_and_prints_it_resolved():
    flags = ("--config=quickstart", "--config.training.steps=20", "--print_config")
    told = json.loads(run("train", *flags).stdout)
    assert (told["training"]["steps"], told["optimizer"]["warmup_steps"]) == (20, 2)
