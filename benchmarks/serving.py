"""How many requests an engine serves, by the number of clients, beside one request at a time.

    python -m benchmarks.serving [--shape=bert_base] [--length=128] [--clients 1 8 32 128] ...

Each client asks for a canvas of nothing but masks, waits for it, and asks again at once. Requests
take different numbers of steps, so that they end at different times. First comes a JSON line of one
request after the other through a program of one row, then one for each number of clients, through
the engine and its full slots. `ms` is the time from a request to its text.

| field | what it is |
|---|---|
| `requests_per_second`, `tokens_per_second` | within `--seconds`, after a second of load |
| `times_alone` | that many times the requests of one after the other |
| `p50_ms`, `p99_ms` | from a request to its text |
| `first_p50_ms`, `first_p99_ms` | to the first token of the text that the client is told |
| `tick_ms` | of a tick with all slots in use, without the host |
| `host_share` | all that is no tick (by `tick_ms`), as a share of the ticks |
| `ticks_a_round` | ticks from one time that the host is asked to the next |
| `occupancy` | slots in use in a tick |
"""

import argparse
import queue
import statistics
import sys
import time
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure, shapes
from mdlm_jax.diffusion import blocks, noise, sample, strategies
from mdlm_jax.host import host_memory
from mdlm_jax.networks import bert
from mdlm_jax.runs.families import Blocks
from mdlm_jax.serving.batching.engine import Deployment, Engine
from mdlm_jax.serving.batching.lanes import Lane
from mdlm_jax.serving.jobs import Job, Written
from mdlm_jax.serving.rows import given

Array = jax.Array
PyTree = Any

_STRATEGIES = {
    "exact_count": strategies.exact_count(),
    "confidence": strategies.confidence(),
    "threshold": strategies.threshold(0.9),
}


def main(arguments: list[str] | None = None) -> int:
    """Prints the lines; returns the exit code."""
    flags = shapes.parser(__doc__)
    shapes.add_flags(flags, default="bert_base")
    flags.set_defaults(length=128)
    add = flags.add_argument
    add("--clients", type=int, nargs="+", default=[1, 8, 32, 128], help="Default: %(default)s.")
    add("--slots", type=int, default=32, help="Rows of a program. Default: %(default)s.")
    add("--steps", type=int, default=32, help="Of a request, on average. Default: %(default)s.")
    add("--strategy", choices=_STRATEGIES, default="exact_count", help="Default: %(default)s.")
    add("--block_size", type=int, help="A model of blocks of so many tokens, with its cache.")
    add("--seconds", type=float, default=8.0, help="Of each line. Default: %(default)s.")
    args = flags.parse_args(arguments)
    shape = shapes.chosen(flags, args)
    for name in ("slots", "steps", "seconds"):
        if getattr(args, name) <= 0:
            flags.error(f"--{name}={getattr(args, name)}: must be above 0")
    if min(args.clients) < 1:
        flags.error(f"--clients={min(args.clients)}: must be at least 1")
    if args.block_size is not None and not 1 <= args.block_size <= shape.length:
        flags.error(f"--block_size={args.block_size}: must be from 1 to {shape.length}")
    host_memory.keep_freed()  # as `generate` does
    params = bert.init(jax.random.key(0), shape.encoder)
    fields = {
        "shape": args.shape,
        **measure.shown(shape._replace(rows=args.slots)),
        **{name: getattr(args, name) for name in ("strategy", "steps", "block_size")},
    }
    alone = _one_after_the_other(params, shape, args, fields)
    deployment = Deployment(
        name="model",
        params=params,
        encoder=shape.encoder,
        lengths=(shape.length,),
        strategies={args.strategy: _STRATEGIES[args.strategy]},
        slots=args.slots,
        blocks={shape.length: Blocks(args.block_size)} if args.block_size else None,
    )
    with Engine(queue=max(args.clients)) as engine:
        begun = time.perf_counter()
        engine.add(deployment)
        fields["compile_seconds"] = time.perf_counter() - begun
        fields["tick_ms"] = _tick_ms(engine._lanes[0], shape, args)
        for clients in args.clients:
            _load(engine, clients, shape, args, fields, alone)
        compiled = engine.stats().compilations
    if compiled:
        print(f"{compiled} programs were compiled under load: must be 0", file=sys.stderr)
    return int(compiled > 0)


def _job(number: int, shape: shapes.Shape, args: argparse.Namespace) -> Job:
    """Request `number`: half to one and a half times the steps."""
    canvas = np.full(shape.length, shape.encoder.mask_id, np.int32)
    spread = np.random.default_rng(number).uniform(0.5, 1.5)
    steps = max(round(args.steps * spread), 1)
    strategy = _STRATEGIES[args.strategy]
    return Job(canvas, np.ones(shape.length, bool), strategy, steps, seed=number)


def _one_after_the_other(
    params: PyTree, shape: shapes.Shape, args: argparse.Namespace, fields: dict
) -> float:
    """Requests a second through a program of one row."""
    encoder, strategy = shape.encoder, _STRATEGIES[args.strategy]

    @jax.jit
    def write(params: PyTree, seed: Array, canvas: Array, steps: Array) -> tuple[Array, PyTree]:
        keys = noise.row_keys(jax.random.key(seed), jnp.arange(1))
        rest = {"mask_id": encoder.mask_id, "strategy": strategy, "keys": keys, "trace": True}
        if args.block_size is None:
            network = bert.denoiser(params, encoder)
            return sample(network, None, canvas, steps=steps, **rest)
        of_blocks = bert.block_denoiser(params, encoder, args.block_size)
        steps = -(-steps * args.block_size // shape.length)
        return blocks.sample(of_blocks, None, canvas, steps=steps, **rest)

    def arguments(number: int) -> tuple:
        job = _job(number, shape, args)
        return params, np.uint32(number), job.tokens[None], np.int32(job.steps)

    program, seconds = measure.compiled(write, *arguments(0))
    times: list[float] = []
    jax.block_until_ready(program(*arguments(0)))
    until = time.perf_counter() + args.seconds
    while not times or time.perf_counter() < until:
        begun = time.perf_counter()
        jax.device_get(program(*arguments(len(times))))
        times.append(1e3 * (time.perf_counter() - begun))
    a_second = 1e3 / statistics.mean(times)
    measure.tell(
        "one_request_at_a_time",
        measure.Times(statistics.median(times), min(times), max(times)),
        **fields | {"rows": 1},
        requests_per_second=a_second,
        tokens_per_second=a_second * shape.length,
        compile_seconds=seconds,
    )
    return a_second


def _tick_ms(lane: Lane, shape: shapes.Shape, args: argparse.Namespace) -> float:
    """A tick of rows that are all at work, of many in one call."""
    ticks = max(args.steps // 2, 1)
    words = given.nothing(lane.kind.slots, lane.kind.length, lane.kind.numbers)
    for slot, row in enumerate(words):
        job = _job(slot, shape, args)
        numbers = jax.tree.leaves(job.strategy)
        given.pack(row, job, numbers)
    times = []
    for _ in range(measure.REPEATS + 1):
        rows = lane._programs.begin(lane._params)
        forbidden = np.zeros((lane.kind.slots, lane.kind.encoder.vocab_size), bool)
        call = partial(lane._programs.round, lane._params, rows, forbidden)
        jax.block_until_ready((rows, forbidden))
        begun = time.perf_counter()
        _, told = call(words, np.array([ticks, ticks], np.int32))
        done = int(np.asarray(told)[0, -1])
        times.append(1e3 * (time.perf_counter() - begun) / done)
    return statistics.median(times[1:])


class _Served(NamedTuple):
    asked: float
    first: float
    done: float


def _load(
    engine: Engine,
    clients: int,
    shape: shapes.Shape,
    args: argparse.Namespace,
    fields: dict,
    alone: float,
) -> None:
    """A line of so many clients, each with one request at a time."""
    ended: queue.SimpleQueue[_Served] = queue.SimpleQueue()
    mask_id = shape.encoder.mask_id
    numbers = iter(range(1 << 30))

    def ask() -> None:
        asked, first = time.perf_counter(), []

        def listen(event: Any) -> None:
            if not isinstance(event, Written):
                raise RuntimeError(f"a request failed: {event}")
            now = time.perf_counter()
            if not first and event.tokens[0] != mask_id:
                first.append(now)
            if event.done:
                ended.put(_Served(asked, first[0], now))

        engine.submit("model", _job(next(numbers), shape, args), listen)

    for _ in range(clients):
        ask()
    served: list[_Served] = []
    window = time.perf_counter() + 1.0
    while time.perf_counter() < window:
        ended.get(timeout=60)
        ask()
    before, begun = engine.stats().lanes[0].counts, time.perf_counter()
    while time.perf_counter() < begun + args.seconds or not served:
        served.append(ended.get(timeout=60))
        ask()
    lasted = time.perf_counter() - begun
    counts = engine.stats().lanes[0].counts
    for _ in range(clients):
        ended.get(timeout=60)
    more = type(counts)(*(x - y for x, y in zip(counts, before, strict=True)))
    whole = [1e3 * (each.done - each.asked) for each in served]
    first = [1e3 * (each.first - each.asked) for each in served]
    measure.tell(
        "serving",
        measure.Times(statistics.median(whole), min(whole), max(whole)),
        **fields,
        clients=clients,
        requests=len(served),
        requests_per_second=len(served) / lasted,
        tokens_per_second=len(served) * shape.length / lasted,
        times_alone=len(served) / lasted / alone,
        p50_ms=float(np.percentile(whole, 50)),
        p99_ms=float(np.percentile(whole, 99)),
        first_p50_ms=float(np.percentile(first, 50)),
        first_p99_ms=float(np.percentile(first, 99)),
        host_share=1e3 * lasted / more.ticks / fields["tick_ms"] - 1,
        ticks_a_round=more.ticks / more.rounds,
        ms_a_tick=1e3 * lasted / more.ticks,
        occupancy=more.evaluations / more.ticks / args.slots,
    )


if __name__ == "__main__":
    sys.exit(main())
