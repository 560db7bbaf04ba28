"""What a run is: its config, its family, its program, its folder, what it started from."""

from mdlm_jax import lazy

__getattr__, __dir__ = lazy.modules(__name__, __path__)
