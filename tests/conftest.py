import os

import jax
from hypothesis import settings

# A first example may compile: no deadline. Fixed seeds: a failure is the same failure tomorrow.
settings.register_profile("mdlm_jax", deadline=None, derandomize=True)
settings.load_profile("mdlm_jax")

# The tests compile much and compute little; the commands that they start inherit it.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
jax.config.update("jax_disable_most_optimizations", True)
