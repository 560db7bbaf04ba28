"""What a training step's memory buys: remat, scanned layers, logits held at a time.

    python -m benchmarks.memory [--shape=owt] [--logits 268435456 1073741824]

Prints one JSON line for every choice of the three: the bytes that XLA plans at the peak, and the
time of a step; `ms` is absent where the plan does not fit the device. docs/performance.md explains
the fields.
"""

import itertools
import json
import sys

import jax

from benchmarks import building, measure, shapes, train_step
from mdlm_jax.host import host_memory

REMATS = ("none", "dots", "full")


def main(arguments: list[str] | None = None) -> int:
    """Prints the lines; returns the exit code."""
    flags = shapes.parser(__doc__)
    shapes.add_flags(flags)
    flags.add_argument("--remats", nargs="+", choices=REMATS, default=REMATS, help="All of them.")
    flags.add_argument("--scans", nargs="+", choices=("no", "yes"), default=("no", "yes"))
    flags.add_argument("--logits", nargs="+", type=int, default=[2**28], help="Held at a time.")
    flags.add_argument("--steps", type=int, default=5, help="Of a repetition. Default: 5.")
    args = flags.parse_args(arguments)
    for name in ("remat", "scan"):
        if getattr(args, name) is not None:
            flags.error(f"--{name}: this command goes through all, take --{name}s")
    host_memory.keep_freed()  # as `train` does
    for remat, scan, logits in itertools.product(args.remats, args.scans, args.logits):
        args.remat, args.scan = remat, scan == "yes"
        shape = shapes.chosen(flags, args)
        built = building.build_step(shape)
        batches = building.batches(shape)
        with building.logits_at_a_time(logits):
            step, seconds = measure.compiled(built.step, built.state, batches[0])
        fields = {
            "shape": args.shape,
            **measure.shown(shape),
            "logits_at_a_time": logits,
            "peak_bytes": measure.planned_bytes(step),
            "compile_seconds": seconds,
        }
        if fields["peak_bytes"] > _capacity():
            print(json.dumps({"figure": "memory", **fields, "fits": False}), flush=True)
            continue
        times, _ = train_step.timed(step, built.state, batches, steps=args.steps)
        measure.tell("memory", times, fits=True, flops=built.flops, **fields)
    return 0


def _capacity() -> float:
    """Bytes that JAX may hold on the device; on CPUs it does not tell."""
    return (jax.devices()[0].memory_stats() or {}).get("bytes_limit", float("inf"))


if __name__ == "__main__":
    sys.exit(main())
