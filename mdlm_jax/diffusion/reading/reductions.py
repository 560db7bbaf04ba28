"""The maximum and the log-sum-exp of logits, in as few passes over memory as the device allows."""

import jax
import jax.numpy as jnp

Array = jax.Array


@jax.custom_jvp
def top_and_log_total(logits: Array) -> tuple[Array, Array]:
    """`max(l)` and `log(sum(exp(l)))` of the last axis: `-inf` where all of it is `-inf`."""
    # GPUs wait for memory here: one pass over the logits instead of two.
    return jax.lax.platform_dependent(logits, cuda=in_one_pass, default=in_two_passes)


@top_and_log_total.defjvp
def _top_and_log_total_jvp(primals, tangents):
    (logits,), (slope,) = primals, tangents
    top, log_total = top_and_log_total(logits)
    first = jnp.argmax(logits, axis=-1, keepdims=True)
    of_top = jnp.take_along_axis(slope, first, axis=-1)[..., 0]
    of_total = jnp.sum(jnp.exp(logits - log_total[..., None]) * slope, axis=-1)
    return (top, log_total), (of_top, of_total)


def in_two_passes(logits: Array) -> tuple[Array, Array]:
    """`top_and_log_total` in its usual form."""
    top = logits.max(axis=-1)
    base = jnp.where(jnp.isfinite(top), top, 0.0)  # -inf - -inf is no number
    return top, base + jnp.log(jnp.exp(logits - base[..., None]).sum(axis=-1))


def in_one_pass(logits: Array) -> tuple[Array, Array]:
    """In one pass, by pairs `(m, s)` for `s exp(m)` (Milakov and Gimelshein 2018, algorithm 3)."""

    def joined(one, other):
        ahead = one[0] - other[0]
        less = jnp.exp(-jnp.abs(ahead))
        total = jnp.where(ahead > 0, one[1] + less * other[1], less * one[1] + other[1])
        return jnp.maximum(one[0], other[0]), total

    lowest = jnp.finfo(logits.dtype).min  # not -inf, whose difference from itself is no number
    start = (jnp.array(lowest, logits.dtype), jnp.zeros((), logits.dtype))
    pairs = (logits, jnp.ones_like(logits))
    top, total = jax.lax.reduce(pairs, start, joined, (logits.ndim - 1,))
    return jnp.where(total > 0, top, -jnp.inf), top + jnp.log(total)
