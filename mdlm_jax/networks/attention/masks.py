"""Which query sees which key."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class Mask(NamedTuple):
    """Which query sees which key, as a description. Each backend builds what it needs.

    Attributes:
      kind: 'full'; 'causal': keys up to the query; 'local': keys at most `window` away.
      window: reach of 'local', on either side.
      valid: bool `[B, L]`, False at keys that no query may see; or i32 `[B]`, how many of a row's
        first keys may be seen, and then 'cudnn' computes no others.
      segment_ids: i32 `[B, L]`; a query sees the keys of its own segment.
    """

    kind: str = "full"
    window: int = 0
    valid: Array | None = None
    segment_ids: Array | None = None


def by_position(mask: Mask, length: int) -> Mask:
    """The mask, with lengths of rows written out position by position."""
    if mask.valid is None or mask.valid.ndim == 2:
        return mask
    return mask._replace(valid=jnp.arange(length)[None] < mask.valid[:, None])


def attention_mask(
    kind: str,
    length: int,
    *,
    window: int = 0,
    valid: Array | None = None,
    segment_ids: Array | None = None,
    everywhere: Array | None = None,
) -> Array | None:
    """True where the query (third axis) sees the key (last axis).

    Args:
      kind, window, valid, segment_ids: of `Mask`.
      length: `L`.
      everywhere: of `attention`.

    Returns:
      bool, broadcastable to `[B, 1, L, L]`, or None if every query sees every key.
    """
    _, _, valid, _ = by_position(Mask(valid=valid), length)
    parts = []
    if kind != "full":
        ahead = jnp.arange(length)[None] - jnp.arange(length)[:, None]  # key - query, [L, L]
        near = ahead <= 0 if kind == "causal" else jnp.abs(ahead) <= window
        lifted = kind == "local" and everywhere is not None
        parts.append((near | everywhere if lifted else near)[None, None])
    if valid is not None:
        parts.append(valid[:, None, None, :])
    if segment_ids is not None:
        parts.append((segment_ids[:, :, None] == segment_ids[:, None, :])[:, None])
    mask = None
    for part in parts:
        mask = part if mask is None else mask & part
    return mask
