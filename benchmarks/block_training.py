"""The training step of blocks beside full diffusion and a causal model, in one run.

    python -m benchmarks.block_training [--shape=owt] [--block_size=16] [--steps=20] ...

Prints a JSON line for each step that is timed, as `benchmarks.train_step` does: full diffusion,
blocks, the causal model, and full diffusion once more, because a GPU's clock changes under load.
`times_full` is the step's time in those of full diffusion (the mean of both), and `flops_of_full`
what the operations alone say. docs/performance.md explains the other fields.
"""

import argparse
import dataclasses
import sys
from typing import Any

from benchmarks import building, measure, shapes
from benchmarks.train_step import timed
from mdlm_jax.host import host_memory
from mdlm_jax.runs.experiment import ObjectiveConfig


def main(arguments: list[str] | None = None) -> int:
    """Prints the lines; returns the exit code."""
    flags = shapes.parser(__doc__)
    shapes.add_flags(flags)
    flags.add_argument("--block_size", type=int, default=16, help="Default: %(default)s.")
    flags.add_argument("--steps", type=int, default=20, help="Of a repetition. Default: 20.")
    args = flags.parse_args(arguments)
    shape = shapes.chosen(flags, args)
    if args.steps < 2:
        flags.error(f"--steps={args.steps}: must be at least 2")
    if args.block_size < 1 or shape.length % args.block_size:
        flags.error(f"--block_size={args.block_size}: must divide the length of {shape.length}")
    host_memory.keep_freed()  # as `train` does
    ceiling = measure.matrix_ceiling()
    causal = dataclasses.replace(shape.encoder, attention="causal")
    full = _timed(args, shape, "full", building.FULL)
    steps = [
        full,
        _timed(args, shape, "block", ObjectiveConfig(name="block", block_size=args.block_size)),
        _timed(args, shape._replace(encoder=causal), "causal", ObjectiveConfig("autoregressive")),
        _timed(args, shape, "full again", building.FULL),
    ]
    full_ms = (steps[0]["times"].median + steps[-1]["times"].median) / 2
    for step in steps:
        measure.tell(
            "block_training",
            step.pop("times"),
            shape=args.shape,
            **measure.shown(shape),
            block_size=args.block_size if step["objective"] == "block" else None,
            tokens_per_second=shape.rows * shape.length / step["ms_of_step"] * 1e3,
            times_full=step.pop("ms_of_step") / full_ms,
            flops_of_full=step["flops"] / full["flops"],
            ceiling=ceiling,
            **step,
        )
    return 0


def _timed(
    args: argparse.Namespace, shape: shapes.Shape, name: str, objective: ObjectiveConfig
) -> dict[str, Any]:
    """A step that was compiled and timed. Its state is gone when this returns."""
    built, batches = building.build_step(shape, objective), building.batches(shape)
    step, seconds = measure.compiled(built.step, built.state, batches[0])
    times, loss = timed(step, built.state, batches, steps=args.steps)
    return {
        "objective": name,
        "times": times,
        "ms_of_step": times.median,
        "peak_bytes": measure.planned_bytes(step),
        "compile_seconds": seconds,
        "loss": loss,
        "flops": built.flops,
    }


if __name__ == "__main__":
    sys.exit(main())
