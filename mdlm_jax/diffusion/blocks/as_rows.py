"""Given the clean text, blocks are rows: what is known of rows holds for blocks.

The clean text before a block is a condition, like a label. So a block denoiser and a clean text
are an ordinary `Denoiser` whose rows are the blocks, and corruption, loss and likelihood of blocks
are those of rows.
"""

import jax
import jax.numpy as jnp

from mdlm_jax.diffusion import noise
from mdlm_jax.diffusion.blocks.denoisers import BlockDenoiser, count_blocks
from mdlm_jax.diffusion.denoisers import Denoiser, Hidden

Array = jax.Array


def given(denoiser: BlockDenoiser, clean: Array) -> Denoiser:
    """The denoiser of the blocks given the clean text: its rows are the blocks.

    Its `encode` takes canvases i32[B n, size] of all n blocks of all B rows, in order, and their
    times f32[B n]. So whatever takes a denoiser takes blocks, as `at_rate` of
    `tokens.reshape(-1, size)` does.

    Args:
      denoiser: of blocks.
      clean: i32[B, L], the clean text.

    Raises:
      TypeError: on what is no block denoiser, or no array.
      ValueError: on a text that blocks do not divide.
    """
    size, count = denoiser.block_size, count_blocks("clean", clean, denoiser.block_size)

    def encode(canvas: Array, t: Array) -> Hidden:
        hidden = denoiser.encode(canvas.reshape(clean.shape), clean, t.reshape(-1, count))
        return Hidden(
            at=jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[2:]), hidden.at),
            row=jax.tree.map(lambda x: jnp.repeat(x, count, axis=0), hidden.row),
        )

    return Denoiser(encode, denoiser.readout, denoiser.shape, denoiser.mask_id)


def noise_of_blocks(
    key: Array | None, keys: Array | None, rows: Array | None, tokens: Array, count: int
) -> tuple[Array | None, Array | None, Array | None]:
    """`key`, `keys` and `rows` of the blocks, from those of the rows.

    With one key, block b of row r has the number `r count + b`. With a key a row, it has a key
    that is derived from its row's.

    Args:
      key: one for the batch, as `noise.keys_of_rows` takes it; None beside `keys`.
      keys: `[B]`, one a row; None beside `key`.
      rows: i32[B], the rows' numbers, beside `key`.
      tokens: `[B, L]`, what the noise is for.
      count: blocks of a row. An only block has its row's noise.

    Raises:
      TypeError, ValueError: as `noise.keys_of_rows`.
    """
    of_rows = noise.keys_of_rows(key, keys, rows, tokens)
    if keys is not None:
        return None, keys_of_blocks(of_rows, count), None
    if rows is None:
        return key, None, None  # numbers from 0 up are what blocks have by default
    first = jnp.asarray(rows, jnp.int32)[:, None] * count
    numbers = first + jnp.arange(count, dtype=jnp.int32)[None]
    return key, None, numbers.reshape(-1)


def keys_of_blocks(keys: Array, count: int) -> Array:
    """`keys [B]`, one a row -> `[B count]`, one a block."""
    of_block = jax.vmap(lambda block: key_of_block(keys, block, count), out_axes=1)
    return of_block(jnp.arange(count)).reshape(-1)


def key_of_block(keys: Array, block: Array, count: int) -> Array:
    """The keys `[B]` of one block of each row. The key of an only block is the row's."""
    return keys if count == 1 else noise.derive(keys, "block", block)
