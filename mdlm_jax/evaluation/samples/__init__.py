"""What text that a model wrote is worth, beside real text.

| module | what it holds |
|---|---|
| `frontier` | all of the figures below of some rows, as a point of quality against cost |
| `text_metrics` | entropy, distinct n-grams and repetition, from the tokens alone |
| `memorisation` | the longest run of each row that stands in the training text |
| `scorers` | the likelihood of the text under another model: a trigram, or one of Hugging Face |
| `features` | rows of text as vectors, by an encoder of ours; for the two below |
| `mauve` | how alike two sets of texts are as distributions |
| `bertscore` | how alike two texts are, token by token |
| `answers` | answers beside the responses that were wanted |
| `paired` | paired differences of two models, with bootstrap intervals |
| `naive_bayes` | which class a row belongs to, for models that write text of a class |
"""

from mdlm_jax import lazy

__getattr__, __dir__ = lazy.modules(__name__, __path__)
