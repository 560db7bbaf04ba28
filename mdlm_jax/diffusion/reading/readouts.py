"""From hidden states to drawn tokens, at the positions that are asked for only.

Tokens are drawn from the shaped logits and scored by the model's own.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mdlm_jax.diffusion import shards
from mdlm_jax.diffusion.denoisers import Denoiser, Hidden, remove_mask, unshaped
from mdlm_jax.diffusion.reading.draws import Score, distribution, draw, probability

Array = jax.Array


class Candidates(NamedTuple):
    """The tokens at the positions asked for, `[B, L]`, with the model's own view of them.

    Attributes:
      tokens: i32[B, L].
      log_prob: f32[B, L], in nats.
      score: f32[B, L], the strategy's score.
    """

    tokens: Array
    log_prob: Array
    score: Array


def draw_tokens(
    denoiser: Denoiser,
    hidden: Hidden,
    canvas: Array,
    asked: Array,
    keys: Array,
    *,
    mask_id: int,
    chunk: int,
    noise: Array | float = 1.0,
    score: Score = probability,
    blank: Array | None = None,
) -> Candidates:
    """Draws one token at each position that is asked for. No other position is read out.

    The positions are compacted and read out `chunk` at a time by a `while_loop`, so any number of
    them works. With rows spread over devices, each device compacts its own. A token's noise depends
    only on its row's key and its position.

    Args:
      denoiser: its `readout` scores, and its `shape` is drawn from.
      hidden: of its `encode`: `at` leaves [B, L, ...], `row` leaves [B, ...].
      canvas: i32[B, L]. A token that stands where one is asked for stays, and is scored, unless
        its position is blank.
      asked: bool[B, L].
      keys: [B], one a row.
      mask_id: never drawn.
      chunk: positions read out at a time, on each device.
      noise: scale of the Gumbel noise, one number or `[B]`: 1 draws, 0 takes the most likely token.
      score: of the candidates.
      blank: bool[B, L], where a token is drawn; by default where the canvas holds the mask.
    """
    blank = canvas == mask_id if blank is None else blank
    width = asked.shape[1]
    groups = math.gcd(asked.shape[0], shards.devices())

    def grouped(x, axes):  # [B, L, ...] -> [G, B / G * L, ...], or [B, ...] -> [G, B / G, ...]
        return x.reshape(groups, -1, *x.shape[axes:])

    at = jax.tree.map(lambda x: grouped(x, 2), hidden.at)
    of_row = jax.tree.map(
        lambda x: grouped(x, 1), (hidden.row, keys, noise if jnp.ndim(noise) else ())
    )
    held, asked, blank = grouped(canvas, 2), grouped(asked, 2), grouped(blank, 2)
    size = asked.shape[1]
    chunk = min(chunk, size)
    count = jnp.cumsum(asked, axis=1, dtype=jnp.int32)  # [G, size], how many up to there
    # Unrolled it is one kernel on GPUs.
    first = jax.vmap(functools.partial(jnp.searchsorted, method="scan_unrolled"), (0, None))

    def read_chunk(carry):
        start, out = carry
        # The k-th that is asked for is where k are first counted: nowhere if there are fewer.
        to = first(count, start + 1 + jnp.arange(chunk, dtype=jnp.int32))  # [G, c]
        index = jnp.minimum(to, size - 1)
        row, key, own = jax.tree.map(lambda x: _take(x, index // width), of_row)
        flat = jax.tree.map(
            lambda x: x.reshape(-1, *x.shape[2:]),
            (jax.tree.map(lambda x: _take(x, index), at), row, key, own, index % width),
        )
        at_flat, row_flat, key_flat, own, position = flat
        logits = denoiser.readout(at_flat, row_flat).astype(jnp.float32)
        logits = remove_mask(logits, mask_id)  # [G c, V]
        read = shaped = distribution(logits)
        if denoiser.shape is not unshaped:
            shaped = distribution(remove_mask(denoiser.shape(logits, row_flat), mask_id))
        scale = own if jnp.ndim(noise) else noise
        drawn = draw(jax.vmap(jax.random.fold_in)(key_flat, position), shaped, scale)
        standing = _take(held, index).reshape(-1)
        tokens = jnp.where(_take(blank, index).reshape(-1), drawn, standing)
        found = Candidates(tokens, probability(read, tokens), score(read, tokens))
        return start + chunk, jax.tree.map(
            lambda all, some: _put(all, to, some.reshape(index.shape)), out, found
        )

    nothing = jnp.zeros((groups, size), jnp.float32)
    out = Candidates(nothing.astype(jnp.int32), nothing, nothing)
    out = shards.alike(out, hidden, canvas, asked, keys, noise)
    _, out = jax.lax.while_loop(
        lambda carry: carry[0] < count[:, -1].max(), read_chunk, (jnp.int32(0), out)
    )
    return jax.tree.map(lambda x: x.reshape(canvas.shape), out)


def _take(x: Array, index: Array) -> Array:
    """`x [G, M, ...]` at `index [G, C]` -> `[G, C, ...]`."""
    return jax.vmap(lambda x, index: x[index])(x, index)


def _put(x: Array, index: Array, values: Array) -> Array:
    """`x [G, M]` with `values [G, C]` at `index [G, C]`; what lies outside is dropped."""
    return jax.vmap(lambda x, index, values: x.at[index].set(values, mode="drop"))(x, index, values)
