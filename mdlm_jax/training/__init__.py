"""State, step, loop and checkpoints; knows no model.

A model comes as `loss_fn(params, key, batch) -> (loss, aux)`, data as an object whose
`iterate(start_step)` yields dicts of numpy arrays.

| module | what it holds |
|---|---|
| `state` | what a run carries from step to step |
| `step` | one step: gradients, an update, a moving average |
| `optimizer` | how gradients become updates |
| `loop` | the training loop |
| `best` | the best evaluation of a run so far, and when it no longer improves |
| `checkpoints` | checkpoints; the one file that imports Orbax |
| `metrics` | `metrics.jsonl`, and what reads it |
| `weights_and_biases` | the same records to Weights & Biases |
| `report` | records, lines and a progress bar while a run trains |
| `watchdog` | ends a process that gets nowhere any more |
"""

from mdlm_jax import lazy

__getattr__, __dir__ = lazy.modules(__name__, __path__)
