"""How fast attention is, by backend and length of the rows.

    python -m benchmarks.attention [--lengths 512 1024 2048 4096] [--backends xla cudnn]

Prints one JSON line a backend, length and pass (`forward`, or `both` with the gradient by queries,
keys and values), every position seeing every other, in bfloat16. The rows are so many that a batch
holds `--tokens` tokens. docs/performance.md explains the fields.
"""

import sys
from functools import partial

import jax
import jax.numpy as jnp

from benchmarks import measure, shapes
from mdlm_jax.networks.attention import BACKENDS, attention

Array = jax.Array

_CALLS = 10  # of a repetition


def main(arguments: list[str] | None = None) -> int:
    """Prints the lines; returns the exit code."""
    flags = shapes.parser(__doc__)
    add, backends = (
        flags.add_argument,
        list(dict.fromkeys(("xla", shapes.best_backend("bfloat16")))),
    )
    add("--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096], help="Of a row.")
    add("--backends", nargs="+", choices=BACKENDS, default=backends, help="Default: %(default)s.")
    add("--tokens", type=int, default=32_768, help="Of a batch. Default: %(default)s.")
    add("--heads", type=int, default=12, help="Default: %(default)s.")
    add("--head_dim", type=int, default=64, help="Default: %(default)s.")
    args = flags.parse_args(arguments)
    for name in ("lengths", "tokens", "heads", "head_dim"):
        value = getattr(args, name)
        least = min(value) if isinstance(value, list) else value
        if least < 1:
            flags.error(f"--{name}={least}: must be at least 1")
    if args.tokens < max(args.lengths):
        flags.error(f"--tokens={args.tokens}: must hold a row of {max(args.lengths)}")
    ceiling = measure.matrix_ceiling()
    for length in args.lengths:
        size = (args.tokens // length, length, args.heads, args.head_dim)
        keys = jax.random.split(jax.random.key(0), 4)
        arrays = [jax.random.normal(key, size, jnp.bfloat16) for key in keys]
        for backend in args.backends:
            for part, program in _PROGRAMS.items():
                step, seconds = measure.compiled(jax.jit(partial(program, backend)), *arrays)
                measure.tell(
                    "attention",
                    measure.repeated(partial(step, *arrays), calls=_CALLS),
                    backend=backend,
                    part=part,
                    rows=size[0],
                    length=length,
                    heads=args.heads,
                    head_dim=args.head_dim,
                    peak_bytes=measure.planned_bytes(step),
                    compile_seconds=seconds,
                    flops=counted(*size, passes=_PASSES[part]),
                    ceiling=ceiling,
                )
    return 0


def counted(rows: int, length: int, heads: int, head_dim: int, *, passes: int) -> float:
    """Matrix operations: the two products of the forward pass, four more of the backward pass.

    What a kernel recomputes in the backward pass is not counted.
    """
    return passes * 4.0 * rows * length**2 * heads * head_dim


def _forward(backend: str, slope: Array, q: Array, k: Array, v: Array) -> Array:
    del slope
    return attention(q, k, v, backend=backend)


def _both(backend: str, slope: Array, q: Array, k: Array, v: Array) -> tuple[Array, ...]:
    out, pull = jax.vjp(partial(attention, backend=backend), q, k, v)
    return out, *pull(slope)


_PROGRAMS = {"forward": _forward, "both": _both}
_PASSES = {"forward": 1, "both": 3}


if __name__ == "__main__":
    sys.exit(main())
