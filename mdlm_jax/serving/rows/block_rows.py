"""Rows of models of blocks: each row has its own block, its own clock, and its part of the cache.

When a row is admitted, the blocks that it begins with are committed to the cache.
A tick takes one step in the block at hand of every row. Rows whose last block was just finished
commit it to the cache in the pass that takes the next one's first step, as `blocks.sample` does;
the others take theirs without. So a row's numbers come from the same two passes as there, whatever
the rows beside it do, and a tick in which no row needs one of the passes does without it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mdlm_jax.diffusion import clocks, sampling
from mdlm_jax.diffusion.blocks import BlockDenoiser
from mdlm_jax.diffusion.blocks.as_rows import key_of_block
from mdlm_jax.diffusion.blocks.generation import given_first
from mdlm_jax.diffusion.denoisers import Hidden
from mdlm_jax.diffusion.sampling import SamplingState
from mdlm_jax.diffusion.strategies import View
from mdlm_jax.runs.sampler import block_denoiser_of
from mdlm_jax.serving.rows import given, row_options
from mdlm_jax.serving.rows.given import Given
from mdlm_jax.serving.rows.kinds import Kind, Seen
from mdlm_jax.serving.rows.row_options import Options

Array = jax.Array
PyTree = Any


class Text(NamedTuple):
    """The rows of all slots, in whole blocks of R tokens. Every leaf leads with the slots.

    Attributes:
      canvas: i32[S, R].
      wanted: bool[S, R], the masks that the row began with and that are to be written.
      maskable: bool[S, R].
      step_of: i32[S, R], as in `Written.step`.
      log_prob: f32[S, R].
      keys: [S], of the rows.
      block: i32[S], the block at hand.
      state: of the sampler in that block, [S, size].
      commits: bool[S], whether the block before it is still to be committed.
      evaluations: i32[S], in earlier blocks.
      done: bool[S].
      options: what shapes each row.
    """

    canvas: Array
    wanted: Array
    maskable: Array
    step_of: Array
    log_prob: Array
    keys: Array
    block: Array
    state: SamplingState
    commits: Array
    evaluations: Array
    done: Array
    options: Options


class Rows(NamedTuple):
    """The rows of all slots.

    Attributes:
      text: what is written so far.
      cache: of what was committed.
    """

    text: Text
    cache: PyTree


def begun(kind: Kind, params: PyTree, told: Given) -> Rows:
    """Rows that nothing has been written in yet."""
    text = _begun(kind, told)
    return Rows(text, _denoiser(kind, params, text.options).start(kind.slots, kind.length))


def admitted(kind: Kind, params: PyTree, rows: Rows, told: Given) -> Rows:
    """The rows with those that are admitted in their slots, and without those that are stopped."""
    new = told.action == given.ADMIT
    text = clocks.choose(new, _begun(kind, told), rows.text)
    text = text._replace(done=text.done | (told.action == given.STOP))
    denoiser = _denoiser(kind, params, text.options)
    if denoiser.clear is None or denoiser.prefill is None:
        raise ValueError("a denoiser of blocks is served if it can clear and prefill rows")
    given_ahead = jnp.where(new & ~text.done, text.block, 0)
    cache = denoiser.prefill(denoiser.clear(rows.cache, new), text.canvas, given_ahead)
    return Rows(text, cache)


def stepper(kind: Kind, params: PyTree, rows: Rows, forbidden: Array) -> Callable[[Rows], Rows]:
    """One step of all rows that are not done, as a function of the rows.

    What depends on the parameters and on the options is computed here, once for many steps.
    """
    options = rows.text.options
    denoiser = _denoiser(kind, params, options)
    strategy = kind.strategy_of((0.0,) * kind.numbers)  # the state has the numbers

    def step(rows: Rows) -> Rows:
        text = rows.text
        # What stands in later blocks the network does not see, and no penalty counts it.
        so_far = _block_of(kind, text.canvas) <= text.block[:, None]
        standing = jnp.where(so_far, text.canvas, kind.mask_id)
        own = row_options.shaped(denoiser, options, ~text.done, forbidden, standing)
        before = _part(kind, text.canvas, jnp.maximum(text.block - 1, 0))
        commits = text.commits & ~text.done

        def encode(cache: PyTree, view: View, asked: Array, t: Array) -> tuple[PyTree, Hidden]:
            return _encoded(own, cache, before, commits, view.canvas, asked.any(axis=1), t)

        state, cache = sampling.step_with(
            encode, own, strategy, text.state, rows.cache, mask_id=kind.mask_id, always=True
        )
        # A row that is done keeps its last block.
        text = text._replace(state=state, commits=text.commits & text.done)
        return Rows(_turned(kind, _with_block(kind, text)), cache)

    return step


def seen(kind: Kind, rows: Rows) -> Seen:
    """What the host is told."""
    text, length = rows.text, kind.length
    return Seen(
        text.canvas[:, :length],
        text.step_of[:, :length],
        text.log_prob[:, :length],
        text.evaluations + text.state.evaluations,
        text.done,
    )


def done(rows: Rows) -> Array:
    """bool[S], the rows in which nothing more is to be done."""
    return rows.text.done


def _encoded(
    denoiser: BlockDenoiser,
    cache: PyTree,
    before: Array,
    commits: Array,
    noisy: Array,
    asks: Array,
    t: Array,
) -> tuple[PyTree, Hidden]:
    """The blocks at hand, i32[S, size], after those that `commits bool[S]` add to the cache."""
    shapes = jax.eval_shape(denoiser.encode_block, cache, noisy, t)
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def commit_and_encode() -> tuple[PyTree, Hidden]:
        if denoiser.advance is not None:
            return denoiser.advance(cache, before, noisy, t, where=commits)
        after = denoiser.extend(cache, before, where=commits)
        return after, denoiser.encode_block(after, noisy, t)

    cache, first = jax.lax.cond(commits.any(), commit_and_encode, lambda: (cache, nothing))
    others = jax.lax.cond(
        (asks & ~commits).any(),
        lambda: denoiser.encode_block(cache, noisy, t),
        lambda: nothing,
    )
    return cache, clocks.choose(commits, first, others)


def _denoiser(kind: Kind, params: PyTree, options: Options) -> BlockDenoiser:
    assert kind.blocks is not None
    batch = row_options.batch_of(options, padded=False, labelled=kind.labelled)
    weight = options.guidance if kind.guided else None
    return block_denoiser_of(params, kind.encoder, batch, kind.blocks, weight)


def _begun(kind: Kind, told: Given) -> Text:
    """As `runs.sampler.written_in_blocks` begins: what fills up the last block is not wanted."""
    count, size = _count(kind), kind.blocks.size
    ends = ((0, 0), (0, count * size - kind.length))
    canvas = jnp.pad(told.tokens, ends, constant_values=kind.mask_id)
    maskable = jnp.pad(told.maskable, ends, constant_values=True)
    wanted = maskable & jnp.pad(told.fill, ends) & (canvas == kind.mask_id)
    first = jnp.minimum(given_first(wanted, size), count - 1)
    whole = told.whole
    clock = (-(-whole["steps"] // count), whole["end_id"], whole["pad_id"])
    text = Text(
        canvas=canvas,
        wanted=wanted,
        maskable=maskable,
        step_of=jnp.full(canvas.shape, -1, jnp.int32),
        log_prob=jnp.zeros(canvas.shape, jnp.float32),
        keys=told.keys,
        block=first,
        state=_state(kind, canvas, wanted, maskable, told.keys, first, told.numbers, *clock),
        commits=jnp.zeros(kind.slots, bool),
        evaluations=jnp.zeros(kind.slots, jnp.int32),
        done=jnp.zeros(kind.slots, bool),
        options=row_options.of_given(told),
    )
    return _turned(kind, text)


def _state(
    kind: Kind,
    canvas: Array,
    wanted: Array,
    maskable: Array,
    keys: Array,
    block: Array,
    numbers: tuple,
    steps: Array,
    end_id: Array,
    pad_id: Array,
) -> SamplingState:
    """The sampler at the beginning of a block of each row."""
    return sampling.start(
        kind.strategy_of(numbers),
        _part(kind, canvas, block),
        key_of_block(keys, block, _count(kind)),
        mask_id=kind.mask_id,
        steps=steps,
        fill=_part(kind, wanted, block),
        maskable=_part(kind, maskable, block),
        end_id=end_id,
        pad_id=pad_id,
    )


def _with_block(kind: Kind, text: Text) -> Text:
    """The text with what the state has of the block at hand."""
    state = text.state
    step = state.step_of + text.block[:, None] * state.steps[:, None]
    step = jnp.where(state.step_of >= 0, step, -1)
    return text._replace(
        canvas=_put(kind, text.canvas, state.canvas, text.block),
        step_of=_put(kind, text.step_of, step, text.block),
        log_prob=_put(kind, text.log_prob, state.log_prob, text.block),
    )


def _turned(kind: Kind, text: Text) -> Text:
    """Rows whose block is finished go on to the next, or are done if nothing is left to write.

    Where a text ended, its blanks in later blocks become padding.
    """
    state, over = text.state, text.state.done & ~text.done
    later = text.wanted & (_block_of(kind, text.canvas) > text.block[:, None])
    is_end = state.wanted & (state.canvas == state.end_id[:, None]) & (state.end_id >= 0)[:, None]
    padding = (over & is_end.any(axis=1))[:, None] & later
    canvas = jnp.where(padding, state.pad_id[:, None], text.canvas)
    more = (later & (canvas == kind.mask_id)).any(axis=1)
    goes_on = over & more

    block = text.block + goes_on.astype(jnp.int32)
    numbers = tuple(jax.tree.leaves(state.strategy))
    clock = (state.steps, state.end_id, state.pad_id)
    new = _state(kind, canvas, text.wanted, text.maskable, text.keys, block, numbers, *clock)
    return text._replace(
        canvas=canvas,
        block=block,
        state=clocks.choose(goes_on, new, state),
        commits=text.commits | goes_on,
        evaluations=text.evaluations + jnp.where(goes_on, state.evaluations, 0),
        done=text.done | (over & ~more),
    )


def _block_of(kind: Kind, canvas: Array) -> Array:
    """i32[1, R], the block of each position."""
    return jnp.arange(canvas.shape[1])[None] // kind.blocks.size


def _count(kind: Kind) -> int:
    return -(-kind.length // kind.blocks.size)


def _part(kind: Kind, x: Array, block: Array) -> Array:
    """Of `[S, R]` each row's block `i32[S]`: `[S, size]`."""
    size = kind.blocks.size
    return jax.vmap(lambda row, b: jax.lax.dynamic_slice_in_dim(row, b * size, size))(x, block)


def _put(kind: Kind, x: Array, part: Array, block: Array) -> Array:
    """`[S, R]` with each row's block `[S, size]` in its place."""
    size = kind.blocks.size
    put = jax.lax.dynamic_update_slice_in_dim
    return jax.vmap(lambda row, new, b: put(row, new, b * size, axis=0))(x, part, block)
