"""The rows of many requests, written together.

| module | what it holds |
|---|---|
| `engine` | the engine: one thread that owns the device |
| `served` | a deployment, and the lanes that an engine makes of it |
| `lanes` | the slots of one kind of rows, and their rounds |
| `waiting` | jobs that wait for a slot |
| `checking` | jobs are checked before they wait |
| `asides` | little work beside the rows, at low priority |
| `stats` | what an engine tells of itself |
| `compilations` | counts what is compiled where nothing should be |
"""

from mdlm_jax import lazy

__getattr__, __dir__ = lazy.modules(__name__, __path__)
