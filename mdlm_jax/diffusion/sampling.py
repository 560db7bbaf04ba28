"""The sampler: denoiser x canvas -> tokens, one compiled step around any strategy.

`sample` fills canvases whole: it is a loop around `step`. A server calls `step` itself and puts
rows in and takes them out between steps:

    state = sampling.start(strategy, canvas, keys, mask_id=mask_id, steps=steps)
    while not sampling.finished(state).all():
        state = sampling.step(denoiser, strategy, state, mask_id=mask_id)
        state = sampling.insert(state, row, strategy, other, key, mask_id=mask_id, steps=steps)

Every row has its own clock, key and parameters. Within one compiled shape the tokens of a row do
not depend on the other rows, on its slot or on when it was put in, to the bit.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mdlm_jax.diffusion import checks, clocks, noise, shards
from mdlm_jax.diffusion.caching import CachedDenoiser
from mdlm_jax.diffusion.clocks import SamplingState, finished, insert, start
from mdlm_jax.diffusion.denoisers import Denoiser, Hidden, check_mask
from mdlm_jax.diffusion.reading.readouts import Candidates, draw_tokens
from mdlm_jax.diffusion.strategies import Strategy, View, exact_count

__all__ = [
    "SamplingState",
    "Trace",
    "finished",
    "insert",
    "sample",
    "start",
    "step",
    "step_with",
]

Array = jax.Array
PyTree = Any
# `(memory, view, asked bool[B, L], t f32[B]) -> (memory, Hidden)`: an evaluation that remembers.
Encode = Callable[[PyTree, View, Array, Array], tuple[PyTree, Hidden]]


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


def step(
    denoiser: Denoiser,
    strategy: Strategy,
    state: SamplingState,
    *,
    mask_id: int,
    chunk: int | None = None,
) -> SamplingState:
    """One network evaluation for all rows that are not done; the others stay as they are.

    If no row asks for anything, the network is not evaluated. Call it under `jax.jit`, with the
    state as an argument.

    Args:
      denoiser: `(canvas, t) -> logits` in its two halves, of all rows of the state. What shapes a
        row (temperature, nucleus, guidance weight, label) is in it: the transforms take `[B]`.
      strategy: of the kind that the state was started with. Its numbers are the state's.
      state: from `start`, `insert` or `step`.
      mask_id: as in `start`.
      chunk: positions read out at a time; the default is the strategy's.

    Raises:
      ValueError: on a strategy of another kind, or a denoiser of another mask.
      TypeError: on a bare function for a denoiser.
    """
    checks.check_denoiser(denoiser)
    encode = _without_memory(denoiser)
    state, _ = step_with(encode, denoiser, strategy, state, (), mask_id=mask_id, chunk=chunk)
    return state


def step_with(
    encode: Encode,
    denoiser: Any,
    strategy: Strategy,
    state: SamplingState,
    memory: PyTree,
    *,
    mask_id: int,
    chunk: int | None = None,
    always: bool = False,
) -> tuple[SamplingState, PyTree]:
    """`step` with an evaluation that remembers, such as one that caches keys and values.

    Args:
      encode: `(memory, view, asked bool[B, L], t f32[B]) -> (memory, Hidden)`, with `Hidden.at`
        leaves [B, L, ...], of which what is asked is read out. That of a `CachedDenoiser` is one.
      denoiser: its `readout`, `shape` and `mask_id` are used.
      strategy, state, mask_id, chunk: as in `step`.
      memory: what `encode` remembers.
      always: whether to evaluate even if no row asks for anything, for the sake of the memory.

    Returns:
      The state and the memory after the step.
    """
    clocks.check_kind(strategy, state)
    check_mask(denoiser, mask_id)
    state = clocks.begun(state, mask_id)
    strategy, live = state.strategy, ~state.done

    def keys_of(purpose: str) -> Array:
        return noise.derive(state.keys, purpose, state.index)

    view = clocks.view_of(state, mask_id)
    proposal, remembered = strategy.propose(state.memory, keys_of("propose"), view)
    asked = proposal.asked & live[:, None]

    def evaluated() -> tuple[PyTree, Candidates]:
        after, hidden = encode(memory, view, asked, proposal.t)
        return after, draw_tokens(
            denoiser,
            hidden,
            view.canvas,
            asked,
            keys_of("draw"),
            mask_id=mask_id,
            chunk=chunk or strategy.chunk,
            noise=proposal.noise,
            score=strategy.score,
            blank=view.blank,
        )

    if always:
        after, drawn = evaluated()
    else:
        after, drawn = jax.lax.cond(
            asked.any(),
            lambda: shards.alike(evaluated(), state, memory),
            lambda: shards.alike((memory, _no_candidates(view.canvas)), state, memory),
        )
    canvas, remembered = strategy.commit(remembered, keys_of("commit"), view, asked, drawn)
    canvas = jnp.where(live[:, None], canvas, view.canvas)
    written = view.blank & (canvas != mask_id)
    state = state._replace(
        canvas=canvas,
        memory=clocks.choose(live, remembered, state.memory),
        index=state.index + live.astype(jnp.int32),
        evaluations=state.evaluations + asked.any(axis=1).astype(jnp.int32),
        step_of=jnp.where(written, state.index[:, None], state.step_of),
        log_prob=jnp.where(written, drawn.log_prob, state.log_prob),
    )
    return clocks.turned(state, mask_id), after


def sample(
    denoiser: Denoiser | CachedDenoiser,
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
        logits. Strategies choose positions by its own. One with a cache is given an empty memory.
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
    if not isinstance(denoiser, CachedDenoiser):
        checks.check_denoiser(denoiser)
    checks.check_text("canvas", canvas)
    checks.check_whole("mask_id", mask_id)
    check_mask(denoiser, mask_id)
    if rows is not None:
        checks.check_rows(rows, canvas.shape[0])
    state = start(
        strategy,
        canvas,
        noise.keys_of_rows(key, keys, rows, canvas),
        mask_id=mask_id,
        steps=_most_blanks(canvas, mask_id, maskable, fill, blocks) if steps is None else steps,
        fill=fill,
        maskable=maskable,
        blocks=blocks,
        end_id=end_id,
        pad_id=pad_id,
    )
    if isinstance(denoiser, CachedDenoiser):
        encode, memory = denoiser.encode, denoiser.start(*canvas.shape)
    else:
        encode, memory = _without_memory(denoiser), ()

    def one_step(carry: tuple[SamplingState, PyTree]) -> tuple[SamplingState, PyTree]:
        state, memory = carry
        after = step_with(encode, denoiser, strategy, state, memory, mask_id=mask_id, chunk=chunk)
        return shards.alike(after, carry)

    state, _ = jax.lax.while_loop(
        lambda carry: ~finished(carry[0]).all(), one_step, shards.alike((state, memory))
    )
    if not trace:
        return state.canvas
    return state.canvas, Trace(state.step_of, state.log_prob, state.evaluations)


def _without_memory(denoiser: Denoiser) -> Encode:
    def encode(memory: PyTree, view: View, asked: Array, t: Array) -> tuple[PyTree, Hidden]:
        return memory, denoiser.encode(view.canvas, t)

    return encode


def _most_blanks(canvas, mask_id, maskable, fill, blocks) -> Array:
    """A token a step in the row with the most blanks, as many steps in each block."""
    wanted = canvas == mask_id
    for marked in (maskable, fill):
        wanted = wanted if marked is None else wanted & marked
    most = wanted.sum(axis=1, dtype=jnp.int32).max()
    return jnp.maximum(-(-most // blocks) * blocks, blocks)


def _no_candidates(canvas: Array) -> Candidates:
    nothing = jnp.zeros(canvas.shape, jnp.float32)
    return Candidates(jnp.zeros(canvas.shape, jnp.int32), nothing, nothing)
