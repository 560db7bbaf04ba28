# serve run launch.serve_ray:app workdir=runs/quickstart replicas=2
"""Replicas of a server on Ray Serve: each holds the engine, and the same API.

    pip install 'mdlm_jax[serve-ray]'
    serve run launch.serve_ray:app workdir=runs/quickstart replicas=2

Then http://localhost:8000 answers as `python -m mdlm_jax.serve` does. `Settings` are what may
follow `launch.serve_ray:app`, and the `args` of a cluster's configuration, launch/serve_ray.yaml.

Ray gives a request to a replica that has few, starts another in place of one that died or whose
engine failed, adds replicas while more requests than `slots` are with each, and replaces them a few
at a time when the configuration changes. A replica that goes writes what it has taken.
"""

import contextlib
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydantic
from ray import serve
from ray.serve.config import AutoscalingConfig, BackpressureConfig

from mdlm_jax.host import compilation, paths
from mdlm_jax.serving.api import app as apps
from mdlm_jax.serving.api import guards
from mdlm_jax.serving.api.limits import Limits
from mdlm_jax.serving.batching.engine import Engine
from mdlm_jax.serving.offering import offers
from mdlm_jax.writing import model, requests

if TYPE_CHECKING:
    from mdlm_jax.serving.versions.deployments import Deployments

_FOLLOW = 5.0  # seconds between two looks at the registry, as `serve --follow`
_SHARE = 0.9  # of its part of a GPU that a replica takes at once; XLA takes 0.75 of all by default


class Settings(pydantic.BaseModel):
    """What is served, and how; most are the flags of `python -m mdlm_jax.serve`.

    Attributes:
      workdir: of a run, or of what `export` or `convert` wrote; all nodes see it.
      model: instead of it, a version of the registry, such as models:/quickstart@champion.
      name: by which clients ask for a model of `workdir`; by default the last part of its path.
      lengths: tokens of a row, such as 64,128; as in training by default.
      strategies: kinds of strategies, the default first.
      steps: evaluations of a row where a request does not say; of a model of `workdir`.
      slots: rows that are written at a time, for each length and kind of strategy.
      queue: rows that wait in a replica, and requests that wait in each proxy of Ray.
      timeout: seconds of a request in a replica at the most, and of a replica that goes.
      keys: a file of keys, one a line; all nodes see it.
      replicas: the fewest.
      max_replicas: the most; by default as many as `replicas`.
      cpus: of a replica.
      gpus: of a replica; 0.5 puts two on a GPU. With 0, Ray hides no GPU from a replica.
    """

    model_config = pydantic.ConfigDict(extra="forbid")

    workdir: str = ""
    model: str = ""
    name: str = ""
    lengths: str = ""
    strategies: str = "exact_count, threshold(0.9), greedy"
    steps: pydantic.PositiveInt | None = None
    slots: pydantic.PositiveInt = 32
    queue: pydantic.PositiveInt = 256
    timeout: pydantic.PositiveFloat = 120.0
    keys: str = ""
    replicas: pydantic.PositiveInt = 1
    max_replicas: pydantic.NonNegativeInt = 0
    cpus: pydantic.NonNegativeFloat = 1.0
    gpus: pydantic.NonNegativeFloat = 0.0

    @pydantic.model_validator(mode="after")
    def _check(self) -> "Settings":
        if bool(self.workdir) == bool(self.model):
            raise ValueError("give one of workdir and model")
        if self.model and (self.name or self.steps):
            raise ValueError("name and steps are not for a model: a version has its own")
        if self.max_replicas and self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas is {self.max_replicas}, fewer than replicas")
        if not re.fullmatch(r"(\d+(,\d+)*)?", self.lengths):
            raise ValueError(f"lengths must be as 64,128, not {self.lengths!r}")
        return self


@serve.deployment(name="mdlm")
@serve.ingress()
class Replica:
    """One engine, and the API before it."""

    def __init__(self, settings: Settings):
        """Loads and compiles the model."""
        logging.getLogger("mdlm_jax").setLevel(logging.INFO)
        compilation.keep()
        self._settings = settings
        self._engine = Engine(queue=settings.queue)
        self._beside = contextlib.ExitStack()
        if settings.model:
            catalog = _from_registry(settings, self._engine)
            self._beside.enter_context(catalog.following(_FOLLOW))
            self._catalog: offers.Catalog = catalog
        else:
            self._catalog = _from_folder(settings, self._engine)

    def __serve_build_asgi_app__(self) -> Any:
        """The app, for Ray. It has no /metrics: which replica would answer is chance."""
        keys = guards.read_keys(self._settings.keys) if self._settings.keys else []
        limits = Limits(rows=min(Limits.rows, self._settings.queue), timeout=self._settings.timeout)
        return apps.make_app(self._engine, self._catalog, limits=limits, keys=keys)

    def check_health(self) -> None:
        """Of Ray, which replaces a replica whose engine takes nothing any more."""
        if not self._engine.ready:
            raise RuntimeError(f"the engine is not ready: {self._engine.reason}")

    def __del__(self) -> None:
        """Of Ray, when all that the replica has taken is answered."""
        self._beside.close()
        self._engine.drain(0)


def _from_folder(settings: Settings, engine: Engine) -> offers.Catalog:
    deployment, offer = offers.offer(
        model.load(settings.workdir),
        settings.name or Path(settings.workdir).name,
        defaults=requests.Options(steps=settings.steps),
        **_how(settings),
    )
    engine.add(deployment)
    return offers.Fixed({offer.name: offer})


def _from_registry(settings: Settings, engine: Engine) -> "Deployments":
    from mdlm_jax.serving.versions import references, registry
    from mdlm_jax.serving.versions.deployments import Deployments, How

    served = [references.parse(settings.model)]
    catalog = Deployments(engine, registry.connect(), served, How(**_how(settings)))
    catalog.update()
    return catalog


def _how(settings: Settings) -> dict[str, Any]:
    return {
        "lengths": [int(length) for length in settings.lengths.split(",") if length],
        "strategies": [each.strip() for each in re.split(r",(?![^(]*\))", settings.strategies)],
        "slots": settings.slots,
    }


def app(settings: Settings) -> serve.Application:
    """The app, as `serve run` and a configuration name it."""
    if settings.workdir and paths.is_local(settings.workdir):
        place = Path(paths.plain(settings.workdir)).absolute()  # replicas run in other folders
        if not place.is_dir():
            raise ValueError(f"workdir: no folder at {place}")
        settings = settings.model_copy(update={"workdir": str(place)})
    if settings.keys and paths.is_local(settings.keys):
        own = str(Path(paths.plain(settings.keys)).absolute())
        settings = settings.model_copy(update={"keys": own})
    most = settings.max_replicas or settings.replicas
    scaling: dict[str, Any] = {"num_replicas": settings.replicas}
    if most > settings.replicas:
        # Requests that run or wait, of a replica: a full batch, and no row waits for the next.
        scaling = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=settings.replicas,
                max_replicas=most,
                target_ongoing_requests=settings.slots,
                upscale_delay_s=10,
            )
        }
    environment = {}
    if 0 < settings.gpus < 1:
        environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{_SHARE * settings.gpus:.3f}"
    return Replica.options(
        **scaling,
        # What an engine takes of requests of one row; by default 5, which leaves slots empty.
        max_ongoing_requests=settings.slots + settings.queue,
        max_queued_requests=settings.queue,  # by default without end
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        ray_actor_options={
            "num_cpus": settings.cpus,
            "num_gpus": settings.gpus,
            "runtime_env": {"env_vars": environment},
        },
        health_check_period_s=2,
        health_check_timeout_s=10,
        # What was taken is written: no request takes longer than its timeout.
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=settings.timeout + 10,
        max_constructor_retry_count=3,  # a model that cannot be loaded
    ).bind(settings)
