"""A run, its samples and the figures of them, joined: what `evaluate` and `harness` call.

| module | what it holds |
|---|---|
| `frontier` | `evaluate --frontier`: what samples are worth, and what they cost |
| `points` | the points of a frontier: rows written for every combination of a grid, measured |
| `answers` | `evaluate --answers`: answers of a run on pairs, beside the responses |
| `lm_eval_adapter` | the model that lm-evaluation-harness asks |
"""

from mdlm_jax import lazy

__getattr__, __dir__ = lazy.modules(__name__, __path__)
