"""What a person looks at: reports, tables, plots, animations."""

from mdlm_jax import lazy

__getattr__, __dir__ = lazy.modules(__name__, __path__)
