"""BERT with a cache of keys and values that may be some steps old.

One program serves all kinds. At a refresh the whole canvas is encoded and all keys and values are
kept. Between refreshes a window of known width is encoded: its queries see the kept keys and values
of the whole row, and its own take their places among them. The kinds differ in the window.

- 'dual': the block that is being written (Wu et al. 2025, Fast-dLLM, section 3.2, DualCache).
- 'prefix': the block and all that follows it (the same, prefix cache).
- 'vicinity': the block and its neighbours on both sides (dInfer, Ma et al. 2025).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mdlm_jax.diffusion import caching, checks, shards
from mdlm_jax.diffusion.caching import CachedDenoiser
from mdlm_jax.diffusion.denoisers import Hidden, Readout
from mdlm_jax.diffusion.strategies import View
from mdlm_jax.networks import arguments
from mdlm_jax.networks.attention import attention
from mdlm_jax.networks.attention.masks import Mask, by_position
from mdlm_jax.networks.attention.memory import Memory, over, write
from mdlm_jax.networks.config import Config

Array = jax.Array

KINDS = ("prefix", "dual", "vicinity")


class Kept(NamedTuple):
    """What is kept of a batch of rows.

    Attributes:
      memory: keys and values `[layers, B, L, H, d]`.
      clock: when each row was last encoded whole.
    """

    memory: Memory
    clock: caching.Clock


def check(config: Config, kind: str, width: int, refresh: int | Array, around: int) -> None:
    """Raises: TypeError, ValueError: as `bert.cached_denoiser` of these arguments."""
    if kind not in KINDS:
        raise ValueError(f"cache {kind!r}: must be one of {', '.join(KINDS)}")
    if config.attention != "full":
        raise ValueError(f"attention={config.attention!r}: must be 'full' for a cache")
    for name, value in (("width", width), ("around", around)):
        checks.check_whole(name, value)
    if width < 1:
        raise ValueError(f"width is {width}: must be at least 1")
    if (around < 1) if kind == "vicinity" else (around != 0):
        accepted = "at least 1" if kind == "vicinity" else "0, it is for 'vicinity'"
        raise ValueError(f"around is {around} for {kind!r}: must be {accepted}")
    seen = checks.known(refresh)
    if seen is not None and not (seen.dtype.kind in "iu" and seen.min() >= 1):
        raise ValueError(f"refresh is {refresh}: must be a whole number of steps, at least 1")


def build(
    encode_tokens: Callable[..., Any],
    readout: Readout,
    config: Config,
    kind: str,
    width: int,
    refresh: int | Array,
    around: int,
    valid: Array | None,
    label: Array | None,
) -> CachedDenoiser:
    """`bert.cached_denoiser` of an encoder: `(tokens, t, attend=..., ...) -> (x, kept)`."""

    def start(batch: int, length: int) -> Kept:
        shape = (config.layers, batch, length, config.heads, config.head_dim)
        nothing = jnp.zeros(shape, config.compute_dtype)
        return Kept(Memory(nothing, nothing), caching.started(batch))

    def encode(kept: Kept, view: View, asked: Array, t: Array) -> tuple[Kept, Hidden]:
        arguments.check_rows(config, view.canvas, t, valid=valid, label=label)
        length = view.canvas.shape[1]
        first, behind = caching.span(view.wanted)
        needed = (length if kind == "prefix" else behind) - first
        # A block that is wider than the window is always encoded with its whole row.
        asks = asked.any(axis=1)
        due = caching.due(kept.clock, view, asked, refresh) | (asks & (needed > width))
        window = min(length, width + 2 * around)
        begin = jnp.clip(first - around, 0, length - window)
        places = begin[:, None] + jnp.arange(window, dtype=jnp.int32)[None]

        near, memory = _if_any(
            asks & ~due, partial(encode_window, view.canvas, t, places), kept.memory, config
        )
        far, memory = _if_any(due, partial(encode_all, view.canvas, t), memory, config)
        x = jnp.where(due[:, None, None], far, near)
        return Kept(memory, caching.looked(kept.clock, view, due)), Hidden(at=x)

    def encode_window(canvas, t, places, rows, memory: Memory) -> tuple[Array, Memory]:
        """The places of the window alone; keys and values are kept of the rows."""
        seen = by_position(Mask(valid=valid), canvas.shape[1]).valid
        attend = over(memory, places, seen, backend=config.attention_backend)
        tokens = jnp.take_along_axis(canvas, places, axis=1)
        x, own = encode_tokens(tokens, t, label=label, positions=places, attend=attend)
        # Nothing is written before the last layer has read, so the memory is written in place.
        rows &= ~jnp.isnan(x).any(axis=(1, 2))
        memory = write(memory, own, jnp.where(rows[:, None], places, canvas.shape[1]))
        number = jnp.arange(len(canvas))[:, None]
        whole = jnp.zeros((*canvas.shape, x.shape[2]), x.dtype)
        return whole.at[number, places].set(x, unique_indices=True), memory

    def encode_all(canvas, t, rows, memory: Memory) -> tuple[Array, Memory]:
        """All places; keys and values are kept of the rows."""
        look = partial(_look_at_all, backend=config.attention_backend)
        attend = jax.tree_util.Partial(look, valid=valid)
        x, own = encode_tokens(canvas, t, label=label, attend=attend)
        chosen = rows[None, :, None, None, None]
        memory = jax.tree.map(lambda new, old: jnp.where(chosen, new, old), own, memory)
        return x, memory

    return CachedDenoiser(start, encode, readout, mask_id=config.mask_id)


def _if_any(rows: Array, encode: Callable, memory: Memory, config: Config) -> tuple[Array, Memory]:
    """`encode(rows, memory) -> (x [B, L, D], memory)` if there are rows; else nothing is done."""
    shape = (*memory.keys.shape[1:3], config.width)

    def encoded() -> tuple[Array, Memory]:
        return shards.alike(encode(rows, memory), memory, rows)

    def skipped() -> tuple[Array, Memory]:
        return shards.alike((jnp.zeros(shape, config.compute_dtype), memory), memory, rows)

    return jax.lax.cond(rows.any(), encoded, skipped)


def _look_at_all(
    q: Array, k: Array, v: Array, number: Array, *, valid: Array | None, backend: str
) -> tuple[Array, Memory]:
    """`attention`, as an `Attend` that keeps all keys and values."""
    del number
    return attention(q, k, v, Mask(valid=valid), backend=backend), Memory(k, v)
