"""Hugging Face checkpoints in and out.

pretrained = interop.load_pretrained("google-bert/bert-base-uncased")
denoiser = bert.denoiser(pretrained.params, pretrained.config)
interop.save_pretrained("models/mine", pretrained)  # what transformers opens

| module | what it holds |
|---|---|
| `pretrained` | a checkpoint read, and written |
| `hub` | where a checkpoint lies |
| `descriptions` | config.json to a `bert.Config`, and back |
| `families` | how BERT, DistilBERT and others name things |
| `modernbert` | how ModernBERT does |
| `weights` | files of weights as named arrays |
| `named_arrays` | which arrays of a checkpoint make the model |
| `layout` | the same arrays as we and as PyTorch lay them out |
| `vocabulary` | the tokenizer of a folder, and its mask |
| `resizing` | another vocabulary for a pretrained model |
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
