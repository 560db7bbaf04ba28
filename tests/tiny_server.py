"""A real server of a tiny model in this process: an engine, the app, and uvicorn in a thread."""

import contextlib
import threading
import time
from typing import Any, NamedTuple

import openai

from mdlm_jax.serving.api import app, guards, server
from mdlm_jax.serving.batching.engine import Engine
from mdlm_jax.serving.offering import offers
from mdlm_jax.serving.watching import metrics
from mdlm_jax.writing import requests

STEPS = 4
HOW = {
    "strategies": ("exact_count", "threshold(0.9)", "remask(cap, 0.1)"),
    "slots": 2,
    "defaults": requests.Options(steps=STEPS),
}


class Running(NamedTuple):
    """A server that answers at `address`.

    Attributes:
      address: of it.
      engine: of it.
      offers: its models, by name.
      client: OpenAI's, without repetitions.
      told: what was logged of each request.
    """

    address: str
    engine: Engine
    offers: dict[str, offers.Offer]
    client: openai.OpenAI
    told: list[dict[str, Any]]


@contextlib.contextmanager
def running(models, *, queue=64, engine=None, how=HOW, quality=None, **options):
    """Serves loaded models by name, with options of `offers.offer`, and their canaries."""
    engine = engine or Engine(queue=queue)
    offered = {}
    for name, loaded in models.items():
        deployment, offered[name] = offers.offer(loaded, name, **how)
        engine.add(deployment)
        if quality is not None:
            quality.add(name, quality.prepare(loaded.model))
    with answering(engine, offers.Fixed(offered), quality=quality, **options) as running:
        yield running._replace(offers=offered)


@contextlib.contextmanager
def answering(
    engine, catalog, *, api_key="none", drain=5.0, steering=None, quality=None, **options
):
    """Serves a catalog, with options of `make_app`, and its metrics."""
    told = []
    watching = metrics.Metrics(engine, catalog, steering, quality)
    tells = [told.append, watching.tell, *([steering.tell] if steering else [])]
    options |= {"mounts": {"/metrics": watching}, "tell": guards.all_of(*tells)}
    made = app.make_app(engine, catalog, steering=steering, **options)
    listening = server.listen("127.0.0.1", 0)
    uvicorn_server = server.Server(made, drain, engine)
    thread = threading.Thread(target=uvicorn_server.run, args=([listening.socket],))
    thread.start()
    client = openai.OpenAI(
        base_url=f"{listening.address}/v1", api_key=api_key, max_retries=0, timeout=30
    )
    try:
        yield Running(listening.address, engine, {}, client, told)
    finally:
        uvicorn_server.should_exit = True
        thread.join(30)
        client.close()
        engine.drain(0)
        assert not thread.is_alive()


def wait_until(holds, seconds=10.0):
    """Waits for something that another thread does."""
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it never came to be"
        time.sleep(0.01)
