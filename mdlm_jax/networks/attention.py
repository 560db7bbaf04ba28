"""Scaled dot-product attention: who sees whom, rotary positions, and the one product."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mdlm_jax.networks import cudnn, local
from mdlm_jax.networks.splash import splash_attention

Array = jax.Array

# Each with the platform that it is for, where it is not for all.
BACKENDS = {"auto": None, "xla": None, "cudnn": "gpu", "splash": "tpu"}


def runs_on(backend: str, platform: str) -> bool:
    """Whether a backend is for the devices of a platform: 'cpu', 'gpu' or 'tpu'."""
    return BACKENDS[backend] in (None, platform)


def fastest(platform: str, q: Array, *, lifted: bool = False) -> str:
    """What 'auto' is on the devices of a platform.

    Args:
      platform: 'cpu', 'gpu' or 'tpu'.
      q: queries `[B, L, H, d]`, or their shape and type.
      lifted: whether some blocks lift their window.
    """
    if platform == "gpu" and cudnn.available() and not cudnn.refused(q):
        return "cudnn"
    return "splash" if platform == "tpu" and not lifted else "xla"


class Mask(NamedTuple):
    """Who sees whom, not built yet: each backend makes of it what it needs.

    Attributes:
      kind: 'full'; 'causal': keys up to the query; 'local': keys at most `window` away.
      window: reach of 'local', on either side.
      valid: bool `[B, L]`, False at keys that nobody may see; or i32 `[B]`, how many keys of a row
        may be seen, its first ones: 'cudnn' then computes no others.
      segment_ids: i32 `[B, L]`; a query sees the keys of its own segment.
    """

    kind: str = "full"
    window: int = 0
    valid: Array | None = None
    segment_ids: Array | None = None


def attention(
    q: Array,
    k: Array,
    v: Array,
    mask: Mask = Mask(),  # noqa: B008
    *,
    backend: str,
    everywhere: Array | None = None,
) -> Array:
    """`softmax(q k^T / sqrt(d)) v` for each head, the softmax in float32.

    Args:
      q: queries `[B, L, H, d]`; `k` and `v` alike.
      mask: who sees whom. What comes out at a query that is not valid, or that sees no key, is
        finite and means nothing; backends differ there.
      backend: 'xla' runs everywhere; 'cudnn' is a kernel for NVIDIA GPUs, which says so where it
        leaves a shape or type to 'xla' (`cudnn.refused`); 'splash' is one for TPUs (see
        `splash_attention`); 'auto' is the `fastest` on JAX's default devices. Windows go block by
        block where a row is long enough: see `local_attention`.
      everywhere: bool, or not given: True lifts the window of 'local'. It may be traced.

    Returns:
      `[B, L, H, d]` in the type of `q`.

    Raises:
      ValueError: an unknown backend, or one that does not lift windows.
    """
    if backend not in BACKENDS:
        raise ValueError(f"attention backend {backend!r}: must be one of {list(BACKENDS)}")
    if backend == "auto":
        backend = fastest(jax.default_backend(), q, lifted=everywhere is not None)
    if backend == "splash":
        if everywhere is not None:
            raise ValueError("attention backend 'splash': must be 'xla' where a window is lifted")
        return splash_attention(q, k, v, **_by_position(mask, q.shape[1])._asdict())
    left = cudnn.refused(q) if backend == "cudnn" else ""
    if left:
        cudnn.say_once(left)
        backend = "xla"
    if mask.kind != "local":
        return _whole(q, k, v, mask, backend)
    blocks = local.blocks_of(mask.window, backend)
    if not local.pays(q.shape[1], blocks):
        return _whole(q, k, v, mask, backend, everywhere)

    def near(q: Array, k: Array, v: Array) -> Array:
        _, *fields = _by_position(mask, q.shape[1])
        return local.local_attention(q, k, v, *fields, blocks=blocks, implementation=backend)

    def lifted(q: Array, k: Array, v: Array) -> Array:
        return _whole(q, k, v, mask._replace(kind="full"), backend)

    return near(q, k, v) if everywhere is None else jax.lax.cond(everywhere, lifted, near, q, k, v)


def _whole(
    q: Array, k: Array, v: Array, mask: Mask, backend: str, everywhere: Array | None = None
) -> Array:
    """`attention` by 'xla' or 'cudnn' of each query with every key that the kernel cannot skip."""
    length = q.shape[1]
    if backend == "xla":
        dense = attention_mask(length=length, everywhere=everywhere, **mask._asdict())
        with jax.numpy_dtype_promotion("standard"):  # JAX's own logits are wider than `q`
            return jax.nn.dot_product_attention(q, k, v, mask=dense, implementation="xla")
    causal, lengths = mask.kind == "causal", None
    if causal:
        mask = mask._replace(kind="full")
    counted = mask.valid is not None and mask.valid.ndim == 1
    if counted and mask.kind == "full" and mask.segment_ids is None:
        lengths, mask = mask.valid, Mask()
    dense = attention_mask(length=length, everywhere=everywhere, **mask._asdict())
    return cudnn.cudnn_attention(q, k, v, causal=causal, lengths=lengths, dense=dense)


def _by_position(mask: Mask, length: int) -> Mask:
    """The mask, lengths of rows said position by position."""
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
    """Who sees whom: True where the query (third axis) sees the key (last axis).

    Args:
      kind, window, valid, segment_ids: of `Mask`.
      length: `L`.
      everywhere: of `attention`.

    Returns:
      bool, broadcastable to `[B, 1, L, L]`, or None where everyone sees everyone.
    """
    _, _, valid, _ = _by_position(Mask(valid=valid), length)
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


def rope_turns(length: int, head_dim: int, theta: float = 10_000.0) -> Array:
    """Cosine and sine of the angles `m * theta^(-2i/d)`, f32 `[2, L, d/2]`.

    Of position m and feature pair i: Su et al. 2021 (RoFormer), equation 15, where theta is 10,000.
    """
    frequencies = theta ** (-jnp.arange(0, head_dim, 2) / head_dim)
    angles = jnp.arange(length, dtype=jnp.float32)[:, None] * frequencies[None]
    # Stacked and behind a barrier, they are not computed anew for each row and head that they turn.
    return jax.lax.optimization_barrier(jnp.stack([jnp.cos(angles), jnp.sin(angles)]))


def rotate(x: Array, turns: Array) -> Array:
    """Turns the feature pairs `(i, i + d/2)` of `x [B, L, H, d]` by `turns [2, L, d/2]`."""
    cos, sin = turns[:, None, :, None]  # [1, L, 1, d/2]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)
