"""Text in and out of a sampler: prompts, decoding, filling, answering, sample files."""

from mdlm_jax import lazy

__getattr__, __dir__ = lazy.modules(__name__, __path__)
