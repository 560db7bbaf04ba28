"""One address before servers in several regions: when one dies, its texts go on in the next.

    python -m mdlm_jax.gateway --regions=regions.toml --port=8080

The file names the regions in the order of preference, each a `python -m mdlm_jax.serve`, a Ray
Serve app or another gateway. Users talk to the gateway as to one server, with any client of
OpenAI's API. SIGTERM lets the requests that run end, and takes no new ones. It logs a line of JSON
a request, without the text. Needs mdlm_jax[serve].
"""

import logging
import math
import socket
import sys
from typing import Any

from absl import flags

from mdlm_jax.host import command_line

_REGIONS = command_line.define_path("regions", None, "The file of the regions: regions.toml.")
_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen at; 0.0.0.0 for all.")
_PORT = flags.DEFINE_integer("port", 8080, "Port to listen at.", 0, 65535)
command_line.require("regions")


def main() -> int:
    """Serves until it is told to stop; returns the exit code."""
    with command_line.bad_input():
        uvicorn, make_app, read = _extra()
        settings = read(_REGIONS.value)
        listening = _listen(_HOST.value, _PORT.value)
    names = ", ".join(region.name for region in settings.regions)
    port = listening.getsockname()[1]
    print(f"listening at http://{_HOST.value}:{port}, before the regions {names}", flush=True)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s", force=True)
    config = uvicorn.Config(
        make_app(settings),
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=math.ceil(settings.limits.deadline_s) + 1,
    )
    server = uvicorn.Server(config)
    # The end that a signal asks for is no failure: uvicorn would raise the signal once more.
    server.handle_exit = lambda *_: _end(server)
    with listening:
        server.run(sockets=[listening])
    return 1 if server.force_exit else 0


def _end(server: Any) -> None:
    server.force_exit = server.should_exit  # at the second signal
    server.should_exit = True


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
      ValueError: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise ValueError(
            f"--host={host} --port={port}: {error.strerror or error}; is it in use?"
        ) from None


def _extra() -> tuple[Any, Any, Any]:
    """What the extra brings.

    Raises:
      ModuleNotFoundError: it is not installed.
    """
    try:
        import uvicorn

        from mdlm_jax.serving.gateway.app import make_app
        from mdlm_jax.serving.gateway.regions import read
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "mdlm_jax":
            raise
        raise ModuleNotFoundError(
            f"the gateway needs {error.name}: pip install 'mdlm_jax[serve]'"
        ) from None
    return uvicorn, make_app, read


if __name__ == "__main__":
    command_line.run(main)
