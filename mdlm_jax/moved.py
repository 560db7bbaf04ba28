"""Names of modules that lie elsewhere.

Modules of the mathematics are public by their own names: `mdlm_jax.sampling` is
`mdlm_jax.diffusion.sampling`.

Former names go on working: `mdlm_jax.experiment` is `mdlm_jax.runs.experiment`. Both names are one
module: what is set in it under one is seen under the other.

`mdlm_jax.configs` are the shipped configs: a wheel holds them in the package, a clone beside it.
"""

import importlib
import importlib.util
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path

_ROOMS = {
    "host": (
        "command_line", "compilation", "distributed", "endings", "host_memory", "interrupts",
        "parallel", "paths",
    ),
    "measuring": ("lm_eval_adapter",),
    "pods": ("aot", "flops", "hlo_report", "topologies"),
    "runs": (
        "config_of_run", "experiment", "models", "program", "sampler", "start_config", "starting",
        "workdir",
    ),
    "writing": ("answering", "decoding", "filling", "prompts", "sample_files"),
}  # fmt: skip

MATHEMATICS = ("blocks", "sampling")  # modules of `diffusion` that are public by name

HOMES = {name: f"{room}.{name}" for room, names in _ROOMS.items() for name in names} | {
    "evaluate_answers": "measuring.answers",
    "evaluate_frontier": "measuring.frontier",
    **{name: f"diffusion.{name}" for name in MATHEMATICS},
}


_CONFIGS = Path(__file__).resolve().parents[1] / "configs"  # of a clone


class _Finder(MetaPathFinder, Loader):
    """Finds a module under its former name, and gives the one that there is."""

    def find_spec(self, fullname, path=None, target=None):
        """Of `mdlm_jax.NAME` alone, where the name is a former one, or `configs` of a clone."""
        package, _, name = fullname.partition(".")
        if fullname == "mdlm_jax.configs" and (_CONFIGS / "quickstart.py").is_file():
            spec = ModuleSpec(fullname, None, is_package=True)
            spec.submodule_search_locations = [str(_CONFIGS)]
            return spec
        if package != "mdlm_jax" or name not in HOMES:
            return None
        return importlib.util.spec_from_loader(fullname, self)

    def create_module(self, spec):
        """The module itself, imported under its own name."""
        name = spec.name.partition(".")[2]
        module = importlib.import_module(f"mdlm_jax.{HOMES[name]}")
        spec.loader_state = module.__spec__  # which the import system overwrites
        return module

    def exec_module(self, module):
        """Nothing: it was executed under its own name."""
        module.__spec__ = module.__spec__.loader_state


def install() -> None:
    """Lets these names be imported, once in a process."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
