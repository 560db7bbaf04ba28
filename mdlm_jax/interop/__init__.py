"""Hugging Face checkpoints in and out.

pretrained = interop.load_pretrained("google-bert/bert-base-uncased")
denoiser = bert.denoiser(pretrained.params, pretrained.config)
interop.save_pretrained("models/mine", pretrained)  # what transformers opens
"""

from mdlm_jax.interop.pretrained import Pretrained, load_pretrained, save_pretrained

__all__ = ["Pretrained", "load_pretrained", "save_pretrained"]
