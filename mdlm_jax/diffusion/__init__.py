"""The mathematics of masked diffusion: imports jax and nothing else of ours."""

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
