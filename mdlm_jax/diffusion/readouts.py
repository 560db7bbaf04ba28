"""From hidden states to cross-entropies and drawn tokens, without ever holding `[B, L, V]`."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mdlm_jax.diffusion.denoisers import Hidden, PyTree, remove_mask

Array = jax.Array

# Logits held at a time on each device, in elements: 512 MiB in float32. One chunk is faster than
# several as long as it fits, and its logits are then kept for the backward pass; each further chunk
# sums the gradient of the readout's parameters over all devices once more.
_LOGITS = 2**27

_SUBLANES = 8  # rows of a TPU's vector register


class SlotNats(NamedTuple):
    """Of each slot `[G, C]`, where an empty one has 0 and False.

    Attributes:
      nats: the target's cross-entropy.
      correct: whether the target is the most likely token.
      confidence: the probability of the most likely token; it has no gradient.
    """

    nats: Array
    correct: Array
    confidence: Array


class Candidates(NamedTuple):
    """Where asked for, `[B, L]`: the tokens, their log-probabilities, and a strategy's scores."""

    tokens: Array
    log_prob: Array
    score: Array


# `(log_probs f32[N, V], tokens i32[N]) -> f32[N]`, higher is surer.
Score = Callable[[Array, Array], Array]


def probability(log_probs: Array, tokens: Array) -> Array:
    """`log p(token)`."""
    return jnp.take_along_axis(log_probs, tokens[:, None], axis=-1)[:, 0]


def margin(log_probs: Array, tokens: Array) -> Array:
    """The difference between the two highest probabilities, whatever was drawn."""
    del tokens
    # Not by `top_k`, before which devices would gather the rows.
    best = jnp.arange(log_probs.shape[-1]) == jnp.argmax(log_probs, axis=-1, keepdims=True)
    second = jnp.where(best, -jnp.inf, log_probs).max(axis=-1)
    return jnp.exp(log_probs.max(axis=-1)) - jnp.exp(second)


def entropy(log_probs: Array, tokens: Array) -> Array:
    """Minus the entropy in nats, whatever was drawn."""
    del tokens
    p = jnp.exp(log_probs)
    return jnp.sum(jnp.where(p > 0, p * log_probs, 0.0), axis=-1)


def vocabulary_size(readout: Callable[[PyTree, PyTree], Array], hidden: Hidden) -> int:
    """V, from the shapes of what `encode` returns: nothing is computed."""

    def one_position(x, axes):
        return jax.ShapeDtypeStruct((1, *x.shape[axes:]), x.dtype)

    at = jax.tree.map(lambda x: one_position(x, 2), hidden.at)
    row = jax.tree.map(lambda x: one_position(x, 1), hidden.row)
    return jax.eval_shape(readout, at, row).shape[-1]


def slot_cross_entropy(
    readout: Callable[[PyTree, PyTree], Array],
    hidden: Hidden,
    positions: Array,
    targets: Array,
    filled: Array,
    *,
    mask_id: int | None,
) -> SlotNats:
    """`-log p(target)` at the slots of each group.

    The slots are gathered once and read out in chunks along C, so that a batch sharded over its
    rows stays where it is; with more than one chunk the backward pass recomputes the logits.

    Args:
      readout: of the denoiser.
      hidden: `at` leaves [B, L, ...], `row` leaves [B, ...].
      positions: i32[G, C] into the group's B / G rows laid end to end.
      targets: i32[G, C].
      filled: bool[G, C].
      mask_id: removed from the logits where given.
    """
    groups, asked = positions.shape
    # Filled up with empty slots: the TPU's gather of an odd number is ten times as much code.
    slots = -(-asked // _SUBLANES) * _SUBLANES
    empty = ((0, 0), (0, slots - asked))
    positions, targets, filled = (jnp.pad(x, empty) for x in (positions, targets, filled))
    width = jax.tree.leaves(hidden.at)[0].shape[1]
    at = jax.tree.map(lambda x: x.reshape(groups, -1, *x.shape[2:]), hidden.at)
    row = jax.tree.map(lambda x: x.reshape(groups, -1, *x.shape[1:]), hidden.row)
    at = jax.tree.map(lambda x: _take(x, positions), at)  # [G, C, ...]
    row = jax.tree.map(lambda x: _take(x, positions // width), row)

    def of_chunk(chunk):
        at, row, targets, filled = chunk  # leaves [G, c, ...]
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (at, row))
        logits = remove_mask(readout(*flat).astype(jnp.float32), mask_id)
        logits = logits.reshape(*targets.shape, -1)  # [G, c, V]
        log_total = jax.nn.logsumexp(logits, axis=-1)
        target = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        best = jax.lax.stop_gradient(logits).max(axis=-1)
        confidence = jnp.exp(best - jax.lax.stop_gradient(log_total))
        return SlotNats(
            nats=jnp.where(filled, log_total - target, 0.0),
            correct=filled & (target >= best),
            confidence=jnp.where(filled, confidence, 0.0),
        )

    devices = max(1, jax.sharding.get_abstract_mesh().size)  # of the mesh in use, if any
    chunks = math.ceil(groups * slots * vocabulary_size(readout, hidden) / (_LOGITS * devices))
    parts = (at, row, targets, filled)
    if chunks <= 1:
        return jax.tree.map(lambda x: x[:, :asked], of_chunk(parts))
    size = math.ceil(slots / chunks)
    parts = jax.tree.map(lambda x: _split_slots(x, chunks, size), parts)
    out = jax.lax.map(jax.checkpoint(of_chunk), parts)  # leaves [chunks, G, c]
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(groups, -1)[:, :asked], out)


def draw_tokens(
    readout: Callable[[PyTree, PyTree], Array],
    hidden: Hidden,
    canvas: Array,
    asked: Array,
    keys: Array,
    *,
    mask_id: int,
    chunk: int,
    noise: Array | float = 1.0,
    score: Score = probability,
) -> Candidates:
    """Draws one token at each position that is asked for, and reads out no other.

    The positions are compacted and read out `chunk` at a time by a `while_loop`, so any number of
    them is served; of rows that are spread over devices, each device compacts its own. The draw
    is Gumbel-max with exact tails: a float32 uniform cannot resolve what a vocabulary of 50,000
    puts in its tail. A token's noise depends on its row's key and its position alone.

    Args:
      readout: of the denoiser.
      hidden: `at` leaves [B, L, ...], `row` leaves [B, ...].
      canvas: i32[B, L]; a token that stands where one is asked for stays, and is scored.
      asked: bool[B, L].
      keys: [B], one a row.
      mask_id: never drawn.
      chunk: positions read out at a time, on each device.
      noise: scale of the Gumbel noise: 1 draws, 0 takes the most likely token.
      score: of the candidates.
    """
    width = asked.shape[1]
    devices = max(1, jax.sharding.get_abstract_mesh().size)  # of the mesh in use, if any
    groups = math.gcd(asked.shape[0], devices)

    def grouped(x, axes):  # [B, L, ...] -> [G, B / G * L, ...], or [B, ...] -> [G, B / G, ...]
        return x.reshape(groups, -1, *x.shape[axes:])

    at = jax.tree.map(lambda x: grouped(x, 2), hidden.at)
    of_row = jax.tree.map(lambda x: grouped(x, 1), (hidden.row, keys))
    held, asked = grouped(canvas, 2), grouped(asked, 2)
    size = asked.shape[1]
    chunk = min(chunk, size)
    total = asked.sum(axis=1)
    where = jnp.argsort(~asked, axis=1, stable=True)  # [G, size], those asked for first
    where = jnp.pad(where, ((0, 0), (0, -size % chunk)))

    def read_chunk(carry):
        start, out = carry
        index = jax.lax.dynamic_slice_in_dim(where, start, chunk, axis=1)  # [G, c]
        empty = start + jnp.arange(chunk) >= total[:, None]
        row, key = jax.tree.map(lambda x: _take(x, index // width), of_row)
        flat = jax.tree.map(
            lambda x: x.reshape(-1, *x.shape[2:]),
            (jax.tree.map(lambda x: _take(x, index), at), row, key, index % width),
        )
        at_flat, row_flat, key_flat, position = flat
        logits = remove_mask(readout(at_flat, row_flat).astype(jnp.float32), mask_id)  # [G c, V]
        gumbel = jax.vmap(
            lambda key, i: jax.random.gumbel(
                jax.random.fold_in(key, i), logits.shape[-1:], mode="high"
            )
        )(key_flat, position)
        drawn = jnp.argmax(logits + noise * gumbel, axis=-1).astype(jnp.int32)
        standing = _take(held, index).reshape(-1)
        tokens = jnp.where(standing == mask_id, drawn, standing)
        log_probs = logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        read = Candidates(tokens, probability(log_probs, tokens), score(log_probs, tokens))
        to = jnp.where(empty, size, index)  # nowhere
        return start + chunk, jax.tree.map(
            lambda all, some: _put(all, to, some.reshape(index.shape)), out, read
        )

    nothing = jnp.zeros((groups, size))
    out = Candidates(nothing.astype(jnp.int32), nothing, nothing)
    _, out = jax.lax.while_loop(
        lambda carry: carry[0] < total.max(), read_chunk, (jnp.int32(0), out)
    )
    return jax.tree.map(lambda x: x.reshape(canvas.shape), out)


def _take(x: Array, index: Array) -> Array:
    """`x [G, M, ...]` at `index [G, C]` -> `[G, C, ...]`."""
    return jax.vmap(lambda x, index: x[index])(x, index)


def _put(x: Array, index: Array, values: Array) -> Array:
    """`x [G, M]` with `values [G, C]` at `index [G, C]`; what lies outside is dropped."""
    return jax.vmap(lambda x, index, values: x.at[index].set(values, mode="drop"))(x, index, values)


def _split_slots(x: Array, chunks: int, size: int) -> Array:
    """`[G, C, ...]` -> `[chunks, G, size, ...]`, padded with zeros (empty slots) at the end."""
    padding = [(0, 0)] * x.ndim
    padding[1] = (0, chunks * size - x.shape[1])
    x = jnp.pad(x, padding).reshape(x.shape[0], chunks, size, *x.shape[2:])
    return jnp.moveaxis(x, 1, 0)
