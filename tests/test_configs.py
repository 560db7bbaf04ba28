"""Every shipped config: what its first lines say, and that its step can be traced as it is."""

import dataclasses
import importlib.util
import re

import jax
import jax.numpy as jnp
import pytest

from mdlm_jax.command_line import shipped_configs
from mdlm_jax.experiment import Experiment
from mdlm_jax.networks import bert
from mdlm_jax.program import frozen_parameters, make_corruption, make_loss, rate_multipliers
from mdlm_jax.training.optimizer import make_optimizer
from mdlm_jax.training.state import init_state
from mdlm_jax.training.step import make_step

CONFIGS = shipped_configs()
# Of what the data decide: vocabulary and mask, as the tokenizer of the config gives them.
VOCABULARIES = {
    "adapt_bert": (30_522, 103),
    "quickstart": (2048, 4),
    "text8": (32, 4),
    "lm1b": (30_522, 103),
    "owt": (50_257, 4),
    "bert_base_v5e": (30_522, 103),
    "bert_large_v5e": (30_522, 103),
    "llada_1b": (126_464, 4),
    "llada_8b": (126_464, 4),
}
# ... and of what a checkpoint decides: the network, as its config.json describes it.
ARCHITECTURES = {"adapt_bert": bert.Config(mask_id=0)}  # BERT-base, whose sizes the defaults are


@pytest.fixture(params=sorted(CONFIGS))
def name(request):
    return request.param


def module_of(name):
    spec = importlib.util.spec_from_file_location(name, CONFIGS[name])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def config_of(name):
    return module_of(name).get_config()


def load(name):
    module = module_of(name)
    experiment = Experiment.of(module.get_config().to_dict())
    vocab_size, mask_id = VOCABULARIES[name]
    words = {"vocab_size": vocab_size, "mask_id": mask_id}
    encoder = dataclasses.replace(experiment.planned_encoder(ARCHITECTURES.get(name)), **words)
    return module.__doc__, experiment, encoder


def test_it_begins_with_its_command(name):
    doc, _, _ = load(name)
    command = doc.split("\n\n")[1].strip()
    assert command == f"python -m mdlm_jax.train --config={name} --workdir=runs/{name}"


def test_it_has_the_parameters_that_it_states(name):
    doc, _, encoder = load(name)
    shapes = jax.eval_shape(lambda: bert.init(jax.random.key(0), encoder))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    stated = re.findall(r"([\d,]+)\s+parameters", doc)
    assert stated == [f"{count:,}"]


def test_what_is_checked_without_data_is_the_model_itself(name):
    """`compile_check` knows the vocabulary from the config alone."""
    _, experiment, encoder = load(name)
    planned = experiment.planned_encoder(ARCHITECTURES.get(name))
    assert planned.vocab_size == VOCABULARIES[name][0] == encoder.vocab_size


def test_a_config_that_starts_from_a_checkpoint_takes_its_tokenizer_too():
    config = config_of("adapt_bert")
    assert config.data.tokenizer == "google-bert/bert-base-uncased" == config.start.checkpoint
    config.start.checkpoint = "models/other"
    assert Experiment.of(config.to_dict()).data.tokenizer == "models/other"
    config.data.tokenizer = "wordpiece"  # one of its own: then the vocabulary is resized
    assert config.start.checkpoint == "models/other"


@pytest.mark.parametrize(
    "pod", sorted(name for name in CONFIGS if "v5e" in name or "llada" in name)
)
def test_a_pods_config_tells_its_check(pod):
    doc, experiment, encoder = load(pod)
    assert re.search(rf"python -m mdlm_jax.compile_check --config={pod} --topology=v\d\w?:", doc)
    assert "The run was not made." in doc.replace("\n", " ")
    assert encoder.attention_backend == "splash"
    assert experiment.data.length % 128 == 0


def test_its_step_can_be_traced(name):
    """The step of `train`, of the whole global batch; shapes only: nothing is compiled."""
    _, experiment, encoder = load(name)
    training, length = experiment.training, experiment.data.length
    optimizer, schedule = make_optimizer(
        experiment.optimizer,
        training.steps,
        multipliers=rate_multipliers(experiment, encoder),
        frozen=frozen_parameters(experiment, encoder),
    )
    step = make_step(
        make_loss(encoder),
        optimizer,
        seed=training.seed,
        ema_decay=training.ema_decay,
        accumulation=training.accumulation,
        prepare=make_corruption(experiment, encoder, paired=True),
        schedule=schedule,
    )
    state = jax.eval_shape(lambda: init_state(bert.init(jax.random.key(0), encoder), optimizer))
    rows = jax.ShapeDtypeStruct((training.batch_size, length), jnp.int32)
    batch = {
        "tokens": rows,
        "maskable": jax.ShapeDtypeStruct(rows.shape, bool),
        "label": jax.ShapeDtypeStruct(rows.shape[:1], jnp.int32),
    }
    if experiment.data.has_padding:
        batch["valid"] = batch["maskable"]
    new, metrics = jax.eval_shape(step, state, batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )
    assert metrics["loss"].shape == ()
