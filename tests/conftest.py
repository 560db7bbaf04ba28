import os

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
    """The commands that the tests start compile the same few programs again and again."""
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path_factory.mktemp("compiled"))
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
