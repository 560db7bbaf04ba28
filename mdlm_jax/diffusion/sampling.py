"""The sampler: denoiser x canvas -> tokens, one compiled loop around any strategy."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mdlm_jax.diffusion import noise
from mdlm_jax.diffusion.denoisers import Denoiser
from mdlm_jax.diffusion.readouts import draw_tokens
from mdlm_jax.diffusion.strategies import Strategy, View

Array = jax.Array


class Trace(NamedTuple):
    """How a canvas was filled.

    Attributes:
      step: i32[B, L], the step that last wrote the position, -1 where it was given.
      log_prob: f32[B, L], the written token's log-probability then, 0 where it was given.
    """

    step: Array
    log_prob: Array


def sample(
    denoiser: Denoiser,
    key: Array,
    canvas: Array,
    *,
    mask_id: int,
    steps: int | Array,
    strategy: Strategy,
    maskable: Array | None = None,
    fill: Array | None = None,
    rows: Array | None = None,
    trace: bool = False,
    chunk: int = 256,
) -> Array | tuple[Array, Trace]:
    """Fills every mask of the canvas, in `steps` network evaluations.

    Generation, prompts anywhere, infilling and re-editing are one case: the canvas holds `mask_id`
    where text is wanted, and nothing else is ever written to. Meant to be called under `jax.jit`,
    with `steps` traced: another number of steps is not another program.

    Args:
      denoiser: `(canvas, t) -> logits` in its two halves.
      key: the noise of a row is a function of (key, its number in `rows`), not of the other rows.
      canvas: i32[B, L].
      mask_id: marks what is to be filled; never drawn.
      steps: network evaluations, at least 1.
      strategy: decides which positions are written when, from `mdlm_jax.strategies`.
      maskable: bool[B, L], the positions that are text (not padding); default all. Masks elsewhere
        stay.
      fill: bool[B, L], of the masks those that are wanted; default all. The others stay masked:
        they are text that nobody knows, as what follows a prompt is.
      rows: i32[B], the rows' numbers in the whole job; default 0..B-1.
      trace: also return a `Trace`.
      chunk: positions read out at a time; a matter of memory and speed only.

    Returns:
      The filled canvas i32[B, L], or `(canvas, Trace)`.

    Raises:
      ValueError: on a canvas that is not integers [B, L], a `maskable` or `fill` of another shape,
        or steps < 1 where they can be seen.
    """
    _check(canvas, {"maskable": maskable, "fill": fill}, steps)
    maskable = jnp.ones(canvas.shape, bool) if maskable is None else maskable
    fill = maskable if fill is None else fill & maskable
    text = jnp.maximum(maskable.sum(axis=1), 1)  # [B]
    numbers = jnp.arange(canvas.shape[0]) if rows is None else rows
    steps = jnp.asarray(steps, jnp.int32)

    def view(canvas, index):
        masked = canvas == mask_id
        return View(canvas, fill & masked, (maskable & masked).sum(axis=1) / text, index, steps)

    def keys_of(index, purpose):
        of_step = jax.random.fold_in(jax.random.fold_in(key, purpose), index)
        return noise.row_keys(of_step, numbers)

    def one_step(index, carry):
        canvas, state, filled = carry
        before = view(canvas, index)
        asked, t, state = strategy.propose(state, keys_of(index, 1), before)
        hidden = denoiser.encode(canvas, t)
        drawn = draw_tokens(
            denoiser.readout, hidden, asked, keys_of(index, 2), mask_id=mask_id, chunk=chunk
        )
        canvas, state = strategy.commit(state, keys_of(index, 3), before, asked, drawn)
        written = canvas != before.canvas
        filled = Trace(
            step=jnp.where(written, index, filled.step),
            log_prob=jnp.where(written, drawn.log_prob, filled.log_prob),
        )
        return canvas, state, filled

    canvas = canvas.astype(jnp.int32)
    nothing = Trace(jnp.full(canvas.shape, -1, jnp.int32), jnp.zeros(canvas.shape))
    state = strategy.init(keys_of(0, 0), view(canvas, jnp.int32(0)))
    canvas, _, filled = jax.lax.fori_loop(0, steps, one_step, (canvas, state, nothing))
    return (canvas, filled) if trace else canvas


def _check(canvas, positions, steps):
    if canvas.ndim != 2 or not jnp.issubdtype(canvas.dtype, jnp.integer):
        raise ValueError(f"canvas must be integers [B, L], not {canvas.dtype}{list(canvas.shape)}")
    for name, value in positions.items():
        if value is not None and value.shape != canvas.shape:
            raise ValueError(f"{name} has shape {value.shape}, the canvas {canvas.shape}")
    if not isinstance(steps, jax.core.Tracer) and steps < 1:
        raise ValueError(f"steps is {steps}, at least 1 is needed")
