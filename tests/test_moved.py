"""Former names of modules go on working, and are the modules themselves."""

import importlib
import subprocess
import sys

import pytest

import mdlm_jax
from mdlm_jax import moved


@pytest.mark.parametrize(
    "name", [name for name in moved.HOMES if not name.startswith(("lm_", "ev"))]
)
def test_a_former_name_is_the_module(name):
    module = importlib.import_module(f"mdlm_jax.{moved.HOMES[name]}")
    assert importlib.import_module(f"mdlm_jax.{name}") is module
    assert getattr(mdlm_jax, name) is module
    assert module.__name__ == module.__spec__.name == f"mdlm_jax.{moved.HOMES[name]}"


def test_either_name_may_be_the_first():
    """In a process that knows neither; an unknown name stays unknown."""
    code = """
import mdlm_jax
from mdlm_jax.experiment import default_config
import mdlm_jax.runs.experiment as now
assert now.default_config is default_config and now is mdlm_jax.experiment
try:
    import mdlm_jax.experiments
except ModuleNotFoundError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "No module named 'mdlm_jax.experiments'\n"
