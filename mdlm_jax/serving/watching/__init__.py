"""What a server does and how well, and what it does about it.

| module | what it holds |
|---|---|
| `metrics` | what a replica counts, for Prometheus; the extra `serve` |
| `policy` | when a server does less for a text, so that all get one |
| `steering` | a policy at work |
| `quality` | the canaries of a server, measured again and again |
| `canary` | texts whose cross-entropy by mask rate tells whether a model is what it was |
"""

from mdlm_jax import lazy

__getattr__, __dir__ = lazy.modules(__name__, __path__)
