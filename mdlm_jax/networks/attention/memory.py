"""Attention to keys and values of an earlier pass.

A pass over few tokens of a row computes their queries, keys and values. `over` gives them the keys
and values of the row's other tokens. What is new is kept by the pass, and `write` puts it in place:

    x, kept = encoder(tokens, positions=places, attend=over(memory, places))
    memory = write(memory, kept, places)
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mdlm_jax.networks.attention.dispatch import attention
from mdlm_jax.networks.attention.masks import Mask

Array = jax.Array
PyTree = Any

# The attention of a layer, in place of `attention`: (queries [B, Q, H, d], keys [B, w, H, d],
# values [B, w, H, d], number of the layer i32[]) -> ([B, Q, H, d], what is kept of the layer).
# Queries and keys are normalised and rotated. It crosses the loop over layers, so it is a pytree: a
# `jax.tree_util.Partial` of a function and its arrays.
Attend = Callable[[Array, Array, Array, Array], tuple[Array, PyTree]]


class Memory(NamedTuple):
    """Keys and values of all layers, after normalisation and rotation, in the compute type.

    Attributes:
      keys: `[layers, B, M, H, d]`.
      values: `[layers, B, M, H, d]`.
    """

    keys: Array
    values: Array


def over(memory: Memory, places: Array, valid: Array | None = None, *, backend: str) -> Attend:
    """Attention of a row's own tokens to all places of a memory, their own keys written into it.

    Args:
      memory: M places a row. It stays as it is.
      places: i32 `[B, w]`, from 0 up, where the own keys and values stand for this pass; from M on
        they stand nowhere.
      valid: bool `[B, M]`, the places that may be seen, the own ones among them if wanted; by
        default all. A key that may not be seen must still be finite.
      backend: as in `attention`, to which it leaves the work.

    Returns:
      An `Attend` that keeps the own keys and values as a `Memory` `[layers, B, w, H, d]`.
    """
    look = partial(_look_over, backend=backend)
    return jax.tree_util.Partial(look, memory=memory, places=places, valid=valid)


def write(memory: Memory, own: Memory, places: Array) -> Memory:
    """The memory with own keys and values `[layers, B, w, H, d]` at places `i32[B, w]`.

    What stands at a place from M on is dropped. XLA writes in place, in a loop that carries the
    memory or with a donated one, if what is written depends on everything that was read; else it
    may write before the last layer has read, and copies the whole memory first.
    """
    return jax.tree.map(lambda kept, new: _put(kept, new, places), memory, own)


def _look_over(
    q: Array, k: Array, v: Array, number: Array, *, memory: Memory, places, valid, backend: str
) -> tuple[Array, Memory]:
    own = Memory(k, v)
    here = jax.tree.map(lambda kept: jax.lax.dynamic_index_in_dim(kept, number), memory)
    keys, values = write(here, jax.tree.map(lambda x: x[None], own), places)
    return attention(q, keys[0], values[0], Mask(valid=valid), backend=backend), own


def _put(kept: Array, new: Array, places: Array) -> Array:
    rows = jnp.arange(places.shape[0])[:, None]
    # No place is written twice, and each row's tokens stand in order.
    return kept.at[:, rows, places].set(new.astype(kept.dtype), mode="drop", unique_indices=True)
