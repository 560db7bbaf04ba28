"""From hidden states to the losses at some positions, without `[B, L, V]` in memory.

A loss is any function of the logits of a position and of what the slot holds for it: the
cross-entropy of a target, or a divergence from a teacher's probabilities.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mdlm_jax.diffusion import shards
from mdlm_jax.diffusion.denoisers import Hidden, PyTree, Readout, remove_mask, vocabulary_size
from mdlm_jax.diffusion.reading.reductions import top_and_log_total

Array = jax.Array

# Logits held at a time on each device, in elements: 1 GiB in float32. One chunk is a little faster
# than several; each further chunk sums the gradient of the readout's parameters over all devices
# once more.
_LOGITS = 2**28

_SUBLANES = 8  # rows of a TPU's vector register


class SlotNats(NamedTuple):
    """Of each slot `[G, C]`; an empty one has 0 and False.

    Attributes:
      nats: the target's cross-entropy.
      correct: whether the target is the most likely token.
      confidence: the probability of the most likely token; it has no gradient.
    """

    nats: Array
    correct: Array
    confidence: Array


# `(logits f32[G, C, V], slot leaves [G, C, ...], filled bool[G, C]) -> (value f32[G, C], aux leaves
# [G, C, ...], slope f32[G, C, V])`: a slot's loss, what else is reported of it, and the gradient of
# its value by its logits. In empty slots value and slope may be anything finite.
SlotLoss = Callable[[Array, PyTree, Array], tuple[Array, PyTree, Array]]


class Slots(NamedTuple):
    """The gathered contents of each group's slots: leaves `[G, C, ...]`."""

    at: PyTree
    row: PyTree
    slot: PyTree
    weights: Array


def by_gradient(of_logits: Callable[[Array, PyTree], tuple[Array, PyTree]]) -> SlotLoss:
    """A `SlotLoss` of a function that JAX differentiates: `(logits, slot) -> (value, aux)`.

    Args:
      of_logits: from logits f32[G, C, V] and leaves [G, C, ...] to f32[G, C] and leaves
        [G, C, ...], each slot alone. It must be finite in empty slots too, whose leaves are 0. It
        compares the logits with what the slot holds and closes over nothing that is traced.
    """

    def loss(logits: Array, slot: PyTree, filled: Array) -> tuple[Array, PyTree, Array]:
        del filled
        value, pull, aux = jax.vjp(lambda logits: of_logits(logits, slot), logits, has_aux=True)
        (slope,) = pull(jnp.ones_like(value))
        return value, aux, slope

    return loss


def gather_slots(hidden: Hidden, positions: Array, slot: PyTree, weights: Array) -> Slots:
    """Gathers the positions to read out. Rows that are spread over devices stay where they are.

    C is rounded up with empty slots of weight 0.

    Args:
      hidden: `at` leaves [B, L, ...], `row` leaves [B, ...].
      positions: i32[G, C] into the group's B / G rows laid end to end.
      slot: leaves [G, C, ...].
      weights: f32[G, C].
    """
    asked = positions.shape[1]
    # On TPUs, a gather of an odd number takes ten times as much code.
    empty = ((0, 0), (0, -asked % _SUBLANES))
    positions, slot, weights = jax.tree.map(
        lambda x: jnp.pad(x, (*empty, *((0, 0),) * (x.ndim - 2))), (positions, slot, weights)
    )
    groups = positions.shape[0]
    width = jax.tree.leaves(hidden.at)[0].shape[1]
    at = jax.tree.map(lambda x: x.reshape(groups, -1, *x.shape[2:]), hidden.at)
    row = jax.tree.map(lambda x: x.reshape(groups, -1, *x.shape[1:]), hidden.row)
    return Slots(
        jax.tree.map(lambda x: _take(x, positions), at),
        jax.tree.map(lambda x: _take(x, positions // width), row),
        slot,
        weights,
    )


def weighted_loss(
    loss: SlotLoss,
    readout: Readout,
    hidden: Hidden,
    positions: Array,
    slot: PyTree,
    weights: Array,
    *,
    mask_id: int | None,
) -> tuple[Array, Array, PyTree]:
    """`sum(weights * value)` over the slots of all groups, and each slot's value and aux.

    The logits of a chunk live once. If the loss is differentiated, the gradient is taken chunk by
    chunk in the forward pass, while they are there,

        d loss / d logits = weight * slope,

    and the backward pass scales the result. So it can be differentiated backward (`jax.grad`), and
    its gradient forward again, but not forward directly (`jax.jvp`), because JAX allows only that
    for a function with its own backward rule. `slot_values` has no such rule. Values, aux and the
    contents of the slots have no gradient. Within a `shard_map` that checks, the backward pass
    computes the logits once more instead.

    Args:
      loss: the loss of a slot.
      readout: the denoiser's.
      hidden: `at` leaves [B, L, ...], `row` leaves [B, ...].
      positions: i32[G, C] into the group's B / G rows laid end to end.
      slot: leaves [G, C, ...]: what the loss compares the logits with.
      weights: f32[G, C], 0 in empty slots.
      mask_id: removed from the logits where given.
    """
    slots = _chunks(readout, hidden, positions, slot, weights)
    read, constants = _closed(readout, slots, mask_id)
    if shards.varying((hidden, positions, slot, weights, constants)):
        # JAX's own rule knows over which devices the gradient is summed.
        slot = jax.lax.stop_gradient(slot)
        value, aux = slot_values(loss, readout, hidden, positions, slot, weights, mask_id=mask_id)
        return jnp.sum(weights * value), *jax.lax.stop_gradient((value, aux))
    total, out = _weighted(loss, read, constants, slots)
    return total, *jax.lax.stop_gradient(_joined(out, positions))


def slot_values(
    loss: SlotLoss,
    readout: Readout,
    hidden: Hidden,
    positions: Array,
    slot: PyTree,
    weights: Array,
    *,
    mask_id: int | None,
) -> tuple[Array, PyTree]:
    """Each slot's value and aux, without a sum; the arguments are those of `weighted_loss`.

    Its gradient computes the logits of each chunk once more.
    """
    slots = _chunks(readout, hidden, positions, slot, weights)

    def of_chunk(slots: Slots) -> tuple[Array, PyTree]:
        logits = _read(readout, slots.at, slots.row, mask_id)
        return _of_logits(loss, logits, slots)[:2]

    return _joined(jax.lax.map(jax.checkpoint(of_chunk), slots), positions)


def cross_entropy(
    readout: Readout,
    hidden: Hidden,
    positions: Array,
    targets: Array,
    weights: Array,
    *,
    mask_id: int | None,
) -> tuple[Array, SlotNats]:
    """`sum(weights * -log p(target))` over the slots of all groups, and each slot.

    Its slope is `softmax(logits) - onehot(target)`. All else is as in `weighted_loss`.

    Args:
      readout, hidden, positions, weights, mask_id: as of `weighted_loss`.
      targets: i32[G, C].
    """
    total, nats, (correct, confidence) = weighted_loss(
        _nats, readout, hidden, positions, targets, weights, mask_id=mask_id
    )
    return total, SlotNats(nats, correct, confidence)


def slot_nats(
    readout: Readout,
    hidden: Hidden,
    positions: Array,
    targets: Array,
    weights: Array,
    *,
    mask_id: int | None,
) -> SlotNats:
    """Each slot, without a sum; the arguments are those of `cross_entropy`.

    Its gradient computes the logits of each chunk once more.
    """
    nats, (correct, confidence) = slot_values(
        _nats, readout, hidden, positions, targets, weights, mask_id=mask_id
    )
    return SlotNats(nats, correct, confidence)


def _chunks(
    readout: Readout, hidden: Hidden, positions: Array, slot: PyTree, weights: Array
) -> Slots:
    """The slots in chunks along C, so many that their logits fit: leaves [chunks, G, c, ...]."""
    slots = gather_slots(hidden, positions, slot, weights)
    logits = slots.weights.size * vocabulary_size(readout, hidden)
    chunks = math.ceil(logits / (_LOGITS * shards.devices()))
    size = math.ceil(slots.weights.shape[1] / chunks)
    return jax.tree.map(lambda x: _split_slots(x, chunks, size), slots)


def _joined(out: PyTree, positions: Array) -> PyTree:
    """Leaves `[chunks, G, c, ...]` -> `[G, C, ...]`."""
    groups, asked = positions.shape
    return jax.tree.map(
        lambda x: jnp.moveaxis(x, 0, 1).reshape(groups, -1, *x.shape[3:])[:, :asked], out
    )


def _read(readout: Readout, at: PyTree, row: PyTree, mask_id: int | None) -> Array:
    """The logits `f32[G, c, V]` of slots `[G, c, ...]`."""
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (at, row))
    logits = remove_mask(readout(*flat).astype(jnp.float32), mask_id)
    return logits.reshape(*jax.tree.leaves(at)[0].shape[:2], -1)


def _closed(readout: Readout, slots: Slots, mask_id: int | None) -> tuple[Callable, list[Array]]:
    """`read(constants, at, row) -> f32[G, c, V]`, and what the readout closes over."""

    def read(at: PyTree, row: PyTree) -> Array:
        return _read(readout, at, row, mask_id)

    first = jax.tree.map(lambda x: x[0], (slots.at, slots.row))
    converted, constants = jax.closure_convert(read, *first)
    return lambda constants, at, row: converted(at, row, *constants), constants


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _weighted(
    loss: SlotLoss, read: Callable, constants: list[Array], slots: Slots
) -> tuple[Array, tuple[Array, PyTree]]:
    """The weighted sum, and the slots: leaves `[chunks, G, c, ...]`."""
    out = jax.lax.map(lambda s: _of_logits(loss, read(constants, s.at, s.row), s)[:2], slots)
    return jnp.sum(slots.weights * out[0]), out


def _weighted_forward(loss: SlotLoss, read: Callable, constants: list[Array], slots: Slots):
    def of_chunk(total, slots):
        floats, joined = _floats((slots.at, slots.row))
        logits, pull = jax.vjp(lambda c, floats: read(c, *joined(floats)), constants, floats)
        value, aux, slope = _of_logits(loss, logits, slots)
        of_constants, of_floats = pull(slots.weights[..., None] * slope)
        return jax.tree.map(lambda t, x: t + _wide(x), total, of_constants), (
            (value, aux),
            of_floats,
        )

    # In float32: each chunk's sum is rounded once, and the sum over chunks is not.
    nothing = [jnp.zeros_like(_wide(x)) for x in constants]
    total, (out, of_floats) = jax.lax.scan(of_chunk, nothing, slots)
    of_constants = [x.astype(c.dtype) for x, c in zip(total, constants, strict=True)]
    _, joined = _floats((slots.at, slots.row))
    left = (of_constants, joined(of_floats), slots.slot, out[0])
    return (jnp.sum(slots.weights * out[0]), out), left


def _weighted_backward(loss: SlotLoss, read: Callable, left, cotangents):
    del loss, read
    slope, _ = cotangents  # the slots are reported, not differentiated

    def scaled(x: Array) -> Array | None:
        return (slope * _wide(x)).astype(x.dtype) if _has_gradient(x) else None

    of_constants, (at, row), slot, value = left
    of_constants, (at, row), value = jax.tree.map(scaled, (of_constants, (at, row), value))
    nothing = jax.tree.map(lambda x: jnp.zeros_like(x) if _has_gradient(x) else None, slot)
    return of_constants, Slots(at, row, nothing, value)


_weighted.defvjp(_weighted_forward, _weighted_backward)


def _wide(x: Array) -> Array:
    """In float32, or wider if it is."""
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def _has_gradient(x: Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.inexact)


def _floats(tree: PyTree) -> tuple[list[Array], Callable[[list[Array]], PyTree]]:
    """The leaves that have a gradient, and how to put others like them in their places."""
    leaves, structure = jax.tree.flatten(tree)

    def joined(floats: list[Array]) -> PyTree:
        given = iter(floats)
        return jax.tree.unflatten(
            structure, [next(given) if _has_gradient(x) else x for x in leaves]
        )

    return [x for x in leaves if _has_gradient(x)], joined


def _of_logits(loss: SlotLoss, logits: Array, slots: Slots) -> tuple[Array, PyTree, Array]:
    """Value, aux and slope of slots with `logits [G, c, V]`; an empty one has the value 0."""
    filled = slots.weights != 0
    value, aux, slope = loss(logits, slots.slot, filled)
    return jnp.where(filled, value, 0.0), aux, slope


def _nats(logits: Array, targets: Array, filled: Array) -> tuple[Array, tuple, Array]:
    """The cross-entropy of the targets; whether they are the likeliest, and how likely that is."""
    top, log_total = top_and_log_total(logits)
    target = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    correct = filled & (target >= top)
    confidence = jnp.where(filled, jax.lax.stop_gradient(jnp.exp(top - log_total)), 0.0)
    is_target = jnp.arange(logits.shape[-1])[None, None] == targets[..., None]
    slope = jnp.exp(logits - log_total[..., None]) - is_target.astype(jnp.float32)
    return log_total - target, (correct, confidence), slope


def _take(x: Array, index: Array) -> Array:
    """`x [G, M, ...]` at `index [G, C]` -> `[G, C, ...]`."""
    return jax.vmap(lambda x, index: x[index])(x, index)


def _split_slots(x: Array, chunks: int, size: int) -> Array:
    """`[G, C, ...]` -> `[chunks, G, size, ...]`, padded with zeros (empty slots) at the end."""
    padding = [(0, 0)] * x.ndim
    padding[1] = (0, chunks * size - x.shape[1])
    x = jnp.pad(x, padding).reshape(x.shape[0], chunks, size, *x.shape[2:])
    return jnp.moveaxis(x, 1, 0)
