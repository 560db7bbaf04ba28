"""The NELBO of block diffusion: drawn, or exact where blocks are small."""

from typing import Literal

import jax
import jax.numpy as jnp

from mdlm_jax.diffusion import checks, noise
from mdlm_jax.diffusion.blocks.as_rows import given, noise_of_blocks
from mdlm_jax.diffusion.blocks.denoisers import BlockDenoiser, count_blocks
from mdlm_jax.diffusion.enumeration import enumerated_nelbo
from mdlm_jax.diffusion.likelihood import Likelihood, drawn_nelbo
from mdlm_jax.diffusion.processes.masks import maskable_of
from mdlm_jax.diffusion.schedules import Schedule, check_schedule, linear

Array = jax.Array

LONGEST_ENUMERATED = 8  # 255 evaluations


def nelbo(
    denoiser: BlockDenoiser,
    key: Array | None,
    tokens: Array,
    *,
    mask_id: int,
    draws: int | Literal["all"] = 8,
    maskable: Array | None = None,
    rows: Array | None = None,
    keys: Array | None = None,
    schedule: Schedule = linear(),
) -> Likelihood:
    """Each row's NELBO, the sum of its blocks'; drawn, or exact.

    Given the clean text blocks are independent, so their nats and the variances of these add up.
    Each block is what `mdlm_jax.nelbo` is of a row: with one block of the whole text the two are
    equal, draw for draw.

    Exact. `draws="all"` sums over every set of masks of each block instead of drawing some:

        NELBO(block) = sum over the sets s that are not empty of nats(s) / (|s| C(B, |s|)),

    `2^B - 1` evaluations for blocks of B tokens. Where a block is one token there is one set, so
    nothing is ever drawn: one evaluation gives the autoregressive `-log p`. Exact ones have
    `mc_variance` 0, and the denoiser's time is 1 throughout.

    Args:
      denoiser: of blocks; it always sees all B rows, in order.
      key: the draws of block b of a row are functions of (key, the row's number times L / size,
        plus b). None beside `keys`, and where nothing is drawn.
      tokens: i32[B, L], clean, whole blocks.
      mask_id: the mask token.
      draws: network evaluations a row, at least 2; "all" for blocks of 8 tokens at most.
      maskable: bool[B, L], the tokens that count; default all but `mask_id`. All are seen by later
        blocks, so padding stands at the end.
      rows: i32[B], the rows' numbers in the whole text; default 0..B-1.
      keys: [B], one a row, instead of `key` and `rows`.
      schedule: turns a block's mask rate into its time, for a network that is told it.

    Raises:
      ValueError: on draws out of their range, and as `blocks.corrupt`.
      TypeError: as `blocks.loss`.
    """
    checks.check_block_denoiser(denoiser)
    size, count = denoiser.block_size, count_blocks("tokens", tokens, denoiser.block_size)
    _check_draws(draws, size)
    check_schedule(schedule)
    if rows is not None:
        checks.check_rows(rows, len(tokens))
    maskable = maskable_of(tokens, mask_id, maskable).reshape(-1, size)
    law, blocks = given(denoiser, tokens), tokens.reshape(-1, size)
    if draws == "all" or size == 1:
        nats = enumerated_nelbo(
            law, blocks, mask_id=mask_id, longest=size, maskable=maskable, together=count
        )
        counted = maskable.sum(axis=1, dtype=jnp.int32)
        each = Likelihood(nats=nats, mc_variance=jnp.zeros_like(nats), tokens=counted)
    else:
        key, keys, rows = noise_of_blocks(key, keys, rows, tokens, count)
        of_blocks = noise.keys_of_rows(key, keys, rows, blocks)
        each = drawn_nelbo(
            law,
            of_blocks,
            blocks,
            mask_id=mask_id,
            draws=draws,
            maskable=maskable,
            schedule=schedule,
            together=count,
        )
    return jax.tree.map(lambda x: x.reshape(-1, count).sum(axis=1), each)


def _check_draws(draws: int | str, size: int) -> None:
    if draws == "all":
        if size > LONGEST_ENUMERATED:
            raise ValueError(
                f"draws is 'all' with blocks of {size} tokens: every set of masks is counted for "
                f"blocks of {LONGEST_ENUMERATED} at most; give a number of draws"
            )
        return
    if isinstance(draws, str):
        raise ValueError(f"draws is {draws!r}, it must be a number from 2 up, or 'all'")
    checks.check_whole("draws", draws)
    if draws < 2:
        raise ValueError(f"draws is {draws}, at least 2 are needed for its error, or 'all'")
