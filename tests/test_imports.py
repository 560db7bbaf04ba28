"""The package in a foreign program: an import changes nothing of the process."""

import importlib
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import mdlm_jax

IMPORTS = """
import importlib, logging, pkgutil, signal, sys, threading

# What others change when they are imported is theirs.
import absl.app, flax, grain, jax, matplotlib.pyplot, ml_collections.config_flags, optax, tokenizers
import rich.progress
from orbax.checkpoint import v1
from absl import flags


def process():
    found = {"root": logging.root, **logging.root.manager.loggerDict}
    loggers = {
        name: (logger.level, logger.propagate, [*logger.handlers], [*logger.filters])
        for name, logger in found.items() if isinstance(logger, logging.Logger)
    }
    hooks = sys.excepthook, sys.unraisablehook, threading.excepthook, sys.displayhook
    signals = [signal.getsignal(number) for number in sorted(signal.valid_signals())]
    return {"hooks": hooks, "signals": signals, "streams": (sys.stdout, sys.stderr), **loggers}


before, known, handled = process(), {*flags.FLAGS}, []
real = signal.signal
signal.signal = lambda *args: handled.append(args) or real(*args)


def watched(kind, name):  # a logger that nobody knew before, too
    real = getattr(kind, name)

    def called(self, *args):
        if sys._getframe(1).f_globals["__name__"].startswith("mdlm_jax"):
            handled.append((name, self.name))
        return real(self, *args)

    setattr(kind, name, called)


for name in ("setLevel", "addFilter", "addHandler"):
    watched(logging.Logger, name)
import mdlm_jax

count = 0
for module in pkgutil.walk_packages(mdlm_jax.__path__, "mdlm_jax."):
    for name in {*flags.FLAGS} - known:  # commands share the names of flags
        delattr(flags.FLAGS, name)
    try:
        importlib.import_module(module.name)
        count += 1
    except ImportError as error:  # of an extra
        assert error.name.split(".")[0] != "mdlm_jax", error
after = process()
changed = [name for name, value in before.items() if after[name] != value]
print(count, changed, handled)
"""


def test_an_import_changes_no_hook_no_signal_and_no_logger():
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True)
    count, _, told = done.stdout.partition(" ")
    assert told == "[] []\n" and int(count) > 80, done.stdout + done.stderr


LAZY = """
import sys
import tomllib
from pathlib import Path
import mdlm_jax

heavy = {"flax", "grain", "optax", "orbax", "tokenizers", "ml_collections", "matplotlib"}
print(sorted(heavy & {*sys.modules}), "mdlm_jax.diffusion.blocks" in sys.modules)
print(mdlm_jax.blocks.__name__, mdlm_jax.blocks.nelbo.__name__)
print(mdlm_jax.networks.bert.__name__, mdlm_jax.runs.workdir.__name__)
print(mdlm_jax.data.corpora.text_files.__name__, mdlm_jax.data.prepare.__name__)
print({"load", "Model", "networks"} <= {*dir(mdlm_jax)}, "bert" in dir(mdlm_jax.networks))
print(mdlm_jax.load.__module__, mdlm_jax.Model.__name__)
try:
    mdlm_jax.networks.nothing
except AttributeError as error:
    print(error)
"""


def test_rooms_are_imported_when_they_are_first_asked_for():
    done = subprocess.run([sys.executable, "-c", LAZY], capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "[] False",
        "mdlm_jax.diffusion.blocks nelbo",
        "mdlm_jax.networks.bert mdlm_jax.runs.workdir",
        "mdlm_jax.data.corpora.text_files prepare",
        "True True",
        "mdlm_jax.writing.model Model",
        "module 'mdlm_jax.networks' has no attribute 'nothing'",
    ], done.stderr


# Their modules are named elsewhere: families in the registry, the others' public names in a table.
LISTED_ELSEWHERE = ("configs", "runs.families", "diffusion.strategies")


def rooms():
    for room in pkgutil.walk_packages(mdlm_jax.__path__, "mdlm_jax."):
        if room.ispkg and room.name.removeprefix("mdlm_jax.") not in LISTED_ELSEWHERE:
            yield importlib.import_module(room.name)


def test_each_room_says_what_lies_in_it():
    missing = {
        room.__name__: sorted(absent)
        for room in rooms()
        if (
            absent := {
                module.name
                for module in pkgutil.iter_modules(room.__path__)
                if f"| `{module.name}` |" not in room.__doc__
            }
        )
    }
    assert missing == {}, "give each module a line in the table of its room's docstring"


def test_no_room_names_a_module_that_is_gone():
    for room in rooms():
        named = set(re.findall(r"^\| `(\w+)` \|", room.__doc__, flags=re.MULTILINE))
        assert named == {module.name for module in pkgutil.iter_modules(room.__path__)}


def test_the_wheel_holds_every_room():
    root = Path(__file__).parents[1]
    listed = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {
        ".".join(path.parent.relative_to(root).parts)
        for path in (root / "mdlm_jax").rglob("__init__.py")
    }
    assert {*listed} == found | {"mdlm_jax.configs"}
