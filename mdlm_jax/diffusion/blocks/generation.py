"""The sampler of blocks: from left to right, each block by a strategy, after a cache.

A block is written like a canvas of its own. When it is finished it is committed to the cache, in
the pass of the network that takes the next block's first step. So tokens that may still change
never reach the cache, and what is final is computed once. The blocks that a row begins with are
committed before, many in one pass where the network has one.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mdlm_jax.diffusion import checks, noise, sampling, shards
from mdlm_jax.diffusion.blocks.as_rows import key_of_block
from mdlm_jax.diffusion.blocks.denoisers import BlockDenoiser, count_blocks
from mdlm_jax.diffusion.denoisers import Hidden, PyTree, check_mask
from mdlm_jax.diffusion.sampling import SamplingState, Trace
from mdlm_jax.diffusion.strategies import Strategy, View, exact_count

Array = jax.Array


class _Text(NamedTuple):
    """What is written so far: the canvas i32[B, L], and how it came to be."""

    canvas: Array
    trace: Trace


def sample(
    denoiser: BlockDenoiser,
    key: Array | None,
    canvas: Array,
    *,
    mask_id: int,
    steps: int | Array,
    strategy: Strategy = exact_count(),
    end_id: int | Array | None = None,
    pad_id: int | Array | None = None,
    maskable: Array | None = None,
    fill: Array | None = None,
    rows: Array | None = None,
    keys: Array | None = None,
    trace: bool = False,
    chunk: int | None = None,
) -> Array | tuple[Array, Trace]:
    """Fills every mask of the canvas, block by block, in at most `steps` evaluations a block.

    Prompts and gaps may lie anywhere: what is given in a block is seen by all of it and by later
    blocks, and by no earlier one. At one token a step the samples follow the law of the blocks
    exactly, for the strategies that `mdlm_jax.strategies` names. Where one block is the whole
    canvas this is `mdlm_jax.sample`, token for token. Call it under `jax.jit`; `steps` may be
    traced.

    A row whose end of text is written costs nothing any more, and sampling stops at the block in
    which the last row ends. Blocks behind the last wanted mask are not evaluated either. Blocks
    that are given are committed: before the first wanted mask of a row by `prefill`, if the
    denoiser has it, the others one after the other, each in one pass.

    Args:
      denoiser: of blocks. Tokens are drawn from its shaped logits.
      key: the noise of a row is a function of (key, its number in `rows`), not of the other rows.
        None beside `keys`.
      canvas: i32[B, L], whole blocks, with `mask_id` where text is wanted.
      mask_id: marks what is to be filled; never drawn.
      steps: the most network evaluations of a block: one number, or i32[B], one a row. With as many
        as a block has tokens each step writes one.
      strategy: which of a block's positions are written when, from `mdlm_jax.strategies`.
      end_id: the end of text, if it ends a row: one number, or i32[B], -1 in rows that no token
        ends. When a block with one is finished, the row's blanks behind the first that was written
        become `pad_id`.
      pad_id: default `end_id`.
      maskable: bool[B, L], the positions that are text (not padding); default all. Masks elsewhere
        stay.
      fill: bool[B, L], the masks that are wanted; default all. The others stay masked. Later blocks
        then see the mask among their clean tokens, as an unknown token, which no training shows to
        a network: leave such masks behind what is wanted, or expect less of what follows them.
      rows: i32[B], the rows' numbers in the whole job; default 0..B-1.
      keys: [B], one a row, with `key=None` and no `rows`.
      trace: also return a `Trace`; block b's steps are numbered from `b steps`.
      chunk: positions read out at a time; the default is the strategy's.

    Returns:
      The filled canvas i32[B, L], or `(canvas, Trace)`. A canvas without masks comes back as it is.

    Raises:
      ValueError: on a canvas that blocks do not divide, a `maskable` or `fill` of another shape, no
        step, `pad_id` without `end_id`, both or neither of `key` and `keys`, another mask than the
        denoiser's.
      TypeError: on what is no block denoiser, a strategy that was not called, a list for an array.
    """
    checks.check_block_denoiser(denoiser)
    size, count = denoiser.block_size, count_blocks("canvas", canvas, denoiser.block_size)
    checks.check_whole("mask_id", mask_id)
    check_mask(denoiser, mask_id)
    for name, marked in (("maskable", maskable), ("fill", fill)):
        if marked is not None:
            checks.check_maskable(name, marked, canvas.shape)
    if rows is not None:
        checks.check_rows(rows, len(canvas))
    of_rows = noise.keys_of_rows(key, keys, rows, canvas)
    canvas = jnp.asarray(canvas, jnp.int32)
    maskable = jnp.ones(canvas.shape, bool) if maskable is None else maskable
    wanted = maskable & (canvas == mask_id)
    wanted = wanted if fill is None else wanted & fill
    block_of = jnp.arange(canvas.shape[1])[None] // size
    ahead = given_first(wanted, size)

    def part(x: Array, block: Array) -> Array:
        return jax.lax.dynamic_slice_in_dim(x, block * size, size, axis=1)

    def begun(block: Array, canvas: Array) -> SamplingState:
        return sampling.start(
            strategy,
            part(canvas, block),
            key_of_block(of_rows, block, count),
            mask_id=mask_id,
            steps=steps,
            fill=part(wanted, block),
            maskable=part(maskable, block),
            end_id=end_id,
            pad_id=pad_id,
        )

    def finished(state: SamplingState, cache: PyTree) -> SamplingState:
        def encode(memory: PyTree, view: View, asked: Array, t: Array) -> tuple[PyTree, Hidden]:
            del asked
            return memory, denoiser.encode_block(cache, view.canvas, t)

        def one_step(state: SamplingState) -> SamplingState:
            after, _ = sampling.step_with(
                encode, denoiser, strategy, state, (), mask_id=mask_id, chunk=chunk
            )
            return shards.alike(after, state)

        return jax.lax.while_loop(lambda state: ~sampling.finished(state).all(), one_step, state)

    def goes_on(carry) -> Array:
        block, text, _ = carry
        return jnp.any(wanted & (text.canvas == mask_id) & (block_of >= block))

    def one_block(carry):
        block, text, cache = carry
        before = part(text.canvas, block - 1)

        def commit_and_encode(
            cache: PyTree, view: View, asked: Array, t: Array
        ) -> tuple[PyTree, Hidden]:
            del asked
            where = None if denoiser.prefill is None else ahead < block
            return advance(denoiser, cache, before, view.canvas, t, where)

        state, after = sampling.step_with(
            commit_and_encode,
            denoiser,
            strategy,
            begun(block, text.canvas),
            cache,
            mask_id=mask_id,
            chunk=chunk,
            always=True,
        )
        text = _written(text, block, finished(state, after), wanted & (block_of > block))
        return block + 1, *shards.alike((text, after), carry)

    nothing = Trace(
        step=jnp.full(canvas.shape, -1, jnp.int32),
        log_prob=jnp.zeros(canvas.shape, jnp.float32),
        evaluations=jnp.zeros(len(canvas), jnp.int32),
    )
    first = jnp.int32(0)
    if denoiser.prefill is not None:
        first = jnp.minimum(ahead.min(), count - 1)
    block = begun(first, canvas)
    cache, text = shards.alike(
        (denoiser.start(*canvas.shape), _Text(canvas, nothing)), block, wanted
    )
    if denoiser.prefill is not None and count > 1:
        # A row in which nothing is wanted needs no cache.
        cache = denoiser.prefill(cache, canvas, jnp.where(ahead < count, ahead, 0))
    text = _written(text, first, finished(block, cache), wanted & (block_of > first))
    if count > 1:
        _, text, _ = jax.lax.while_loop(goes_on, one_block, (first + 1, text, cache))
    return (text.canvas, text.trace) if trace else text.canvas


def given_first(wanted: Array, size: int) -> Array:
    """i32[B]: the blocks before the first with a wanted mask; all of a row that has none.

    Args:
      wanted: bool[B, L], the masks that are to be written.
      size: tokens of a block.
    """
    blocks = wanted.reshape(len(wanted), -1, size).any(axis=2)
    first = jnp.where(blocks.any(axis=1), jnp.argmax(blocks, axis=1), blocks.shape[1])
    return first.astype(jnp.int32)


def advance(
    denoiser: BlockDenoiser,
    cache: PyTree,
    tokens: Array,
    noisy: Array,
    t: Array,
    where: Array | None = None,
) -> tuple[PyTree, Hidden]:
    """Commits a clean block and encodes the noisy one behind it, in one pass where there is one.

    Args:
      denoiser: of blocks.
      cache: of what lies before both.
      tokens: i32[B, size], clean.
      noisy: i32[B, size].
      t: f32[B], the time of the noisy block.
      where: bool[B], the rows that commit, of a denoiser with `prefill`; by default all.
    """
    which = {} if where is None else {"where": where}
    if denoiser.advance is not None:
        return denoiser.advance(cache, tokens, noisy, t, **which)
    cache = denoiser.extend(cache, tokens, **which)
    return cache, denoiser.encode_block(cache, noisy, t)


def _written(text: _Text, block: Array, state: SamplingState, later: Array) -> _Text:
    """The text with a finished block in it; rows that ended are padded where `later bool[B, L]`."""
    size = state.canvas.shape[1]

    def put(whole: Array, part: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(whole, part, block * size, axis=1)

    is_end = state.wanted & (state.canvas == state.end_id[:, None]) & (state.end_id >= 0)[:, None]
    padding = later & is_end.any(axis=1)[:, None]
    step = jnp.where(
        state.step_of >= 0, state.step_of + block * state.steps[:, None], state.step_of
    )
    return _Text(
        canvas=jnp.where(padding, state.pad_id[:, None], put(text.canvas, state.canvas)),
        trace=Trace(
            step=put(text.trace.step, step),
            log_prob=put(text.trace.log_prob, state.log_prob),
            evaluations=text.trace.evaluations + state.evaluations,
        ),
    )
