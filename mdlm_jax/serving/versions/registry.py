"""Versions in MLflow's model registry: stored once, named by aliases, found again by a reference.

    client = registry.connect()
    registry.register(client, "quickstart", "runs/quickstart", Options(steps=64))
    registry.promote(client, "quickstart", 1, "champion")
    found = registry.find(client, references.parse("models:/quickstart@champion"))
    storage.load(client, found)

MLflow keeps the numbers, the aliases, and tags: those of a registered model hold its traffic and,
of each alias, the versions before. Tags of a version are for a person who looks; nothing here reads
them back. What is stored of a version, and where, is of `storage`.
"""

import json
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mdlm_jax.serving import digests
from mdlm_jax.serving.versions import storage
from mdlm_jax.serving.versions.errors import one_line
from mdlm_jax.serving.versions.references import Reference, check_name, refused
from mdlm_jax.serving.versions.storage import Registered
from mdlm_jax.serving.watching import canary as canaries
from mdlm_jax.writing import model as writing_model
from mdlm_jax.writing import requests

if TYPE_CHECKING:
    from mlflow import MlflowClient

_TRAFFIC, _BEFORE = "mdlm_jax.traffic", "mdlm_jax.before."  # tags of a registered model
_REMEMBERED = 50  # versions of an alias, for going back


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
    with one_line():
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
        copy = Path(folder, "model")
        storage.export(place, copy, weights, step)
        # Of the copy: what is stored, and not what it was copied from, is what is served.
        loaded = writing_model.load(copy)
        version = digests.of(loaded, defaults, dtype)
        curve = None if canary is None else canaries.measure(version.of_model(loaded).model, canary)
        with one_line():
            for known in client.search_model_versions(f"name = '{name}'"):
                if storage.digest_of(known) == version.digest:
                    if curve is not None:
                        storage.store_canary(client, known.run_id, version, curve)
                    return storage.read(known, {}), False
            run_id = storage.store(client, version, copy)
            if curve is not None:
                storage.store_canary(client, run_id, version, curve)
            _make_name(client, name)
            made = client.create_model_version(
                name,
                source=storage.address(client, run_id, version),
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
    with one_line():
        found = client.search_model_versions(None if name is None else f"name = '{name}'")
        aliases = {each: client.get_registered_model(each).aliases for each in _names(found)}
        ours = [each for each in found if storage.digest_of(each) is not None]
        read = [storage.read(each, aliases[each.name]) for each in ours]
    return sorted(read, key=lambda each: (each.name, each.number))


def find(client: "MlflowClient", reference: Reference) -> Registered:
    """The version that a reference names now; a name alone is its champion.

    Raises:
      ValueError: there is none, or something else registered it.
    """
    with one_line():
        if reference.number is not None:
            found = client.get_model_version(reference.name, str(reference.number))
        else:
            alias = reference.alias or "champion"
            found = client.get_model_version_by_alias(reference.name, alias)
        if storage.digest_of(found) is None:
            raise ValueError(
                f"{reference} is not of mdlm_jax: it takes versions that `python -m "
                "mdlm_jax.registry register` stored"
            )
        aliases = client.get_registered_model(reference.name).aliases
        return storage.read(found, aliases)


def names(client: "MlflowClient", name: str) -> Names:
    """The aliases of a registered model and its traffic, in one request.

    Raises:
      ValueError: there is no such model.
    """
    with one_line():
        found = client.get_registered_model(name)
    aliases = {alias: int(number) for alias, number in found.aliases.items()}
    return Names(aliases, json.loads(found.tags.get(_TRAFFIC, "{}")))


def promote(client: "MlflowClient", name: str, number: int, alias: str = "champion") -> int | None:
    """Points an alias to a version. Returns the number that it pointed to; None if to none.

    Raises:
      ValueError: there is no such version.
    """
    find(client, Reference(name, number=number))
    with one_line():
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
    with one_line():
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
    with one_line():
        client.set_registered_model_tag(name, _TRAFFIC, json.dumps(dict(traffic)))


def _make_name(client: "MlflowClient", name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _names(found: Any) -> list[str]:
    return list(dict.fromkeys(each.name for each in found))


def _shown(version: digests.Version) -> dict[str, str]:
    """Tags of a version, for a person who looks at MLflow's page."""
    tags = {**digests.set_options(version.defaults), "dtype": version.dtype}
    tags["digest"] = version.digest
    return {f"mdlm_jax.{name}": str(value) for name, value in tags.items()}


def _history(model: Any, alias: str) -> list[int]:
    return [int(number) for number in json.loads(model.tags.get(_BEFORE + alias, "[]"))]
