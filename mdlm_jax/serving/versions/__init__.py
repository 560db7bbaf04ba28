"""Versions of models in a registry: named, stored, served, compared.

| module | what it holds |
|---|---|
| `references` | names of versions as a user writes them, and shares of traffic |
| `registry` | versions, aliases and shares in MLflow's model registry |
| `storage` | what is stored of a version: the folder of its model, its file, its canary |
| `errors` | what MLflow raises, in one line |
| `deployments` | which versions a server serves, followed and chosen for requests |
| `comparing` | two versions on the same prompts |
"""

from mdlm_jax import lazy

__getattr__, __dir__ = lazy.modules(__name__, __path__)
