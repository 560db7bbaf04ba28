"""Masked diffusion language models in JAX.

The pure functions stand here; they import jax and nothing else. `load`, networks, data, training
and evaluation are imported when they are first asked for (`mdlm_jax.networks.bert`, ...).

| part | name |
|---|---|
| a denoiser | `Denoiser`, `Hidden`, `as_denoiser` |
| masking schedules | `schedules.linear`, `schedules.cosine`, `schedules.polynomial` |
| corruption | `corrupt`, `corrupt_mlm`, `corrupt_causal` -> `Corrupted` |
| prompts that are kept | `keep_prefix`, `keep_around`: `maskable` to `maskable` |
| objectives | `diffusion_loss`, `mlm_loss`, `corrupted_loss` -> `(loss, LossAux)` |
| likelihood | `nelbo`, `causal_likelihood` -> `Likelihood`; `at_rate` -> `AtRate` |
| sampling | `sample` with one of `strategies`, `exact_count` first -> tokens, `Trace` |
| sampling of rows that live apart | `sampling.start`, `.step`, `.finished`, `.insert` |
| blocks | `blocks.loss`, `.nelbo`, ... of a `blocks.BlockDenoiser`: from autoregression to full |
| transforms | `transforms.temperature`, `.top_p`, `.guide`, ...: denoiser to denoiser |
| a trained model | `load(run, export or Hugging Face checkpoint)` -> `Model` |
"""

import contextlib
import importlib
from typing import TYPE_CHECKING

from mdlm_jax import moved
from mdlm_jax.host.interrupts import held_back, starts_command

if TYPE_CHECKING:  # for editors and type checkers, which do not run `__getattr__`
    from mdlm_jax.diffusion import blocks as blocks
    from mdlm_jax.diffusion import sampling as sampling
    from mdlm_jax.writing.model import Model, load

moved.install()

_COMMAND = starts_command()
if _COMMAND:  # what is imported from here on may be interrupted
    from mdlm_jax.host import endings

    endings.take_over()

with held_back() if _COMMAND else contextlib.nullcontext():
    from mdlm_jax.diffusion import (
        AtRate,
        Corrupted,
        Denoiser,
        Hidden,
        Likelihood,
        LossAux,
        Schedule,
        Strategy,
        Trace,
        as_denoiser,
        at_rate,
        causal_denoiser,
        causal_likelihood,
        corrupt,
        corrupt_causal,
        corrupt_mlm,
        corrupted_loss,
        diffusion_loss,
        keep_around,
        keep_prefix,
        mlm_loss,
        nelbo,
        sample,
        schedules,
        strategies,
        transforms,
    )

__version__ = "0.1.0"

# Loaded when they are first asked for, with what lies in them.
_ROOMS = (
    "data",
    "evaluation",
    "host",
    "interop",
    "measuring",
    "networks",
    "pages",
    "pods",
    "runs",
    "training",
    "writing",
)

# Imported when they are first asked for: they need more than jax.
_HOMES = {"Model": "mdlm_jax.writing.model", "load": "mdlm_jax.writing.model"}

__all__ = [
    "AtRate",
    "Corrupted",
    "Denoiser",
    "Hidden",
    "Likelihood",
    "LossAux",
    "Model",
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
    "load",
    "mlm_loss",
    "nelbo",
    "sample",
    "schedules",
    "strategies",
    "transforms",
]


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _ROOMS or name in moved.HOMES:
        return importlib.import_module(f"mdlm_jax.{name}")
    raise AttributeError(f"module 'mdlm_jax' has no attribute {name!r}")


def __dir__():
    return sorted([*__all__, *_ROOMS, *moved.MATHEMATICS, "parallel"])
