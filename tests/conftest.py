import ctypes
import gc
import os

import command_runs
import jax
import pytest
from hypothesis import settings

# A first example may compile: no deadline. Fixed seeds: a failure is the same failure tomorrow.
settings.register_profile("mdlm_jax", deadline=None, derandomize=True)
settings.load_profile("mdlm_jax")

# The tests compile much and compute little; the commands that they start inherit it.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="session", autouse=True)
def _compile_once(tmp_path_factory):
    """The commands that the tests start compile the same few programs again and again.

    All workers share what one of them compiled; a folder that the environment names stays.
    """
    folder = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        folder = folder.parent
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")
    command_runs.at_start()


@pytest.fixture(scope="module", autouse=True)
def _forget_compiled():
    """A worker would hold the programs of all files: gigabytes, in which XLA crashed in the end."""
    yield
    jax.clear_caches()
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # of glibc
        trim(0)
