"""Which versions a server serves: loaded from the registry, followed, and chosen for requests.

    catalog = Deployments(engine, registry.connect(), [references.parse("models:/quickstart")], how)
    catalog.update()            # loads and compiles; raises if it cannot
    with catalog.following(5):  # looks every 5 seconds what the registry says
        ...

A promotion or another split is followed without dropping a request. The new version is loaded and
compiled beside the old one, which serves until then. Then new requests go to the new one, and the
old one goes when nobody holds its offer any more: a request holds the offer that it was given until
it is answered. Versions of the same weights share them in memory, and the compiled programs where
they are the same. A version that cannot be loaded changes nothing, and is tried again.
"""

import contextlib
import dataclasses
import logging
import time
import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax

from mdlm_jax.runs.experiment import SCHEDULES
from mdlm_jax.serving.batching.engine import Deployment, Engine
from mdlm_jax.serving.offering import offers
from mdlm_jax.serving.offering.offers import Offer
from mdlm_jax.serving.repeating import repeating
from mdlm_jax.serving.versions import references, registry, storage
from mdlm_jax.serving.versions.references import Reference
from mdlm_jax.serving.versions.storage import Registered
from mdlm_jax.serving.watching.quality import Quality
from mdlm_jax.writing import decoding
from mdlm_jax.writing import model as models

if TYPE_CHECKING:
    from mlflow import MlflowClient

_LOG = logging.getLogger(__name__)
_FIRST_PAUSE, _LONGEST_PAUSE = 10.0, 600.0  # seconds before a version is tried again

Key = tuple[str, int]  # the name of a registered model, and the number of a version


class How(NamedTuple):
    """How versions are compiled; the fields are those of `offers.offer`."""

    lengths: Sequence[int] = ()
    strategies: Sequence[str] = ("exact_count",)
    slots: int = 32


class _Route(NamedTuple):
    """Where the requests for a name go: the share of each alias, and its version."""

    model: str
    shares: Mapping[str, float]
    numbers: Mapping[str, int]

    def chosen(self, key: str) -> Key:
        return self.model, self.numbers[references.chosen(self.shares, key)]

    def needed(self) -> set[Key]:
        return {(self.model, self.numbers[name]) for name, share in self.shares.items() if share}


class _Held(NamedTuple):
    """A version that the engine has: what it was loaded as, and its offer, given to nobody."""

    registered: Registered
    loaded: models.Model
    offer: Offer


class _State(NamedTuple):
    """What a request is chosen by; replaced as a whole."""

    routes: Mapping[str, _Route]  # by what clients ask for
    offers: Mapping[Key, Offer]  # those that are given to requests


class _Pause(NamedTuple):
    route: _Route  # that could not be served
    until: float
    seconds: float


class Deployments:
    """A catalog of versions that follows the registry."""

    def __init__(
        self,
        engine: Engine,
        client: "MlflowClient",
        served: Sequence[Reference],
        how: How = How(),  # noqa: B008
        quality: Quality | None = None,
    ):
        """Nothing is loaded yet.

        Args:
          engine: compiles and runs the versions.
          client: from `registry.connect`.
          served: what is served, without repetitions. One without a number is followed.
          how: versions are compiled.
          quality: watches each version that is served, from before it is.
        """
        self._engine, self._client, self._how = engine, client, how
        self._quality = quality
        self._served = tuple(served)
        self._held: dict[Key, _Held] = {}
        self._given: dict[Key, weakref.ref[Offer]] = {}
        self._by_reference: dict[Reference, _Route] = {}
        self._pauses: dict[Reference, _Pause] = {}
        self._told: dict[str, str] = {}
        self._state = _State({}, {})

    def listed(self) -> Sequence[Offer]:
        """The names of models, each with the version of its greatest share, then the versions."""
        state = self._state
        named = []
        for name in dict.fromkeys(each.name for each in self._served):
            route = state.routes[name]
            most = max(route.shares, key=lambda alias: route.shares[alias])
            offer = state.offers[route.model, route.numbers[most]]
            named.append(dataclasses.replace(offer, name=name))
        return [*named, *state.offers.values()]

    def choose(self, name: str, key: str) -> Offer | None:
        """The version for a request, by a hash of its key where several share a name.

        Args:
          name: `quickstart`, `quickstart@champion` or `quickstart/3`, of what is served.
          key: of the request.
        """
        state = self._state
        route = state.routes.get(name)
        return None if route is None else state.offers[route.chosen(key)]

    def update(self) -> None:
        """Serves what the registry says now.

        Raises:
          ValueError: there is no such version, or its model cannot be served so; only if nothing
            was served for the reference before.
          OSError: the registry or an artifact cannot be read; likewise.
        """
        names: dict[str, registry.Names] = {}
        for reference in self._served:
            before = self._by_reference.get(reference)
            try:
                if reference.name not in names:
                    names[reference.name] = registry.names(self._client, reference.name)
                route = _route(reference, names[reference.name])
                if route == before or self._is_paused(reference, route):
                    continue
                self._load(reference, route)
            except Exception as error:
                if before is None:
                    raise
                self._tell(str(reference), f"cannot be followed: {_line(error)}")
                continue
            self._by_reference[reference] = route
            self._tell(str(reference), f"is {_shown(route)}")
            self._install()
        self._release()

    def following(self, every: float) -> contextlib.AbstractContextManager[None]:
        """Within it, the registry is looked at every so many seconds."""
        return repeating(self.update, every, "mdlm_jax registry")

    def _is_paused(self, reference: Reference, route: _Route) -> bool:
        """Whether exactly this failed just now."""
        pause = self._pauses.get(reference)
        return pause is not None and pause.route == route and time.monotonic() < pause.until

    def _load(self, reference: Reference, route: _Route) -> None:
        """Has the engine hold all versions of a route, or pauses it."""
        try:
            for key in sorted(route.needed()):
                if key not in self._held:
                    self._held[key] = self._add(*key)
        except Exception:
            before = self._pauses.get(reference)
            again = before is not None and before.route == route
            seconds = min(2 * before.seconds, _LONGEST_PAUSE) if before and again else _FIRST_PAUSE
            self._pauses[reference] = _Pause(route, time.monotonic() + seconds, seconds)
            raise
        self._pauses.pop(reference, None)

    def _add(self, name: str, number: int) -> _Held:
        """Loads and compiles a version beside the others."""
        registered = registry.find(self._client, Reference(name, number=number))
        version = registered.version
        same = [
            held for held in self._held.values() if held.registered.version.model == version.model
        ]
        if same:
            loaded = version.of_model(same[0].loaded)
        else:
            loaded = self._sharing(storage.load(self._client, registered), version.weights)
        deployment, offer = offers.offer(
            loaded,
            f"{name}/{number}",
            lengths=self._how.lengths,
            strategies=_strategies(loaded, self._how.strategies, version.defaults.strategy),
            defaults=version.defaults,
            slots=self._how.slots,
            version=version,
            created=registered.created // 1000,
        )
        if self._quality is None:
            self._engine.add(deployment)
        else:
            self._add_watched(self._quality, registered, loaded, deployment)
        return _Held(registered, loaded, offer)

    def _add_watched(
        self,
        quality: Quality,
        registered: Registered,
        loaded: models.Model,
        deployment: Deployment,
    ) -> None:
        made = quality.prepare(loaded.model)
        try:
            curve = storage.canary_of(self._client, registered)
        except (OSError, ValueError) as error:  # what watches a version must not keep it away
            _LOG.warning("the canary of %s cannot be read: %s", deployment.name, error)
            curve = None
        self._engine.add(deployment)
        try:
            quality.add(deployment.name, made, curve)
        except Exception:
            self._engine.remove(deployment.name)
            raise

    def _sharing(self, loaded: models.Model, weights: str) -> models.Model:
        """The model with the parameters of one that is held already, if they are the same."""
        for held in self._held.values():
            if held.registered.version.weights == weights:
                own = loaded.model._replace(params=held.loaded.params)
                return dataclasses.replace(loaded, model=own)
        return loaded

    def _install(self) -> None:
        """Sends new requests where the routes say."""
        needed = set().union(*(route.needed() for route in self._by_reference.values()))
        given = {}
        for key in sorted(needed):
            offer = self._given[key]() if key in self._given else None
            if offer is None:  # a new object, by which it is seen whether anybody holds it
                offer = dataclasses.replace(self._held[key].offer)
                self._given[key] = weakref.ref(offer)
            given[key] = offer
        self._state = _State(_names(self._by_reference, needed), given)

    def _release(self) -> None:
        """Takes versions out of the engine that no request can reach and none holds."""
        for key in [*self._held.keys() - self._state.offers.keys()]:
            if key in self._given and self._given[key]() is not None:
                continue
            self._engine.remove(self._held.pop(key).offer.deployment)
            self._given.pop(key, None)
            self._tell(f"{key[0]}/{key[1]}", "is no longer held")

    def _tell(self, what: str, news: str) -> None:
        if self._told.get(what) != news:
            self._told[what] = news
            _LOG.info("%s %s", what, news)


def _route(reference: Reference, names: registry.Names) -> _Route:
    """Where a reference leads now.

    Raises:
      ValueError: it has no alias of this name.
    """
    if reference.number is not None:
        numbers = {str(reference.number): reference.number}
        return _Route(reference.name, dict.fromkeys(numbers, 1.0), numbers)
    shares = {reference.alias or "champion": 1.0}
    if reference.alias is None and names.traffic:
        shares = {alias: share for alias, share in names.traffic.items() if share}
    if missing := sorted(shares.keys() - names.aliases.keys()):
        known = ", ".join(names.aliases) or "none"
        raise ValueError(f"{reference.name} has no alias {missing[0]!r}: there are {known}")
    return _Route(reference.name, shares, {alias: names.aliases[alias] for alias in shares})


def _names(by_reference: Mapping[Reference, _Route], needed: set[Key]) -> dict[str, _Route]:
    """What clients may ask for."""
    routes: dict[str, _Route] = {}
    for reference, route in by_reference.items():
        routes.setdefault(reference.name, route)
        for alias, number in route.numbers.items():
            if reference.number is None:
                one = _Route(route.model, {alias: 1.0}, {alias: number})
                routes.setdefault(f"{route.model}@{alias}", one)
    for name, number in sorted(needed):
        routes[f"{name}/{number}"] = _Route(name, {"": 1.0}, {"": number})
    return routes


def _strategies(loaded: models.Model, offered: Sequence[str], own: str | None) -> tuple[str, ...]:
    """The strategies to be compiled: the version's first, each kind once."""
    if loaded.model.family.is_causal:
        return tuple(offered)
    schedule = SCHEDULES[loaded.model.objective.schedule]()
    kinds = {}
    for each in filter(None, (own, *offered)):
        kinds.setdefault(jax.tree.structure(decoding.strategy(each, schedule)), each)
    return tuple(kinds.values())


def _shown(route: _Route) -> str:
    whole = sum(route.shares.values())
    parts = [f"version {route.numbers[name]}" for name in route.shares]
    if len(parts) > 1:
        shares = route.shares.values()
        parts = [
            f"{part} for {share / whole:.0%}" for part, share in zip(parts, shares, strict=True)
        ]
    return ", ".join(parts)


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
