"""State, step, loop and checkpoints; knows no model.

A model comes as `loss_fn(params, key, batch) -> (loss, aux)`, data as an object whose
`iterate(start_step)` yields dicts of numpy arrays.
"""
