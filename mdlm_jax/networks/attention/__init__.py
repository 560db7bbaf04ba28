"""Attention: who sees whom, rotary positions, and the kernels."""

from mdlm_jax import lazy
from mdlm_jax.networks.attention.dispatch import BACKENDS, attention, fastest, runs_on
from mdlm_jax.networks.attention.masks import Mask, attention_mask
from mdlm_jax.networks.attention.rope import rope_turns, rotate

__all__ = [
    "BACKENDS",
    "Mask",
    "attention",
    "attention_mask",
    "fastest",
    "rope_turns",
    "rotate",
    "runs_on",
]

__getattr__, __dir__ = lazy.modules(__name__, __path__, __all__)
