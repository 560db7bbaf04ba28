"""The sampler: denoiser x canvas -> tokens, one compiled loop around any strategy."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mdlm_jax.diffusion import checks, noise, shards
from mdlm_jax.diffusion.denoisers import Denoiser, check_mask
from mdlm_jax.diffusion.reading.readouts import Candidates, draw_tokens
from mdlm_jax.diffusion.strategies import Strategy, View, exact_count

Array = jax.Array


class Trace(NamedTuple):
    """How a canvas was filled.

    Attributes:
      step: i32[B, L], the step that last wrote the position; -1 where the token was given, or is
        padding behind an end of text.
      log_prob: f32[B, L], the written token's log-probability in that step, in nats, by the model's
        own logits, whatever shaped the draw; 0 where none was written.
      evaluations: i32[B], the steps in which the row needed the network.
    """

    step: Array
    log_prob: Array
    evaluations: Array


def sample(
    denoiser: Denoiser,
    key: Array | None,
    canvas: Array,
    *,
    mask_id: int,
    steps: int | Array | None = None,
    strategy: Strategy = exact_count(),
    blocks: int | Array = 1,
    end_id: int | None = None,
    pad_id: int | None = None,
    maskable: Array | None = None,
    fill: Array | None = None,
    rows: Array | None = None,
    keys: Array | None = None,
    trace: bool = False,
    chunk: int | None = None,
) -> Array | tuple[Array, Trace]:
    """Fills every mask of the canvas, in at most `steps` network evaluations.

    Generation, prompts anywhere, infilling and re-editing are one case: the canvas holds `mask_id`
    where text is wanted, and nothing else is ever written to. Call it under `jax.jit` with
    `steps` traced, and perhaps `blocks`: another number does not recompile.

    A step in which no row asks for anything does not evaluate the network. Sampling stops when all
    is filled, unless the strategy may take tokens back.

    Args:
      denoiser: `(canvas, t) -> logits` in its two halves. Tokens are drawn from its shaped
        logits. Strategies choose positions by its own.
      key: the noise of a row is a function of (key, its number in `rows`), not of the other rows.
        In `vmap` or `shard_map` each part counts its rows from 0 and would draw the same noise as
        the others: give `rows`, or None here and `keys`.
      canvas: i32[B, L].
      mask_id: marks what is to be filled; never drawn.
      steps: the most network evaluations, at least one a block. The default writes one token a step
        in the row with the most blanks, so a row's text then depends on the rows beside it: give
        `steps` where a job is cut into batches.
      strategy: decides which positions are written when, from `mdlm_jax.strategies`. The default,
        `exact_count()`, follows the model's joint law at one token a step.
      blocks: the number of runs into which each row's blanks are cut, as evenly as possible. They
        are filled from left to right with equally many steps (semi-autoregressive: Arriola et al.
        2025, Block Diffusion; Nie et al. 2025, LLaDA). Nothing outside the active run is written.
      end_id: the end of text, if it ends a row. When a block is filled, the row's blanks behind the
        first `end_id` that was written become `pad_id` and cost nothing any more.
      pad_id: default `end_id`.
      maskable: bool[B, L], the positions that are text (not padding); default all. Masks elsewhere
        stay.
      fill: bool[B, L], the masks that are wanted; default all. The others stay masked, as unknown
        text, such as what follows a prompt.
      rows: i32[B], the rows' numbers in the whole job; default 0..B-1.
      keys: [B], one a row, with `key=None` and no `rows`; `noise.row_keys(key, rows)` makes them
        of one key.
      trace: also return a `Trace`.
      chunk: positions read out at a time. It matters only to memory and speed; the default is the
        strategy's.

    Returns:
      The filled canvas i32[B, L], or `(canvas, Trace)`. A canvas without masks comes back as it is.

    Raises:
      ValueError: on a canvas that is not integers [B, L], a `maskable` or `fill` of another shape,
        `blocks` < 1, `pad_id` without `end_id`, both or neither of `key` and `keys`, `rows` beside
        `keys`; and, if they are known, on fewer steps than blocks, or a mapped canvas whose parts
        would draw the same noise.
      TypeError: on a bare function for a denoiser, a strategy that was not called, a list for an
        array.
    """
    checks.check_denoiser(denoiser)
    checks.check_text("canvas", canvas)
    for name, value in (("mask_id", mask_id), ("blocks", blocks)):
        checks.check_whole(name, value)
    if steps is not None:
        checks.check_whole("steps", steps)
    for name, marked in (("maskable", maskable), ("fill", fill)):
        if marked is not None:
            checks.check_maskable(name, marked, canvas.shape)
    check_mask(denoiser, mask_id)
    checks.check_kind("strategy", strategy, Strategy, "strategies.exact_count()")
    if rows is not None:
        checks.check_rows(rows, canvas.shape[0])
    of_row = noise.keys_of_rows(key, keys, rows, canvas)  # [B]
    _check(steps, blocks, mask_id, end_id, pad_id)
    maskable = jnp.ones(canvas.shape, bool) if maskable is None else maskable
    fill = maskable if fill is None else fill & maskable
    canvas = jnp.asarray(canvas, jnp.int32)
    wanted = fill & (canvas == mask_id)  # from here on what is wanted is carried
    if steps is None:
        steps = -(-wanted.sum(axis=1).max() // blocks) * blocks  # as many in each block
    steps = jnp.maximum(jnp.asarray(steps, jnp.int32), blocks)
    text = jnp.maximum(maskable.sum(axis=1), 1)  # [B]
    block_of = _blocks(wanted, blocks)  # i32[B, L], -1 where none is

    def masked(canvas):  # what is left to write; the only place that asks the canvas for its masks
        return canvas == mask_id

    def of_shard(carry):  # of one type, whatever it is made from
        return shards.alike(carry, canvas, of_row, fill, steps)

    def fill_block(block, carry):
        canvas, filled = carry
        first, behind = steps * block // blocks, steps * (block + 1) // blocks
        # Padding behind an end of text is not wanted any more.
        wanted = (block_of == block) & masked(canvas)
        outside = (maskable & ~wanted & masked(canvas)).sum(axis=1) / text
        share = wanted.sum(axis=1) / text

        def view(canvas, blank, index):
            return View(
                canvas=canvas,
                wanted=wanted,
                blank=blank,
                rate=(maskable & masked(canvas)).sum(axis=1) / text,
                outside=outside,
                share=share,
                index=index,
                steps=behind - first,
                mask_id=jnp.int32(mask_id),
            )

        def keys_of(purpose, index):
            return noise.derive(of_row, purpose, first + index)

        def goes_on(carry):
            index, _, blank, *_ = carry
            needed = wanted if strategy.remasks else blank
            return (index < behind - first) & needed.any()

        def one_step(carry):
            index, canvas, blank, state, filled = carry
            before = view(canvas, blank, index)
            proposal, state = strategy.propose(state, keys_of("propose", index), before)
            asked = proposal.asked

            def candidates():
                return draw_tokens(
                    denoiser,
                    denoiser.encode(canvas, proposal.t),
                    canvas,
                    asked,
                    keys_of("draw", index),
                    mask_id=mask_id,
                    chunk=chunk or strategy.chunk,
                    noise=proposal.noise,
                    score=strategy.score,
                    blank=blank,
                )

            drawn = jax.lax.cond(
                asked.any(),
                lambda: of_shard(candidates()),
                lambda: of_shard(_no_candidates(canvas)),
            )
            canvas, state = strategy.commit(state, keys_of("commit", index), before, asked, drawn)
            blank = wanted & masked(canvas)
            written = before.blank & ~blank
            filled = Trace(
                step=jnp.where(written, first + index, filled.step),
                log_prob=jnp.where(written, drawn.log_prob, filled.log_prob),
                evaluations=filled.evaluations + asked.any(axis=1).astype(jnp.int32),
            )
            return index + 1, *of_shard((canvas, blank, state, filled))

        start = jnp.int32(0)
        blank = of_shard(wanted)
        state = of_shard(strategy.init(keys_of("begin", 0), view(canvas, blank, start)))
        _, canvas, _, _, filled = jax.lax.while_loop(
            goes_on, one_step, (start, canvas, blank, state, filled)
        )
        if end_id is None:
            return canvas, filled
        padding = _behind_the_end(canvas, (block_of >= 0) & (block_of <= block), block_of, end_id)
        return jnp.where(padding, end_id if pad_id is None else pad_id, canvas), Trace(
            step=jnp.where(padding, -1, filled.step),
            log_prob=jnp.where(padding, 0.0, filled.log_prob),
            evaluations=filled.evaluations,
        )

    filled = Trace(
        step=jnp.full(canvas.shape, -1, jnp.int32),
        log_prob=jnp.zeros(canvas.shape),
        evaluations=jnp.zeros(canvas.shape[:1], jnp.int32),
    )
    canvas, filled = of_shard((canvas, filled))
    canvas, filled = jax.lax.fori_loop(0, blocks, fill_block, (canvas, filled))
    return (canvas, filled) if trace else canvas


def _blocks(wanted: Array, blocks: int | Array) -> Array:
    """Which block each wanted position is in, by its place among the row's; -1 elsewhere."""
    place = jnp.cumsum(wanted, axis=1) - 1
    count = jnp.maximum(wanted.sum(axis=1, keepdims=True), 1)
    return jnp.where(wanted, place * blocks // count, -1)


def _behind_the_end(canvas: Array, written: Array, block_of: Array, end_id: int) -> Array:
    """The positions of the row's blocks behind the first end of text that was written."""
    ends = jnp.cumsum(written & (canvas == end_id), axis=1)
    is_end = written & (canvas == end_id) & (ends == 1)
    return (block_of >= 0) & (ends > 0) & ~is_end


def _no_candidates(canvas: Array) -> Candidates:
    nothing = jnp.zeros(canvas.shape)
    return Candidates(jnp.zeros(canvas.shape, jnp.int32), nothing, nothing)


def _check(steps, blocks, mask_id, end_id, pad_id):
    if not isinstance(blocks, jax.core.Tracer) and blocks < 1:
        raise ValueError(f"blocks is {blocks}, at least 1 is needed")
    if not any(x is None or isinstance(x, jax.core.Tracer) for x in (steps, blocks)) and (
        steps < blocks
    ):
        needed = "1 is" if blocks == 1 else f"{blocks}, one a block, are"
        raise ValueError(f"steps is {steps}, at least {needed} needed")
    if pad_id is not None and end_id is None:
        raise ValueError("pad_id is for what follows end_id, which is not given")
    if end_id == mask_id or pad_id == mask_id:
        raise ValueError(f"end_id and pad_id must be other tokens than the mask, {mask_id}")
