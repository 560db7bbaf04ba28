"""What a cache saves and what it costs: times, cross-entropy by mask rate, and an enumerable law.

    python -m benchmarks.caches [--shape=owt] [--rows=32] [--prompt=512] [--blocks=16] [--steps=128]
    python -m benchmarks.caches --workdir=RUN [--rows=32] ...
    python -m benchmarks.caches --law

Prints a JSON line for no cache, and for each kind and refresh period. `ms` is that of writing a
batch behind its prompts, `looks` the evaluations of whole rows among all `evaluations`.

With a run of masked diffusion, full attention in all layers, the times are those of its network,
and each line tells the cross-entropy of its validation text as well: blocks are revealed in a
random order as a sampler would, a step at a time, and `gap` is how many nats a token more the cache
costs than no cache, by the share of the block that is masked, with its standard error over rows.

With --law a small network learns strings that can be enumerated, and `variation` is the total
variation between what is written, a token a step, and the true law. Sampling alone makes `floor`.
"""

import functools
import itertools
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import measure, shapes
from mdlm_jax.diffusion import diffusion_loss, noise, sample
from mdlm_jax.diffusion.caching import CachedDenoiser
from mdlm_jax.diffusion.strategies import View
from mdlm_jax.networks import bert
from mdlm_jax.networks.with_cache import KINDS

Array = jax.Array
PyTree = Any


class Plan(NamedTuple):
    """How rows are written: `blocks` of equal size behind a prompt, each in as many steps."""

    length: int
    prompt: int
    blocks: int
    steps: int
    around: int

    @property
    def size(self) -> int:
        """Tokens of a block."""
        return (self.length - self.prompt) // self.blocks

    def denoiser(self, params: PyTree, encoder: bert.Config, kind: str, refresh: Array) -> Any:
        """With the cache that `kind` names, or 'none'."""
        if kind == "none":
            return bert.denoiser(params, encoder)
        width = self.length - self.prompt if kind == "prefix" else self.size
        around = self.around if kind == "vicinity" else 0
        return bert.cached_denoiser(params, encoder, kind, width, refresh, around=around)


def main(arguments: list[str] | None = None) -> int:
    """Prints the lines; returns the exit code."""
    flags = shapes.parser(__doc__)
    shapes.add_flags(flags)
    add = flags.add_argument
    add("--workdir", help="Of a run, instead of a shape.")
    add("--law", action="store_true", help="The enumerable law instead of times.")
    add("--kinds", nargs="+", default=KINDS, choices=KINDS, help="Default: all.")
    add("--refresh", nargs="+", type=int, default=[1, 2, 4, 8], help="Default: 1 2 4 8.")
    add("--prompt", type=int, help="Tokens that are given. Default: half of a row.")
    add("--blocks", type=int, default=4, help="Default: %(default)s.")
    add("--steps", type=int, default=32, help="Of all blocks. Default: %(default)s.")
    add("--around", type=int, default=8, help="Of vicinity. Default: %(default)s.")
    add("--batches", type=int, default=4, help="Of text. Default: %(default)s.")
    add("--draws", type=int, default=200_000, help="Of the law. Default: %(default)s.")
    args = flags.parse_args(arguments)
    for name in ("blocks", "steps", "around", "batches", "draws"):
        if getattr(args, name) < 1:
            flags.error(f"--{name}={getattr(args, name)}: must be at least 1")
    if min(args.refresh) < 1:
        flags.error(f"--refresh={min(args.refresh)}: must be at least 1")
    cases = [("none", 1), *itertools.product(args.kinds, args.refresh)]
    if args.law:
        _tell_law(cases, args.draws)
        return 0
    shape = shapes.chosen(flags, args)
    text = None
    if args.workdir:
        params, encoder, text = _of_run(args.workdir, shape.rows * args.batches)
        shape = shapes.Shape(shape.rows, text.shape[1], encoder)
    else:
        params = bert.init(jax.random.key(0), shape.encoder)
    prompt = shape.length // 2 if args.prompt is None else args.prompt
    plan = Plan(shape.length, prompt, args.blocks, args.steps // args.blocks, args.around)
    if not 0 <= prompt < shape.length or (shape.length - prompt) % args.blocks:
        flags.error(
            f"--prompt={prompt} of {shape.length}: {args.blocks} blocks must divide the rest"
        )
    if args.steps % args.blocks or plan.size % plan.steps:
        flags.error(f"--steps={args.steps}: must be whole steps of whole tokens in each block")
    fields = {
        **measure.shown(shape),
        **plan._asdict(),
        "workdir": args.workdir,
        "shape": args.shape,
    }
    exact = None
    for kind, refresh in cases:
        told = {**fields, "cache": kind, "refresh": refresh}
        if text is not None:
            nats = cross_entropy(params, shape, plan, text, kind, refresh)
            exact = nats if exact is None else exact
            told |= _gaps(plan, nats, exact)
        _tell_times(params, shape, plan, told)
    return 0


def _tell_times(params: PyTree, shape: shapes.Shape, plan: Plan, told: dict[str, Any]) -> None:
    encoder = shape.encoder
    tokens = jax.random.randint(
        jax.random.key(1), (shape.rows, shape.length), 0, encoder.vocab_size - 1
    )
    canvas = jnp.where(jnp.arange(shape.length)[None] < plan.prompt, tokens, encoder.mask_id)

    @jax.jit
    def write(params: PyTree, key: Array, canvas: Array, refresh: Array) -> Array:
        denoiser = plan.denoiser(params, encoder, told["cache"], refresh)
        steps = plan.steps * plan.blocks
        options = {"mask_id": encoder.mask_id, "steps": steps, "blocks": plan.blocks}
        return sample(denoiser, key, canvas, **options)

    arguments = (params, jax.random.key(0), canvas, jnp.int32(told["refresh"]))
    program, seconds = measure.compiled(write, *arguments)
    times = measure.repeated(lambda: program(*arguments), calls=1)
    evaluations = plan.blocks * plan.steps
    looks = (
        evaluations if told["cache"] == "none" else plan.blocks * -(-plan.steps // told["refresh"])
    )
    measure.tell(
        "cache",
        times,
        **told,
        evaluations=evaluations,
        looks=looks,
        tokens_per_second=shape.rows * (shape.length - plan.prompt) / times.median * 1e3,
        peak_bytes=measure.planned_bytes(program),
        compile_seconds=seconds,
    )


def cross_entropy(
    params: PyTree, shape: shapes.Shape, plan: Plan, text: Array, kind: str, refresh: int
) -> np.ndarray:
    """Nats a masked token of the block at hand: f64[rows, blocks, steps].

    Args:
      params: of the encoder.
      shape: rows of a batch, and the encoder.
      plan: how the text is revealed.
      text: i32[N, L], whole batches.
      kind: of the cache, or 'none'.
      refresh: of the cache.
    """
    forced = _forced(shape.encoder, plan, kind)
    batches = text.reshape(-1, shape.rows, text.shape[1])
    keys = jax.random.split(jax.random.key(2), len(batches))
    told = [forced(params, *of, jnp.int32(refresh)) for of in zip(batches, keys, strict=True)]
    return np.concatenate([np.asarray(nats, np.float64) for nats in told])


def _forced(encoder: bert.Config, plan: Plan, kind: str) -> Callable:
    mask_id, size = encoder.mask_id, plan.size

    @jax.jit
    def forced(params: PyTree, tokens: Array, key: Array, refresh: Array) -> Array:
        denoiser = plan.denoiser(params, encoder, kind, refresh)
        rows, length = tokens.shape
        place = jnp.arange(length)[None]
        block_of = jnp.where(place < plan.prompt, -1, (place - plan.prompt) // size)
        order = jax.random.uniform(key, (rows, plan.blocks, size))
        rank = jnp.argsort(jnp.argsort(order, axis=2), axis=2).reshape(rows, -1)
        rank = jnp.pad(rank, ((0, 0), (plan.prompt, 0)))

        def step(memory: PyTree, number: Array) -> tuple[PyTree, Array]:
            block, index = number // plan.steps, number % plan.steps
            shown = (block_of < block) | ((block_of == block) & (rank < index * size // plan.steps))
            canvas = jnp.where(shown, tokens, mask_id)
            wanted = jnp.broadcast_to(block_of == block, canvas.shape)
            view = _view(canvas, wanted, index, plan.steps, mask_id)
            if isinstance(denoiser, CachedDenoiser):
                memory, hidden = denoiser.encode(memory, view, view.blank, view.rate)
            else:
                hidden = denoiser.encode(canvas, view.rate)

            def part(x: Array) -> Array:
                return jax.lax.dynamic_slice_in_dim(x, plan.prompt + block * size, size, axis=1)

            at = jax.tree.map(lambda x: part(x).reshape(-1, *x.shape[2:]), hidden.at)
            log_p = jax.nn.log_softmax(denoiser.readout(at, ()))
            target = part(tokens).reshape(-1, 1)
            nats = -jnp.take_along_axis(log_p, target, axis=1).reshape(rows, size)
            blank = part(view.blank)
            return memory, jnp.where(blank, nats, 0).sum(axis=1) / blank.sum(axis=1)

        cached = isinstance(denoiser, CachedDenoiser)
        memory = denoiser.start(rows, length) if cached else ()
        _, nats = jax.lax.scan(step, memory, jnp.arange(plan.blocks * plan.steps))
        return nats.T.reshape(rows, plan.blocks, plan.steps)

    return forced


def _view(canvas: Array, wanted: Array, index: Array, steps: int, mask_id: int) -> View:
    """The view of a step in which all blanks of the block are read out."""
    rows, masked = len(canvas), canvas == mask_id
    return View(
        canvas=canvas,
        wanted=wanted,
        blank=wanted & masked,
        rate=masked.mean(axis=1),
        outside=(masked & ~wanted).mean(axis=1),
        share=wanted.mean(axis=1),
        index=jnp.full(rows, index, jnp.int32),
        steps=jnp.full(rows, steps, jnp.int32),
        mask_id=jnp.int32(mask_id),
    )


def _gaps(plan: Plan, nats: np.ndarray, exact: np.ndarray) -> dict[str, Any]:
    """Nats a token by the share of the block that is masked, and what is above `exact`."""
    of_rows = (nats - exact).mean(axis=1)  # [rows, steps]
    error = of_rows.std(axis=0, ddof=1) / np.sqrt(len(of_rows))
    shares = [f"{1 - step / plan.steps:.3g}" for step in range(plan.steps)]

    def by_share(values: np.ndarray) -> dict[str, float]:
        return {share: float(f"{x:.4g}") for share, x in zip(shares, values, strict=True)}

    means = {"nats": nats.mean(axis=(0, 1)), "gap": of_rows.mean(axis=0), "gap_error": error}
    mean = float(of_rows.mean())
    return {name: by_share(values) for name, values in means.items()} | {"mean_gap": mean}


def _of_run(workdir: str, rows: int) -> tuple[PyTree, bert.Config, Array]:
    """The network of a run, and rows of its validation split."""
    from etils import epath

    from mdlm_jax.runs import workdir as runs

    folder = epath.Path(workdir)
    trained = runs.load(folder)
    split = runs.load_data(trained, folder).splits["validation"]
    tokens = np.asarray(split.tokens[:rows], np.int32)
    if len(tokens) < rows:
        raise SystemExit(f"error: {workdir} has {len(tokens)} rows of validation, not {rows}")
    return trained.params, trained.encoder, jnp.asarray(tokens)


_LAW = bert.Config(
    vocab_size=3,
    mask_id=2,
    max_length=6,
    layers=2,
    width=32,
    heads=2,
    mlp_width=64,
    norm_position="pre",
    dropout=0.0,
    token_types=0,
)


def _tell_law(cases: list[tuple[str, int]], draws: int) -> None:
    """Strings of six bits, in two blocks of three."""
    length, rows = _LAW.max_length, 10_000
    plan = Plan(length, 0, blocks=2, steps=3, around=1)
    strings = np.array(list(itertools.product(range(2), repeat=length)))
    coupling = np.random.default_rng(0).normal(size=(length, length)) * 0.8
    signs = 2 * strings - 1
    law = np.exp(np.einsum("ni,ij,nj->n", signs, coupling, signs) / 2)
    law /= law.sum()
    params = _learned(jnp.asarray(strings, jnp.int32), jnp.asarray(law, jnp.float32))
    batches = -(-draws // rows)
    total = batches * rows
    expected = np.random.default_rng(1).multinomial(total, law, size=20) / total
    floor = float(np.abs(expected - law).sum(axis=1).mean() / 2)
    places = 2 ** np.arange(length - 1, -1, -1)

    @functools.partial(jax.jit, static_argnames="kind")
    def write(params: PyTree, kind: str, refresh: Array, key: Array) -> Array:
        denoiser = plan.denoiser(params, _LAW, kind, refresh)
        canvas = jnp.full((rows, length), _LAW.mask_id)
        return sample(denoiser, key, canvas, mask_id=_LAW.mask_id, steps=length, blocks=plan.blocks)

    for kind, refresh in cases:
        counts = np.zeros(len(law))

        def draw(i: int, kind: str = kind, refresh: int = refresh) -> Array:
            return write(params, kind, jnp.int32(refresh), jax.random.key(i))

        for i in range(batches):
            counts += np.bincount(np.asarray(draw(i)) @ places, minlength=len(law))
        measure.tell(
            "cache_law",
            measure.repeated(lambda: draw(0), calls=1, repeats=1),
            cache=kind,
            refresh=refresh,
            draws=total,
            variation=float(np.abs(counts / total - law).sum() / 2),
            floor=floor,
        )


def _learned(strings: Array, law: Array, steps: int = 2_000) -> PyTree:
    """The network after `steps` of 256 strings each."""
    params = bert.init(jax.random.key(0), _LAW)
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, steps))

    @jax.jit
    def trained(params: PyTree) -> PyTree:
        def step(i: Array, carry: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
            params, state = carry
            key = jax.random.fold_in(noise.seed_key(0), i)
            chosen = jax.random.categorical(key, jnp.log(law), shape=(256,))

            def loss(params: PyTree) -> Array:
                denoiser = bert.denoiser(params, _LAW)
                return diffusion_loss(denoiser, key, strings[chosen], mask_id=_LAW.mask_id)[0]

            updates, state = optimizer.update(jax.grad(loss)(params), state)
            return optax.apply_updates(params, updates), state

        return jax.lax.fori_loop(0, steps, step, (params, optimizer.init(params)))[0]

    return trained(params)


if __name__ == "__main__":
    sys.exit(main())
