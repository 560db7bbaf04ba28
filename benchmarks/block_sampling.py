"""How fast text is written in blocks with a cache, beside what else writes it, in one run.

    python -m benchmarks.block_sampling [--shape=owt] [--batches 1 8 32] [--tokens_a_step 1 2 4] ...

For each number of rows a JSON line of the causal model with its cache, a token at a time, by
`blocks.sample` (`causal`) and by `sample`, as `generate` has it (`causal_rows`), and one of the
latter without a cache (`causal_canvas`); and for each number of tokens a step one of
`blocks.sample` with its cache, and one of `sample` over the whole canvas, which computes everything
in every step. All write rows of nothing but masks.
`times_canvas` is how many times the tokens/s of the canvas that is, at the same tokens a step. A
whole canvas is timed once, because its runs are long.

    python -m benchmarks.block_sampling --context 1024 --rooms 1024 4096 16384

tells instead what a step costs that commits a block and encodes the next one (`advance`), by the
room of the cache: after the context, and, with a window as long as the context, at the end of a
text of the length of the room.

    python -m benchmarks.block_sampling --prompts 64 256 960

tells what a prompt of so many tokens and one token behind it cost, by the model of blocks and by
the causal one: `ahead` many blocks in one pass, as `blocks.sample` commits them, or one after the
other.
"""

import argparse
import dataclasses
import functools
import itertools
import sys
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import measure, shapes
from mdlm_jax.diffusion import blocks, causal_denoiser, sample, strategies
from mdlm_jax.host import host_memory
from mdlm_jax.networks import bert

Array = jax.Array
PyTree = Any
START = 0  # stands before the first token of the causal model


def main(arguments: list[str] | None = None) -> int:
    """Prints the lines; returns the exit code."""
    flags = shapes.parser(__doc__)
    shapes.add_flags(flags)
    add = flags.add_argument
    add("--batches", type=int, nargs="+", default=[1, 8, 32], help="Rows. Default: %(default)s.")
    add("--tokens_a_step", type=int, nargs="+", default=[1, 2, 4], help="Default: %(default)s.")
    add("--block_size", type=int, default=16, help="Default: %(default)s.")
    add("--no_canvas", action="store_true", help="Without the slow runs over whole canvases.")
    add("--context", type=int, help="Time single steps after so many tokens instead.")
    add("--rooms", type=int, nargs="+", help="Of the cache, with --context.")
    add("--prompts", type=int, nargs="+", help="Time prompts of so many tokens instead.")
    args = flags.parse_args(arguments)
    shape = shapes.chosen(flags, args)
    encoder = dataclasses.replace(shape.encoder, attention="full", window=0)  # as blocks need it
    shape = shape._replace(encoder=encoder)
    size = args.block_size
    if size < 1 or shape.length % size:
        flags.error(f"--block_size={size}: must divide the length of {shape.length}")
    if (args.context is None) != (args.rooms is None):
        flags.error("--context and --rooms: give both or neither")
    for each in args.tokens_a_step:
        if each < 1 or size % each:
            flags.error(f"--tokens_a_step={each}: must divide --block_size={size}")
    if args.rooms and (args.context < size or args.context % size):
        flags.error(f"--context={args.context}: must be a multiple of --block_size={size}")
    if args.rooms and min(args.rooms) < args.context:
        flags.error(f"--rooms={min(args.rooms)}: must be at least --context={args.context}")
    if args.prompts and args.context is not None:
        flags.error("--prompts and --context exclude each other")
    if args.prompts and not 0 < min(args.prompts) <= max(args.prompts) < shape.length:
        flags.error(f"--prompts: must be from 1 to {shape.length - 1}")
    host_memory.keep_freed()  # as `generate` does
    params = bert.init(jax.random.key(0), shape.encoder)
    for rows in args.batches:
        if args.context is not None:
            _contexts(args, params, shape._replace(rows=rows))
        elif args.prompts:
            _prompts(args, params, shape._replace(rows=rows))
        else:
            _writers(args, params, shape._replace(rows=rows))
    return 0


def _writers(args: argparse.Namespace, params: PyTree, shape: shapes.Shape) -> None:
    encoder, mask_id = shape.encoder, shape.encoder.mask_id
    length, size = shape.length, args.block_size
    causal = dataclasses.replace(encoder, attention="causal")

    def of_canvas(params: PyTree, key: Array, canvas: Array, steps: Array) -> Array:
        network = bert.denoiser(params, encoder)
        return sample(network, key, canvas, mask_id=mask_id, steps=steps)

    def in_blocks(params: PyTree, key: Array, canvas: Array, steps: Array) -> Array:
        network = bert.block_denoiser(params, encoder, size)
        return blocks.sample(network, key, canvas, mask_id=mask_id, steps=steps)

    def token_by_token(params: PyTree, key: Array, canvas: Array, steps: Array) -> Array:
        network = bert.causal_block_denoiser(params, causal, START)
        return blocks.sample(network, key, canvas, mask_id=mask_id, steps=steps)

    def of_causal_rows(params: PyTree, key: Array, canvas: Array, steps: Array) -> Array:
        network = bert.causal_cached_denoiser(params, causal, START)
        return from_the_left(network, key, canvas, steps)

    def of_causal_canvas(params: PyTree, key: Array, canvas: Array, steps: Array) -> Array:
        network = causal_denoiser(bert.denoiser(params, causal), start_id=START)
        return from_the_left(network, key, canvas, steps)

    def from_the_left(network: Any, key: Array, canvas: Array, steps: Array) -> Array:
        how = {"strategy": strategies.left_to_right(), "chunk": shape.rows}
        return sample(network, key, canvas, mask_id=mask_id, steps=steps, **how)

    # Of each writer: the function, its blocks, the repetitions. Whole canvases take long.
    writers = {
        "canvas": (of_canvas, length, 1),
        "block": (in_blocks, size, measure.REPEATS),
        "causal": (token_by_token, 1, measure.REPEATS),
        "causal_rows": (of_causal_rows, length, measure.REPEATS),
        "causal_canvas": (of_causal_canvas, length, 1),
    }
    canvas, key = jnp.full((shape.rows, length), mask_id), jax.random.key(0)
    of_canvases: dict[int, float] = {}
    for writer, (write, block, repeats) in writers.items():
        if writer.endswith("canvas") and args.no_canvas:
            continue
        program, seconds = measure.compiled(jax.jit(write), params, key, canvas, jnp.int32(1))
        for each in [1] if writer.startswith("causal") else args.tokens_a_step:
            steps = jnp.int32(block // each)
            call = functools.partial(program, params, key, canvas, steps)
            times = measure.repeated(call, calls=1, repeats=repeats)
            speed = canvas.size / times.median * 1e3
            if writer == "canvas":
                of_canvases[each] = speed
            measure.tell(
                "block_sampling",
                times,
                shape=args.shape,
                **measure.shown(shape),
                writer=writer,
                block_size=block,
                tokens_a_step=each,
                tokens_per_second=speed,
                ms_a_token=times.median / length,
                times_canvas=speed / of_canvases[each] if each in of_canvases else None,
                peak_bytes=measure.planned_bytes(program),
                compile_seconds=seconds,
            )


def _contexts(args: argparse.Namespace, params: PyTree, shape: shapes.Shape) -> None:
    """A step that commits a block and encodes the next, at one context and by room."""
    size, calls = args.block_size, 20
    block = jnp.ones((shape.rows, size), jnp.int32)
    ones = jnp.ones(shape.rows)
    for room, window in itertools.product(args.rooms, (None, args.context)):
        encoder = dataclasses.replace(shape.encoder, max_length=room)
        written = args.context if window is None else room
        lengths = jnp.full(shape.rows, written - size, jnp.int32)
        of_params = functools.partial(
            bert.block_denoiser, config=encoder, block_size=size, window=window
        )

        def advance(
            params: PyTree, cache: PyTree, of_params=of_params, lengths=lengths
        ) -> tuple[PyTree, Array]:
            # From the same context every time, though the cache is handed on.
            cache, hidden = of_params(params).advance(cache, block, block, ones)
            return cache._replace(length=lengths), hidden.at

        # What the places hold does not matter for the time, as long as it is finite.
        cache = of_params(params).start(shape.rows, room)._replace(length=lengths)
        program, seconds = measure.compiled(jax.jit(advance, donate_argnums=1), params, cache)
        held = [cache]
        del cache

        def step(program=program, held=held) -> Array:
            held[0], at = program(params, held[0])
            return at

        times = measure.repeated(step, calls=calls)
        measure.tell(
            "block_context",
            times,
            shape=args.shape,
            **measure.shown(shape),
            block_size=size,
            context=args.context,
            room=room,
            written=written,
            window=window,
            ms_a_token=times.median / size,
            peak_bytes=measure.planned_bytes(program),
            compile_seconds=seconds,
        )


def _prompts(args: argparse.Namespace, params: PyTree, shape: shapes.Shape) -> None:
    """A token behind a prompt, which is committed in pieces or block by block."""
    mask_id = shape.encoder.mask_id
    causal = dataclasses.replace(shape.encoder, attention="causal")
    networks = {
        "block": lambda params: bert.block_denoiser(params, shape.encoder, args.block_size),
        "causal": lambda params: bert.causal_block_denoiser(params, causal, START),
    }
    for (writer, of), ahead in itertools.product(networks.items(), (True, False)):

        def write(params: PyTree, canvas: Array, fill: Array, of=of, ahead=ahead) -> Array:
            network = of(params)
            network = network if ahead else network._replace(prefill=None)
            key = jax.random.key(0)
            return blocks.sample(network, key, canvas, mask_id=mask_id, steps=1, fill=fill)

        shown = jnp.ones((shape.rows, shape.length), jnp.int32)
        program, seconds = measure.compiled(jax.jit(write), params, shown, shown == 1)
        for prompt in args.prompts:
            place = jnp.arange(shape.length)[None]
            canvas = jnp.where(place < prompt, shown, mask_id)
            fill = jnp.broadcast_to(place == prompt, canvas.shape)
            call = functools.partial(program, params, canvas, fill)
            measure.tell(
                "block_prompt",
                measure.repeated(call, calls=1),
                shape=args.shape,
                **measure.shown(shape),
                writer=writer,
                block_size=args.block_size if writer == "block" else 1,
                prompt=prompt,
                ahead=ahead,
                peak_bytes=measure.planned_bytes(program),
                compile_seconds=seconds,
            )


if __name__ == "__main__":
    sys.exit(main())
