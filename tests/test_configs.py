"""Every shipped config: what its first lines say, and that its step can be traced as it is."""

import dataclasses
import importlib.util
import json
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from absl import flags
from etils import epath
from ml_collections import config_flags

from mdlm_jax.host import command_line
from mdlm_jax.host.command_line import shipped_configs
from mdlm_jax.networks import bert
from mdlm_jax.runs import workdir
from mdlm_jax.runs.experiment import Experiment, default_config
from mdlm_jax.runs.program import frozen_parameters, make_prepare, rate_multipliers
from mdlm_jax.training.optimizer import make_optimizer
from mdlm_jax.training.state import init_state
from mdlm_jax.training.step import make_step

CONFIGS = shipped_configs()
# Of what the data decide: vocabulary and mask, as the tokenizer of the config gives them.
VOCABULARIES = {
    "adapt_bert": (30_522, 103),
    "answers": (13, 4),
    "blocks": (8192, 4),
    "english": (8192, 4),
    "quickstart": (8192, 4),
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


def test_the_guide_of_pairs_shows_what_made_the_files_of_answers(tmp_path, monkeypatch):
    shipped = CONFIGS["answers"].parent
    guide = (Path(__file__).parents[1] / "docs/pairs.md").read_text()
    (program,) = re.findall(r"^```python\n(.*?)^```", guide, re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "docs/pairs.md", "exec"), {})
    names = ["answers_asked.jsonl", "answers_pairs.jsonl"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    words = []
    for name in names:
        text = (tmp_path / name).read_text()
        assert text == (shipped / name).read_text()
        words += [json.loads(line)["prompt"] for line in text.splitlines()]
    assert len(set(words)) == len(words) == 1364  # none is asked that was learned


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
    assert "This config was never trained." in doc.replace("\n", " ")
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
        experiment.family.make_loss(experiment.objective, encoder),
        optimizer,
        seed=training.seed,
        ema_decay=training.ema_decay,
        accumulation=training.accumulation,
        prepare=make_prepare(experiment, encoder, paired=True),
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


TYPES = {
    "a string for a number": ("training", "steps", "ten", "training.steps must be a whole number"),
    "a float for a number": ("training", "steps", 10.5, "training.steps must be a whole number"),
    "a truth for a number": ("model", "layers", True, "model.layers must be a whole number"),
    "none": ("data", "files", None, "data.files must be a string, not None"),
    "a list": ("data", "files", ["a.txt"], r"data.files must be a string, not \['a.txt'\]"),
    "a number for a truth": ("model", "scan", 1, "model.scan must be True or False, not 1"),
    "no number": ("optimizer", "learning_rate", float("nan"), "learning_rate must be a number"),
    "infinite": ("optimizer", "eps", float("inf"), "optimizer.eps must be a number, not inf"),
    "absurd": ("training", "steps", 10**400, "steps must be a number of at most 63 bits, not 10"),
    "no float": ("optimizer", "eps", 10**400, "eps must be a number of at most 63 bits, not 10"),
    "uncounted": ("training", "steps", 2**31, r"steps must be below 2\*\*31, not 2147483648"),
}


@pytest.mark.parametrize("name", TYPES)
def test_a_value_of_another_type_is_refused(name):
    section, key, value, told = TYPES[name]
    config = default_config().to_dict()
    config[section][key] = value
    with pytest.raises(ValueError, match=told):
        Experiment.of(config)


def test_a_section_that_is_none_is_refused_and_whole_numbers_are_numbers():
    config = default_config().to_dict()
    with pytest.raises(ValueError, match="training must be a section with keys, not 3"):
        Experiment.of({**config, "training": 3})
    with pytest.raises(ValueError, match="profile_steps must be a string, not 3"):
        Experiment.of({**config, "profile_steps": 3})
    config["optimizer"]["learning_rate"] = 1
    assert Experiment.of(config).optimizer.learning_rate == 1


@pytest.fixture
def parsed(monkeypatch):
    """`parsed(*words)`, the config of a command line."""

    def parsed(*words):
        return config_of_words(command_line._with_config_paths(["train", *words]), monkeypatch)

    return parsed


def config_of_words(argv, monkeypatch):
    monkeypatch.setattr(sys, "argv", argv)  # where ml_collections looks for what is changed
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", flag_values=values)
    values(argv)
    return holder.value.to_dict()


def test_the_config_of_a_run_is_a_config(tmp_path, parsed):
    asked = config_of("quickstart")
    asked.model.dropout = 0.0
    experiment = dataclasses.asdict(Experiment.of(asked.to_dict()))
    model = dataclasses.asdict(bert.Config(**experiment["model"], vocab_size=9, mask_id=4))
    told = {"format": 1, "data_fingerprint": "0f", **experiment, "model": model, "exported": "ema"}
    path = tmp_path / "run: [1]" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(told))
    assert parsed(f"--config={path}") == asked.to_dict()
    changed = parsed("--config", str(path), "--config.training.steps=7")
    assert changed["training"].pop("steps") == 7 and asked.training.steps != 7


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{}", "is no config of a run: its format must be a number, not null"),
        ('{"format": 9}', "format 9, this version of mdlm_jax reads up to 1"),
        ('{"format": 1, "objective": {"weighting": "flat"}}', "objective.weighting is 'flat', and"),
        ('{"format": 1, "data": {"lenght": 3}}', "data has a key lenght that is not known"),
        ('{"format": 1, "data": [1]}', "config.json: data must be a section with keys, not [1]"),
        ('{"format": 1, "training": {"steps": "x"}}', 'steps must be like 100000, not "x"'),
        ("[", "config.json, line 1 is not JSON"),
    ],
)
def test_what_is_no_config_of_a_run_is_told_in_one_line(tmp_path, capsys, parsed, text, told):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(flags.Error) as error:
        parsed(f"--config={tmp_path}/config.json")
    line = command_line._flag_error(error.value, [])
    assert told in line and "\n" not in line and "config_of_run" not in line
    with pytest.raises(SystemExit):
        parsed(f"--config={tmp_path}")
    assert "of a run, give its config.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("config.training.steps = 'many'", "line 4: TypeError: Could not override field 'steps'"),
        ("config.data.files = ['a', 'b']", "line 4: TypeError: Could not override field 'files'"),
        ("config.training.steps = int('x')", "line 4: ValueError: invalid literal for int()"),
    ],
)
def test_a_config_file_that_raises_is_told_in_one_line(tmp_path, parsed, line, told):
    path = tmp_path / "mine.py"
    begin = "from mdlm_jax.runs.experiment import default_config\ndef get_config():\n"
    path.write_text(f"{begin}    config = default_config()\n    {line}\n    return config\n")
    with pytest.raises(flags.Error) as error:
        parsed(f"--config={path}")
    line = command_line._flag_error(error.value, [f"--config={path}"])
    assert line.startswith(f"{path}, {told}") and "Traceback" not in line and "\n" not in line


def test_a_converted_folder_is_told_to_be_one(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert", "architectures": ["x"]}')
    with pytest.raises(ValueError, match="in the form of Hugging Face, and not the folder of a"):
        workdir.read_encoder(epath.Path(tmp_path))
