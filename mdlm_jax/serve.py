"""Serves a trained model: OpenAI's API, and a page to play with.

    python -m mdlm_jax.serve --workdir=runs/quickstart --port=8000

Then http://localhost:8000 is the page, and any client of OpenAI's API can be used:

    curl http://localhost:8000/v1/completions -H 'Content-Type: application/json' \
        -d '{"model": "quickstart", "prompt": "The city of [MASK] [MASK] lies on"}'

A prompt has gaps, [MASK] for one token and {mask:12} for twelve, or goes on by max_tokens, or up to
a suffix. All rows that are asked for are written together, and none changes the text of another.

    python -m mdlm_jax.serve --model=models:/quickstart@champion

serves a version of the registry, and follows its alias: a promotion is loaded beside what is
served, takes the new requests, and no request is dropped (`python -m mdlm_jax.registry`).

    python -m mdlm_jax.serve --model=models:/quickstart@champion --canary=canary.txt

also watches how well it denoises a text: /metrics has the figures (docs/watching.md).

What may be asked for is compiled before the server answers: rows of --lengths, and strategies of
the kinds of --strategies with any numbers. SIGTERM or Ctrl-C ends it when what was begun is
written; a second one ends it at once.
"""

import contextlib
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import flags

from mdlm_jax.host import command_line, endings
from mdlm_jax.writing import decoding, requests
from mdlm_jax.writing import model as models

if TYPE_CHECKING:
    from mdlm_jax.serving.batching.engine import Engine
    from mdlm_jax.serving.offering import offers
    from mdlm_jax.serving.watching import policy
    from mdlm_jax.serving.watching.quality import Quality
    from mdlm_jax.serving.watching.steering import Steering

_WORKDIR = command_line.define_path(
    "workdir", None, "Folder of the run, or of what export or convert wrote."
)
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Instead of --workdir: a BERT of Hugging Face, its folder or its name."
)
_MODEL = flags.DEFINE_multi_string(
    "model",
    [],
    "Instead of --workdir: a version of the registry, models:/NAME/3, or one that is followed, "
    "models:/NAME@champion, or all that share the requests for a name, models:/NAME. May be given "
    "several times.",
)
_FOLLOW = flags.DEFINE_float(
    "follow", 5.0, "Of --model: seconds from one look at the registry to the next.", 0.1
)
_WEIGHTS = flags.DEFINE_enum(
    "weights", None, ["ema", "params"], "Of a run: averaged (the default) or raw weights."
)
_STEP = command_line.define_step()
_NAME = flags.DEFINE_string(
    "name", None, "By which clients ask for the model; by default the last part of its path."
)
_HOST = flags.DEFINE_string(
    "host", "127.0.0.1", "Address to listen on; 0.0.0.0 is all of the machine's."
)
_PORT = flags.DEFINE_integer("port", 8000, "Port to listen on; 0 is any that is free.", 0, 65535)
_STRATEGIES = flags.DEFINE_string(
    "strategies",
    "exact_count, threshold(0.9), greedy",
    "Kinds of strategies that are offered, the default first. A request may give them other "
    f"numbers, but not other words.\n{decoding.listing()}",
)
_STEPS = flags.DEFINE_integer(
    "steps", None, "Network evaluations of a row where a request does not say. Default: 64.", 1
)
_LENGTHS = flags.DEFINE_list(
    "lengths", [], "Tokens of a row, such as 64,128; as in training by default."
)
_SLOTS = flags.DEFINE_integer(
    "slots", 32, "Rows that are written at a time, for each length and kind of strategy.", 1
)
_QUEUE = flags.DEFINE_integer(
    "queue", 256, "Rows that wait for a slot at the most; others are refused with 429.", 1
)
_ROWS = flags.DEFINE_integer(
    "rows", None, "Answers of one request at the most. Default: 64, or --queue if that is less.", 1
)
_TIMEOUT = flags.DEFINE_float(
    "timeout", 120.0, "Seconds after which a request is given up with 504; it may ask for less.", 0
)
_DRAIN = flags.DEFINE_float(
    "drain", 30.0, "Seconds that what was begun may take when the server is told to end.", 0
)
_KEYS = command_line.define_path(
    "keys", None, "File of keys, one a line. A request must send one: Authorization: Bearer KEY."
)
_POLICY = command_line.define_path(
    "policy", None, "File of a policy, which does less for each text while there are too many."
)
_CANARY = flags.DEFINE_string(
    "canary",
    None,
    "Globs of text files, of which the first 64 rows are denoised beside the requests, once a "
    "minute while there is time: /metrics tells the cross-entropy by mask rate, beside that of the "
    "registration.",
)
_CORS = flags.DEFINE_list(
    "cors", [], "Origins whose pages may ask from a browser, such as https://example.org; * is all."
)


class _Served(NamedTuple):
    """What is served, and what follows the registry meanwhile."""

    catalog: "offers.Catalog"
    following: contextlib.AbstractContextManager


class _Plan(NamedTuple):
    """The names that will be served, and what loads and compiles them."""

    names: Sequence[str]
    load: Callable[["Engine", "Quality | None"], _Served]


def main() -> int:
    """Loads and compiles the model, serves it until a signal comes, and returns the exit code."""
    with command_line.bad_input():
        try:
            from mdlm_jax.serving.api import app, guards, server
        except ModuleNotFoundError as error:
            raise ImportError(f"{error}: pip install 'mdlm_jax[serve]'") from None
        keys = guards.read_keys(_KEYS.value) if _KEYS.value else []
        _check_flags()
        command_line.join_job()
        plan = _registered() if _MODEL.value else _loaded()
        steered = _policy(plan.names) if _POLICY.value else None
        listening = server.listen(_HOST.value, _PORT.value)
    endings.start_log()

    from mdlm_jax.serving.api.limits import Limits
    from mdlm_jax.serving.batching.engine import Engine
    from mdlm_jax.serving.watching.metrics import Metrics
    from mdlm_jax.serving.watching.quality import Quality

    print(command_line.compiling(), file=sys.stderr, flush=True)
    engine = Engine(queue=_QUEUE.value)
    quality = None if _CANARY.value is None else Quality(engine, _CANARY.value)
    served = plan.load(engine, quality)
    steering = None if steered is None else _steering(steered, engine, served.catalog)
    watching = Metrics(engine, served.catalog, steering, quality)
    tells = [guards.log, watching.tell, *([] if steering is None else [steering.tell])]
    made = app.make_app(
        engine,
        served.catalog,
        limits=Limits(rows=_ROWS.value or min(64, _QUEUE.value), timeout=_TIMEOUT.value),
        keys=keys,
        cors=_CORS.value,
        mounts={"/metrics": watching},
        steering=steering,
        tell=guards.all_of(*tells),
    )
    print(f"{', '.join(plan.names)} is served at {listening.address}", flush=True)
    with contextlib.ExitStack() as beside:
        beside.enter_context(served.following)
        for looks in (steering, quality):
            if looks is not None:
                beside.enter_context(looks.looking())
        return server.serve(made, listening, drain=_DRAIN.value, engine=engine)


def _check_flags() -> None:
    places = [name for name in ("workdir", "checkpoint", "model") if flags.FLAGS[name].value]
    if len(places) != 1:
        raise ValueError("give one of --workdir, --checkpoint and --model")
    if (_ROWS.value or 1) > _QUEUE.value:
        raise ValueError(f"--rows={_ROWS.value} of a request could never wait: --queue is less")
    of_model = _MODEL.value
    for name in ("weights", "step", "steps", "name") if of_model else ("follow",):
        if flags.FLAGS[name].present:
            why = "a version has its own" if of_model else "it is of --model"
            raise ValueError(f"--{name} is not for --{places[0]}: {why}")


def _loaded() -> _Plan:
    """Of a folder, or of Hugging Face's files."""
    from mdlm_jax.serving.offering import offers
    from mdlm_jax.serving.watching import canary

    place = str(_WORKDIR.value or _CHECKPOINT.value)
    how = _how()
    loaded = models.load(place, weights=_WEIGHTS.value, step=_STEP.value)
    causal = loaded.model.family.is_causal
    deployment, offer = offers.offer(
        loaded,
        _NAME.value or Path(place.rstrip("/")).name or "model",
        defaults=requests.Options(steps=None if causal else _STEPS.value),
        **how,
    )

    watched = None if _CANARY.value is None else canary.of(loaded.model, _CANARY.value)

    def load(engine: "Engine", quality: "Quality | None") -> _Served:
        engine.add(deployment)
        if quality is not None and watched is not None:
            quality.add(deployment.name, watched)
        return _Served(offers.Fixed({offer.name: offer}), contextlib.nullcontext())

    return _Plan([offer.name], load)


def _registered() -> _Plan:
    """Of the registry."""
    from mdlm_jax.serving.versions import references, registry
    from mdlm_jax.serving.versions.deployments import Deployments, How

    served = [*dict.fromkeys(references.parse(each) for each in _MODEL.value)]
    how, client = How(**_how()), registry.connect()

    def load(engine: "Engine", quality: "Quality | None") -> _Served:
        catalog = Deployments(engine, client, served, how, quality)
        with command_line.bad_input():  # a reference that leads nowhere
            catalog.update()
        return _Served(catalog, catalog.following(_FOLLOW.value))

    return _Plan([*dict.fromkeys(each.name for each in served)], load)


def _policy(names: Sequence[str]) -> "policy.Policy":
    """The policy, whose models are among those that will be served."""
    from mdlm_jax.serving.watching import policy, steering

    read = policy.read(_POLICY.value)
    steering.check(read)
    for stage in read.stages:
        if stage.model and re.split("[@/]", stage.model)[0] not in names:
            raise ValueError(_not_served(stage.model, names))
    return read


def _steering(read: "policy.Policy", engine: "Engine", catalog: "offers.Catalog") -> "Steering":
    from mdlm_jax.serving.watching.steering import Steering

    with command_line.bad_input():
        for stage in read.stages:
            if stage.model and catalog.choose(stage.model, "") is None:
                known = [offer.name for offer in catalog.listed()]
                raise ValueError(_not_served(stage.model, known))
        return Steering(read, engine)


def _not_served(name: str, known: Sequence[str]) -> str:
    return f"{_POLICY.value}: model {name!r} is not served: there are {', '.join(known)}"


def _how() -> dict[str, Any]:
    """How models are compiled."""
    for length in _LENGTHS.value:
        if not length.isdecimal() or not int(length):
            raise ValueError(f"--lengths must be whole numbers, such as 64,128, not {length!r}")
    return {
        "lengths": [int(length) for length in _LENGTHS.value],
        # At commas outside of parentheses.
        "strategies": [part.strip() for part in re.split(r",(?![^(]*\))", _STRATEGIES.value)],
        "slots": _SLOTS.value,
    }


if __name__ == "__main__":
    command_line.run(main)
