"""From documents to tokens, and back.

| module | what it holds |
|---|---|
| `tokenization` | text to ids and back, with any tokenizer that has a mask and a separator |
| `training` | tokenizers trained on a corpus |
| `loading` | tokenizers that were made elsewhere |
| `encoding` | documents to ids in a file on disk |
| `unknowns` | how much of a text a tokenizer does not know |
"""

from mdlm_jax import lazy

__getattr__, __dir__ = lazy.modules(__name__, __path__)
