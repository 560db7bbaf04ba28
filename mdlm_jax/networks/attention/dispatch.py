"""Scaled dot-product attention by the backend of a platform."""

import jax
import jax.numpy as jnp

from mdlm_jax.networks.attention import cudnn, local
from mdlm_jax.networks.attention.masks import Mask, attention_mask, by_position
from mdlm_jax.networks.attention.splash import splash_attention

Array = jax.Array

# Each backend with its platform, or None if it runs on all.
BACKENDS = {"auto": None, "xla": None, "cudnn": "gpu", "splash": "tpu"}


def runs_on(backend: str, platform: str) -> bool:
    """Whether a backend runs on the devices of a platform: 'cpu', 'gpu' or 'tpu'."""
    return BACKENDS[backend] in (None, platform)


def fastest(platform: str, q: Array, *, lifted: bool = False) -> str:
    """The backend that 'auto' takes on the devices of a platform.

    Args:
      platform: 'cpu', 'gpu' or 'tpu'.
      q: queries `[B, L, H, d]`, or their shape and type.
      lifted: whether some blocks lift their window.
    """
    if platform == "gpu" and cudnn.available() and not cudnn.refused(q):
        return "cudnn"
    return "splash" if platform == "tpu" and not lifted else "xla"


def backend_of(backend: str, q: Array, *, lifted: bool = False) -> str:
    """The backend that a config names; for 'auto' the `fastest` on JAX's default devices."""
    if backend not in BACKENDS:
        raise ValueError(f"attention backend {backend!r}: must be one of {list(BACKENDS)}")
    return fastest(jax.default_backend(), q, lifted=lifted) if backend == "auto" else backend


def masked(q: Array, k: Array, v: Array, mask: Array, *, backend: str) -> Array:
    """`attention` of any queries `[B, Q, H, d]` to any keys `[B, K, H, d]`, all of it computed.

    Args:
      q: queries.
      k: keys; `v` alike.
      mask: bool `[B, Q, K]` or `[1, Q, K]`, True where the query sees the key; each sees some.
      backend: 'cudnn', or else 'xla' computes.
    """
    length = q.shape[1]
    if backend == "cudnn":
        # Its masks are of even lengths.
        q, k, v = (_evened(x) for x in (q, k, v))
        odd = [(0, 0), (0, q.shape[1] - mask.shape[1]), (0, k.shape[1] - mask.shape[2])]
        mask = jnp.pad(mask, odd)
    left = cudnn.refused(q) if backend == "cudnn" else ""
    if left:
        cudnn.say_once(left)
    fits = backend == "cudnn" and not left
    with jax.numpy_dtype_promotion("standard"):  # JAX's own logits are wider than `q`
        out = jax.nn.dot_product_attention(
            q, k, v, mask=mask[:, None], implementation="cudnn" if fits else "xla"
        )
    return out[:, :length]


def _evened(x: Array) -> Array:
    """`[B, L, H, d]` with zeros at the end where L is odd."""
    return jnp.pad(x, [(0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)]) if x.shape[1] % 2 else x


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
      q: queries `[B, Q, H, d]`. Q is L, or with a 'full' mask any number.
      k: keys `[B, L, H, d]`.
      v: values `[B, L, H, d]`.
      mask: which query sees which key. The output at a query that is not valid, or that sees no
        key, is finite and means nothing. Backends differ there.
      backend: 'xla' runs everywhere. 'cudnn' is a kernel for NVIDIA GPUs; it reports when it leaves
        a shape or type to 'xla' (`cudnn.refused`). 'splash' is a kernel for TPUs (see
        `splash_attention`). 'auto' is the `fastest` on JAX's default devices. Windows are computed
        block by block in rows that are long enough (see `local_attention`).
      everywhere: bool, may be traced. True lifts the window of 'local'.

    Returns:
      `[B, Q, H, d]` in the type of `q`.

    Raises:
      ValueError: an unknown backend, or one that does not lift windows; a number of queries that
        differs from that of keys, with a mask other than 'full'.
    """
    backend = backend_of(backend, q, lifted=everywhere is not None)
    if q.shape[1] != k.shape[1]:
        return _of_few(q, k, v, mask, backend)
    if backend == "splash":
        if everywhere is not None:
            raise ValueError("attention backend 'splash': must be 'xla' where a window is lifted")
        return splash_attention(q, k, v, **by_position(mask, q.shape[1])._asdict())
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
        _, *fields = by_position(mask, q.shape[1])
        return local.local_attention(q, k, v, *fields, blocks=blocks, implementation=backend)

    def lifted(q: Array, k: Array, v: Array) -> Array:
        return _whole(q, k, v, mask._replace(kind="full"), backend)

    return near(q, k, v) if everywhere is None else jax.lax.cond(everywhere, lifted, near, q, k, v)


def _of_few(q: Array, k: Array, v: Array, mask: Mask, backend: str) -> Array:
    """`attention` with fewer or more queries than keys: all see the keys that are valid."""
    if mask.kind != "full" or mask.segment_ids is not None:
        raise ValueError(
            f"{q.shape[1]} queries and {k.shape[1]} keys: attention must be 'full', without "
            f"segment_ids, not {mask.kind!r}: there is no order between them"
        )
    valid = by_position(mask, k.shape[1]).valid
    seen = None
    if valid is not None:
        some = valid | ~valid.any(axis=1, keepdims=True)  # no softmax is over nothing
        shape = (q.shape[0], 1, q.shape[1], k.shape[1])
        seen = jnp.broadcast_to(some[:, None, None, :], shape)
    fits = backend == "cudnn" and not (cudnn.refused(q) or cudnn.refused(k))
    with jax.numpy_dtype_promotion("standard"):  # JAX's own logits are wider than `q`
        return jax.nn.dot_product_attention(
            q, k, v, mask=seen, implementation="cudnn" if fits else "xla"
        )


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
