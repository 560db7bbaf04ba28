"""What a checkpoint decides of a run's model, and what the config still does."""

import dataclasses

import pytest

from mdlm_jax.networks import bert
from mdlm_jax.runs.experiment import Experiment, default_config
from mdlm_jax.runs.following import experiment_of
from mdlm_jax.runs.start_config import StartConfig, adopt

THEIRS = bert.Config(vocab_size=50, mask_id=0, max_length=64, layers=3, width=32, heads=4)
MODEL = default_config().to_dict()["model"]


def test_the_checkpoint_decides_the_network_and_the_config_how_it_is_trained():
    asked = {"dropout": 0.0, "dtype": "bfloat16", "scan": False, "vocab_multiple": 8}
    encoder = bert.Config(**adopt(asked, THEIRS, length=16))
    wanted = {"dropout": 0.0, "dtype": "bfloat16", "scan": False, "vocab_multiple": 8}
    assert encoder == dataclasses.replace(THEIRS, **wanted)


def test_dropout_is_the_configs_where_the_checkpoint_has_another():
    theirs = dataclasses.replace(THEIRS, dropout=0.3)
    assert adopt({}, theirs, 16)["dropout"] == MODEL["dropout"] == 0.1


def test_a_key_may_repeat_what_the_checkpoint_has():
    assert adopt({"width": 32}, THEIRS, 16) == adopt({}, THEIRS, 16)


def test_a_default_beside_a_checkpoint_asks_for_nothing_unless_it_was_typed():
    local = dataclasses.replace(THEIRS, attention="local", window=4)
    config = {"start": {"checkpoint": "x"}, "model": {**MODEL, "attention": "full"}}
    unset = Experiment.of(config)
    assert adopt(unset.model, local, 16)["attention"] == "local"
    typed, _ = experiment_of(config, ["start.checkpoint", "model.attention"])
    with pytest.raises(ValueError, match=r"attention is 'full', but .* has 'local': leave it"):
        adopt(typed.model, local, 16)
    assert adopt(typed.model, THEIRS, 16)["attention"] == "full"


@pytest.mark.parametrize(
    "name", sorted(set(MODEL) - {"classes", "class_dropout", "attention_backend", "remat"})
)
def test_every_key_is_either_the_configs_or_refused(name):
    value = MODEL[name]
    other = not value if isinstance(value, bool) else {"dtype": "bfloat16"}.get(name, 7)
    try:
        adopted = adopt({name: other}, THEIRS, 16)
    except ValueError as error:
        (line,) = str(error).splitlines()
        assert line.startswith(f"model.{name} is {other!r}, ")
        assert f"which has {getattr(THEIRS, name)!r}: leave it out" in line
    else:
        assert adopted[name] == other and name in ("dropout", "dtype", "scan", "vocab_multiple")


def test_learned_positions_bound_the_rows_and_rotary_ones_do_not():
    assert adopt({}, THEIRS, 64)["max_length"] == 64
    assert adopt({}, THEIRS, 16)["max_length"] == 64
    with pytest.raises(ValueError, match=r"data.length is 65, but .* only 64 positions"):
        adopt({}, THEIRS, 65)
    rotary = dataclasses.replace(THEIRS, positions="rope")
    assert adopt({}, rotary, 100)["max_length"] == 100


def test_fresh_weights_need_a_checkpoint():
    with pytest.raises(ValueError, match=r"start.fresh_weights does nothing without"):
        StartConfig(fresh_weights=True)


def test_an_experiment_takes_the_architecture_where_it_starts_from_one():
    config = default_config()
    config.start.checkpoint = "somewhere"
    config.data.update(length=16, vocab_size=40)
    encoder = Experiment.of(config.to_dict()).planned_encoder(THEIRS)
    assert (encoder.vocab_size, encoder.mask_id) == (40, 39)
    assert (encoder.layers, encoder.max_length) == (3, 64)
    with pytest.raises(TypeError, match="give it where that is set"):
        Experiment.of(config.to_dict()).planned_encoder()
