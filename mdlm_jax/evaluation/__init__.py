"""Figures of text and of likelihoods, as numbers and arrays: no plots, no pages.

| module | what it holds |
|---|---|
| `bounds` | likelihoods, their curve over mask rates, and what n-grams reach |
| `samples` | what written text is worth: diversity, overlap, MAUVE, BERTScore, other models |
| `spreading` | a function of a batch, applied to all rows on the devices of any mesh |
"""

from mdlm_jax import lazy

__getattr__, __dir__ = lazy.modules(__name__, __path__)
