"""A trained model as a service.

| module | what it holds |
|---|---|
| `jobs` | what is asked of an engine, and what it tells |
"""

from mdlm_jax import lazy

__getattr__, __dir__ = lazy.modules(__name__, __path__)
