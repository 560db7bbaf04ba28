"""Attention: masks, rotary positions, and the kernels.

| module | what it holds |
|---|---|
| `dispatch` | attention by the backend of a platform |
| `masks` | which query sees which key |
| `rope` | rotary positions |
| `memory` | attention to keys and values of an earlier pass |
| `streams` | attention of all blocks of a text at once, clean and noisy |
| `layout` | how the two streams lie, and which tiles of one see which of the other |
| `triton_streams` | kernels of the two streams, for NVIDIA GPUs |
| `stream_kernels` | what a program of these kernels computes |
| `cached` | attention of a block to a cache of what is before it |
| `triton` | the kernel of a block after a cache, for NVIDIA GPUs |
| `local` | local attention, block by block |
| `cudnn` | the kernel for NVIDIA GPUs |
| `splash` | the kernel for TPUs |
"""

from mdlm_jax import lazy
from mdlm_jax.networks.attention.dispatch import BACKENDS, attention, fastest, runs_on
from mdlm_jax.networks.attention.masks import Mask, attention_mask
from mdlm_jax.networks.attention.memory import Attend, Memory
from mdlm_jax.networks.attention.rope import rope_turns, rotate

__all__ = [
    "BACKENDS",
    "Attend",
    "Mask",
    "Memory",
    "attention",
    "attention_mask",
    "fastest",
    "rope_turns",
    "rotate",
    "runs_on",
]

__getattr__, __dir__ = lazy.modules(__name__, __path__, __all__)
