"""The process of a server: a socket, uvicorn, and signals that end it when its work is done."""

import signal
import socket
from types import FrameType
from typing import NamedTuple

import uvicorn
from fastapi import FastAPI

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


def serve(app: FastAPI, listening: Listening, *, drain: float) -> int:
    """Serves the app until a signal comes, and returns the exit code.

    A first SIGTERM or SIGINT takes no new connections and waits for the answers that were begun; a
    second one does not wait.

    Args:
      app: from `make_app`.
      listening: from `listen`.
      drain: seconds that it waits.
    """
    server = of(app, drain=drain)
    with listening.socket:
        server.run(sockets=[listening.socket])
    return _STOPPED if server.force_exit else 0


def of(app: FastAPI, *, drain: float) -> uvicorn.Server:
    """The server of an app, not yet started.

    Args:
      app: from `make_app`.
      drain: seconds that it waits for answers when it ends.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,  # the app tells more, and of every request
        server_header=False,
        timeout_graceful_shutdown=max(round(drain), 1),
        backlog=2048,
    )
    return _Server(config)


class _Server(uvicorn.Server):
    """Of uvicorn, but any second signal ends it, and a first one is no failure."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Of a signal."""
        del frame
        if self.should_exit:
            self.force_exit = True
            # What waits for rows waits no more.
            signal.signal(sig, signal.SIG_DFL)
        self.should_exit = True
