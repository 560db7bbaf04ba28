"""The mathematics of masked diffusion: it imports jax and nothing else.

| module | what it holds |
|---|---|
| `denoisers` | a denoiser: `(tokens, t) -> logits` |
| `schedules` | how likely a token is still there at time `t` |
| `processes` | what is masked |
| `objectives` | denoiser x corrupted batch -> loss |
| `integrand` | the NELBO's integrand at one mask rate |
| `likelihood` | denoiser x data -> NELBO with its error |
| `enumeration` | the NELBO of few tokens, exactly |
| `sampling` | denoiser x canvas -> tokens |
| `clocks` | rows on their way from masks to text, each with its own clock |
| `caching` | a denoiser that remembers, and when it looks again |
| `strategies` | which positions a sampler writes, and when |
| `blocks` | blocks from left to right, and masked diffusion within each |
| `transforms` | denoiser -> denoiser |
| `block_transforms` | those of block denoisers that change the cache |
| `reading` | logits of the positions that are needed, and what is drawn there |
| `noise` | one seed, named purposes, one key a row |
| `checks` | checks of arguments |
| `shards` | what arrays tell of their mesh |
| `values` | functions compared by what they do |
"""

from mdlm_jax.diffusion import schedules, strategies, transforms
from mdlm_jax.diffusion.denoisers import Denoiser, Hidden, as_denoiser
from mdlm_jax.diffusion.integrand import AtRate, at_rate
from mdlm_jax.diffusion.likelihood import Likelihood, nelbo
from mdlm_jax.diffusion.objectives import LossAux, corrupted_loss, diffusion_loss, mlm_loss
from mdlm_jax.diffusion.processes.causal import causal_denoiser, causal_likelihood, corrupt_causal
from mdlm_jax.diffusion.processes.corruption import Corrupted, corrupt, corrupt_mlm
from mdlm_jax.diffusion.processes.keeping import keep_around, keep_prefix
from mdlm_jax.diffusion.sampling import Trace, sample
from mdlm_jax.diffusion.schedules import Schedule
from mdlm_jax.diffusion.strategies import Strategy

__all__ = [
    "AtRate",
    "Corrupted",
    "Denoiser",
    "Hidden",
    "Likelihood",
    "LossAux",
    "Schedule",
    "Strategy",
    "Trace",
    "as_denoiser",
    "at_rate",
    "causal_denoiser",
    "causal_likelihood",
    "corrupt",
    "corrupt_causal",
    "corrupt_mlm",
    "corrupted_loss",
    "diffusion_loss",
    "keep_around",
    "keep_prefix",
    "mlm_loss",
    "nelbo",
    "sample",
    "schedules",
    "strategies",
    "transforms",
]
