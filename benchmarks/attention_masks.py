"""What padding and windows cost in attention, and what they save.

    python -m benchmarks.attention_masks [--shapes 8x8192 32x512] [--window 64]

Times attention with its gradient by queries, keys and values, in bfloat16, of batches of so many
rows of so many tokens: as the library computes padding and windows, and as one mask of every query
and key. Row i of B has the share (i + 1) / B of its positions filled, the others are padding.
Prints a JSON line each, and last a table. docs/performance.md explains the fields.

Of cuDNN's own sliding window only half can be had, the keys before a query: twice its time is the
least that a window of both sides would take by it.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import measure, shapes
from mdlm_jax.networks.attention import BACKENDS, Mask, attention, attention_mask, cudnn

Array = jax.Array

_CALLS = 10  # of a repetition


class Case(NamedTuple):
    """A way to compute attention.

    Attributes:
      name: of it.
      program: `(lengths i32[B], q, k, v [B, L, H, d]) -> [B, L, H, d]`.
      padded: whether it leaves padding out.
    """

    name: str
    program: Callable[[Array, Array, Array, Array], Array]
    padded: bool = False


def main(arguments: list[str] | None = None) -> int:
    """Prints the lines and the table; returns the exit code."""
    flags = shapes.parser(__doc__)
    add = flags.add_argument
    best = shapes.best_backend("bfloat16")
    default = [(8, 8192), (32, 512)]
    add("--shapes", type=_shape, nargs="+", default=default, help="Default: 8x8192 32x512.")
    add("--window", type=int, default=64, help="To either side. Default: %(default)s.")
    add("--backend", choices=BACKENDS, default=best, help="Default: %(default)s.")
    add("--heads", type=int, default=12, help="Default: %(default)s.")
    add("--head_dim", type=int, default=64, help="Default: %(default)s.")
    args = flags.parse_args(arguments)
    for name in ("window", "heads", "head_dim"):
        if getattr(args, name) < 1:
            flags.error(f"--{name}={getattr(args, name)}: must be at least 1")
    table: dict[str, list[float]] = {}
    for rows, length in args.shapes:
        size = (rows, length, args.heads, args.head_dim)
        q, k, v, slope = (
            jax.random.normal(key, size, jnp.bfloat16)
            for key in jax.random.split(jax.random.key(0), 4)
        )
        lengths = (jnp.arange(1, rows + 1) * length // rows).astype(jnp.int32)
        for case in cases(args.backend, args.window):
            # At padding there is nothing to learn from.
            real = jnp.arange(length) < lengths[:, None]
            pulled = slope * real[..., None, None] if case.padded else slope
            step, seconds = measure.compiled(
                jax.jit(partial(_both, case.program)), lengths, pulled, q, k, v
            )
            line = measure.tell(
                "attention_masks",
                measure.repeated(partial(step, lengths, pulled, q, k, v), calls=_CALLS),
                case=case.name,
                backend=args.backend,
                rows=rows,
                length=length,
                window=args.window,
                heads=args.heads,
                head_dim=args.head_dim,
                peak_bytes=measure.planned_bytes(step),
                compile_seconds=seconds,
            )
            table.setdefault(case.name, []).append(line["ms"])
    print(_table(table, [f"{rows} x {length}" for rows, length in args.shapes]))
    return 0


def cases(backend: str, window: int) -> Iterator[Case]:
    """What is timed."""

    def seen(kind: str, *, padded: bool = False, by_length: bool = False):
        def program(lengths: Array, q: Array, k: Array, v: Array) -> Array:
            real = jnp.arange(q.shape[1]) < lengths[:, None]
            valid = (lengths if by_length else real) if padded else None
            mask = Mask(kind, window if kind == "local" else 0, valid)
            return attention(q, k, v, mask, backend=backend)

        return program

    def dense_window(lengths: Array, q: Array, k: Array, v: Array) -> Array:
        del lengths
        mask = attention_mask("local", q.shape[1], window=window)
        if backend == "cudnn":
            return cudnn.cudnn_attention(q, k, v, dense=mask)
        return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="xla")

    def lifted(lengths: Array, q: Array, k: Array, v: Array, *, everywhere: bool) -> Array:
        # Of a value that the compiler cannot know.
        condition = (lengths[0] > 0) == everywhere
        mask = Mask("local", window)
        return attention(q, k, v, mask, backend=backend, everywhere=condition)

    def left_window(lengths: Array, q: Array, k: Array, v: Array) -> Array:
        del lengths
        return jax.nn.dot_product_attention(
            q, k, v, is_causal=True, local_window_size=(window, 0), implementation="cudnn"
        )

    yield Case("full rows", seen("full"))
    yield Case("padding, as a mask", seen("full", padded=True), padded=True)
    yield Case("padding, by lengths", seen("full", padded=True, by_length=True), padded=True)
    yield Case("a window, as a mask", dense_window)
    yield Case("a window", seen("local"))
    yield Case("a window, padding by lengths", seen("local", padded=True, by_length=True), True)
    if backend != "splash":
        yield Case("a window by a traced condition", partial(lifted, everywhere=False))
        yield Case("that window lifted", partial(lifted, everywhere=True))
    if backend == "cudnn":
        yield Case("cuDNN's own window, to the left alone", left_window)


def _both(
    program: Callable, lengths: Array, slope: Array, q: Array, k: Array, v: Array
) -> tuple[Array, ...]:
    out, pull = jax.vjp(partial(program, lengths), q, k, v)
    return out, *pull(slope)


def _shape(text: str) -> tuple[int, int]:
    rows, _, length = text.partition("x")
    if not (rows.isdecimal() and length.isdecimal() and int(rows) and int(length)):
        raise argparse.ArgumentTypeError(f"{text!r}: must be rows x length, such as 8x8192")
    return int(rows), int(length)


def _table(columns: dict[str, list[float]], heads: list[str]) -> str:
    lines = [["ms", *heads], ["---"] * (1 + len(heads))]
    lines += [[name, *(f"{ms:.2f}" for ms in found)] for name, found in columns.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
