"""The folder of a run: its config, tokenizer and records, beside its checkpoints.

lock               held by the one process that trains here
config.json        every key of the experiment, the encoder's completed, a format version
tokenizer.json     data.json    of the data that it was trained on
checkpoints/       metrics.jsonl        evaluation_<split>.json, samples.*, report.html

It may lie in a bucket (`gs://`), where nothing is locked.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from etils import epath
from jax.sharding import Mesh
from tokenizers import Tokenizer

from mdlm_jax import data
from mdlm_jax.data import json_text, reading
from mdlm_jax.data.config import TOKENIZERS
from mdlm_jax.host import distributed, parallel, paths
from mdlm_jax.runs import config_json
from mdlm_jax.runs.experiment import FORMAT, Experiment, ObjectiveConfig, default_config, identity
from mdlm_jax.runs.families import Family, family_of, network_of
from mdlm_jax.runs.program import padded_for, place_parameters
from mdlm_jax.training import best, checkpoints, metrics
from mdlm_jax.training.metrics import read_metrics


class Trained(NamedTuple):
    """A trained model, read from the folder of its run."""

    params: Any
    encoder: Any
    tokenizer: Tokenizer
    config: dict[str, Any]
    step: int

    @property
    def objective(self) -> ObjectiveConfig:
        """The objective of its training."""
        return ObjectiveConfig(**self.config["objective"])

    @property
    def family(self) -> Family:
        """The family of the model."""
        return family_of(self.objective.name)


class Claim(NamedTuple):
    """A folder that this process may train in.

    Attributes:
      changes: a line for each operational key that changed since the run was last started, except
        training.steps, which `record_steps` changes.
      record: writes the changed config when the run resumes. A run that is done keeps its own.
    """

    changes: list[str]
    record: Callable[[], None]


@contextlib.contextmanager
def claim(
    workdir: epath.Path, experiment: Experiment, encoder: Any, prepared: data.Prepared
) -> Iterator[Claim]:
    """Makes the folder of a new run, or checks that it is the same run. It stays locked.

    A folder in which nothing was saved yet takes any config. With several processes one claims it
    for all.

    Yields:
      The claim.

    Raises:
      ValueError: the folder holds another run (the message shows the difference), exported weights,
        or something that is no run, or another process trains in it.
    """
    if workdir.is_dir() and not (workdir / "config.json").exists():
        others = sorted(path.name for path in workdir.iterdir() if path.name != "lock")
        if others:
            raise ValueError(
                f"{workdir} is not empty and holds no run (but {', '.join(others[:3])}): take "
                "another --workdir"
            )
    if (workdir / "config.json").exists() and (weights := _read_config(workdir).get("exported")):
        raise ValueError(
            f"{workdir} was exported: it holds only {weights!r}, and training needs the whole "
            "state: take another --workdir"
        )
    workdir.mkdir(parents=True, exist_ok=True)
    with _locked(workdir):
        yield _begin(workdir, experiment, encoder, prepared)


@contextlib.contextmanager
def _locked(workdir: epath.Path) -> Iterator[None]:
    if not paths.is_local(workdir):
        yield
        return
    path = Path(workdir, "lock")
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{workdir}: {path.read_text(encoding='utf-8').strip()} is training there: wait "
                "for it, or take another --workdir"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield  # The system releases the lock when the process ends.


def _begin(
    workdir: epath.Path, experiment: Experiment, encoder: Any, prepared: data.Prepared
) -> Claim:
    config = _plain(experiment, encoder, prepared)
    path = workdir / "config.json"
    goes_on = path.exists() and bool(checkpoints.list_steps(workdir / "checkpoints"))
    changes = []
    if goes_on:
        before = _read_config(workdir)
        # The length changes only when the run resumes: a start without work must not record it.
        config["training"]["steps"] = before["training"]["steps"]
        changes = _changes(workdir, before, config)

    def record() -> None:
        for name in ("tokenizer.json", "data.json"):
            paths.write(workdir / name, (prepared.path / name).read_text(encoding="utf-8"))
        paths.write(path, json.dumps(config, indent=2) + "\n")

    if not goes_on:
        record()
    return Claim(changes, record)


def record_steps(workdir: epath.Path, steps: int) -> None:
    """Records the number of steps in the config of a run that resumes."""
    config = _read_config(workdir)
    if config["training"]["steps"] != steps:
        config["training"]["steps"] = steps
        paths.write(workdir / "config.json", json.dumps(config, indent=2) + "\n")


def load(
    workdir: epath.Path,
    *,
    weights: str = "ema",
    step: int | str | None = None,
    mesh: Mesh | None = None,
) -> Trained:
    """Reads the weights of a run, or what `export` wrote. All processes must call it.

    Args:
      workdir: of the run.
      weights: 'ema' or 'params'.
      step: the checkpoint: its number (or text of it), or 'best' by validation; by default the
        newest that is whole.
      mesh: the weights are split over its devices as in training, with the encoder's vocabulary
        padded for it. By default they lie whole on a device of this process.

    Raises:
      ValueError: the folder holds no run, one of a newer format, or a damaged checkpoint, or the
        mesh does not split the model.
      FileNotFoundError: it holds no checkpoint yet, or not this one.
    """
    with distributed.failing_together():
        config = _read_config(workdir)
        encoder = _encoder(workdir, config)
        tokenizer = data.load_tokenizer(workdir / "tokenizer.json")
        _check_vocabulary(workdir, tokenizer, encoder)
        mine = [d for d in parallel.available_devices() if d.process_index == jax.process_index()]
        encoder = network_of(encoder).for_devices(encoder, mine[0].platform, strict=False)
        if not checkpoints.list_steps(workdir / "checkpoints"):
            raise FileNotFoundError(f"{workdir} holds a run, but no checkpoint yet")
        found = _step_of(workdir, step)
        mesh = parallel.make_mesh(devices=mine[:1]) if mesh is None else mesh
        encoder = padded_for(encoder, mesh)
        abstract = _abstract_params(encoder, mesh)
    if step == "best":  # while a run trains, one process may see a newer one
        distributed.require_same("the best step", str(found))
    params, step = checkpoints.restore_params(
        workdir / "checkpoints",
        abstract,
        item=weights,
        step=found,
        padded=network_of(encoder).padded_leaves(encoder),
    )
    return Trained(params, encoder, tokenizer, config, step)


def _step_of(workdir: epath.Path, asked: int | str | None) -> int | None:
    """The step of the requested checkpoint; None for the newest."""
    if asked in (None, ""):
        return None
    if asked != "best":
        if not str(asked).isdecimal():
            raise ValueError(f"step must be the number of one, or 'best', not {asked!r}")
        return int(asked)
    steps = checkpoints.list_steps(workdir / "checkpoints")
    records = read_metrics(workdir) if (workdir / metrics.FILE).exists() else []
    found = best.standing(record for record in records if record["step"] in steps).step
    if found is None:
        raise ValueError(
            f"{workdir} has no checkpoint that was evaluated, of which one could be the best: "
            "train with training.keep_best"
        )
    return found


def _abstract_params(encoder: Any, mesh: Mesh) -> Any:
    """Shapes with shardings; a ValueError where the mesh does not split the model."""
    shapes, placed = place_parameters(encoder, mesh)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        placed,
    )


def read_encoder(workdir: epath.Path) -> Any:
    """The network of a run, or of what `export` wrote, without its weights.

    Raises:
      ValueError: as `load`.
    """
    return _encoder(workdir, _read_config(workdir))


def _encoder(workdir: epath.Path, config: dict[str, Any]) -> Any:
    fields = _section_of(workdir, config, "model")
    network = _family(workdir, config).network
    try:
        return network.configure(fields)
    except (TypeError, ValueError) as error:  # a key that is not known, a value of another type
        raise ValueError(f"{workdir / 'config.json'} is damaged: model: {error}") from None


def _family(workdir: epath.Path, config: dict[str, Any]) -> Family:
    name = _section_of(workdir, config, "objective").get("name", ObjectiveConfig.name)
    try:
        return family_of(name)
    except ValueError as error:
        raise ValueError(f"{workdir / 'config.json'} is damaged: {error}") from None


def saved_config(workdir: epath.Path) -> dict[str, Any] | None:
    """The config.json of a run that resumes; None if nothing was saved yet.

    Raises:
      ValueError: as `load`.
    """
    if not (workdir / "config.json").exists():
        return None
    if not checkpoints.list_steps(workdir / "checkpoints"):
        return None
    config = _read_config(workdir)
    if not isinstance(_section_of(workdir, config, "training").get("steps"), int):
        raise ValueError(f"{workdir / 'config.json'} is damaged: it has no training.steps")
    return config


def label_names(workdir: epath.Path) -> list[str]:
    """Names of the labels of the data, in the order of the model's classes.

    Raises:
      ValueError: as `data_card`, or the card lacks them.
    """
    names = data_card(workdir).get("label_names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"{workdir / 'data.json'} is damaged: its label_names must be a list of names, not "
            f"{json_text.shown(names)}"
        )
    return names


def has_padding(config: Mapping[str, Any]) -> bool:
    """Whether a run was trained on padded rows, with one text each.

    Args:
      config: contents of its `config.json`.
    """
    section = config.get("data", {})
    return "rows" in section and data.Config(**section).has_padding


def data_card(workdir: epath.Path) -> dict[str, Any]:
    """The `data.Prepared.card` of the data that the run was trained on.

    Raises:
      ValueError: the file does not hold an object.
      OSError: it cannot be read.
    """
    return json_text.load(workdir / "data.json")


def export(
    workdir: epath.Path, output: epath.Path, *, weights: str = "ema", step: int | str | None = None
) -> Trained:
    """Writes the weights, and what `load` needs with them, into a new folder.

    Raises:
      ValueError: `output` is not empty, or as `load`.
      FileNotFoundError: as `load`.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} is not an empty folder: take another --output")
    trained = load(workdir, weights=weights, step=step)
    output.mkdir(parents=True, exist_ok=True)
    checkpoints.save_params(output / "checkpoints", trained.params, item=weights, step=trained.step)
    for name in ("tokenizer.json", "data.json"):
        paths.write(output / name, (workdir / name).read_text(encoding="utf-8"))
    config = {**trained.config, "exported": weights}
    paths.write(output / "config.json", json.dumps(config, indent=2) + "\n")  # now it is one
    return trained


def _check_vocabulary(workdir: epath.Path, tokenizer: Tokenizer, encoder: Any) -> None:
    size, mask_id = data.vocabulary_size(tokenizer), data.special_ids(tokenizer).mask
    if (size, mask_id) != (encoder.vocab_size, encoder.mask_id):
        raise ValueError(
            f"{workdir / 'tokenizer.json'} has {size} entries with the mask at {mask_id}, the "
            f"model was trained with {encoder.vocab_size} and the mask at {encoder.mask_id}"
        )


def load_data(trained: Trained, workdir: epath.Path) -> data.Prepared:
    """The data that a model was trained on, prepared again if the cache lost them.

    Args:
      trained: from `load`.
      workdir: of the run. It has the tokenizer, if its source is gone.

    Raises:
      ValueError: the data have changed.
    """
    fingerprint = trained.config["data_fingerprint"]
    prepared = data.find_prepared(fingerprint) or prepare_again(
        workdir, data.Config(**trained.config["data"]), trained.config
    )
    if prepared.fingerprint != fingerprint:
        raise ValueError(
            f"the data at {prepared.path} have fingerprint {prepared.fingerprint[:12]}, the run "
            f"was trained on {fingerprint[:12]}"
        )
    return prepared


def prepare_again(workdir: epath.Path, config: data.Config, saved: dict[str, Any]) -> data.Prepared:
    """The data of a run. Its folder has the tokenizer, if the source is gone.

    Args:
      workdir: of the run.
      config: of the data, now.
      saved: the run's `config.json`.

    Raises:
      ValueError, OSError: as `data.prepare`.
    """
    if config.tokenizer in TOKENIZERS or reading.path(config.tokenizer).exists():
        return data.prepare(config)
    if dataclasses.asdict(config) == saved["data"]:  # then nothing has to be made again
        prepared = data.find_prepared(saved["data_fingerprint"])
        if prepared is not None:
            return prepared
    kept = str(workdir / "tokenizer.json")
    return data.prepare(dataclasses.replace(config, tokenizer=kept))


def _plain(experiment: Experiment, encoder: Any, prepared: data.Prepared) -> dict[str, Any]:
    plain = dataclasses.asdict(experiment)
    return {
        "format": FORMAT,
        "data_fingerprint": prepared.fingerprint,
        **plain,
        "model": dataclasses.asdict(encoder),
    }


def _read_config(workdir: epath.Path) -> dict[str, Any]:
    path = config_json.find(workdir)
    config = json_text.load(path)
    if "format" not in config and {"architectures", "model_type"} & config.keys():
        raise ValueError(
            f"{workdir} is a checkpoint in the form of Hugging Face, and not the folder of a run: "
            "generate, evaluate and harness take it as their --checkpoint, and a run starts from "
            "it with --config.start.checkpoint"
        )
    return config_json.check(config, str(path))


def _section_of(workdir: epath.Path, config: dict[str, Any], name: str) -> dict[str, Any]:
    if not isinstance(config.get(name), dict):
        raise ValueError(f"{workdir / 'config.json'} is damaged: it has no section {name!r}")
    return config[name]


def _changes(workdir: epath.Path, before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    # An older version did what the defaults of newer keys do.
    defaults = default_config().to_dict()
    before = {
        name: defaults.get(name, {}) | value if isinstance(value, dict) else value
        for name, value in (defaults | before).items()
    }
    old, new = identity(before), identity(now)
    differing = [key for key in sorted(old | new) if old.get(key) != new.get(key)]
    if differing:
        if "data_fingerprint" in differing:  # then say why
            old = {**old, **_section(before, "data")}
            new = {**new, **_section(now, "data")}
            differing = [k for k in sorted(old | new) if old.get(k) != new.get(k)]
        shown = "; ".join(f"{k} is {old.get(k)!r} there, {new.get(k)!r} here" for k in differing)
        raise ValueError(
            f"{workdir} holds another run ({shown}): take another --workdir, or leave --config out "
            "to go on with that run"
        )
    return [
        f"{section}.{key}: {before.get(section, {}).get(key)!r} -> {value!r}"
        for section, values in now.items()
        if isinstance(values, dict)
        for key, value in values.items()
        if before.get(section, {}).get(key) != value
    ]


def _section(config: dict[str, Any], name: str) -> dict[str, Any]:
    return {f"{name}.{key}": value for key, value in config[name].items()}
