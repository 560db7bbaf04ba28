"""A run, its samples and the figures of them joined."""

from mdlm_jax import lazy

__getattr__, __dir__ = lazy.modules(__name__, __path__)
