"""From documents to tokens, and back."""

from mdlm_jax import lazy

__getattr__, __dir__ = lazy.modules(__name__, __path__)
