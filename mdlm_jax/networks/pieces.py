"""A given text, committed to a cache in pieces of many tokens."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mdlm_jax.diffusion import shards
from mdlm_jax.networks.attention import cached
from mdlm_jax.networks.attention.cached import Cache

Array = jax.Array

# Tokens of a piece, of a row and of all rows: enough for a device to work well, and few enough that
# a short prompt, which takes a whole piece, costs little.
_PIECE = 128
_OF_ALL = 512


def commit(
    encode: Callable[..., Any],
    cache: Cache,
    text: Array,
    upto: Array,
    size: int,
    window: int | None = None,
    *,
    backend: str,
) -> Cache:
    """The cache with what each row lacks of the beginning of its text.

    A row's pieces begin where its cache ends, so they do not depend on the other rows.

    Args:
      encode: `(tokens i32[B, w], positions, attend) -> (x, kept)`, an encoder.
      cache: of the first tokens of each text, whole blocks.
      text: i32[B, L]; a token's position is its place.
      upto: i32[B], the tokens that each row is to have, whole blocks.
      size: tokens of a block.
      window: tokens before its own that a block sees, if not all.
      backend: of the attention, as in `cached.after`.
    """
    rows, length = text.shape
    most = min(_PIECE, _OF_ALL // rows, length, window or length)
    width = max(most // size, 1) * size
    inside = jnp.arange(width, dtype=jnp.int32)
    block = inside // size
    sees = (block[:, None] >= block[None])[None]
    ending = jnp.pad(text, ((0, 0), (0, width)))
    piece_of = jax.vmap(lambda row, first: jax.lax.dynamic_slice_in_dim(row, first, width))

    def one_piece(cache: Cache) -> Cache:
        first = cache.length[:, None]
        needed = first + inside[None] < upto[:, None]
        # What is not needed is as if at the beginning: beyond the last position there is nothing.
        starts = jnp.where(needed, first + (block * size)[None], 0)
        _, own = encode(
            piece_of(ending, cache.length),
            positions=starts + (inside % size)[None],
            attend=cached.after(cache, sees, starts, window, backend=backend),
        )
        return shards.alike(cached.commit(cache, own, window, needed), cache)

    return jax.lax.while_loop(lambda cache: jnp.any(cache.length < upto), one_piece, cache)
