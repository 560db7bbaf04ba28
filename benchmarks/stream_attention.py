"""Attention of the two streams of blocks: by kernels of its own, and by groups of blocks.

    python -m benchmarks.stream_attention [--rows 32] [--length 1024] [--block_size 16] ...

Prints JSON lines, on a GPU in less than 90 seconds:

- `stream_attention`: the time of a `way`, forward (`part`) or with the gradient by queries, keys
  and values (`both`). `kernels` are cut as by default, `best kernels` as was fastest here, `groups`
  are what `xla` or `cudnn` compute, and `full` is attention of everything to everything in one
  stream, which has as many pairs of query and key: `length^2`.
- `stream_differences`: the largest differences of outputs and gradients from float32, of kernels
  and of groups, for the layout and for others that tiles do not divide.
- `stream_kernel`: the time of one kernel by its tiles, as many as there is time for.

All is in bfloat16. docs/performance.md explains the other fields. Elsewhere than on GPUs kernels
are interpreted, which takes very long.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import measure, shapes
from benchmarks.attention import counted
from mdlm_jax.networks.attention import attention, triton_streams
from mdlm_jax.networks.attention.layout import Streams
from mdlm_jax.networks.attention.streams import by_groups
from mdlm_jax.networks.attention.triton_streams import Tile, Tiling, attention_of_streams

Array = jax.Array

_CALLS = 10  # of a repetition
_TILES = {
    "forward": [
        *(Tile(128, 64, 8, 3), Tile(128, 64, 4, 3), Tile(64, 64, 4, 3), Tile(64, 64, 4, 2)),
        *(Tile(128, 128, 8, 3), Tile(128, 64, 8, 2)),
    ],
    "of_queries": [
        *(Tile(64, 64, 4, 3), Tile(64, 64, 4, 2), Tile(128, 64, 8, 3), Tile(128, 64, 4, 3)),
        *(Tile(128, 32, 4, 3),),
    ],
    "of_keys": [
        *(Tile(64, 64, 4, 3), Tile(64, 64, 4, 2), Tile(32, 64, 4, 3), Tile(32, 64, 4, 2)),
        *(Tile(32, 128, 8, 3), Tile(64, 128, 8, 3)),
    ],
}


def main(arguments: list[str] | None = None) -> int:
    """Prints the lines; returns the exit code."""
    begun = time.perf_counter()
    flags = shapes.parser(__doc__)
    add = flags.add_argument
    add("--rows", type=int, default=32, help="Of a batch. Default: %(default)s.")
    add("--length", type=int, default=1024, help="Of a text. Default: %(default)s.")
    add("--block_size", type=int, default=16, help="Divides the length. Default: %(default)s.")
    add("--heads", type=int, default=12, help="Default: %(default)s.")
    add("--head_dim", type=int, default=64, help="Default: %(default)s.")
    add("--seconds", type=int, default=70, help="When no more tiles are tried. Default: 70.")
    args = flags.parse_args(arguments)
    for name in ("rows", "length", "block_size", "heads", "head_dim"):
        if getattr(args, name) < 1:
            flags.error(f"--{name}={getattr(args, name)}: must be at least 1")
    if args.length % args.block_size:
        flags.error(f"--block_size={args.block_size}: must divide the length of {args.length}")
    shape = jax.ShapeDtypeStruct((1, args.length, args.heads, args.head_dim), jnp.bfloat16)
    if why := triton_streams.refused(shape):
        flags.error(f"--head_dim={args.head_dim}: the kernels do not take {why}")

    streams = Streams(args.length, args.block_size)
    size = (args.rows, streams.both, args.heads, args.head_dim)
    inputs, ceiling = _random(size), measure.matrix_ceiling()
    grouped = partial(by_groups, streams=streams, backend=_backend())
    full, whole = partial(attention, backend=_backend()), [x[:, : args.length] for x in inputs]
    _time("kernels", _by_kernels(streams), inputs, streams, ceiling)
    _time("groups", grouped, inputs, streams, ceiling)
    _time("full", full, whole, streams, ceiling)
    _compare(streams, (min(args.rows, 2), *size[1:]))
    default = triton_streams.tiling(args.head_dim)
    best = _best_tiles(inputs, streams, default, until=begun + args.seconds)
    by_best = _by_kernels(streams, tiles=best)
    _time("best kernels", by_best, inputs, streams, ceiling, tiles=best._asdict())
    return 0


def _random(size: tuple[int, ...]) -> list[Array]:
    """Queries, keys, values, and the slope of the output."""
    keys = jax.random.split(jax.random.key(0), 4)
    return [jax.random.normal(key, size, jnp.bfloat16) for key in keys]


def _interpreted() -> bool:
    return jax.default_backend() != "gpu"


def _backend() -> str:
    return {"gpu": "cudnn"}.get(jax.default_backend(), "xla")


def _by_kernels(
    streams: Streams, valid: Array | None = None, tiles: Tiling | None = None
) -> Callable:
    how = {"tiles": tiles, "interpret": _interpreted()}
    return partial(attention_of_streams, streams=streams, valid=valid, **how)


def _time(
    way: str,
    attend: Callable,
    inputs: list[Array],
    streams: Streams,
    ceiling: measure.Ceiling,
    **told: Any,
) -> None:
    rows, _, heads, head_dim = inputs[0].shape
    for part, passes in (("forward", 1), ("both", 3)):
        given = inputs if part == "both" else inputs[:3]
        program = partial(_both, attend) if part == "both" else attend
        step, seconds = measure.compiled(jax.jit(program), *given)
        measure.tell(
            "stream_attention",
            measure.repeated(partial(step, *given), calls=_CALLS),
            way=way,
            part=part,
            **_told(streams, rows),
            **told,
            heads=heads,
            head_dim=head_dim,
            peak_bytes=measure.planned_bytes(step),
            compile_seconds=seconds,
            flops=counted(rows, streams.length, heads, head_dim, passes=passes),
            ceiling=ceiling,
        )


def _both(attend: Callable, q: Array, k: Array, v: Array, slope: Array) -> tuple[Array, ...]:
    out, pull = jax.vjp(attend, q, k, v)
    return out, *pull(slope)


def _told(streams: Streams, rows: int) -> dict[str, Any]:
    return {"rows": rows, **streams._asdict()}


def _compare(streams: Streams, size: tuple[int, ...]) -> None:
    """Tells the largest differences from one softmax in float32."""
    for layout, padded in _layouts(streams):
        inputs = _random((size[0], layout.both, *size[2:]))
        valid = None
        if padded:  # a little of the first row, a quarter more of each other one
            places = jnp.arange(layout.length)
            lengths = layout.length - 1 - jnp.arange(size[0]) * layout.length // 4
            valid = places[None] < lengths[:, None]
        exact = partial(by_groups, streams=layout, valid=valid, backend="xla", groups=1)
        with jax.default_matmul_precision("highest"):
            wanted = jax.jit(partial(_both, exact))(*(x.astype(jnp.float32) for x in inputs))
        line = {"figure": "stream_differences", **_told(layout, size[0]), "padded": padded}
        grouped = partial(by_groups, streams=layout, valid=valid, backend=_backend())
        for way, attend in (("kernels", _by_kernels(layout, valid)), ("groups", grouped)):
            found = jax.jit(partial(_both, attend))(*inputs)
            for name, got, want in zip(("out", "q", "k", "v"), found, wanted, strict=True):
                difference = jnp.abs(got.astype(jnp.float32) - want).max()
                line[f"{way}_{name}"] = float(f"{float(difference):.3g}")
        print(json.dumps(line), flush=True)


def _layouts(streams: Streams) -> Iterator[tuple[Streams, bool]]:
    """The layout; with padding; and one of blocks and a length that no tile divides."""
    yield streams, False
    yield streams, True
    size = 3
    count = max(streams.length // size - 1, 2)
    yield Streams(count * size, size, window=count // 2 * size), True


def _best_tiles(inputs: list[Array], streams: Streams, default: Tiling, *, until: float) -> Tiling:
    """Times each kernel by its tiles, and returns those that were fastest."""
    given = dict(zip(("q", "k", "v", "slope"), inputs, strict=True))
    best = {}
    for name in Tiling._fields:
        kernel, times, written = getattr(triton_streams, name), {}, {}
        for tile in dict.fromkeys((getattr(default, name), *_TILES[name])):
            if times and time.perf_counter() > until:
                break
            how = {"streams": streams, "tile": tile, "interpret": _interpreted()}
            told = {"kernel": name, **tile._asdict(), **_told(streams, inputs[0].shape[0])}
            try:
                step, seconds = measure.compiled(jax.jit(partial(kernel, **how)), given)
            except jax.errors.JaxRuntimeError as error:  # too large for this GPU
                if not times:
                    raise
                print(json.dumps({"figure": "stream_kernel", **told, "error": str(error)[:200]}))
                continue
            found = measure.repeated(partial(step, given), calls=_CALLS)
            times[tile], written = found.median, step(given)
            measure.tell("stream_kernel", found, **told, compile_seconds=seconds)
        best[name] = min(times, key=times.__getitem__)
        given |= written
    return Tiling(**best)


if __name__ == "__main__":
    sys.exit(main())
