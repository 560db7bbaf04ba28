"""A denoiser is a function `(tokens with [MASK]s, t) -> logits of the clean tokens`.

It has two halves, because the vocabulary projection is a quarter to a third of a small model's work
and nearly all of its memory traffic. Losses and samplers gather the positions they need between the
halves and read out only those.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mdlm_jax.diffusion import checks

Array = jax.Array
PyTree = Any
Readout = Callable[[PyTree, PyTree], Array]  # (at [N, ...], row [N, ...]) -> logits f32[N, V]
Shape = Callable[[Array, PyTree], Array]  # (logits f32[N, V], row [N, ...]) -> logits f32[N, V]


class Hidden(NamedTuple):
    """What `encode` leaves for `readout`.

    Attributes:
      at: leaves `[B, L, ...]`: what the projection needs of each position.
      row: leaves `[B, ...]`: what it needs of each row (a guidance weight, counts).
    """

    at: PyTree
    row: PyTree = ()


def unshaped(logits: Array, row: PyTree) -> Array:
    """The `shape` of a denoiser that draws from its own law: it changes nothing."""
    del row
    return logits


class Denoiser(NamedTuple):
    """`logits = readout(*encode(tokens, t))` at any positions, and the law that tokens follow.

    Confidence and sampling are kept apart, because a temperature must not decide where to write.
    Confidence and reported log-probabilities come from the model's own logits; tokens are drawn
    from the shaped ones.

    Attributes:
      encode: `(tokens i32[B, L], t f32[B]) -> Hidden`. It ends after the last operation that
        depends on `t` or on the row.
      readout: `(at [N, ...], row [N, ...]) -> logits f32[N, V]`, position by position, the model's
        own. The logit of the mask token is `-inf`: a clean token is never the mask.
      shape: `(logits f32[N, V], row [N, ...]) -> logits f32[N, V]`, the logits that tokens are
        drawn from. Temperature, nuclei and penalties compose onto it. `-inf` stays `-inf`.
      mask_id: the token whose logit `readout` has removed, if known. A function that is given
        another mask refuses the denoiser.
    """

    encode: Callable[[Array, Array], Hidden]
    readout: Readout
    shape: Shape = unshaped
    mask_id: int | None = None


def law_of(denoiser: Denoiser, mask_id: int | None = None) -> Readout:
    """The readout of the law that tokens are drawn from: `shape` after `readout`.

    Losses and likelihoods use it. For a denoiser without a shape it is the denoiser's `readout`.

    Args:
      denoiser: any.
      mask_id: if given, the mask's logit is removed before the others are shaped.
    """
    if denoiser.shape is unshaped:
        return denoiser.readout

    def readout(at: PyTree, row: PyTree) -> Array:
        own = remove_mask(denoiser.readout(at, row).astype(jnp.float32), mask_id)
        return denoiser.shape(own, row)

    return readout


def as_denoiser(fn: Callable[[Array, Array], Array], mask_id: int | None = None) -> Denoiser:
    """Lifts any `fn(tokens i32[B, L], t f32[B]) -> logits [B, L, V]` to a `Denoiser`.

    The function may be a Linen or NNX model, an Equinox module, or a table. Build the denoiser
    inside the jitted function that uses it: a closure over parameters cannot cross a jit boundary.

    Args:
      fn: returns logits over the vocabulary at every position.
      mask_id: if given, the mask's logit is removed here, once for all consumers.

    Raises:
      TypeError: if `fn` is no function or already a denoiser, or `mask_id` is no number; when `fn`
        is called, if it returns no array.
      ValueError: when `fn` is called, if it returns anything but float `[B, L, V]`; at the readout,
        if `mask_id` is not one of the V tokens.
    """
    checks.check_function(fn)
    if mask_id is not None:
        checks.check_whole("mask_id", mask_id)

    def encode(tokens: Array, t: Array) -> Hidden:
        logits = fn(tokens, t)
        checks.check_logits(logits, tokens)
        return Hidden(at=logits)

    def readout(at: Array, row: PyTree) -> Array:
        del row
        return remove_mask(at.astype(jnp.float32), mask_id)

    return Denoiser(encode=encode, readout=readout, mask_id=mask_id)


def remove_mask(logits: Array, mask_id: int | None) -> Array:
    """Sets the mask's logit to `-inf`; a second removal changes nothing. Shape `[..., V]`.

    Raises:
      ValueError: if `mask_id` is known and is not one of the V tokens.
    """
    if mask_id is None:
        return logits
    seen, size = checks.known(mask_id), logits.shape[-1]
    if seen is not None and not 0 <= seen < size:
        raise ValueError(f"mask_id is {mask_id}, but the logits are of {size} tokens, from 0 up")
    return jnp.where(along_last(logits) == mask_id, -jnp.inf, logits)


def check_mask(denoiser: Any, mask_id: int | None) -> None:
    """Raises: ValueError: the denoiser is known to fill another mask."""
    if denoiser.mask_id is None or mask_id is None:
        return
    own, given = checks.known(denoiser.mask_id), checks.known(mask_id)
    if own is not None and given is not None and own != given:
        raise ValueError(f"mask_id is {given}, but the denoiser was built with mask_id {own}")


def along_last(x: Array) -> Array:
    """`0..V-1` along the last axis of `x [..., V]`, with as many axes: no rank is promoted."""
    return jnp.arange(x.shape[-1]).reshape(*(1,) * (x.ndim - 1), -1)


def vocabulary_size(readout: Readout, hidden: Hidden) -> int:
    """V, from the shapes of what `encode` returns, without computing."""

    def one_position(x, axes):
        return jax.ShapeDtypeStruct((1, *x.shape[axes:]), x.dtype)

    at = jax.tree.map(lambda x: one_position(x, 2), hidden.at)
    row = jax.tree.map(lambda x: one_position(x, 1), hidden.row)
    return jax.eval_shape(readout, at, row).shape[-1]
