"""How fast text is drawn: a sampler's evaluation beside a bare pass through the encoder.

    python -m benchmarks.sample [--shape=owt] [--batches 32 256] [--steps=64] [--strategies ...]

Prints, for each number of rows, a JSON line of the encoder's forward pass alone and one of each
strategy's whole run from nothing but masks. Of a run, `ms` is that of the whole; `evaluations`
says how often the network was asked, `ms_an_evaluation` is the quotient, and `times_forward` how
many bare passes that is. docs/performance.md explains the fields.
"""

import itertools
import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure, shapes
from mdlm_jax.diffusion import sample, schedules
from mdlm_jax.diffusion.sampling import Trace
from mdlm_jax.host import host_memory
from mdlm_jax.networks import bert
from mdlm_jax.pods import flops
from mdlm_jax.writing import decoding

Array = jax.Array
PyTree = Any

STRATEGIES = ("exact_count", "ancestral", "confidence(margin)")
# Those that read out each mask once, when it is written.
_READ_ONCE = ("exact_count", "first_hitting", "ancestral")
# Those that read out each mask in every step until it is written.
_READ_UNTIL_WRITTEN = ("confidence", "greedy", "threshold", "factor", "entropy_bounded")


def main(arguments: list[str] | None = None) -> int:
    """Prints the lines; returns the exit code."""
    flags = shapes.parser(__doc__)
    shapes.add_flags(flags)
    add = flags.add_argument
    add("--batches", type=int, nargs="+", help="Numbers of rows, instead of the shape's.")
    add("--steps", type=int, default=64, help="Of a run. Default: %(default)s.")
    add("--strategies", nargs="+", default=STRATEGIES, help="As for generate.")
    add("--bf16_params", action="store_true", help="Weights in bfloat16, rounded once.")
    args = flags.parse_args(arguments)
    if args.steps < 1:
        flags.error(f"--steps={args.steps}: must be at least 1")
    chosen = []
    for rows in args.batches or [args.rows]:
        args.rows = rows
        chosen.append(shapes.chosen(flags, args))
    try:
        strategies = {spec: decoding.strategy(spec, schedules.linear()) for spec in args.strategies}
    except ValueError as error:
        flags.error(str(error))
    host_memory.keep_freed()  # as `generate` does
    ceiling = measure.matrix_ceiling()
    for shape in chosen:
        params = bert.init(jax.random.key(0), shape.encoder)
        if args.bf16_params:
            params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
        fields = {"shape": args.shape, **measure.shown(shape), "bf16_params": args.bf16_params}
        bare = _forward(params, shape, fields, args.steps, ceiling)
        for spec, strategy in strategies.items():
            _run(params, shape, {**fields, "strategy": spec}, strategy, args.steps, bare, ceiling)
    return 0


def _forward(
    params: PyTree, shape: shapes.Shape, fields: dict, passes: int, ceiling: measure.Ceiling
) -> measure.Times:
    """As many passes as a run has steps: under a load that lasts, a GPU lowers its clock."""
    encoder = shape.encoder
    canvas, t = _masks(shape), jnp.ones(shape.rows)

    @jax.jit
    def encode(params: PyTree, canvas: Array, t: Array) -> PyTree:
        return bert.hidden_states(params, encoder, canvas, t)

    program, seconds = measure.compiled(encode, params, canvas, t)
    times = measure.repeated(partial(program, params, canvas, t), calls=passes)
    measure.tell(
        "forward",
        times,
        **fields,
        tokens_per_second=canvas.size / times.median * 1e3,
        peak_bytes=measure.planned_bytes(program),
        compile_seconds=seconds,
        flops=flops.forward(encoder, shape.rows, shape.length),
        ceiling=ceiling,
    )
    return times


def _run(
    params: PyTree,
    shape: shapes.Shape,
    fields: dict,
    strategy: Any,
    steps: int,
    bare: measure.Times,
    ceiling: measure.Ceiling,
) -> None:
    encoder = shape.encoder
    canvas, asked_for = _masks(shape), jnp.int32(steps)

    @jax.jit
    def draw(params: PyTree, key: Array, canvas: Array, steps: Array) -> tuple[Array, Trace]:
        return sample(
            bert.denoiser(params, encoder),
            key,
            canvas,
            mask_id=encoder.mask_id,
            steps=steps,
            strategy=strategy,
            trace=True,
        )

    keys = itertools.cycle(jax.random.split(jax.random.key(0), measure.REPEATS + 1))
    program, seconds = measure.compiled(draw, params, next(keys), canvas, asked_for)
    times = measure.repeated(lambda: program(params, next(keys), canvas, asked_for), calls=1)
    _, trace = program(params, next(keys), canvas, asked_for)
    evaluations = asked(trace)
    measure.tell(
        "sample",
        times,
        **fields,
        steps=steps,
        evaluations=evaluations,
        ms_an_evaluation=times.median / evaluations,
        times_forward=times.median / evaluations / bare.median,
        tokens_per_second=canvas.size / times.median * 1e3,
        peak_bytes=measure.planned_bytes(program),
        compile_seconds=seconds,
        flops=counted(shape, trace, fields["strategy"].partition("(")[0]),
        ceiling=ceiling,
    )


def _masks(shape: shapes.Shape) -> Array:
    return jnp.full((shape.rows, shape.length), shape.encoder.mask_id)


def asked(trace: Trace) -> int:
    """In how many steps the network was asked: rows ask in different ones, each writes there."""
    return max(len(np.unique(trace.step)), int(trace.evaluations.max()))


def counted(shape: shapes.Shape, trace: Trace, strategy: str) -> float | None:
    """Matrix operations of a run that wrote `trace`, from nothing but masks.

    None for strategies that read out what they wrote, too.

    Args:
      shape: of the canvas.
      trace: of the run.
      strategy: its name, without arguments.
    """
    if strategy in _READ_ONCE:
        read_out = trace.step.size
    elif strategy in _READ_UNTIL_WRITTEN:
        _, order = np.unique(trace.step, return_inverse=True)
        read_out = int(np.sum(order + 1))
    else:
        return None
    encodings = flops.sampler(shape.encoder, shape.rows, shape.length, asked(trace))
    once = flops.sampler(shape.encoder, shape.rows, shape.length, steps=0)
    return encodings - once + flops.sampler(shape.encoder, 1, read_out, steps=0)


if __name__ == "__main__":
    sys.exit(main())
