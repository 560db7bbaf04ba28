"""What a program costs, without the chips.

| module | what it holds |
|---|---|
| `aot` | the programs of an experiment, compiled ahead of time for TPUs |
| `topologies` | TPU slices, and their devices with none at hand |
| `hlo_report` | what a compiled program sends over the network |
| `flops` | floating-point operations, counted from the shapes |
"""

from mdlm_jax import lazy

__getattr__, __dir__ = lazy.modules(__name__, __path__)
