"""The sampler of a network: one compiled program for requests that differ only in numbers.

Everything that writes text with an encoder (generation, the frontier, answers, samples during
training, the check of a pod) uses it. Programs are kept, so nothing is compiled twice.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mdlm_jax.diffusion import (
    Denoiser,
    Strategy,
    Trace,
    blocks,
    sample,
    transforms,
)
from mdlm_jax.diffusion.caching import CachedDenoiser, joined, transformed
from mdlm_jax.host import parallel
from mdlm_jax.runs.families import Blocks, Cache, network_of
from mdlm_jax.runs.shaping import Shaping

Array = jax.Array
PyTree = Any
Writer = Callable[[PyTree, Array, dict[str, Array], Any, dict[str, Any]], tuple[Array, Trace]]

_KEPT = 64  # programs of other models, strategies, meshes


@dataclasses.dataclass(frozen=True)
class Method:
    """How canvases are filled.

    Attributes:
      strategy: from `decoding.strategy`.
      shaping: shapes the denoiser.
      steps: network evaluations of a row, at least one a block.
      blocks: parts of a row that are filled one after the other, left to right.
      guidance: weight of classifier-free guidance by the rows' labels; None for none.
      end_id: token that ends a text; None if none does.
      pad_id: token that fills a row behind it.
      start_id: for a causal network, the token before a row; None for one that fills masks.
      cache: what is kept from step to step; None for nothing.
      in_blocks: for a network of blocks, those that it writes after a cache. The steps are spread
        over them evenly, rounded up, with at least one each.

    Raises:
      ValueError: fewer steps than blocks, a guidance that is no number, or one beside a cache; or
        what a network of blocks does not take.
    """

    strategy: Strategy
    shaping: Shaping
    steps: int
    blocks: int = 1
    guidance: float | None = None
    end_id: int | None = None
    pad_id: int | None = None
    start_id: int | None = None
    cache: Cache | None = None
    in_blocks: Blocks | None = None

    def __post_init__(self):
        if self.in_blocks is not None:
            self._check_in_blocks(self.in_blocks)
        if self.steps < self.blocks:
            raise ValueError(
                f"steps is {self.steps}, blocks {self.blocks}: each block needs a step"
            )
        if self.guidance is not None and not math.isfinite(self.guidance):
            raise ValueError(f"guidance is {self.guidance}, it must be a finite number")
        if self.guidance is not None and self.cache is not None:
            raise ValueError("guidance and cache exclude each other: it evaluates two networks")

    def _check_in_blocks(self, own: Blocks) -> None:
        for name, given in (("blocks", self.blocks > 1), ("cache", self.cache is not None)):
            if given:
                raise ValueError(
                    f"{name} is for models of whole rows: this one was trained in blocks of "
                    f"{own.size}, and writes them from left to right after a cache"
                )

    def strengths(self) -> dict[str, float]:
        """The values that are traced beside the steps; other values do not recompile."""
        weight = {} if self.guidance is None else {"guidance": self.guidance}
        refresh = {} if self.cache is None else {"refresh": self.cache.refresh}
        return {**self.shaping.strengths(), **weight, **refresh}

    def program(self) -> "Method":
        """The same without its steps and strengths: methods of one program are equal."""
        values = {
            field.name: field.default
            for field in dataclasses.fields(Shaping)
            if field.name in self.shaping.strengths()
        }
        return dataclasses.replace(
            self,
            shaping=dataclasses.replace(self.shaping, **values),
            steps=self.blocks,
            guidance=None if self.guidance is None else 1.0,
            cache=None if self.cache is None else self.cache._replace(refresh=1),
        )


def make_writer(encoder: Any, mesh: Mesh, method: Method) -> Writer:
    """`(params, key, batch, steps, strengths) -> (tokens i32[B, L], Trace)`, jitted and kept.

    A second call whose arguments differ only in steps and strengths returns the same function with
    its compiled programs.

    `batch` has "tokens" i32[B, L] and "number" i32[B], the rows' numbers in the whole job. It may
    have "fill" bool[B, L], the masks that are wanted; "valid" bool[B, L], False at padding at the
    end of rows, which the network does not see; "maskable" bool[B, L], what may be masked in
    training, by default all that is valid; and for models with classes "label" i32[B].
    `strengths` are `method.strengths()` or other values of the same names.
    """
    return _kept(encoder, mesh, method.program())


@functools.lru_cache(maxsize=_KEPT)
def _kept(encoder: Any, mesh: Mesh, method: Method) -> Writer:
    @functools.partial(jax.jit, out_shardings=parallel.replicated(mesh))
    def write(params, key, batch, steps, strengths):
        apart = ("guidance", "refresh")
        shaped = {name: value for name, value in strengths.items() if name not in apart}
        shaping = dataclasses.replace(method.shaping, **shaped)
        rest = {"mask_id": encoder.mask_id, "steps": steps, "method": method}
        with parallel.use(mesh):
            if method.cache is not None:
                cache = method.cache._replace(refresh=strengths["refresh"])
                cached = _cached_denoiser(params, encoder, batch, cache)
                return written(transformed(cached, shaping), key, batch, **rest)
            if method.in_blocks is not None:
                weight = strengths.get("guidance")
                own = block_denoiser_of(params, encoder, batch, method.in_blocks, weight)
                return written_in_blocks(shaping(own), key, batch, **rest)
            weight = strengths.get("guidance")
            if method.start_id is not None:
                causal = causal_denoiser_of(params, encoder, batch, method.start_id, weight)
                return written(transformed(causal, shaping), key, batch, **rest)
            return written(shaping(denoiser_of(params, encoder, batch, weight)), key, batch, **rest)

    return write


def written(
    denoiser: Denoiser | CachedDenoiser,
    key: Array,
    batch: dict[str, Array],
    *,
    mask_id: int,
    steps: int | Array,
    method: Method,
) -> tuple[Array, Trace]:
    """A batch, as in `make_writer`, filled by a denoiser; for use within a jitted function."""
    return sample(
        denoiser,
        key,
        batch["tokens"],
        mask_id=mask_id,
        steps=steps,
        strategy=method.strategy,
        blocks=method.blocks,
        end_id=method.end_id,
        pad_id=method.pad_id,
        maskable=batch.get("maskable", batch.get("valid")),
        fill=batch.get("fill"),
        rows=batch["number"],
        trace=True,
        chunk=None if method.start_id is None else chunk_of(method.strategy, len(batch["tokens"])),
    )


def chunk_of(strategy: Strategy, rows: int) -> int:
    """Positions of a causal network that are read out at a time: it is asked for one a row."""
    return min(strategy.chunk, rows)


def _cached_denoiser(
    params: PyTree, encoder: Any, batch: dict[str, Array], cache: Cache
) -> CachedDenoiser:
    """As `denoiser_of`, with a cache and without a guide."""
    label = batch.get("label")
    denoiser = network_of(encoder).cached_denoiser(params, encoder, cache, batch, label=label)
    return _without_padding(denoiser, encoder)


def written_in_blocks(
    denoiser: blocks.BlockDenoiser,
    key: Array,
    batch: dict[str, Array],
    *,
    mask_id: int,
    steps: int | Array,
    method: Method,
) -> tuple[Array, Trace]:
    """As `written`, by a denoiser of blocks; each block takes its share of the steps.

    Rows that are no whole blocks are filled up with masks that are not wanted: as in training, a
    block has its size.
    """
    tokens, length = batch["tokens"], batch["tokens"].shape[1]
    count = -(-length // denoiser.block_size)
    ends = ((0, 0), (0, count * denoiser.block_size - length))
    maskable = batch.get("maskable", jnp.ones(tokens.shape, bool))
    fill = batch.get("fill", jnp.ones(tokens.shape, bool))
    canvas, trace = blocks.sample(
        denoiser,
        key,
        jnp.pad(tokens, ends, constant_values=mask_id),
        mask_id=mask_id,
        steps=-(-jnp.asarray(steps, jnp.int32) // count),
        strategy=method.strategy,
        end_id=method.end_id,
        pad_id=method.pad_id,
        maskable=jnp.pad(maskable, ends, constant_values=True),
        fill=jnp.pad(fill, ends),
        rows=batch["number"],
        trace=True,
    )
    cut = trace._replace(step=trace.step[:, :length], log_prob=trace.log_prob[:, :length])
    return canvas[:, :length], cut


def block_denoiser_of(
    params: PyTree, encoder: Any, batch: dict[str, Array], of: Blocks, weight: Array | None
) -> blocks.BlockDenoiser:
    """As `denoiser_of`, of blocks; a guide keeps what both networks keep."""
    shown = {name: leaf for name, leaf in batch.items() if name != "valid"}
    build = functools.partial(network_of(encoder).block_denoiser, params, encoder, of, shown)
    return _without_padding(_guided(build, batch, weight), encoder)


def denoiser_of(
    params: PyTree, encoder: Any, batch: dict[str, Array], weight: Array | None
) -> Denoiser:
    """The denoiser of a batch, guided if there is a weight, without padding of the vocabulary.

    A mesh may pad it, and the last digits of a draw's noise depend on the number of columns.
    """
    build = functools.partial(network_of(encoder).denoiser, params, encoder, batch)
    return _without_padding(_guided(build, batch, weight), encoder)


def causal_denoiser_of(
    params: PyTree, encoder: Any, batch: dict[str, Array], start_id: int, weight: Array | None
) -> CachedDenoiser:
    """As `denoiser_of`, of a causal network, which keeps what it computed of a row's beginning."""
    build = functools.partial(network_of(encoder).causal_denoiser, params, encoder, start_id)
    return _without_padding(_guided(build, batch, weight), encoder)


def _guided(build: Callable[..., Any], batch: dict[str, Array], weight: Array | None) -> Any:
    """The denoiser of the batch's labels, guided away from that of none if there is a weight."""
    label = batch.get("label")
    denoiser = build(label=label)
    if weight is None:
        return denoiser
    other = build(label=jnp.full_like(label, -1))
    if isinstance(denoiser, CachedDenoiser):
        return joined(denoiser, other, lambda one, other: transforms.guide(one, other, weight))
    return transforms.guide(denoiser, other, weight)


def _without_padding(denoiser: Any, encoder: Any) -> Any:
    return denoiser._replace(
        readout=lambda at, row, whole=denoiser.readout: whole(at, row)[..., : encoder.vocab_size]
    )
