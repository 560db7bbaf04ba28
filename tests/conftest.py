from hypothesis import settings

# A first example may compile: no deadline. Fixed seeds: a failure is the same failure tomorrow.
settings.register_profile("mdlm_jax", deadline=None, derandomize=True)
settings.load_profile("mdlm_jax")
