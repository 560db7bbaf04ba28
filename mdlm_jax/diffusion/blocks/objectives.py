"""The loss of blocks: each block of a clean text is corrupted by itself."""

from typing import NamedTuple

import jax

from mdlm_jax.diffusion import checks, objectives
from mdlm_jax.diffusion.blocks.as_rows import given, noise_of_blocks
from mdlm_jax.diffusion.blocks.denoisers import BlockDenoiser, check_block_size, count_blocks
from mdlm_jax.diffusion.objectives import LossAux
from mdlm_jax.diffusion.processes import corruption
from mdlm_jax.diffusion.processes.corruption import Corrupted, laid_together
from mdlm_jax.diffusion.processes.masks import maskable_of
from mdlm_jax.diffusion.schedules import Schedule, linear

Array = jax.Array


class CorruptedBlocks(NamedTuple):
    """A batch of which every block is corrupted. Every leaf can be cut along its leading axis.

    Attributes:
      clean: i32[B, L], the clean text.
      blocks: the corrupted blocks: `canvas` i32[B n, size], `t` and `rate` f32[B n]. The groups of
        its slots are rows of the text (G = B); or pairs of them, if blocks are paired and a row has
        an odd number of blocks.
    """

    clean: Array
    blocks: Corrupted

    @property
    def positions(self) -> Array:
        """The slots of the blocks, of which the size is the number that is read out."""
        return self.blocks.positions


def corrupt(
    key: Array | None,
    tokens: Array,
    *,
    block_size: int,
    mask_id: int,
    schedule: Schedule = linear(),
    maskable: Array | None = None,
    rows: Array | None = None,
    keys: Array | None = None,
    paired: bool | None = None,
) -> CorruptedBlocks:
    """Draws the masks of every block of a whole batch, once.

    A block of B maskable tokens has exactly k of them masked, with k uniform on {1..B}:

        NELBO(block) = B E_{k ~ U{1..B}} [ S_k / k ],

    as `mdlm_jax.corrupt` does with rows. There is no epsilon and no clipping of rates, and blocks
    of one token need no case of their own. Neighbouring blocks take opposite counts, so both
    together mask at most B + 1 tokens, and `L (B + 1) / (2 B)` slots of a row are read out.

    Args:
      key: of this step; the noise of block b of a row is a function of (key, the row's number times
        L / size, plus b). None beside `keys`.
      tokens: i32[B, L], clean.
      block_size: tokens of a block; it divides L.
      mask_id: the mask token.
      schedule: turns a block's mask rate into its time, for a network that is told it.
      maskable: bool[B, L], which tokens may be masked and count; default all but `mask_id`.
      rows: i32[B], the rows' numbers in the global batch; default 0..B-1.
      keys: [B], one a row, instead of `key` and `rows`: a row's noise is a function of its key.
      paired: whether blocks 2i and 2i + 1 share slots. By default they do where both are of one
        row, else as in `mdlm_jax.corrupt`.

    Raises:
      TypeError, ValueError: as `mdlm_jax.corrupt`; on a text that blocks do not divide.
    """
    check_block_size(block_size)
    count = count_blocks("tokens", tokens, block_size)
    maskable = maskable_of(tokens, mask_id, maskable)
    key, keys, rows = noise_of_blocks(key, keys, rows, tokens, count)
    if paired and count % 2 and len(tokens) % 2:
        raise ValueError(
            f"paired blocks: {len(tokens)} rows of {count} blocks are an odd number, pass "
            "paired=None or False"
        )
    if paired is None and count % 2 == 0:
        paired = True  # each pair is of one row
    batch = len(tokens)
    blocks = corruption.corrupt(
        key,
        tokens.reshape(-1, block_size),
        mask_id=mask_id,
        schedule=schedule,
        maskable=maskable.reshape(-1, block_size),
        rows=rows,
        keys=keys,
        paired=paired,
    )
    groups = len(blocks.positions)
    pairs_of_rows = 2 * groups == batch * count and count % 2 == 1
    together = groups // (batch // 2 if pairs_of_rows else batch)
    return CorruptedBlocks(tokens, laid_together(blocks, together))


def loss(
    denoiser: BlockDenoiser,
    key: Array | None,
    tokens: Array,
    *,
    mask_id: int,
    schedule: Schedule = linear(),
    maskable: Array | None = None,
    rows: Array | None = None,
    keys: Array | None = None,
    paired: bool | None = None,
) -> tuple[Array, LossAux]:
    """The NELBO of block diffusion, estimated from one corruption of each block.

        -log p(x) <= sum_b E_t [ weight(t) sum_{masked i of b} -log p(x_i | noisy b, clean < b) ]

    (BD3-LM, Arriola et al. 2025, section 3), over exact counts. Where a block is the whole text it
    is `mdlm_jax.diffusion_loss`, draw for draw. Where it is one token it is the autoregressive
    loss. It may be differentiated as that one.

    Args:
      denoiser: built from the parameters to be trained, within the differentiated function.
      key: of this step; None beside `keys`.
      tokens: i32[B, L], clean, whole blocks.
      mask_id: the mask token.
      schedule: as in `corrupt`, as all that follow.
      maskable: bool[B, L], which tokens may be masked and count. All are seen by later blocks, so
        padding stands at the end.
      rows: i32[B], the rows' numbers in the global batch.
      keys: [B], one a row, instead of `key` and `rows`.
      paired: whether neighbouring blocks share slots.

    Returns:
      The loss in nats per maskable token (a float32 scalar), and a `LossAux` by the mask rates of
      blocks.

    Raises:
      TypeError, ValueError: as `corrupt` and `corrupted_loss`.
    """
    checks.check_block_denoiser(denoiser)
    corrupted = corrupt(
        key,
        tokens,
        block_size=denoiser.block_size,
        mask_id=mask_id,
        schedule=schedule,
        maskable=maskable,
        rows=rows,
        keys=keys,
        paired=paired,
    )
    return corrupted_loss(denoiser, corrupted, mask_id=mask_id)


def corrupted_loss(
    denoiser: BlockDenoiser, corrupted: CorruptedBlocks, *, mask_id: int | None = None
) -> tuple[Array, LossAux]:
    """The weighted cross-entropy of corrupted blocks: deterministic, differentiable.

    The losses of microbatches add up to the loss of the whole, as with
    `mdlm_jax.corrupted_loss`.

    Args:
      denoiser: of blocks of the size that was corrupted.
      corrupted: from `corrupt`, or some of its leading rows.
      mask_id: removed from the logits, unless the denoiser has done so.

    Raises:
      TypeError: on what is no block denoiser, or no blocks that were corrupted.
      ValueError: on blocks of another size; on a mask that is not one of the denoiser's tokens, or
        not its own.
    """
    checks.check_block_denoiser(denoiser)
    example = "blocks.corrupt(key, tokens, block_size=size, mask_id=mask_id)"
    checks.check_kind("corrupted", corrupted, CorruptedBlocks, example)
    size = corrupted.blocks.canvas.shape[1]
    if size != denoiser.block_size:
        raise ValueError(
            f"corrupted has blocks of {size} tokens, the denoiser's have {denoiser.block_size}"
        )
    law = given(denoiser, corrupted.clean)
    return objectives.corrupted_loss(law, corrupted.blocks, mask_id=mask_id)
