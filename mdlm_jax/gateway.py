"""One address before servers in several regions: when one dies, its texts go on in the next.

    python -m mdlm_jax.gateway --regions=regions.toml --port=8080

The file names the regions in the order of preference, each a `python -m mdlm_jax.serve`, a Ray
Serve app or another gateway. Users talk to the gateway as to one server, with any client of
OpenAI's API. SIGTERM or Ctrl-C ends it when what was begun is told; a second one ends it at once.
"""

from typing import Any

from absl import flags

from mdlm_jax.host import command_line, endings

_REGIONS = command_line.define_path("regions", None, "The file of the regions: regions.toml.")
_HOST = flags.DEFINE_string(
    "host", "127.0.0.1", "Address to listen on; 0.0.0.0 is all of the machine's."
)
_PORT = flags.DEFINE_integer("port", 8080, "Port to listen on; 0 is any that is free.", 0, 65535)
_DRAIN = flags.DEFINE_float(
    "drain", 30.0, "Seconds that what was begun may take when the gateway is told to end.", 0
)
_KEYS = command_line.define_path(
    "keys", None, "File of keys, one a line. A request must send one: Authorization: Bearer KEY."
)
_CORS = flags.DEFINE_list(
    "cors", [], "Origins whose pages may ask from a browser, such as https://example.org; * is all."
)
command_line.require("regions")


def main() -> int:
    """Serves until a signal comes, and returns the exit code."""
    with command_line.bad_input():
        try:
            from mdlm_jax.serving.api import guards, server
            from mdlm_jax.serving.gateway import app, regions
        except ModuleNotFoundError as error:
            raise ImportError(f"{error}: pip install 'mdlm_jax[serve]'") from None
        settings = regions.read(_REGIONS.value)
        keys = guards.read_keys(_KEYS.value) if _KEYS.value else []
        listening = server.listen(_HOST.value, _PORT.value)
    endings.start_log()
    made: Any = app.make_app(settings, keys=keys, cors=_CORS.value)
    names = ", ".join(region.name for region in settings.regions)
    print(f"the regions {names} are served at {listening.address}", flush=True)
    return server.serve(made, listening, drain=_DRAIN.value)


if __name__ == "__main__":
    command_line.run(main)
