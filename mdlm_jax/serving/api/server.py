"""The process of a server: a socket, uvicorn, and signals that end it when its work is done."""

import asyncio
import functools
import math
import socket
import threading
from types import FrameType
from typing import NamedTuple

import uvicorn
from fastapi import FastAPI

from mdlm_jax.serving.batching.engine import Engine

FAREWELL = 5  # seconds for telling clients of rows that were not written in time
_STOPPED = 1  # exit code: ended by a second signal, with rows that were given up


class Listening(NamedTuple):
    """A socket that takes connections.

    Attributes:
      socket: bound, before anything else is done.
      address: for people.
    """

    socket: socket.socket
    address: str


def listen(host: str, port: int) -> Listening:
    """Binds a socket.

    Raises:
      ValueError: the host is unknown, or the port is taken; it is named.
    """
    try:
        family, *_, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.create_server(place[:2], family=family, backlog=2048)
    except OSError as error:
        raise ValueError(f"--host={host} --port={port}: {error.strerror or error}") from None
    shown = f"[{host}]" if ":" in host else host
    return Listening(bound, f"http://{shown}:{bound.getsockname()[1]}")


def serve(app: FastAPI, listening: Listening, *, drain: float, engine: Engine | None = None) -> int:
    """Serves the app until a signal comes, and returns the exit code.

    A first SIGTERM or SIGINT takes no new connections and waits for the answers that were begun; a
    second one does not wait.

    Args:
      app: from `make_app`.
      listening: from `listen`.
      drain: seconds that it waits.
      engine: of the app, which is drained; None for an app without one.
    """
    server = Server(app, drain, engine)
    with listening.socket:
        server.run(sockets=[listening.socket])
    if engine is not None:
        engine.drain(0)
    return _STOPPED if server.force_exit else 0


class Server(uvicorn.Server):
    """Of uvicorn, but any second signal ends it, a first one is no failure, and rows are drained.

    Clients of rows that are not written in time are told so before their connections are closed.
    """

    def __init__(self, app: FastAPI, drain: float, engine: Engine | None = None):
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,  # the app tells more, and of every request
            server_header=False,
            timeout_graceful_shutdown=math.ceil(drain) + (0 if engine is None else FAREWELL),
            backlog=2048,
        )
        super().__init__(config)
        self._drain = None if engine is None else functools.partial(engine.drain, drain)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Of a signal."""
        del sig, frame
        self.force_exit = self.should_exit
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Of uvicorn, while the engine is drained."""
        if self._drain is None:
            return await super().shutdown(sockets)
        draining = threading.Thread(target=self._drain, daemon=True)  # a second signal leaves it
        draining.start()
        await super().shutdown(sockets)
        while draining.is_alive() and not self.force_exit:
            await asyncio.sleep(0.05)
