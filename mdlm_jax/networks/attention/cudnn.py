"""Attention by cuDNN's flash attention for NVIDIA GPUs, without `[L, L]` in memory."""

import functools
import logging

import jax
import jax.numpy as jnp

from mdlm_jax.host import parallel

Array = jax.Array

_log = logging.getLogger(__name__)


def cudnn_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    causal: bool = False,
    lengths: Array | None = None,
    dense: Array | None = None,
) -> Array:
    """`softmax(q k^T / sqrt(d)) v`, of `[B, L, H, d]` each, on a GPU.

    (cuDNN's own sliding window reaches only to the left, and `jax.nn` has no gradient that would
    join two of them. `local_attention` computes windows.)

    Args:
      q: queries; `k` and `v` alike.
      causal: whether a query sees only the keys up to it. The others are not computed.
      lengths: i32 `[B]`, the number of tokens at the beginning of each row. What follows them is
        not computed. None if rows are full. An empty row is computed as if it had one token,
        because a softmax over nothing is undefined.
      dense: bool, broadcastable to `[B, 1, L, L]`, which query sees which key, or None. What is
        masked is computed and gets no weight. A query must see itself: without any key its
        gradient may be NaN.
    """
    length = q.shape[1]
    if lengths is not None:
        # The kernel's rows on a device must have their lengths there.
        lengths = parallel.spread_rows(jnp.clip(lengths, 1, length))
    if dense is not None:
        dense = dense | jnp.eye(length, dtype=bool)[None, None]
    with jax.numpy_dtype_promotion("standard"):  # JAX's own scale is wider than `q`
        return jax.nn.dot_product_attention(
            q,
            k,
            v,
            mask=dense,
            is_causal=causal,
            query_seq_lengths=lengths,
            key_value_seq_lengths=lengths,
            implementation="cudnn",
        )


def available() -> bool:
    """Whether JAX's first device is an NVIDIA GPU that has these kernels: Ampere or newer."""
    capability = getattr(jax.devices()[0], "compute_capability", "")  # of AMD's, 'gfx90a'
    major = capability.partition(".")[0]
    return major.isdecimal() and int(major) >= 8


def refused(q: Array) -> str:
    """Why cuDNN cannot compute attention of queries like `q [B, L, H, d]`; '' if it can.

    (Of cuDNN 9, by `jax.nn.dot_product_attention`'s own checks.)

    Args:
      q: the queries, or their shape and type.
    """
    _, length, _, head_dim = q.shape
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"{q.dtype} (it computes in bfloat16)"
    if head_dim % 8 or head_dim > 128:
        return f"heads of width {head_dim} (multiples of 8 up to 128)"
    if length % 2:
        return f"rows of odd length {length}"
    return ""


@functools.cache
def say_once(reason: str) -> None:
    """Reports, once for each reason, that 'xla' computes instead."""
    _log.warning("attention backend 'cudnn' does not take %s: 'xla' computes it", reason)
