"""Runs commands as `python -m mdlm_jax.NAME` does, each in a process of its own.

Importing jax and all else takes longer than a tiny command. This process has imported it and
touched no device; for each line of JSON on its stdin, `{"name", "arguments", "environment",
"folder", "printed", "told"}`, it forks, and the child runs the module as the main one, its streams
in the files `printed` and `told`. The exit code is written to stdout.
"""

import gc
import importlib
import json
import os
import runpy
import sys
import tempfile
import warnings

import flax  # noqa: F401
import grain  # noqa: F401
import matplotlib.pyplot  # noqa: F401
import optax  # noqa: F401
import rich.live
import rich.progress  # noqa: F401
from absl import app  # noqa: F401
from jax._src import xla_bridge
from ml_collections import config_flags  # noqa: F401

# What defines no flags: a command's module is run, not imported.
for name in (
    "evaluation.bounds.rate_curves", "pages.report", "runs.hooks", "runs.models", "runs.planning",
    "training.loop", "writing.filling", "writing.sample_files",
):  # fmt: skip
    importlib.import_module(f"mdlm_jax.{name}")
assert "mdlm_jax.host.command_line" not in sys.modules


def wait_for_request():
    """The next request, in a child of its own: the server itself never returns."""
    for line in sys.stdin:
        request = json.loads(line)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # jax warns of forks, for it might run threads
            child = os.fork()
        if not child:
            return request
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    sys.exit()


def become(request):
    """The process that Python would have started."""
    for descriptor, place, mode in (
        (0, os.devnull, os.O_RDONLY),
        (1, request["printed"], os.O_WRONLY),
        (2, request["told"], os.O_WRONLY),
    ):
        opened = os.open(place, mode)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    tempfile.tempdir = None
    sys.path[0] = request["folder"]
    sys.argv = ["-m", *request["arguments"]]


assert not xla_bridge.backends_are_initialized()
# A child that ends would go through all of it, and copy its memory: half a second.
gc.freeze()
asked = wait_for_request()
become(asked)
runpy.run_module(f"mdlm_jax.{asked['name']}", run_name="__main__", alter_sys=True)
