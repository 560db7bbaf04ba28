"""How fast the training step is, beside a plain one, and whether the fast paths are right.

    python -m benchmarks.train_step [--shape=owt] [--plain] [--check] [--attention_backend=xla] ...

Prints one JSON line a step that is timed: corruption, loss, gradient, clipping, AdamW and EMA, as
`train` takes it; with `--plain` also the step that `benchmarks.plain` writes out. Metrics are read
one step late, as in training. `--check` compares the fast paths with plain ones on this device
first, and ends with 1 where they differ. docs/performance.md explains the fields.
"""

import argparse
import itertools
import sys
from typing import Any

from benchmarks import building, checks, measure, plain, shapes
from mdlm_jax.host import host_memory


def main(arguments: list[str] | None = None) -> int:
    """Prints the lines; returns the exit code."""
    flags = shapes.parser(__doc__)
    shapes.add_flags(flags)
    flags.add_argument("--plain", action="store_true", help="Also time the plain step.")
    flags.add_argument("--check", action="store_true", help="First compare values and gradients.")
    flags.add_argument("--steps", type=int, default=20, help="Of a repetition. Default: 20.")
    flags.add_argument("--logits", type=int, help="Held at a time, instead of the library's.")
    args = flags.parse_args(arguments)
    shape = shapes.chosen(flags, args)
    if args.steps < 1:
        flags.error(f"--steps={args.steps}: must be at least 1")
    if args.check and not checks.run_all(shape.encoder.attention_backend):
        return 1
    host_memory.keep_freed()  # as `train` does
    ceiling = measure.matrix_ceiling()
    with building.logits_at_a_time(args.logits):
        _told(args, shape, "product", building.build_step(shape), ceiling)
    if args.plain:
        _told(args, shape, "plain", plain.build_plain_step(shape), ceiling)
    return 0


def _told(
    args: argparse.Namespace,
    shape: shapes.Shape,
    variant: str,
    built: building.Step,
    ceiling: measure.Ceiling,
) -> None:
    batches = building.batches(shape)
    step, seconds = measure.compiled(built.step, built.state, batches[0])
    times, loss = timed(step, built.state, batches, steps=args.steps)
    measure.tell(
        "train_step",
        times,
        framework="jax",
        variant=variant,
        shape=args.shape,
        **measure.shown(shape),
        tokens_per_second=shape.rows * shape.length / times.median * 1e3,
        peak_bytes=measure.planned_bytes(step),
        compile_seconds=seconds,
        loss=loss,
        flops=built.flops,
        ceiling=ceiling,
    )


def timed(step: Any, state: Any, batches: list, *, steps: int) -> tuple[measure.Times, float]:
    """The times of a compiled step, and the last loss; the state is donated."""
    source = itertools.cycle(batches)
    late: dict[str, Any] | None = None

    def one_step() -> Any:
        nonlocal state, late
        state, metrics = step(state, next(source))
        if late is not None:
            float(late["loss"])  # of the step before: the device is not waited for
        late = metrics
        return state

    times = measure.repeated(one_step, calls=steps)
    return times, float(late["loss"])


if __name__ == "__main__":
    sys.exit(main())
