"""The machine: devices, processes, signals, memory, files, the command line.

| module | what it holds |
|---|---|
| `parallel` | the device mesh, and the table that places arrays on it |
| `distributed` | several processes as one job |
| `compilation` | compiled programs kept on disk |
| `command_line` | what the commands share: config flags, exit codes, one line for bad input |
| `nearest` | what somebody meant who wrote another name |
| `endings` | how a command prints and ends |
| `interrupts` | Ctrl-C where nobody can take it |
| `host_memory` | the memory of the host |
| `paths` | files and folders as users name them, in buckets too |
"""

from mdlm_jax import lazy

__getattr__, __dir__ = lazy.modules(__name__, __path__)
