"""What is stored of a version: the folder of its model, its own file, and its canary.

    run_id = storage.store(client, version, folder)
    storage.store_canary(client, run_id, version, curve)
    storage.fetch(client, registered)  # a folder for `mdlm_jax.load`
    storage.load(client, registered)  # the model, and no other than was registered

The folder of a model is the artifact `model` of an MLflow run. The versions of it are files beside
it, `versions/DIGEST/version.json`, so that versions of one model share what is stored. Beside that
file may be `canary.json`, how well the version denoised; it is no part of the digest.
"""

import contextlib
import json
import tempfile
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from etils import epath

from mdlm_jax.data import json_text, reading
from mdlm_jax.host import paths
from mdlm_jax.interop import Pretrained, save_pretrained
from mdlm_jax.runs import models, workdir
from mdlm_jax.serving import digests
from mdlm_jax.serving.versions.errors import one_line
from mdlm_jax.serving.watching import canary as canaries
from mdlm_jax.writing import model as writing_model

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "mdlm_jax"
_MODEL, _VERSIONS, _FILE = "model", "versions", "version.json"  # artifacts of a run
_CANARY = "canary.json"  # beside the file of a version
_TAG = "mdlm_jax.model"  # of a run: the digest of the model that it stores


class Registered(NamedTuple):
    """A version with its place in the registry.

    Attributes:
      name: of the registered model.
      number: of the version, from 1.
      version: what it is.
      run_id: the MLflow run that stores it.
      aliases: that point to it.
      created: milliseconds since 1970.
    """

    name: str
    number: int
    version: digests.Version
    run_id: str
    aliases: tuple[str, ...] = ()
    created: int = 0


def export(place: str, copy: Path, weights: str | None, step: int | str | None) -> None:
    """Writes a folder for `models.load`: of a run as `export` does, else as `convert` does."""
    source = reading.path(place)
    if (source / "checkpoints").is_dir():
        workdir.export(source, epath.Path(copy), weights=weights or _weights_of(source), step=step)
        return
    model = writing_model.load(place, weights=weights, step=step)
    save_pretrained(copy, Pretrained(model.params, model.encoder, model.tokenizer))
    note = source / models.NOTE
    if note.is_file():
        paths.write(copy / models.NOTE, note.read_text(encoding="utf-8"))


def store(client: "MlflowClient", version: digests.Version, folder: Path) -> str:
    """Stores a version, and its model if no run has it yet. Returns the run.

    Args:
      client: from `registry.connect`.
      version: what it is.
      folder: of the model, as `export` wrote it.
    """
    run_id = _stored(client, version.model) or _store_model(client, version.model, folder)
    _log(client, run_id, f"{_of(version)}/{_FILE}", version.as_json())
    return run_id


def store_canary(
    client: "MlflowClient", run_id: str, version: digests.Version, curve: canaries.Curve
) -> None:
    """Stores how well a version denoised, beside its file in the run."""
    _log(client, run_id, f"{_of(version)}/{_CANARY}", curve.as_json())


def address(client: "MlflowClient", run_id: str, version: digests.Version) -> str:
    """The address of the folder of a version in a run, which MLflow keeps as its source."""
    return f"{client.get_run(run_id).info.artifact_uri}/{_of(version)}"


def fetch(client: "MlflowClient", registered: Registered) -> Path:
    """The folder of the model of a version, for `models.load`.

    Artifacts on this machine stay where they are. Others are copied once into the cache of this
    machine, whole or not at all, and serve all versions of the model.

    Raises:
      ValueError: MLflow has it no more.
      OSError: it cannot be written.
    """
    with one_line():
        uri = client.get_run(registered.run_id).info.artifact_uri
        if (here := _here(uri)) is not None:
            return here / _MODEL
        kept = paths.cache_folder() / "models" / registered.version.model
        if not kept.is_dir():
            kept.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
                copied = client.download_artifacts(registered.run_id, _MODEL, folder)
                with contextlib.suppress(FileExistsError, NotADirectoryError):
                    _move(Path(copied), kept)
        return kept


def canary_of(client: "MlflowClient", registered: Registered) -> canaries.Curve | None:
    """How well a version denoised a canary when it was registered; None if nobody measured it.

    Raises:
      ValueError: what is stored cannot be read.
    """
    from mlflow import artifacts

    at = _of(registered.version)
    with one_line():
        there = {each.path for each in client.list_artifacts(registered.run_id, at)}
        if f"{at}/{_CANARY}" not in there:
            return None
        file = f"{address(client, registered.run_id, registered.version)}/{_CANARY}"
        return canaries.from_json(json_text.parse(artifacts.load_text(file), file))


def load(client: "MlflowClient", registered: Registered) -> writing_model.Model:
    """The model of a version, in its dtype.

    Raises:
      ValueError: as `fetch`, or its bytes are not those that were registered.
      OSError: as `fetch`.
    """
    folder = fetch(client, registered)
    model = registered.version.of_model(writing_model.load(folder))
    version = registered.version
    found = digests.of(model, version.defaults, version.dtype)
    if found != version:
        what = "parameters" if found.weights != version.weights else "tokenizer or config"
        raise ValueError(
            f"{registered.name}, version {registered.number}: its {what} in {folder} are not those "
            "that were registered"
        )
    return model


def read(found: Any, aliases: Mapping[str, Any]) -> Registered:
    """A version that MLflow found, from its file.

    Args:
      found: a version of MLflow's, of which `digest_of` is not None.
      aliases: of the registered model, the number of the version of each.

    Raises:
      ValueError: its file is not what was registered.
    """
    from mlflow import artifacts

    digest = digest_of(found)
    file, number = f"{found.source}/{_FILE}", int(found.version)
    version = digests.from_json(json_text.parse(artifacts.load_text(file), file))
    if version.digest != digest:
        raise ValueError(f"{found.name}, version {number}: {file} is not what was registered")
    own = tuple(sorted(alias for alias, other in aliases.items() if int(other) == number))
    return Registered(found.name, number, version, found.run_id, own, found.creation_timestamp)


def digest_of(found: Any) -> str | None:
    """The digest of a version in MLflow; None if something else registered it."""
    folder, _, digest = (found.source or "").rpartition("/")
    return digest if found.run_id and folder.endswith(f"/{_VERSIONS}") else None


def _weights_of(source: epath.Path) -> str:
    """The kind of weights that an exported run has, or else the averaged ones."""
    return json_text.load(source / "config.json").get("exported") or "ema"


def _stored(client: "MlflowClient", digest: str) -> str | None:
    """The run that stores a model; one that was cut off while it was written does not."""
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return None
    asked = f"tags.`{_TAG}` = '{digest}' and attributes.status = 'FINISHED'"
    found = client.search_runs([experiment.experiment_id], asked, max_results=1)
    return found[0].info.run_id if found else None


def _store_model(client: "MlflowClient", digest: str, copy: Path) -> str:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        place = _beside_database(client.tracking_uri)
        experiment_id = client.create_experiment(EXPERIMENT, artifact_location=place)
    else:
        experiment_id = experiment.experiment_id
    run_id = client.create_run(experiment_id, tags={_TAG: digest}).info.run_id
    client.log_artifacts(run_id, str(copy), _MODEL)
    client.set_terminated(run_id)
    return run_id


def _beside_database(uri: str) -> str | None:
    """Where the artifacts of a SQLite file lie: beside it, wherever a command is started."""
    kind, _, path = uri.partition(":///")
    if not kind.startswith("sqlite") or not path:
        return None
    return (Path(path).resolve().parent / "mlruns").as_uri()


def _log(client: "MlflowClient", run_id: str, at: str, content: Mapping[str, Any]) -> None:
    """Stores JSON in a run, by way of a file."""
    folder, _, name = at.rpartition("/")
    with tempfile.TemporaryDirectory(prefix="mdlm_jax-") as made:
        file = Path(made, name)
        file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        client.log_artifact(run_id, str(file), folder)


def _of(version: digests.Version) -> str:
    """The folder of a version within a run."""
    return f"{_VERSIONS}/{version.digest}"


def _here(uri: str) -> Path | None:
    """The folder of artifacts on this machine; None if they are elsewhere."""
    parts = urllib.parse.urlsplit(uri)
    return Path(urllib.parse.unquote(parts.path)) if parts.scheme in ("", "file") else None


def _move(made: Path, kept: Path) -> None:
    """Renames a folder; another process may have been faster."""
    try:
        made.rename(kept)
    except OSError:
        if not kept.is_dir():
            raise
