"""Hugging Face checkpoints in and out.

pretrained = interop.load_pretrained("google-bert/bert-base-uncased")
denoiser = bert.denoiser(pretrained.params, pretrained.config)
interop.save_pretrained("models/mine", pretrained)  # what transformers opens
"""

from mdlm_jax import lazy
from mdlm_jax.interop.pretrained import (
    Pretrained,
    load_pretrained,
    read_architecture,
    read_pretrained,
    save_pretrained,
)
from mdlm_jax.interop.resizing import Resized, resize_vocabulary

__all__ = [
    "Pretrained",
    "Resized",
    "load_pretrained",
    "read_architecture",
    "read_pretrained",
    "resize_vocabulary",
    "save_pretrained",
]

__getattr__, __dir__ = lazy.modules(__name__, __path__, __all__)
