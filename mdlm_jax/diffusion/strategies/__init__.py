"""Strategies: which positions a sampler writes, and when.

In each step a strategy sees the canvas. Before the network is read out it says which positions it
asks for; afterwards it says which of the drawn tokens stay.

| reads out | strategies |
|---|---|
| what it writes, in a random order | `exact_count`, `first_hitting`, `ancestral`, `remask` |
| what it writes, in the order of reading | `left_to_right` |
| every blank, and keeps some | `confidence`, `greedy`, `threshold`, `factor`, `entropy_bounded` |
| all that it wrote, too | `path_planning` |

At one token a step `exact_count`, `first_hitting`, `left_to_right`, `confidence` by margin or
entropy and `entropy_bounded(0)` follow the joint law of the denoiser's conditionals exactly.
"""

from mdlm_jax.diffusion.strategies.base import Proposal, Strategy, View
from mdlm_jax.diffusion.strategies.candidates import (
    confidence,
    entropy_bounded,
    factor,
    greedy,
    threshold,
)
from mdlm_jax.diffusion.strategies.position_first import (
    ancestral,
    exact_count,
    first_hitting,
    left_to_right,
)
from mdlm_jax.diffusion.strategies.remasking import path_planning, remask

__all__ = [
    "Proposal",
    "Strategy",
    "View",
    "ancestral",
    "confidence",
    "entropy_bounded",
    "exact_count",
    "factor",
    "first_hitting",
    "greedy",
    "left_to_right",
    "path_planning",
    "remask",
    "threshold",
]
