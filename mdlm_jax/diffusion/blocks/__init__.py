"""Block diffusion: blocks from left to right, and masked diffusion within each.

A text of L tokens is cut into blocks of `size`. The law of a block given the clean text before it
is masked diffusion, so that

    -log p(x) <= sum over blocks b of NELBO(x_b | x_1, ..., x_{b-1}).

Blocks of one token are autoregression, and one block is masked diffusion of the whole text. What
lies before a block is final, so a network computes it once and keeps it.

| module | what it holds |
|---|---|
| `denoisers` | `BlockDenoiser`: all blocks at once, or one block after a cache |
| `lifting` | any function of a noisy and a clean text as a block denoiser |
| `as_rows` | given the clean text, blocks are the rows of an ordinary denoiser |
| `objectives` | corruption of every block, and the loss |
| `likelihoods` | the NELBO over blocks: drawn, or exact for small ones |
| `generation` | the sampler: each block by a strategy, after a cache of those before it |
"""

from mdlm_jax.diffusion.blocks.as_rows import given
from mdlm_jax.diffusion.blocks.denoisers import BlockDenoiser
from mdlm_jax.diffusion.blocks.generation import sample
from mdlm_jax.diffusion.blocks.lifting import as_block_denoiser
from mdlm_jax.diffusion.blocks.likelihoods import nelbo
from mdlm_jax.diffusion.blocks.objectives import CorruptedBlocks, corrupt, corrupted_loss, loss

__all__ = [
    "BlockDenoiser",
    "CorruptedBlocks",
    "as_block_denoiser",
    "corrupt",
    "corrupted_loss",
    "given",
    "loss",
    "nelbo",
    "sample",
]
