"""A causal BERT that writes rows with a cache: each token goes through the network once.

What a causal network computes of a token depends on the tokens before it alone, so its keys and
values stay right as long as these tokens do. The memory knows the tokens that it was computed of.
Before each step a row keeps what agrees with its canvas, and computes what it lacks. So nothing is
ever stale, whatever a strategy writes, and wherever.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mdlm_jax.diffusion import shards
from mdlm_jax.diffusion.caching import CachedDenoiser
from mdlm_jax.diffusion.denoisers import Denoiser, Hidden
from mdlm_jax.diffusion.strategies import View
from mdlm_jax.networks import arguments, pieces
from mdlm_jax.networks.attention import cached
from mdlm_jax.networks.config import Config

Array = jax.Array


class Kept(NamedTuple):
    """What is kept of a batch of rows.

    Attributes:
      cache: keys and values of the start and of the tokens behind it.
      text: i32 `[B, L]`, the start and the row, of which the cache holds the beginning.
    """

    cache: cached.Cache
    text: Array


def build(
    at_once: Denoiser,
    encode_tokens: Callable[..., Any],
    config: Config,
    start_id: int,
    label: Array | None,
) -> CachedDenoiser:
    """`bert.causal_cached_denoiser` of the network as a denoiser of canvases, and of its encoder.

    Args:
      at_once: `causal_denoiser` of the network.
      encode_tokens: `(tokens, t, attend=..., ...) -> (x, kept)`.
      config, start_id, label: as in `bert.causal_cached_denoiser`.
    """

    def start(batch: int, length: int) -> Kept:
        sizes = (config.layers, batch, length, config.heads, config.head_dim)
        nothing = cached.empty(*sizes, config.compute_dtype)
        return Kept(nothing, jnp.full((batch, length), start_id, jnp.int32))

    def encode(kept: Kept, view: View, asked: Array, t: Array) -> tuple[Kept, Hidden]:
        arguments.check_rows(config, view.canvas, t, label=label)
        rows, length = view.canvas.shape
        count = asked.sum(axis=1)
        alone, several = count == 1, count > 1
        place = jnp.where(alone, jnp.argmax(asked, axis=1), 0).astype(jnp.int32)
        last, kept = encode_next(kept, view.canvas, place, alone)

        # Between two positions that are asked for stands a mask, which is no text to be kept.
        def all_of_them() -> Array:
            return shards.alike(at_once.encode(view.canvas, t).at, last)

        def nothing() -> Array:
            return jnp.broadcast_to(jnp.zeros_like(last), (rows, length, last.shape[2]))

        x = jax.lax.cond(several.any(), all_of_them, nothing)
        here = jnp.where(alone, place, length)  # nowhere
        x = x.at[jnp.arange(rows), here].set(last[:, 0], mode="drop", unique_indices=True)
        return kept, Hidden(at=x)

    def encode_next(kept: Kept, canvas: Array, place: Array, where: Array) -> tuple[Array, Kept]:
        """The states `[B, 1, D]` for the tokens at the places; kept of the rows `where`."""
        text = jnp.pad(canvas[:, :-1], ((0, 0), (1, 0)), constant_values=start_id)
        ones = jnp.ones(len(canvas), jnp.float32)
        encode = partial(encode_tokens, t=ones, label=label)
        agreeing = jnp.cumprod(text == kept.text, axis=1).sum(axis=1, dtype=jnp.int32)
        right = jnp.minimum(jnp.minimum(kept.cache.length, agreeing), place)
        # The other rows read nothing, so that what they hold costs nothing.
        cache = kept.cache._replace(length=jnp.where(where, right, 0))
        backend = config.attention_backend
        upto = jnp.where(where, place, 0)
        cache = pieces.commit(encode, cache, text, upto, 1, backend=backend)
        starts = jnp.where(where, place, 0)[:, None]
        last, own = encode(
            jnp.take_along_axis(text, starts, axis=1),
            positions=starts,
            attend=cached.after(cache, jnp.ones((1, 1, 1), bool), starts, backend=backend),
        )
        # Nothing is written before the last layer has read, so the cache is written in place.
        commits = where & ~jnp.isnan(last).any(axis=(1, 2))
        cache = cached.commit(cache, own, None, commits)
        cache = cache._replace(length=jnp.where(where, cache.length, kept.cache.length))
        return last, Kept(cache, jnp.where(where[:, None], text, kept.text))

    def clear(kept: Kept, where: Array) -> Kept:
        return kept._replace(cache=cached.clear(kept.cache, where))

    return CachedDenoiser(start, encode, at_once.readout, mask_id=config.mask_id, clear=clear)
