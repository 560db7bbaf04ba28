"""Any function of a noisy and a clean text as a block denoiser; its cache is the clean text."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mdlm_jax.diffusion import checks
from mdlm_jax.diffusion.blocks.denoisers import BlockDenoiser, check_block_size
from mdlm_jax.diffusion.denoisers import Hidden, PyTree, remove_mask

Array = jax.Array


class Committed(NamedTuple):
    """The cache of a lifted function.

    Attributes:
      tokens: i32[B, R], the committed tokens, 0 behind them. R is a whole number of blocks.
      length: i32[B], how many are committed.
    """

    tokens: Array
    length: Array


def as_block_denoiser(
    fn: Callable[[Array, Array, Array], Array], block_size: int, mask_id: int | None = None
) -> BlockDenoiser:
    """Lifts any `fn(noisy i32[B, L], clean i32[B, L], t f32[B, L / size]) -> logits [B, L, V]`.

    In block b the function must see the noisy tokens of b and the clean tokens before b alone. Its
    cache is the committed text, and each step computes all of it again: that is for models of any
    make and for tests, not for speed. There `L` is the room of the cache, in whole blocks. Behind
    the committed text both inputs hold 0, but for the block at hand in `noisy`.

    Args:
      fn: returns logits over the vocabulary at every position.
      block_size: tokens of a block.
      mask_id: if given, the mask's logit is removed here, once for all consumers.

    Raises:
      TypeError: if `fn` is no function, or a number is none; when `fn` is called, if it returns no
        array.
      ValueError: if `block_size` is below 1; when `fn` is called, if it returns anything but float
        `[B, L, V]`; when a block is added to a cache that is known to be full. If its lengths are
        traced, the logits of a row without room are NaN.
    """
    checks.check_block_function(fn)
    check_block_size(block_size)
    if mask_id is not None:
        checks.check_whole("mask_id", mask_id)

    def encode(noisy: Array, clean: Array, t: Array) -> Hidden:
        logits = fn(noisy, clean, t)
        checks.check_logits(logits, noisy, "as_block_denoiser")
        return Hidden(at=logits)

    def start(batch: int, length: int) -> Committed:
        room = -(-length // block_size) * block_size
        return Committed(jnp.zeros((batch, room), jnp.int32), jnp.zeros(batch, jnp.int32))

    def extend(cache: Committed, tokens: Array) -> Committed:
        _check_room(cache, block_size)
        return Committed(_place(cache, tokens), cache.length + block_size)

    def encode_block(cache: Committed, noisy: Array, t: Array) -> Hidden:
        _check_room(cache, block_size)
        room = cache.tokens.shape[1]
        count = room // block_size
        times = jnp.broadcast_to(t[:, None], (len(t), count))
        at = encode(_place(cache, noisy), cache.tokens, times).at  # [B, R, V]
        of_block = jax.vmap(lambda row, first: jax.lax.dynamic_slice_in_dim(row, first, block_size))
        lost = (cache.length + block_size > room)[:, None, None]
        return Hidden(at=jnp.where(lost, jnp.nan, of_block(at, cache.length)))

    def readout(at: Array, row: PyTree) -> Array:
        del row
        return remove_mask(at.astype(jnp.float32), mask_id)

    return BlockDenoiser(block_size, encode, start, extend, encode_block, readout, mask_id=mask_id)


def _place(cache: Committed, block: Array) -> Array:
    """The committed text with the block behind it: i32[B, R]."""
    block = block.astype(jnp.int32)
    return jax.vmap(jax.lax.dynamic_update_slice_in_dim, in_axes=(0, 0, 0, None))(
        cache.tokens, block, cache.length, 0
    )


def _check_room(cache: Committed, size: int) -> None:
    room, seen = cache.tokens.shape[1], checks.known(cache.length)
    if seen is not None and seen.max() + size > room:
        raise ValueError(
            f"the cache has room for {room} tokens and holds {seen.max()} of row {seen.argmax()}: "
            f"start(batch, length) with a length of {seen.max() + size} or more"
        )
