"""Likelihood reports, generation metrics and the page that shows a run."""

from mdlm_jax import lazy

__getattr__, __dir__ = lazy.modules(__name__, __path__)
