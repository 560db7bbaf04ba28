"""Flax networks, each offered as `params -> Denoiser`.

| module | what it holds |
|---|---|
| `config` | what an encoder is: sizes, and the choices that tell one transformer from another |
| `bert` | BERT and its modern variants as functions of parameters |
| `parameters` | the parameters of BERT as a tree: fresh ones, names of axes, parts |
| `in_blocks` | BERT block by block: two streams at once, or one block after a cache |
| `with_cache` | BERT with a cache of keys and values that may be some steps old |
| `token_by_token` | a causal BERT as blocks of one token, with a cache |
| `causal_cache` | a causal BERT that writes rows with a cache, for any strategy |
| `pieces` | a given text, committed to a cache in pieces of many tokens |
| `arguments` | checks of what a network is given |
| `encoder` | a block, and the stack of blocks |
| `layers` | dense layers, norms, embeddings, attention, MLP, head |
| `attention` | who attends to whom, rotary positions, and the kernels |
"""

from mdlm_jax import lazy

__getattr__, __dir__ = lazy.modules(__name__, __path__)
