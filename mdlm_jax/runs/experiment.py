"""An experiment: everything that a config file decides, checked before anything is compiled.

A config file starts from `default_config()`, which holds every key, and changes some. The command
line changes more with `--config.key=value`. `Experiment.of` turns the result into frozen
dataclasses and refuses unknown or impossible values in one line.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mdlm_jax import data
from mdlm_jax.diffusion import schedules
from mdlm_jax.host import nearest
from mdlm_jax.networks import bert
from mdlm_jax.runs.families import NAMES, Family, family_of
from mdlm_jax.runs.start_config import StartConfig, adopt
from mdlm_jax.training.optimizer import OptimizerConfig

if TYPE_CHECKING:
    import ml_collections

SCHEDULES = {"linear": schedules.linear, "cosine": schedules.cosine}


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """The loss.

    Attributes:
      name: 'diffusion' (over all mask rates), 'mlm' (BERT's, at one), 'autoregressive' (each
        token from those before it; needs model.attention 'causal') or 'block' (diffusion within
        each block, given the clean blocks before it).
      schedule: for diffusion, the masking schedule: 'linear' or 'cosine'.
      corruption: for diffusion, how masks are drawn: 'exact' (exact counts) or 'bernoulli'.
      rate: for mlm, the share of tokens that is selected.
      curriculum_steps: for diffusion with exact counts, the number of steps over which the highest
        mask rate rises linearly from curriculum_rate to 1; 0 for none.
      curriculum_rate: the highest mask rate of the first step.
      keep: 'prefix' never masks a random prefix of each row; 'infill' never masks what stands
        around a random span. The loss is that of the rest. '' for neither.
      block_size: for block, tokens of a block; it divides data.length. 1 is autoregression, and
        data.length is masked diffusion of the whole row.
      window: for block, how many tokens before its own a block sees, a multiple of block_size; 0
        for all.
    """

    name: str = "diffusion"
    schedule: str = "linear"
    corruption: str = "exact"
    rate: float = 0.15
    curriculum_steps: int = 0
    curriculum_rate: float = 0.15
    keep: str = ""
    block_size: int = 0
    window: int = 0

    def __post_init__(self):
        choices = {
            "name": tuple(NAMES),
            "schedule": tuple(SCHEDULES),
            "corruption": ("exact", "bernoulli"),
        }
        for key, accepted in choices.items():
            _choose(f"objective.{key}", getattr(self, key), accepted)
        for key in ("rate", "curriculum_rate"):
            if not 0 < getattr(self, key) <= 1:
                raise ValueError(f"objective.{key} must be in (0, 1], not {getattr(self, key)!r}")
        self._check_masking()

    def _check_masking(self) -> None:
        _at_least("objective.curriculum_steps", self.curriculum_steps, 0)
        exact = (self.name, self.corruption) == ("diffusion", "exact")
        if self.curriculum_steps and not exact:
            raise ValueError(
                "objective.curriculum_steps bounds exact counts: it needs objective.name "
                f"'diffusion' with corruption 'exact', not {self.name!r} with {self.corruption!r}"
            )
        if self.keep not in ("", "prefix", "infill"):
            raise ValueError(
                f"objective.keep must be 'prefix', 'infill' or '' (neither), not {self.keep!r}"
            )
        if self.keep and self.name in ("autoregressive", "block"):
            raise ValueError(f"objective.keep is for objectives that mask rows, not {self.name!r}")
        self._check_blocks()

    def _check_blocks(self) -> None:
        if self.name != "block":
            for key in ("block_size", "window"):
                if getattr(self, key):
                    raise ValueError(
                        f"objective.{key} is for objective.name 'block', not {self.name!r}"
                    )
            return
        _at_least("objective.block_size", self.block_size, 1)
        if self.window < 0 or self.window % self.block_size:
            raise ValueError(
                f"objective.window must be a multiple of objective.block_size {self.block_size}, "
                f"or 0 for all, not {self.window!r}"
            )
        if self.corruption != "exact":
            raise ValueError(
                f"objective.corruption must be 'exact' for objective.name 'block', not "
                f"{self.corruption!r}"
            )


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """The run.

    Attributes:
      seed: decides the parameters, the order of the data, and the masks.
      batch_size: rows of the global batch.
      steps: length of the run, in updates.
      ema_decay: decay of the moving average of the weights, which is what is evaluated.
      accumulation: number of microbatches of a step.
      log_every: steps that one training record averages.
      save_every: steps between checkpoints.
      keep_last: number of newest checkpoints to keep.
      keep_every: also keeps every checkpoint whose step is a multiple of it; 0 for none.
      keep_best: also keeps the checkpoint with the best evaluation, and saves one at each
        evaluation that is better than all before it.
      patience: ends the run after this many evaluations in a row without a new best; 0 for never.
      max_bad_steps: ends the run after this many updates in a row that are not finite.
      heartbeat_seconds: with several processes, one that is silent for this long counts as dead,
        and all end.
      watchdog_seconds: ends a process in which no step finishes for this long; 0 waits for ever.
      watchdog_startup_seconds: the same before the first step and in evaluations, which compile.
      tensorboard: also writes TensorBoard files (extra `tensorboard`).
      wandb: also writes to this project at Weights & Biases (extra `wandb`); '' for none.
    """

    seed: int = 0
    batch_size: int = 128
    steps: int = 100_000
    ema_decay: float = 0.9999
    accumulation: int = 1
    log_every: int = 100
    save_every: int = 5_000
    keep_last: int = 2
    keep_every: int = 0
    keep_best: bool = False
    patience: int = 0
    max_bad_steps: int = 10
    heartbeat_seconds: int = 100
    watchdog_seconds: int = 900
    watchdog_startup_seconds: int = 3600
    tensorboard: bool = False
    wandb: str = ""

    def __post_init__(self):
        for key in ("batch_size", "steps", "accumulation", "log_every", "save_every", "keep_last"):
            _at_least(f"training.{key}", getattr(self, key), 1)
        _at_least("training.max_bad_steps", self.max_bad_steps, 1)
        _at_least("training.heartbeat_seconds", self.heartbeat_seconds, 1)
        for key in ("keep_every", "patience", "watchdog_seconds", "watchdog_startup_seconds"):
            _at_least(f"training.{key}", getattr(self, key), 0)
        if self.steps >= 2**31:  # as they are counted
            raise ValueError(f"training.steps must be below 2**31, not {self.steps!r}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"training.seed must be in [0, 2**32), not {self.seed!r}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"training.ema_decay must be in [0, 1), not {self.ema_decay!r}")
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"training.batch_size {self.batch_size} must be a multiple of "
                f"training.accumulation {self.accumulation}"
            )


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What is measured and shown during training.

    Attributes:
      every: steps between evaluations.
      rows: rows of the validation split, evenly spread over it, the same each time.
      draws: corruptions of each row.
      batch_size: rows evaluated at a time.
      sample_steps: network evaluations of the sample that is shown.
    """

    every: int = 5_000
    rows: int = 512
    draws: int = 4
    batch_size: int = 64
    sample_steps: int = 64

    def __post_init__(self):
        for key in ("every", "rows", "batch_size", "sample_steps"):
            _at_least(f"evaluation.{key}", getattr(self, key), 1)
        _at_least("evaluation.draws", self.draws, 2)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; one of them may be -1, which takes the rest.

    Attributes:
      data: parts of the batch; the parameters are copied.
      fsdp: parts of the batch and of the parameters, which are gathered where they are needed.
      tensor: parts of each layer (heads, the MLP's hidden units, the vocabulary).
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


_SECTIONS = ("data", "start", "model", "objective", "optimizer", "training", "evaluation", "mesh")

FORMAT = 1  # of the config.json of a run

_LARGEST = 2**63  # which whole numbers are below

# Of the encoder's config, what the tokenizer and the rows decide.
FROM_DATA = ("vocab_size", "mask_id", "max_length")

# What may change when a run goes on: how it is run, not what it computes. All else identifies it.
# (Of the data, the fingerprint of the tokenizer and of all rows does, wherever they came from.)
OPERATIONAL = (
    "data",
    "evaluation",
    "mesh",
    "model.attention_backend",
    "model.remat",
    "model.scan",
    "profile_steps",
    "training.accumulation",
    "training.heartbeat_seconds",
    "training.keep_best",
    "training.keep_every",
    "training.keep_last",
    "training.log_every",
    "training.max_bad_steps",
    "training.patience",
    "training.save_every",
    "training.steps",
    "training.tensorboard",
    "training.wandb",
    "training.watchdog_seconds",
    "training.watchdog_startup_seconds",
)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A whole config.

    Attributes:
      model: the keys of `bert.Config` that the data do not decide. With `start.checkpoint`, the
        checkpoint decides most of them.
      profile_steps: 'first:last' writes a trace of the steps first, ..., last - 1 (the first step
        of a run is 0) into the workdir; '' for none.
    """

    data: data.Config
    start: StartConfig = dataclasses.field(default_factory=StartConfig)
    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    profile_steps: str = ""

    def __post_init__(self):
        self.family.check_rows(self.objective, self.data)

    @property
    def family(self) -> Family:
        """What `objective.name` names."""
        return family_of(self.objective.name)

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Experiment":
        """Checks a config and freezes it.

        Raises:
          ValueError: a section or key is unknown, or a value is impossible or of another type
            than the default; it is named.
        """
        accepted = default_config()
        _refuse_unknown("section", config.keys(), accepted)
        profile_steps = config.get("profile_steps", "")
        _check_type("profile_steps", profile_steps, "")
        profile_range(profile_steps)
        sections = {name: config.get(name, {}) for name in _SECTIONS}
        for name, section in sections.items():
            if not isinstance(section, Mapping):
                raise ValueError(f"{name} must be a section with keys, not {section!r}")
            _refuse_unknown(f"key in {name}", section, accepted[name])
            for key, value in section.items():
                _check_type(f"{name}.{key}", value, accepted[name][key])
            sections[name] = dict(section)
        if sections["start"].get("checkpoint"):  # a default asks for nothing
            ours = accepted["model"].items()
            unset = {key for key, value in ours if sections["model"].get(key) == value}
            sections["model"] = {k: v for k, v in sections["model"].items() if k not in unset}
        return cls(
            data=_named("data", data.Config, sections["data"]),
            start=StartConfig(**sections["start"]),
            model=sections["model"],
            objective=ObjectiveConfig(**sections["objective"]),
            optimizer=OptimizerConfig(**sections["optimizer"]),
            training=TrainingConfig(**sections["training"]),
            evaluation=EvaluationConfig(**sections["evaluation"]),
            mesh=MeshConfig(**sections["mesh"]),
            profile_steps=profile_steps,
        )

    def encoder(
        self, prepared: "data.Prepared", architecture: bert.Config | None = None
    ) -> bert.Config:
        """The encoder's config, completed by the data's vocabulary and length.

        Args:
          prepared: the data.
          architecture: of `start.checkpoint`, where there is one.

        Raises:
          ValueError: fields that describe no encoder, or not that of the checkpoint.
        """
        encoder = self._encoder(prepared.vocab_size, prepared.mask_id, architecture)
        if encoder.classes not in (0, len(prepared.label_names)):
            raise ValueError(
                f"model.classes must be 0, or {len(prepared.label_names)} for the labels "
                f"{', '.join(prepared.label_names)}, not {encoder.classes!r}"
            )
        return encoder

    def planned_encoder(self, architecture: bert.Config | None = None) -> bert.Config:
        """The encoder where no data are at hand: with `data.vocab_size` tokens, the last the mask.

        Args:
          architecture: as of `encoder`.

        Raises:
          ValueError: as `encoder`.
        """
        return self._encoder(self.data.vocab_size, self.data.vocab_size - 1, architecture)

    def _encoder(
        self, vocab_size: int, mask_id: int, architecture: bert.Config | None
    ) -> bert.Config:
        if bool(self.start.checkpoint) != (architecture is not None):
            raise TypeError(
                "an architecture is that of start.checkpoint: give it where that is set"
            )
        fields = {**self.model, "max_length": self.data.length}
        if architecture is not None:
            fields = adopt(self.model, architecture, self.data.length)
        words = {"vocab_size": vocab_size, "mask_id": mask_id}
        return _named("model", bert.Config, {**fields, **words})


def default_config() -> "ml_collections.ConfigDict":
    """Every key there is, with its default."""
    import ml_collections  # Not where an experiment is made without a config file.

    model = {k: v for k, v in dataclasses.asdict(bert.Config()).items() if k not in FROM_DATA}
    sections = {
        "data": data.Config(),
        "start": StartConfig(),
        "objective": ObjectiveConfig(),
        "optimizer": OptimizerConfig(),
        "training": TrainingConfig(),
        "evaluation": EvaluationConfig(),
        "mesh": MeshConfig(),
    }
    plain = {name: dataclasses.asdict(section) for name, section in sections.items()}
    return ml_collections.ConfigDict({"model": model, **plain, "profile_steps": ""})


def as_json(experiment: Experiment) -> str:
    """The config as JSON that `--config=FILE.json` reads; what the data decide is left to them."""
    plain = {"format": FORMAT, **dataclasses.asdict(experiment)}
    defaults = default_config().to_dict()
    plain["model"] = defaults["model"] | dict(experiment.model)
    return json.dumps(plain, indent=2)


def profile_range(steps: str) -> range:
    """The steps of '10:13', which are 10, 11 and 12; of '' none.

    Raises:
      ValueError: it is not two numbers in order.
    """
    if not steps:
        return range(0)
    first, colon, last = steps.partition(":")
    if not (colon and first.isdecimal() and last.isdecimal() and int(first) < int(last)):
        raise ValueError(f"profile_steps must be first:last, such as 10:13, not {steps!r}")
    return range(int(first), int(last))


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """What identifies a run, by dotted key: everything but the `OPERATIONAL`."""
    flat = {}
    for section, values in config.items():
        items = values.items() if isinstance(values, Mapping) else [(None, values)]
        for key, value in items:
            name = section if key is None else f"{section}.{key}"
            if section not in OPERATIONAL and name not in OPERATIONAL:
                flat[name] = value
    return flat


def _named(section: str, cls: type, values: Mapping[str, Any]) -> Any:
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(f"{section}.{error}") from None


def _refuse_unknown(what: str, given: Any, accepted: Any) -> None:
    unknown = sorted(set(given) - set(accepted))
    if unknown:
        meant = nearest.meant(unknown[0], accepted)
        raise ValueError(
            f"unknown {what}: {', '.join(unknown)}{meant}: there are {', '.join(accepted)}"
        )


def _check_type(name: str, value: Any, default: Any) -> None:
    """Refuses a value of another kind than the default's; a whole number may stand for a float."""
    kind = type(default)
    if type(value) is int and abs(value) >= _LARGEST:  # no array has it, and perhaps no float
        raise ValueError(f"{name} must be a number of at most 63 bits, not {str(value)[:20]}...")
    accepted = (float, int) if kind is float else (kind,)
    if type(value) not in accepted or (kind is float and not math.isfinite(value)):
        names = {bool: "True or False", int: "a whole number", float: "a number", str: "a string"}
        raise ValueError(f"{name} must be {names[kind]}, not {value!r}")


def _choose(name: str, value: Any, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise ValueError(f"{name} must be one of {', '.join(accepted)}, not {value!r}")


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value!r}")
