"""Masked diffusion language models in JAX.

The pure functions stand here; they import jax and nothing else. Networks, data, training and
evaluation are loaded when they are first asked for (`mdlm_jax.networks`, ...).

| part | name |
|---|---|
| a denoiser | `Denoiser`, `Hidden`, `as_denoiser` |
| masking schedules | `schedules.linear`, `schedules.cosine`, `schedules.polynomial` |
| corruption | `corrupt`, `corrupt_mlm` -> `Corrupted` |
| objectives | `diffusion_loss`, `mlm_loss`, `corrupted_loss` -> `(loss, LossAux)` |
| likelihood | `nelbo` -> `Likelihood` |
| sampling | `sample` with one of `strategies`, `exact_count` first -> tokens, `Trace` |
| transforms | `transforms.temperature`, `.top_p`, `.guide`, ...: denoiser to denoiser |
"""

import importlib

from mdlm_jax.diffusion import (
    Corrupted,
    Denoiser,
    Hidden,
    Likelihood,
    LossAux,
    Schedule,
    Strategy,
    Trace,
    as_denoiser,
    corrupt,
    corrupt_mlm,
    corrupted_loss,
    diffusion_loss,
    mlm_loss,
    nelbo,
    sample,
    schedules,
    strategies,
    transforms,
)

__version__ = "0.1.0"

_ROOMS = ("data", "evaluation", "interop", "networks", "parallel", "training")

__all__ = [
    "Corrupted",
    "Denoiser",
    "Hidden",
    "Likelihood",
    "LossAux",
    "Schedule",
    "Strategy",
    "Trace",
    "as_denoiser",
    "corrupt",
    "corrupt_mlm",
    "corrupted_loss",
    "diffusion_loss",
    "mlm_loss",
    "nelbo",
    "sample",
    "schedules",
    "strategies",
    "transforms",
]


def __getattr__(name: str):
    if name in _ROOMS:
        return importlib.import_module(f"mdlm_jax.{name}")
    raise AttributeError(f"module 'mdlm_jax' has no attribute {name!r}")


def __dir__():
    return sorted([*__all__, *_ROOMS])
