"""Copies the weights of a run, without what only training needs, into a folder of their own.

    python -m mdlm_jax.export --workdir=runs/quickstart --output=models/quickstart

The folder is a quarter of a checkpoint's size and holds the tokenizer and the config too: generate
and evaluate take it as their --workdir. Either folder may be in a bucket (gs://). Weights too large
for one accelerator are copied in the machine's memory: JAX_PLATFORMS=cpu before the command.
"""

from absl import flags
from etils import epath

from mdlm_jax.host import command_line
from mdlm_jax.runs import workdir

_WORKDIR = command_line.define_path("workdir", None, "Folder of the run.")
_OUTPUT = command_line.define_path("output", None, "Folder to write: empty, or made.")
_WEIGHTS = flags.DEFINE_enum("weights", "ema", ["ema", "params"], "Averaged or raw weights.")
_STEP = command_line.define_step()
command_line.require("workdir", "output")


def main() -> int:
    """Writes the folder; returns the exit code."""
    with command_line.bad_input():
        output = epath.Path(_OUTPUT.value)
        trained = workdir.export(
            epath.Path(_WORKDIR.value), output, weights=_WEIGHTS.value, step=_STEP.value
        )
    print(f"written: {output}, the {_WEIGHTS.value} weights of step {trained.step}")
    return 0


if __name__ == "__main__":
    command_line.run(main)
