"""The state of a sampler whose rows live apart: each has its own clock, key and parameters."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mdlm_jax.diffusion import checks, noise, shards
from mdlm_jax.diffusion.strategies import Strategy, View

Array = jax.Array
PyTree = Any


class SamplingState(NamedTuple):
    """Rows on their way from masks to text. Every leaf leads with the rows.

    A row is a function of its own leaves and of the denoiser alone. So rows can be put in and taken
    out between steps, in any slot. To take a row out, set its `done`.

    Attributes:
      canvas: i32[B, L].
      block_of: i32[B, L], the block in which the position is to be written, -1 where it is not.
      maskable: bool[B, L], the positions that are text.
      keys: [B], one a row.
      index: i32[B], the row's clock: the step that comes next, from 0, of all its blocks.
      steps: i32[B], the most steps, of all its blocks.
      block: i32[B], the block at hand.
      blocks: i32[B], how many there are.
      end_id: i32[B], the token that ends the row; -1 for none.
      pad_id: i32[B], what fills it up behind.
      strategy: the strategy with its numbers f32[B], one a row.
      memory: what the strategy remembers: leaves [B, ...].
      done: bool[B], nothing more is done to the row.
      evaluations: i32[B], the steps in which the row needed the network.
      step_of: i32[B, L], the step that last wrote the position, -1 where none did.
      log_prob: f32[B, L], the written token's log-probability in that step, in nats, by the model's
        own logits; 0 where none was written.
    """

    canvas: Array
    block_of: Array
    maskable: Array
    keys: Array
    index: Array  # type: ignore[assignment]  # a tuple's own `index` is not used
    steps: Array
    block: Array
    blocks: Array
    end_id: Array
    pad_id: Array
    strategy: Strategy
    memory: PyTree
    done: Array
    evaluations: Array
    step_of: Array
    log_prob: Array

    @property
    def wanted(self) -> Array:
        """bool[B, L], what is to be written, in all blocks: the masks that the row began with."""
        return self.block_of >= 0

    @property
    def first(self) -> Array:
        """i32[B], the first step of the block at hand."""
        return _first(self.block, self)

    @property
    def behind(self) -> Array:
        """i32[B], the step behind its last."""
        return _first(self.block + 1, self)


def start(
    strategy: Strategy,
    canvas: Array,
    keys: Array,
    *,
    mask_id: int,
    steps: int | Array,
    fill: Array | None = None,
    maskable: Array | None = None,
    blocks: int | Array = 1,
    end_id: int | Array | None = None,
    pad_id: int | Array | None = None,
) -> SamplingState:
    """Rows that nothing has been written in yet; a row without a mask to fill is done.

    Args:
      strategy: from `mdlm_jax.strategies`. Its numbers are one for all rows, or `[B]`, one a row.
      canvas: i32[B, L], with `mask_id` where text is wanted.
      keys: [B], one a row: all the noise of the row. Make it from the request, not from its slot.
      mask_id: marks what is to be filled.
      steps: the most network evaluations, at least one a block: one number, or i32[B].
      fill: bool[B, L], the masks that are wanted; default all.
      maskable: bool[B, L], the positions that are text; default all. Masks elsewhere stay.
      blocks: as in `sample`: one number, or i32[B].
      end_id: as in `sample`: one number, or i32[B], -1 in rows that no token ends.
      pad_id: as in `sample`; default `end_id`.

    Raises:
      ValueError: on shapes that do not fit; and, if they are known, on fewer steps than blocks and
        on `end_id` or `pad_id` that is the mask.
      TypeError: on a list for an array, a strategy that was not called.
    """
    checks.check_kind("strategy", strategy, Strategy, "strategies.exact_count()")
    checks.check_text("canvas", canvas)
    checks.check_whole("mask_id", mask_id)
    for name, marked in (("maskable", maskable), ("fill", fill)):
        if marked is not None:
            checks.check_maskable(name, marked, canvas.shape)
    keys = noise.keys_of_rows(None, keys, None, canvas)
    batch = canvas.shape[0]
    steps = _a_row("steps", steps, batch)
    blocks = _a_row("blocks", blocks, batch)
    _check_clock(steps, blocks)
    if end_id is None and pad_id is not None:
        raise ValueError("pad_id is for what follows end_id, which is not given")
    end = _a_row("end_id", -1 if end_id is None else end_id, batch)
    pad = end if pad_id is None else _a_row("pad_id", pad_id, batch)
    _check_ends(mask_id, end, pad)
    # Numbers that no sampler reaches would overflow: blanks times steps, a block times a remainder.
    most = np.iinfo(np.int32).max // canvas.shape[1]
    blocks = jnp.minimum(jnp.asarray(blocks), min(most, 1 << 15))
    steps = jnp.clip(jnp.asarray(steps), blocks, most)  # fewer than blocks only where traced
    blocks, end, pad = (jnp.asarray(x) for x in (blocks, end, pad))

    canvas = jnp.asarray(canvas, jnp.int32)
    maskable = jnp.ones(canvas.shape, bool) if maskable is None else maskable
    wanted = maskable & (canvas == mask_id)
    if fill is not None:
        wanted &= fill
    state = SamplingState(
        canvas=canvas,
        block_of=blocks_of(wanted, blocks),
        maskable=maskable,
        keys=keys,
        index=jnp.zeros(batch, jnp.int32),
        steps=steps,
        block=jnp.full(batch, -1, jnp.int32),
        blocks=blocks,
        end_id=end,
        pad_id=pad,
        strategy=_of_rows(strategy, batch),
        memory=(),
        done=jnp.zeros(batch, bool),
        evaluations=jnp.zeros(batch, jnp.int32),
        step_of=jnp.full(canvas.shape, -1, jnp.int32),
        log_prob=jnp.zeros(canvas.shape, jnp.float32),
    )
    state = _at_next_block(state, mask_id)
    return shards.alike(state._replace(memory=_nothing_yet(state, mask_id)))


def insert(
    state: SamplingState,
    row: int | Array,
    strategy: Strategy,
    canvas: Array,
    key: Array,
    *,
    mask_id: int,
    steps: int | Array,
    fill: Array | None = None,
    maskable: Array | None = None,
    blocks: int | Array = 1,
    end_id: int | Array | None = None,
    pad_id: int | Array | None = None,
) -> SamplingState:
    """The state with a new text in the slot `row`, whatever was there. Other rows are as before.

    Under `jax.jit`, `row` and all numbers may be traced.

    Args:
      state: of rows as long as the canvas.
      row: the slot, from 0.
      strategy: of the kind that the state was started with; its numbers may be others.
      canvas: i32[L].
      key: the key of the row.
      mask_id, steps, blocks, end_id, pad_id: as in `start`, one number each.
      fill: bool[L], as in `start`.
      maskable: bool[L], as in `start`.

    Raises:
      ValueError: as `start`; a canvas of another length, a slot that is known not to exist, or a
        strategy of another kind.
    """
    batch, length = state.canvas.shape
    shape = getattr(canvas, "shape", None)
    if shape != (length,):
        raise ValueError(f"canvas has shape {shape}, a row of the state has ({length},)")
    seen = checks.known(row)
    if seen is not None and not (seen.ndim == 0 and 0 <= seen < batch):
        raise ValueError(f"row is {row}, the state has the slots 0 to {batch - 1}")
    new = start(
        strategy,
        canvas[None],
        jnp.asarray(key)[None],
        mask_id=mask_id,
        steps=steps,
        fill=None if fill is None else fill[None],
        maskable=None if maskable is None else maskable[None],
        blocks=blocks,
        end_id=end_id,
        pad_id=pad_id,
    )
    check_kind(strategy, state)
    return shards.alike(jax.tree.map(lambda all, one: all.at[row].set(one[0]), state, new))


def finished(state: SamplingState) -> Array:
    """bool[B], the rows in which nothing more is to be done."""
    return state.done


def check_kind(strategy: Strategy, state: SamplingState) -> None:
    """Raises: ValueError: the state was started with a strategy of another kind."""
    checks.check_kind("strategy", strategy, Strategy, "strategies.exact_count()")
    if not _of_one_kind(strategy, state.strategy):
        raise ValueError(
            f"the strategy, {_named(strategy)}, is of another kind than the state was started "
            f"with, {_named(state.strategy)}: only its numbers may be others"
        )


def view_of(state: SamplingState, mask_id: int) -> View:
    """What a strategy sees of the rows."""
    masked = state.canvas == mask_id
    text = jnp.maximum(state.maskable.sum(axis=1), 1)  # [B]
    wanted = state.wanted & (state.block_of == state.block[:, None])
    return View(
        canvas=state.canvas,
        wanted=wanted,
        blank=wanted & masked,
        rate=(state.maskable & masked).sum(axis=1) / text,
        outside=(state.maskable & ~wanted & masked).sum(axis=1) / text,
        share=wanted.sum(axis=1) / text,
        index=state.index - state.first,
        steps=state.behind - state.first,
        mask_id=jnp.int32(mask_id),
    )


def begun(state: SamplingState, mask_id: int) -> SamplingState:
    """The state before a step: the strategy begins in rows that are at the start of a block."""
    fresh = ~state.done & (state.index == state.first)

    def begin() -> PyTree:
        return shards.alike(choose(fresh, _init(state, mask_id), state.memory), state)

    memory = jax.lax.cond(fresh.any(), begin, lambda: shards.alike(state.memory, state))
    return state._replace(memory=memory)


def turned(state: SamplingState, mask_id: int) -> SamplingState:
    """The state after a step: rows whose block is finished go on to the next one, or are done.

    Blanks behind the end of a text become padding, and the row is done.
    """
    blank = state.wanted & (state.block_of == state.block[:, None])
    if not state.strategy.remasks:
        blank &= state.canvas == mask_id
    over = ~state.done & ((state.index >= state.behind) | ~blank.any(axis=1))
    padding = over[:, None] & _behind_the_end(state)
    state = state._replace(
        canvas=jnp.where(padding, state.pad_id[:, None], state.canvas),
        block_of=jnp.where(padding, -1, state.block_of),
        step_of=jnp.where(padding, -1, state.step_of),
        log_prob=jnp.where(padding, 0.0, state.log_prob),
    )
    moved = _at_next_block(state, mask_id)
    clock = (moved.block, moved.index, moved.done)
    block, index, done = choose(over, clock, (state.block, state.index, state.done))
    return state._replace(block=block, index=index, done=done)


def blocks_of(wanted: Array, blocks: Array) -> Array:
    """i32[B, L]: which of the row's blocks i32[B] a wanted position is in; -1 where it is not."""
    place = jnp.cumsum(wanted, axis=1, dtype=jnp.int32) - 1
    count = jnp.maximum(wanted.sum(axis=1, keepdims=True, dtype=jnp.int32), 1)
    return jnp.where(wanted, place * blocks[:, None] // count, -1)


def choose(rows: Array, new: PyTree, old: PyTree) -> PyTree:
    """Leaf by leaf the new in the marked rows, the old in the others; `rows bool[B]`."""

    def of_leaf(new: Array, old: Array) -> Array:
        return jnp.where(rows.reshape(-1, *(1,) * (old.ndim - 1)), new, old)

    return jax.tree.map(of_leaf, new, old)


def _at_next_block(state: SamplingState, mask_id: int) -> SamplingState:
    """Each row at its next block that has something to write, or done."""
    comes = (state.canvas == mask_id) & (state.block_of > state.block[:, None])
    none = jnp.iinfo(jnp.int32).max
    block = jnp.where(comes, state.block_of, none).min(axis=1)
    done = block == none
    block = jnp.where(done, state.block, block)
    index = jnp.where(done, state.index, _first(block, state))
    return state._replace(block=block, index=index, done=done)


def _init(state: SamplingState, mask_id: int) -> PyTree:
    """What the strategy remembers at the beginning of a block."""
    keys = noise.derive(state.keys, "begin", state.index)
    return state.strategy.init(keys, view_of(state, mask_id))


def _nothing_yet(state: SamplingState, mask_id: int) -> PyTree:
    """Zeros in the place of what the strategy will remember, which `begun` computes."""
    batch = len(state.index)

    def of_leaf(leaf: jax.ShapeDtypeStruct) -> Array:
        if leaf.shape[:1] != (batch,):
            raise ValueError(
                f"the strategy's init returned a state with a leaf of shape {leaf.shape}: every "
                f"leaf must lead with the rows, [{batch}, ...]"
            )
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jnp.broadcast_to(state.keys[:1], leaf.shape)
        return jnp.zeros(leaf.shape, leaf.dtype)

    return jax.tree.map(of_leaf, jax.eval_shape(lambda: _init(state, mask_id)))


def _first(block: Array, state: SamplingState) -> Array:
    # `steps * block // blocks`, without the product of large numbers
    whole, rest = state.steps // state.blocks, state.steps % state.blocks
    return whole * block + rest * block // state.blocks


def _behind_the_end(state: SamplingState) -> Array:
    """The positions of the row's blocks behind the first end of text that was written."""
    written = state.wanted & (state.block_of <= state.block[:, None])
    is_end = written & (state.canvas == state.end_id[:, None]) & (state.end_id >= 0)[:, None]
    ends = jnp.cumsum(is_end, axis=1)
    return state.wanted & (ends > 0) & ~(is_end & (ends == 1))


def _of_rows(strategy: Strategy, batch: int) -> Strategy:
    """The strategy with every number f32[B]."""

    def of_number(value: Any) -> Array:
        value = jnp.asarray(value, jnp.float32)
        if value.shape not in ((), (batch,)):
            raise ValueError(
                f"the strategy, {_named(strategy)}, holds an array of shape {value.shape}: it must "
                f"be one number, or one a row, ({batch},)"
            )
        return jnp.broadcast_to(value, batch)

    return jax.tree.map(of_number, strategy)


def _a_row(name: str, value: Any, batch: int) -> Any:
    """The whole number of each row, i32[B]; in numpy if it is known, which it stays under `jit`."""
    if not isinstance(value, jax.Array | np.ndarray) or value.ndim == 0:
        checks.check_whole(name, value)
    elif not (jnp.shape(value) == (batch,) and jnp.issubdtype(value.dtype, jnp.integer)):
        raise ValueError(
            f"{name} must be one whole number, or integers [{batch}], one a row, not "
            f"{value.dtype}{list(value.shape)}"
        )
    seen = checks.known(value)
    if seen is not None:
        low, high = np.iinfo(np.int32).min, np.iinfo(np.int32).max
        if np.any((seen < low) | (seen > high)):
            raise ValueError(f"{name} is {value}, it must be a 32-bit number, at most {high}")
        return np.broadcast_to(seen.astype(np.int32), (batch,))
    return jnp.broadcast_to(jnp.asarray(value, jnp.int32), (batch,))


def _check_clock(steps: Any, blocks: Any) -> None:
    seen_steps, seen = checks.known(steps), checks.known(blocks)
    if seen is not None and seen.min() < 1:
        raise ValueError(f"blocks is {seen.min()}, at least 1 is needed")
    if seen is None or seen_steps is None or np.all(seen_steps >= seen):
        return
    row = int(np.argmax(seen_steps < seen))
    needed = "1 is" if seen[row] == 1 else f"{seen[row]}, one a block, are"
    raise ValueError(f"steps is {seen_steps[row]}, at least {needed} needed")


def _check_ends(mask_id: int, end_id: Any, pad_id: Any) -> None:
    the_mask = checks.known(mask_id)
    for ids in (checks.known(end_id), checks.known(pad_id)):
        if the_mask is not None and ids is not None and np.any(ids == the_mask):
            raise ValueError(
                f"end_id and pad_id must be other tokens than the mask, {int(the_mask)}"
            )
        if ids is not None and ids.min() < -1:
            raise ValueError(f"end_id or pad_id is {ids.min()}, it must be a token, or -1 for none")


def _of_one_kind(one: Strategy, other: Strategy) -> bool:
    """Whether they differ in nothing but numbers."""
    kinds: list[Any] = [jax.tree.structure(each) for each in (one, other)]
    return kinds[0] == kinds[1]


def _named(strategy: Strategy) -> str:
    """A strategy's functions, by which kinds differ."""
    functions = (strategy.init, strategy.propose, strategy.commit)
    return ", ".join(
        getattr(getattr(f, "function", f), "__name__", type(f).__name__).strip("_")
        for f in functions
    )
