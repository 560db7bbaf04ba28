"""State, step, loop and checkpoints; knows no model.

A model comes as `loss_fn(params, key, batch) -> (loss, aux)`, data as an object whose
`iterate(start_step)` yields dicts of numpy arrays.
"""

from mdlm_jax import lazy

__getattr__, __dir__ = lazy.modules(__name__, __path__)
