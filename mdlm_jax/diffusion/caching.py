"""A denoiser that remembers: between two looks at the whole canvas it computes a part of it.

A network that sees the whole canvas has no exact cache: each token that is written changes the keys
and values of all others. They change little, though, so most of them may be a few steps old (Wu et
al. 2025, Fast-dLLM, section 3.2). How old is an approximation that a refresh period sets, and a
period of 1 is the network itself.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mdlm_jax.diffusion import clocks
from mdlm_jax.diffusion.denoisers import Denoiser, Hidden, Readout, Shape, unshaped
from mdlm_jax.diffusion.strategies import View

Array = jax.Array
PyTree = Any


class CachedDenoiser(NamedTuple):
    """A `Denoiser` whose evaluations may lean on earlier ones of the same rows.

    `sample` takes it in place of a `Denoiser`.

    Attributes:
      start: `(batch, length) -> memory`, of rows that nothing has been computed of.
      encode: `(memory, view, asked bool[B, L], t f32[B]) -> (memory, Hidden)`. It may leave
        anything in `Hidden` at positions that are not asked for. A row's result and memory do not
        depend on other rows, and a row that asks for nothing keeps its memory as it is.
      readout: as a `Denoiser`'s.
      shape: as a `Denoiser`'s.
      mask_id: as a `Denoiser`'s.
      clear: `(memory, where bool[B]) -> memory`: the marked rows are as from `start`. None where
        rows cannot be told apart.
    """

    start: Callable[[int, int], PyTree]
    encode: Callable[[PyTree, View, Array, Array], tuple[PyTree, Hidden]]
    readout: Readout
    shape: Shape = unshaped
    mask_id: int | None = None
    clear: Callable[[PyTree, Array], PyTree] | None = None


class Clock(NamedTuple):
    """When each row last looked at its whole canvas.

    Attributes:
      first: i32[B], the first position of the block that it then was in, -1 if it never looked.
      index: i32[B], the step of the block, as in `View`.
    """

    first: Array
    index: Array  # type: ignore[assignment]  # a tuple's own `index` is not used


def started(batch: int) -> Clock:
    """The clock of rows that never looked."""
    return Clock(jnp.full(batch, -1, jnp.int32), jnp.zeros(batch, jnp.int32))


def span(marked: Array) -> tuple[Array, Array]:
    """i32[B] each: a row's first position in `marked bool[B, L]`, and the one behind its last."""
    first = jnp.argmax(marked, axis=1)
    behind = marked.shape[1] - jnp.argmax(marked[:, ::-1], axis=1)
    return first.astype(jnp.int32), behind.astype(jnp.int32)


def due(clock: Clock, view: View, asked: Array, refresh: int | Array) -> Array:
    """bool[B]: the rows that ask for something and have to look at the whole canvas for it.

    A row looks when it first asks in a block, and every `refresh` steps of the block from then on.
    It is due, too, if its clock was turned back: then another text stands in its place.

    Args:
      clock: of the looks so far.
      view: of this step.
      asked: bool[B, L], what is read out in it.
      refresh: steps, 1 for always; one number, or i32[B].
    """
    first, _ = span(view.wanted)
    age = view.index - clock.index
    old = (first != clock.first) | (age <= 0) | (age >= refresh)
    return asked.any(axis=1) & old


def looked(clock: Clock, view: View, rows: Array) -> Clock:
    """The clock after a look of the marked rows, bool[B]."""
    first, _ = span(view.wanted)
    return clocks.choose(rows, Clock(first, view.index), clock)


def widest(wanted: Array, blocks: int, *, to_end: bool = False) -> int:
    """The most positions from the first to the last that is wanted in a block of any row.

    Args:
      wanted: bool[B, L], known.
      blocks: as in `sample`.
      to_end: count to the end of the row instead.
    """
    batch, length = wanted.shape
    of = clocks.blocks_of(jnp.asarray(wanted), jnp.full(batch, blocks, jnp.int32))
    most = 1
    for block in range(blocks):
        first, behind = span(of == block)
        spans = np.where((of == block).any(axis=1), (length if to_end else behind) - first, 0)
        most = max(most, int(spans.max(initial=0)))
    return most


def transformed(
    denoiser: CachedDenoiser, transform: Callable[[Denoiser], Denoiser]
) -> CachedDenoiser:
    """A transform of denoisers, applied to one with a cache: `transforms.temperature` and so on.

    Args:
      denoiser: any.
      transform: of one `Denoiser`, such as `lambda one: transforms.top_p(one, 0.9)`. For `guide`,
        which takes two, there is `joined`.
    """

    def encode(memory: PyTree, view: View, asked: Array, t: Array) -> tuple[PyTree, Hidden]:
        memory, hidden = denoiser.encode(memory, view, asked, t)
        return memory, transform(_of(denoiser, hidden)).encode(view.canvas, t)

    outer = transform(_of(denoiser))
    return denoiser._replace(encode=encode, readout=outer.readout, shape=outer.shape)


def joined(
    one: CachedDenoiser, other: CachedDenoiser, transform: Callable[[Denoiser, Denoiser], Denoiser]
) -> CachedDenoiser:
    """A transform of two denoisers, applied to two with caches; each keeps a memory of its own.

    Args:
      one: any.
      other: any.
      transform: such as `lambda one, other: transforms.guide(one, other, 2.0)`.
    """

    def start(batch: int, length: int) -> tuple[PyTree, PyTree]:
        return one.start(batch, length), other.start(batch, length)

    def encode(memory: PyTree, view: View, asked: Array, t: Array) -> tuple[PyTree, Hidden]:
        first, hidden = one.encode(memory[0], view, asked, t)
        second, others = other.encode(memory[1], view, asked, t)
        both = transform(_of(one, hidden), _of(other, others))
        return (first, second), both.encode(view.canvas, t)

    def clear(memory: PyTree, where: Array) -> tuple[PyTree, PyTree]:
        assert one.clear is not None and other.clear is not None
        return one.clear(memory[0], where), other.clear(memory[1], where)

    outer = transform(_of(one), _of(other))
    return CachedDenoiser(
        start,
        encode,
        outer.readout,
        outer.shape,
        outer.mask_id,
        None if one.clear is None or other.clear is None else clear,
    )


def _of(denoiser: CachedDenoiser, hidden: Hidden | None = None) -> Denoiser:
    """The denoiser as one whose `encode` finds what is known."""

    def encode(tokens: Array, t: Array) -> Hidden:
        assert hidden is not None, "only the readout of this denoiser is used"
        return hidden

    return Denoiser(encode, denoiser.readout, denoiser.shape, denoiser.mask_id)
