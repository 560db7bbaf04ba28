"""How likely a model finds text, and the baselines to hold that against.

| module | what it holds |
|---|---|
| `likelihoods` | the NELBO of a split with its two errors, or a causal model's exact likelihood |
| `rate_curves` | cross-entropy, accuracy and calibration of masked tokens, by mask rate |
| `continuations` | likelihoods of continuations given their prompts, for questions with choices |
| `ngrams` | n-gram models of the training text, scored on the same tokens |
| `text_sizes` | words and characters of rows: units that do not depend on the tokenizer |
"""

from mdlm_jax import lazy

__getattr__, __dir__ = lazy.modules(__name__, __path__)
