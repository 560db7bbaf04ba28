"""How well the models of a server denoise, beside how well they did: a canary, again and again.

    quality = Quality(engine, "canary.txt")
    made = quality.prepare(model)            # before it is compiled
    engine.add(deployment)
    quality.add("tiny/3", made, registered)  # compiles; before requests come
    with quality.looking():
        quality.told()

A version is measured when it is new, and `EVERY` seconds after it was, piece by piece, as work
beside the rows of the engine. New ones go first. Under load a measurement takes longer than that.
The thread knows names of deployments alone, and holds none of them.
"""

import contextlib
import dataclasses
import functools
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any, NamedTuple

from mdlm_jax.runs.models import Model
from mdlm_jax.serving.batching.engine import Engine
from mdlm_jax.serving.jobs import Stopping, Unknown
from mdlm_jax.serving.repeating import repeating
from mdlm_jax.serving.watching import canary as canaries
from mdlm_jax.serving.watching.canary import Canary, Curve, Point

EVERY = 60.0  # seconds from the end of a measurement to the next one of the same deployment
REGISTERED, FIRST = "registered", "first"  # sources of a reference

_LOG = logging.getLogger(__name__)


class Told(NamedTuple):
    """What is known of a deployment.

    Attributes:
      measured: lately; () if it was not yet.
      reference: what it is compared with; () if nothing is known yet.
      source: of the reference: `REGISTERED`, or `FIRST`, the first measurement of this server.
      at: seconds since 1970, when it was measured, or else added.
    """

    measured: tuple[Point, ...]
    reference: tuple[Point, ...]
    source: str
    at: float


@dataclasses.dataclass(eq=False)
class _Watched:
    """A deployment; `due` is in `time.monotonic()`."""

    canary: Canary
    read: Callable[[canaries.Piece, Any], Any]
    told: Told
    due: float = -float("inf")


class Quality:
    """The canaries of an engine. Any thread may call its methods, one at a time `look`."""

    def __init__(self, engine: Engine, files: str):
        """None is watched yet.

        Args:
          engine: runs the canaries beside its rows.
          files: the text, as of `canary.of`.
        """
        self._engine, self._files = engine, files
        self._watched: dict[str, _Watched] = {}
        self._lock = threading.Lock()

    def prepare(self, model: Model) -> Canary:
        """The canary of a model. Nothing of the model is compiled.

        Raises:
          ValueError: as `canary.of`.
        """
        return canaries.of(model, self._files)

    def add(self, name: str, canary: Canary, registered: Curve | None = None) -> None:
        """Compiles the canary of a deployment in this thread, and watches it from now on.

        Args:
          name: of a deployment of the engine. If it is removed there, it is forgotten here.
          canary: from `prepare`.
          registered: the curve of the version, if there is one.

        Raises:
          Unknown: no such deployment.
        """
        if registered is None:
            _LOG.info("%s has no registered canary: %s", name, _INSTEAD)
        elif registered.digest != canary.digest:
            _LOG.warning("%s was registered with another canary: %s", name, _INSTEAD)
        own = registered is not None and registered.digest == canary.digest
        reference = registered.points if registered is not None and own else ()
        read = canaries.compiled(canary, self._engine.parameters(name))
        told = Told((), reference, REGISTERED if own else FIRST, time.time())
        with self._lock:
            self._watched[name] = _Watched(canary, read, told)

    def look(self) -> None:
        """Measures what is longest due. It takes as long as the rows of the engine let it."""
        with self._lock:
            if not self._watched:
                return
            name, watched = min(self._watched.items(), key=lambda each: each[1].due)
        if watched.due > time.monotonic():
            return
        try:
            self._measure(name, watched)
        except Unknown:
            with self._lock:
                if self._watched.get(name) is watched:
                    del self._watched[name]
        except (Stopping, CancelledError):  # the engine is drained
            return
        except Exception:
            _LOG.exception("the canary of %s could not be measured", name)
        watched.due = time.monotonic() + EVERY

    def looking(self) -> contextlib.AbstractContextManager[None]:
        """Within it, what is due is measured."""
        return repeating(self.look, 1.0, "mdlm_jax canary")

    def told(self) -> dict[str, Told]:
        """What is known of each deployment that is watched and still there."""
        there = self._engine.deployments.keys()
        with self._lock:
            told = {name: each.told for name, each in sorted(self._watched.items())}
        return {name: each for name, each in told.items() if name in there}

    def _measure(self, name: str, watched: _Watched) -> None:
        read = [
            self._engine.aside(name, functools.partial(watched.read, piece)).result()
            for piece in watched.canary.pieces
        ]
        found = canaries.points(watched.canary, read)
        before = watched.told
        watched.told = Told(found, before.reference or found, before.source, time.time())


_INSTEAD = "it is compared with its first measurement by this server"
