"""Rows on the device: what is compiled for them, and what it is given.

| module | what it holds |
|---|---|
| `programs` | the compiled programs of one kind of rows |
| `kinds` | what a compiled program depends on |
| `whole_rows` | rows of models that see the whole row |
| `block_rows` | rows of models of blocks, with their cache |
| `row_options` | what shapes each row, beside its state |
| `given` | what the host tells the device of each slot |
"""

from mdlm_jax import lazy

__getattr__, __dir__ = lazy.modules(__name__, __path__)
