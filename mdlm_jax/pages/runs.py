"""What a run left in its folder, read: the contents of every page."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from mdlm_jax.data import json_text
from mdlm_jax.host import paths
from mdlm_jax.runs import config_json
from mdlm_jax.runs.experiment import ObjectiveConfig
from mdlm_jax.runs.families import Family, family_of
from mdlm_jax.runs.families.base import About
from mdlm_jax.training import metrics

Record = Mapping[str, Any]


class Run(NamedTuple):
    """What a run left in its folder; what is missing is empty.

    Attributes:
      name: of the folder.
      config: `config.json`, by section.
      train: records of kind "train" in `metrics.jsonl`.
      evaluated: those of kind "eval".
      sampled: those of kind "sample".
      evaluations: `evaluation_*.json` by split.
      samples: `samples.json`.
      card: `data.json`.
    """

    name: str
    config: Record
    train: Sequence[Record]
    evaluated: Sequence[Record]
    sampled: Sequence[Record]
    evaluations: Mapping[str, Record]
    samples: Sequence[Record]
    card: Record

    @property
    def final(self) -> Record:
        """The evaluation that a page shows first: of the test split, or else of another one."""
        return self.evaluations.get("test") or next(iter(self.evaluations.values()), {})

    @property
    def steps(self) -> int:
        """Steps trained, 0 without records."""
        return self.train[-1]["step"] if self.train else 0

    @property
    def tokens_per_step(self) -> int | None:
        """Positions in a global batch: tokens, and padding where rows are padded."""
        batch_size = self.config.get("training", {}).get("batch_size")
        length = self.config.get("data", {}).get("length")
        return batch_size * length if batch_size and length else None

    @property
    def objective(self) -> ObjectiveConfig:
        """What it was trained for, without keys that this version does not know."""
        known = {field.name for field in dataclasses.fields(ObjectiveConfig)}
        objective = self.config.get("objective", {})
        return ObjectiveConfig(**{key: value for key, value in objective.items() if key in known})

    @property
    def family(self) -> Family:
        """The family that it belongs to."""
        return family_of(self.objective.name)

    @property
    def about(self) -> About:
        """How it was trained, in words."""
        return self.family.about(self.objective)

    @property
    def bound(self) -> str:
        """The name of its likelihood: a bound, or cross-entropy if it is exact."""
        return "cross-entropy" if self.family.is_exact(self.objective) else "NELBO"

    def training_seconds(self) -> float:
        """Seconds of all steps, each at the pace of its record, or else of the record before."""
        seconds, before, pace = 0.0, 0, 0.0
        for record in self.train:
            if record.get("tokens_per_second") and self.tokens_per_step:
                pace = self.tokens_per_step / record["tokens_per_second"]
            seconds += (record["step"] - before) * pace
            before = record["step"]
        return seconds

    def peak_memory(self, place: str) -> int | None:
        """Bytes at the peak over the run, of `place` "host" or "device"; None if not recorded."""
        key = f"{place}_memory_bytes"
        return max((each[key] for each in self.train if each.get(key)), default=None)


def read_run(workdir: str | epath.Path) -> Run:
    """Reads the folder of a run; every file but `config.json` may be missing.

    Args:
      workdir: holds `config.json`, `metrics.jsonl`, `evaluation_*.json`, `samples.json` and
        `data.json`.

    Raises:
      ValueError: `workdir` is not the folder of a run, or as `config_json.without_gone`.
    """
    workdir = epath.Path(workdir)
    config = config_json.find(workdir)
    records = metrics.read_metrics(workdir) if (workdir / metrics.FILE).exists() else []
    evaluations = [
        _json(path, {}) for path in sorted(paths.literal(workdir).glob("evaluation_*.json"))
    ]
    return Run(
        name=workdir.resolve().name,
        config=config_json.without_gone(_json(config, {}), str(config)),
        train=[each for each in records if each["kind"] == "train"],
        evaluated=[each for each in records if each["kind"] == "eval"],
        sampled=[each for each in records if each["kind"] == "sample"],
        evaluations={each["split"]: each for each in evaluations},
        samples=_json(workdir / "samples.json", []),
        card=_json(workdir / "data.json", {}),
    )


def flat(config: Record, prefix: str = "") -> dict[str, Any]:
    """Leaves of nested sections, by their dotted names."""
    leaves = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            leaves |= flat(value, f"{prefix}{key}.")
        else:
            leaves[prefix + key] = value
    return leaves


def _json(path: epath.Path, missing: Any) -> Any:
    return json_text.load(path, type(missing), finite=False) if path.exists() else missing
