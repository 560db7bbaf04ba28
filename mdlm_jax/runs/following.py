"""Keys of a config that follow others, if two contradict each other and only one thing can be
meant.

`--config.model.attention=full` on a config of local attention can only mean that the window goes,
and with 20 steps a warm-up of 50 must be shorter. The place where each key was set decides: the
command line beats the config file, and the file beats the default. A key that is stronger than what
it would follow stays, and so does one of the same strength; then the config is refused as usual.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from mdlm_jax.runs.experiment import Experiment, default_config
from mdlm_jax.runs.start_config import OF_TRAINING

Flat = Mapping[str, Any]  # by dotted key

DEFAULT, FILE, COMMAND_LINE = range(3)


class Rule(NamedTuple):
    """How a key follows others.

    Attributes:
      key: the key that follows.
      leads: the keys that it follows; the strongest of them counts.
      value: `flat ->` the value that the others leave it, or its own if they agree.
      least: the least strength of the lead.
    """

    key: str
    leads: tuple[str, ...]
    value: Callable[[Flat], Any]
    least: int = FILE


def _attention_of_window(flat: Flat) -> str:
    attention, window = flat["model.attention"], flat["model.window"]
    if attention == "local":
        return attention if window else "full"
    return "local" if window else attention


def _is_exact(flat: Flat) -> bool:
    return (flat["objective.name"], flat["objective.corruption"]) == ("diffusion", "exact")


def _if(holds: Callable[[Flat], bool], key: str, value: Any) -> Callable[[Flat], Any]:
    """The key's own value if it holds, else this one."""
    return lambda flat: flat[key] if holds(flat) else value


def _unless_set(key: str, of: str, value: Any) -> Rule:
    """A key without meaning while another is 0, False or ''."""
    return Rule(key, (of,), _if(lambda flat: bool(flat[of]), key, value))


def _of_local(key: str) -> Rule:
    lead = "model.attention"
    return Rule(key, (lead,), _if(lambda flat: flat[lead] == "local", key, 0))


def _of_blocks(key: str) -> Rule:
    lead = "objective.name"
    return Rule(key, (lead,), _if(lambda flat: flat[lead] == "block", key, 0))


RULES = (
    Rule(
        "model.attention",
        ("objective.name",),
        _if(lambda flat: flat["objective.name"] != "autoregressive", "model.attention", "causal"),
    ),
    # A file that extends another may have chosen full attention, which is the default, in spite of
    # a window: only the command line brings its attention along. So it is with AdamW below.
    Rule("model.attention", ("model.window",), _attention_of_window, least=COMMAND_LINE),
    _of_local("model.window"),
    _of_local("model.global_every"),
    Rule(
        "model.attention_backend",  # which computes the same
        ("model.global_every",),
        lambda flat: (
            "auto"
            if flat["model.global_every"] and flat["model.attention_backend"] == "splash"
            else flat["model.attention_backend"]
        ),
    ),
    _unless_set("model.class_dropout", "model.classes", 0.0),
    Rule(
        "model.embedding_norm",
        ("model.norm_position",),
        _if(lambda flat: flat["model.norm_position"] != "post", "model.embedding_norm", False),
    ),
    Rule(
        "model.output_bias",
        ("model.use_bias",),
        _if(lambda flat: not flat["model.use_bias"], "model.output_bias", False),
    ),
    _of_blocks("objective.block_size"),
    _of_blocks("objective.window"),
    Rule(
        "objective.curriculum_steps",
        ("objective.name", "objective.corruption"),
        _if(_is_exact, "objective.curriculum_steps", 0),
    ),
    Rule(
        "objective.keep",
        ("objective.name",),
        _if(
            lambda flat: flat["objective.name"] not in ("autoregressive", "block"),
            "objective.keep",
            "",
        ),
    ),
    Rule(
        "optimizer.matrix_learning_rate",
        ("optimizer.name",),
        _if(lambda flat: flat["optimizer.name"] == "muon", "optimizer.matrix_learning_rate", 0.0),
    ),
    Rule(
        "optimizer.name",
        ("optimizer.matrix_learning_rate",),
        _if(lambda flat: not flat["optimizer.matrix_learning_rate"], "optimizer.name", "muon"),
        least=COMMAND_LINE,
    ),
    Rule(
        "optimizer.warmup_steps",
        ("training.steps",),
        lambda flat: (
            flat["training.steps"] // 10
            if 0 < flat["training.steps"] < flat["optimizer.warmup_steps"]
            else flat["optimizer.warmup_steps"]
        ),
    ),
    Rule(
        "data.rows",
        ("data.prompt_field", "data.messages_field"),
        lambda flat: (
            "padded"
            if flat["data.prompt_field"] or flat["data.messages_field"]
            else flat["data.rows"]
        ),
    ),
    _unless_set("start.fresh_weights", "start.checkpoint", False),
)


def experiment_of(
    config: Mapping[str, Any], given: Collection[str] = ()
) -> tuple[Experiment, list[str]]:
    """The experiment of a config, and a line for each key that follows others.

    Args:
      config: sections of keys.
      given: dotted keys that the command line set.

    Raises:
      ValueError: as `Experiment.of`.
    """
    resolved, notes = follow(config, given)
    experiment = Experiment.of(resolved)
    # Beside a checkpoint a default asks for nothing, unless somebody typed it.
    typed = {k: v for k, v in resolved.get("model", {}).items() if f"model.{k}" in given}
    return dataclasses.replace(experiment, model={**experiment.model, **typed}), notes


def follow(
    config: Mapping[str, Any], given: Collection[str] = ()
) -> tuple[dict[str, Any], list[str]]:
    """The config with the keys of `RULES` that follow changed, and a line for each change.

    Unknown keys and values of another type are left to `Experiment.of`.

    Args:
      config: sections of keys.
      given: dotted keys that the command line set.
    """
    defaults = _flat(default_config().to_dict())
    values = _flat(config)
    unsound = {k for k, v in values.items() if not isinstance(v, type(defaults.get(k)))}
    flat = defaults | {key: value for key, value in values.items() if key not in unsound}
    strength = {key: COMMAND_LINE if key in given else FILE for key in flat}
    strength |= {key: DEFAULT for key in flat if flat[key] == defaults[key] and key not in given}
    resolved = {name: dict(v) if isinstance(v, Mapping) else v for name, v in config.items()}

    def followed(rule: Rule) -> bool:
        """Whether the key was changed."""
        section, _, key = rule.key.partition(".")
        if rule.key in unsound or not isinstance(resolved.get(section, {}), dict):
            return False
        lead = max(rule.leads, key=strength.__getitem__)
        value = rule.value(flat)
        if value == flat[rule.key] or max(strength[rule.key] + 1, rule.least) > strength[lead]:
            return False
        resolved.setdefault(section, {})[key] = flat[rule.key] = value
        strength[rule.key] = strength[lead]
        return True

    notes = []
    if theirs := [rule.key for rule in _of_checkpoint(defaults) if followed(rule)]:
        notes.append(f"the architecture is that of start.checkpoint: {', '.join(theirs)} follow")
    for rule in RULES:
        before = flat[rule.key]
        if followed(rule):
            lead = max(rule.leads, key=strength.__getitem__)
            notes.append(
                f"{rule.key} is {flat[rule.key]!r}, not {before!r}: it follows {lead} "
                f"{flat[lead]!r}"
            )
    return resolved, notes


def _of_checkpoint(defaults: Flat) -> list[Rule]:
    """With a checkpoint, the architecture that a config file describes is not the run's."""
    lead = "start.checkpoint"
    keys = (key for key in defaults if key.startswith("model."))
    return [
        Rule(key, (lead,), _if(lambda flat: not flat[lead], key, defaults[key]), COMMAND_LINE)
        for key in keys
        if key.partition(".")[2] not in OF_TRAINING
    ]


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        f"{section}.{key}": value
        for section, values in config.items()
        if isinstance(values, Mapping)
        for key, value in values.items()
    }
