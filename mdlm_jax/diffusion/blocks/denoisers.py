"""A block denoiser: all blocks at once for training, one block after a cache for writing."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from mdlm_jax.diffusion import checks
from mdlm_jax.diffusion.denoisers import Hidden, PyTree, Readout, Shape, unshaped

Array = jax.Array


class BlockDenoiser(NamedTuple):
    """The law of each block given the clean blocks before it, in two ways that agree.

    In block b the network sees the noisy tokens of b and the clean tokens before b, and nothing
    else. `encode` computes this for all blocks of a clean text. `start`, `extend` and
    `encode_block` compute it for one block at a time, and keep what the blocks before it left.

    Time. A block's `t` stands beside it in both ways. A network that uses the time of its masks
    takes one a block; most need none.

    Attributes:
      block_size: tokens of a block.
      encode: `(noisy i32[B, L], clean i32[B, L], t f32[B, L / size]) -> Hidden`, with `at` leaves
        [B, L, ...] and `row` leaves [B, ...].
      start: `(batch, length) -> cache`, empty, with room for `length` tokens a row. Every leaf of a
        cache that varies between rows has an axis of them, wherever the network wants it.
      extend: `(cache, tokens i32[B, size]) -> cache`: the next block is clean and committed.
      encode_block: `(cache, noisy i32[B, size], t f32[B]) -> Hidden` of the block that follows what
        was committed, with `at` leaves [B, size, ...]. It leaves the cache as it is.
      readout: `(at [N, ...], row [N, ...]) -> logits f32[N, V]`, as a `Denoiser`'s.
      shape: the law that tokens are drawn from, as a `Denoiser`'s. Transforms that shape
        (temperature, nuclei) compose onto it.
      mask_id: the token whose logit `readout` has removed, if known.
      advance: `(cache, tokens i32[B, size], noisy i32[B, size], t f32[B]) -> (cache, Hidden)`:
        `extend` by the tokens, then `encode_block` of the noisy block, in one pass of the network.
        None where the network has no such pass: then it is the one after the other.
      clear: `(cache, where bool[B]) -> cache`: the marked rows hold nothing, as from `start`. With
        it goes an argument `where`, bool[B], of `extend` and `advance`: the rows that commit. None
        where all rows of a cache are of one length.
      prefill: `(cache, text i32[B, L], count i32[B]) -> cache`: commits what each row lacks of the
        first `count` blocks of its text, many in one pass. It goes with `where`, as `clear` does.
        None where the network has no such pass: then given blocks are committed one by one.
    """

    block_size: int
    encode: Callable[[Array, Array, Array], Hidden]
    start: Callable[[int, int], PyTree]
    extend: Callable[..., PyTree]
    encode_block: Callable[[PyTree, Array, Array], Hidden]
    readout: Readout
    shape: Shape = unshaped
    mask_id: int | None = None
    advance: Callable[..., tuple[PyTree, Hidden]] | None = None
    clear: Callable[[PyTree, Array], PyTree] | None = None
    prefill: Callable[[PyTree, Array, Array], PyTree] | None = None


def check_block_size(size: int) -> None:
    """Raises: TypeError, ValueError: the size is not a whole number from 1 up."""
    checks.check_whole("block_size", size)
    if isinstance(size, jax.core.Tracer):
        raise TypeError("block_size is traced, it must be a number that is known: it is a shape")
    if size < 1:
        raise ValueError(f"block_size is {size}, at least 1 is needed")


def count_blocks(name: str, tokens: Array, size: int) -> int:
    """How many blocks of `size` make up each row of `tokens i32[B, L]`.

    Raises:
      TypeError, ValueError: on tokens that are not integers [B, L], or no whole number of blocks.
    """
    checks.check_text(name, tokens)
    width = tokens.shape[1]
    if width % size:
        below, above = width // size * size, (width // size + 1) * size
        fits = f"{below} or {above}" if below else str(above)
        raise ValueError(
            f"{name} has rows of {width} tokens, which blocks of {size} do not divide: "
            f"cut or pad them to {fits} (padding is not maskable)"
        )
    return width // size
