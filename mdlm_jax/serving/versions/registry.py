"""Versions in MLflow's model registry: stored once, named by aliases, found again by a reference.

    client = registry.connect()
    registry.register(client, "quickstart", "runs/quickstart", Options(steps=64))
    registry.promote(client, "quickstart", 1, "champion")
    found = registry.find(client, references.parse("models:/quickstart@champion"))
    registry.fetch(client, found)  # a folder for `mdlm_jax.load`

The folder of a model is the artifact `model` of an MLflow run. The versions of it are files beside
it, `versions/DIGEST/version.json`, so that versions of one model share what is stored. Beside that
file may be `canary.json`, how well the version denoised; it is no part of the digest. MLflow keeps
the numbers, the aliases, and tags: those of a registered model hold its traffic and, of each alias,
the versions before. Tags of a version are for a person who looks; nothing here reads them back.
"""

import contextlib
import json
import logging
import os
import tempfile
import urllib.parse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from etils import epath

from mdlm_jax.data import json_text, reading
from mdlm_jax.host import paths
from mdlm_jax.interop import Pretrained, save_pretrained
from mdlm_jax.runs import models, workdir
from mdlm_jax.serving import digests
from mdlm_jax.serving.versions.references import Reference, check_name, refused
from mdlm_jax.serving.watching import canary as canaries
from mdlm_jax.writing import model as writing_model
from mdlm_jax.writing import requests

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "mdlm_jax"
_MODEL, _VERSIONS, _FILE = "model", "versions", "version.json"  # artifacts of a run
_CANARY = "canary.json"  # beside the file of a version
_TAG = "mdlm_jax.model"  # of a run: the digest of the model that it stores
_TRAFFIC, _BEFORE = "mdlm_jax.traffic", "mdlm_jax.before."  # tags of a registered model
_REMEMBERED = 50  # versions of an alias, for going back


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


class Names(NamedTuple):
    """What a registered model points to at a moment.

    Attributes:
      aliases: the number of the version of each.
      traffic: the share of each alias in requests that name no version; {} if none was set.
    """

    aliases: Mapping[str, int]
    traffic: Mapping[str, float]


def connect() -> "MlflowClient":
    """The registry of MLFLOW_TRACKING_URI, or of MLFLOW_REGISTRY_URI beside it.

    By default it is MLflow's: the file `mlflow.db` here.

    Raises:
      ImportError: MLflow is not installed.
    """
    # MLflow reports its use to its makers unless it is told not to; a server should talk to nobody
    # that its owner did not name.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # A server that is away is told within seconds, not after the four minutes of 7 tries.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        import sqlalchemy  # noqa: F401  # which MLflow's skinny package leaves out
        from mlflow import MlflowClient
    except ImportError as error:
        raise ImportError(
            f"the registry of versions needs MLflow ({error}): pip install 'mdlm_jax[registry]'"
        ) from None
    for name in ("mlflow", "alembic"):  # the tables of a new file are no news
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # each try
    with _one_line():
        return MlflowClient()


def register(
    client: "MlflowClient",
    name: str,
    place: str,
    defaults: requests.Options,
    *,
    dtype: str | None = None,
    weights: str | None = None,
    step: int | str | None = None,
    canary: str | None = None,
) -> tuple[Registered, bool]:
    """Stores a version under the next number; the same one again keeps its number.

    Args:
      client: from `connect`.
      name: of the registered model, which is made if there is none.
      place: the folder of a run or of what `export` wrote, of Hugging Face's files, or a name of
        its hub.
      defaults: how it writes where a request does not say.
      dtype: of the activations; by default that of the training.
      weights: of a run, 'ema' (the default) or 'params'.
      step: of a run, the checkpoint, as in `workdir.load`.
      canary: files of text, as of `canary.of`. How well the version denoises them is measured and
        stored beside it, also if it was registered before.

    Returns:
      The version, and whether it is new.

    Raises:
      ValueError: as `models.load`, `digests.of` and `canary.measure`, or MLflow refuses something.
      OSError, ImportError: as `models.load`.
    """
    check_name(name)
    with tempfile.TemporaryDirectory(prefix="mdlm_jax-") as folder:
        copy = Path(folder, _MODEL)
        _export(place, copy, weights, step)
        # Of the copy: what is stored, and not what it was copied from, is what is served.
        loaded = writing_model.load(copy)
        version = digests.of(loaded, defaults, dtype)
        curve = None if canary is None else canaries.measure(version.of_model(loaded).model, canary)
        at = f"{_VERSIONS}/{version.digest}"
        with _one_line():
            for known in client.search_model_versions(f"name = '{name}'"):
                if _digest_of(known) == version.digest:
                    if curve is not None:
                        _log(client, known.run_id, Path(folder, _CANARY), at, curve.as_json())
                    return _read(known, {}), False
            run_id = _stored(client, version.model) or _store(client, version.model, copy)
            _log(client, run_id, Path(folder, _FILE), at, version.as_json())
            if curve is not None:
                _log(client, run_id, Path(folder, _CANARY), at, curve.as_json())
            _make_name(client, name)
            made = client.create_model_version(
                name,
                source=f"{client.get_run(run_id).info.artifact_uri}/{at}",
                run_id=run_id,
                tags=_shown(version),
            )
    return Registered(name, int(made.version), version, run_id, (), made.creation_timestamp), True


def list_versions(client: "MlflowClient", name: str | None = None) -> list[Registered]:
    """The versions of a registered model, or of all, the oldest first.

    Versions that something else registered are left out.
    """
    if name is not None:
        check_name(name)
    with _one_line():
        found = client.search_model_versions(None if name is None else f"name = '{name}'")
        aliases = {each: client.get_registered_model(each).aliases for each in _names(found)}
        ours = [each for each in found if _digest_of(each) is not None]
        read = [_read(each, aliases[each.name]) for each in ours]
    return sorted(read, key=lambda each: (each.name, each.number))


def find(client: "MlflowClient", reference: Reference) -> Registered:
    """The version that a reference names now; a name alone is its champion.

    Raises:
      ValueError: there is none, or something else registered it.
    """
    with _one_line():
        if reference.number is not None:
            found = client.get_model_version(reference.name, str(reference.number))
        else:
            alias = reference.alias or "champion"
            found = client.get_model_version_by_alias(reference.name, alias)
        if _digest_of(found) is None:
            raise ValueError(
                f"{reference} is not of mdlm_jax: it takes versions that `python -m "
                "mdlm_jax.registry register` stored"
            )
        aliases = client.get_registered_model(reference.name).aliases
        return _read(found, aliases)


def names(client: "MlflowClient", name: str) -> Names:
    """The aliases of a registered model and its traffic, in one request.

    Raises:
      ValueError: there is no such model.
    """
    with _one_line():
        found = client.get_registered_model(name)
    aliases = {alias: int(number) for alias, number in found.aliases.items()}
    return Names(aliases, json.loads(found.tags.get(_TRAFFIC, "{}")))


def fetch(client: "MlflowClient", registered: Registered) -> Path:
    """The folder of the model of a version, for `models.load`.

    Artifacts on this machine stay where they are. Others are copied once into the cache of this
    machine, whole or not at all, and serve all versions of the model.

    Raises:
      ValueError: MLflow has it no more.
      OSError: it cannot be written.
    """
    with _one_line():
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

    at = f"{_VERSIONS}/{registered.version.digest}"
    with _one_line():
        there = {each.path for each in client.list_artifacts(registered.run_id, at)}
        if f"{at}/{_CANARY}" not in there:
            return None
        file = f"{client.get_run(registered.run_id).info.artifact_uri}/{at}/{_CANARY}"
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


def promote(client: "MlflowClient", name: str, number: int, alias: str = "champion") -> int | None:
    """Points an alias to a version. Returns the number that it pointed to; None if to none.

    Raises:
      ValueError: there is no such version.
    """
    find(client, Reference(name, number=number))
    with _one_line():
        before = client.get_registered_model(name)
        current = before.aliases.get(alias)
        if current is not None and int(current) != number:
            # First the memory: a promotion that is cut off here is none.
            history = [*_history(before, alias), int(current)][-_REMEMBERED:]
            client.set_registered_model_tag(name, _BEFORE + alias, json.dumps(history))
        client.set_registered_model_alias(name, alias, str(number))
    return None if current is None else int(current)


def rollback(client: "MlflowClient", name: str, alias: str = "champion") -> tuple[int, int]:
    """Points an alias to the version that it pointed to before. Returns both: from, to.

    Raises:
      ValueError: there is none.
    """
    with _one_line():
        model = client.get_registered_model(name)
        if alias not in model.aliases:
            raise ValueError(f"{name} has no alias {alias!r}")
        current = int(model.aliases[alias])
        history = _history(model, alias)
        while history and history[-1] == current:  # of a promotion that was cut off
            history.pop()
        if not history:
            raise ValueError(f"{name}@{alias} is version {current}, and was no other before")
        client.set_registered_model_alias(name, alias, str(history[-1]))
        client.set_registered_model_tag(name, _BEFORE + alias, json.dumps(history[:-1]))
    return current, history[-1]


def split(client: "MlflowClient", name: str, traffic: Mapping[str, float]) -> None:
    """Sets the shares of aliases in the requests that name no version.

    Servers that serve `models:/NAME` follow it. Without shares all is the champion's.

    Args:
      client: from `connect`.
      name: of the registered model.
      traffic: the share of each alias, of which one is not 0; {} for none.

    Raises:
      ValueError: an alias that the model does not have, or shares that are no shares.
    """
    refused(traffic)
    known = names(client, name).aliases
    if missing := sorted(traffic.keys() - known.keys()):
        raise ValueError(f"{name} has no alias {missing[0]!r}: there are {', '.join(known)}")
    with _one_line():
        client.set_registered_model_tag(name, _TRAFFIC, json.dumps(dict(traffic)))


def _export(place: str, copy: Path, weights: str | None, step: int | str | None) -> None:
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


def _store(client: "MlflowClient", digest: str, copy: Path) -> str:
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


def _log(
    client: "MlflowClient", run_id: str, file: Path, at: str, content: Mapping[str, Any]
) -> None:
    """Stores JSON in the folder `at` of a run, by way of a file."""
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    client.log_artifact(run_id, str(file), at)


def _make_name(client: "MlflowClient", name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _read(found: Any, aliases: Mapping[str, Any]) -> Registered:
    """A version, from its file."""
    from mlflow import artifacts

    digest = _digest_of(found)
    file, number = f"{found.source}/{_FILE}", int(found.version)
    version = digests.from_json(json_text.parse(artifacts.load_text(file), file))
    if version.digest != digest:
        raise ValueError(f"{found.name}, version {number}: {file} is not what was registered")
    own = tuple(sorted(alias for alias, other in aliases.items() if int(other) == number))
    return Registered(found.name, number, version, found.run_id, own, found.creation_timestamp)


def _digest_of(found: Any) -> str | None:
    """The digest of a version in MLflow; None if something else registered it."""
    folder, _, digest = (found.source or "").rpartition("/")
    return digest if found.run_id and folder.endswith(f"/{_VERSIONS}") else None


def _names(found: Any) -> list[str]:
    return list(dict.fromkeys(each.name for each in found))


def _shown(version: digests.Version) -> dict[str, str]:
    """Tags of a version, for a person who looks at MLflow's page."""
    tags = {**digests.set_options(version.defaults), "dtype": version.dtype}
    tags["digest"] = version.digest
    return {f"mdlm_jax.{name}": str(value) for name, value in tags.items()}


def _history(model: Any, alias: str) -> list[int]:
    return [int(number) for number in json.loads(model.tags.get(_BEFORE + alias, "[]"))]


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


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """What MLflow raises, as a ValueError of one line; that a server is away as an OSError."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        why = " ".join(str(error).split())
        if error.error_code == "INTERNAL_ERROR" and "Max retries exceeded" in why:
            raise ConnectionError(f"MLflow at {_uri()} does not answer: {why[:200]}") from None
        raise ValueError(f"MLflow: {why.removesuffix('.')}") from None


def _uri() -> str:
    import mlflow

    return mlflow.get_registry_uri()
