"""Text in and out of a sampler.

| module | what it holds |
|---|---|
| `model` | a trained model in a Python program: text in, text and figures out |
| `prompts` | text with gaps, or to be answered, from flags and files |
| `canvases` | prompts as the rows that a sampler fills |
| `wanted` | prompts with the texts that are wanted of them |
| `requests` | from what is asked for to rows, labels and a method, checked |
| `decoding` | strategies by name: `threshold(0.9)` |
| `filling` | canvases filled batch by batch, on any mesh |
| `answering` | likelihoods and continuations of text, for the harness |
| `sample_files` | samples as records, pages and JSON lines |
"""

from mdlm_jax import lazy

__getattr__, __dir__ = lazy.modules(__name__, __path__)
