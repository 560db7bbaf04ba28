"""The folder of a run: what it was, beside its checkpoints.

config.json        every key of the experiment, the encoder's completed, a format version
tokenizer.json     data.json    of the data that it was trained on
checkpoints/       metrics.jsonl        evaluation_<split>.json, samples.*, report.html
"""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
from tokenizers import Tokenizer

from mdlm_jax import data, parallel
from mdlm_jax.experiment import Experiment, identity
from mdlm_jax.networks import bert
from mdlm_jax.training import checkpoints

FORMAT = 1


class Trained(NamedTuple):
    """A trained model, read from the folder of its run."""

    params: Any
    encoder: bert.Config
    tokenizer: Tokenizer
    config: dict[str, Any]
    step: int


def begin(
    workdir: Path, experiment: Experiment, encoder: bert.Config, prepared: data.Prepared
) -> list[str]:
    """Makes the folder of a new run, or checks that it is the same run that goes on.

    Returns:
      One line for each operational key that changed since the run was last started.

    Raises:
      ValueError: the folder holds another run; the difference is shown.
    """
    config = _plain(experiment, encoder, prepared)
    path = workdir / "config.json"
    changes = []
    if path.exists():
        changes = _changes(workdir, _read_config(workdir), config)
    elif workdir.exists() and any(workdir.iterdir()):
        raise ValueError(f"{workdir} is not empty and holds no run: take another --workdir")
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        for name in ("tokenizer.json", "data.json"):
            shutil.copyfile(prepared.path / name, workdir / name)
        incomplete = path.with_suffix(".tmp")
        incomplete.write_text(json.dumps(config, indent=2) + "\n")
        incomplete.replace(path)
    return changes


def load(workdir: Path, *, weights: str = "ema") -> Trained:
    """Reads the newest checkpoint of a run.

    Args:
      workdir: of the run.
      weights: 'ema' or 'params'.

    Raises:
      ValueError: the folder holds no run, or one of a newer format.
      FileNotFoundError: it holds no checkpoint yet.
    """
    config = _read_config(workdir)
    encoder = bert.Config(**config["model"])
    steps = checkpoints.list_steps(workdir / "checkpoints")
    if not steps:
        raise FileNotFoundError(f"{workdir} holds a run, but no checkpoint yet")
    sharding = parallel.replicated(parallel.make_mesh(devices=jax.local_devices()[:1]))
    shapes = jax.eval_shape(lambda: bert.init(jax.random.key(0), encoder))
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes
    )
    params = checkpoints.restore_params(
        workdir / "checkpoints", abstract, item=weights, step=steps[-1]
    )
    tokenizer = data.load_tokenizer(workdir / "tokenizer.json")
    return Trained(params, encoder, tokenizer, config, steps[-1])


def load_data(trained: Trained) -> data.Prepared:
    """The data that a model was trained on, prepared again where the cache lost them.

    Raises:
      ValueError: they are no longer the same.
    """
    prepared = data.prepare(data.Config(**trained.config["data"]))
    if prepared.fingerprint != trained.config["data_fingerprint"]:
        raise ValueError(
            f"the data at {prepared.path} have fingerprint {prepared.fingerprint[:12]}, the run "
            f"was trained on {trained.config['data_fingerprint'][:12]}"
        )
    return prepared


def _plain(experiment: Experiment, encoder: bert.Config, prepared: data.Prepared) -> dict[str, Any]:
    plain = dataclasses.asdict(experiment)
    return {
        "format": FORMAT,
        "data_fingerprint": prepared.fingerprint,
        **plain,
        "model": dataclasses.asdict(encoder),
    }


def _read_config(workdir: Path) -> dict[str, Any]:
    path = workdir / "config.json"
    if not path.is_file():
        raise ValueError(f"{workdir} is not the folder of a run: it has no config.json")
    config = json.loads(path.read_text())
    if config["format"] > FORMAT:
        raise ValueError(
            f"{path} has format {config['format']}, this version of mdlm_jax reads up to {FORMAT}"
        )
    return config


def _changes(workdir: Path, before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    old, new = identity(before), identity(now)
    differing = [key for key in sorted(old | new) if old.get(key) != new.get(key)]
    if differing:
        told = "; ".join(f"{k} is {old.get(k)!r} there, {new.get(k)!r} here" for k in differing)
        raise ValueError(f"{workdir} holds another run ({told}): take another --workdir")
    return [
        f"{section}.{key}: {before[section].get(key)!r} -> {value!r}"
        for section, values in now.items()
        if isinstance(values, dict)
        for key, value in values.items()
        if before[section].get(key) != value
    ]
