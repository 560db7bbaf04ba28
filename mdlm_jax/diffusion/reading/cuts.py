"""What shapes logits: functions of `logits f32[N, V]` and of a strength, one number or f32[N, 1].

`transforms` makes transforms of denoisers of them. A logit of `-inf` stays `-inf`. What is cut off
is not removed but set far below the rest (`cut`). A strength that changes nothing (a temperature
of 1, `k` = V, `p` = 1 of a nucleus, 0 of `keep_likely`) leaves a row's logits as they are, to the
bit.
"""

import jax
import jax.numpy as jnp

Array = jax.Array

# Far more than logits differ by and Gumbel noise reaches, at temperatures up to 100; small enough
# that float32 still distinguishes the logits below it.
_CUT = 1e5


def cut(logits: Array, keep: Array) -> Array:
    """The logits, far below the rest where they are not kept, `bool[N, V]`."""
    return jnp.where(keep, logits, logits - _CUT)


def scale(logits: Array, temperature: float | Array) -> Array:
    """`logits / temperature`; at 0 nearly only the likeliest token is left."""
    # Small enough for 0, and large enough that a cut-off logit does not overflow.
    return logits * (1.0 / jnp.maximum(jnp.asarray(temperature, jnp.float32), 1e-6))


def keep_best(logits: Array, k: int | Array) -> Array:
    """Keeps the k most likely tokens, and those that tie with the last."""
    # Sorted: before a `top_k` devices would gather the rows.
    ascending = jnp.sort(logits, axis=-1)
    place = jnp.maximum(logits.shape[-1] - jnp.asarray(k, jnp.int32), 0).reshape(-1, 1)
    place = jnp.broadcast_to(place, (logits.shape[0], 1))
    return cut(logits, logits >= jnp.take_along_axis(ascending, place, axis=-1))


def keep_nucleus(logits: Array, p: float | Array) -> Array:
    """Keeps the fewest tokens that hold a probability of p, and those that tie with the last."""
    descending = -jnp.sort(-logits, axis=-1)
    probabilities = jax.nn.softmax(descending, axis=-1)
    # The sum of each token and all less likely ones, from the least likely up: from the other end a
    # sum would reach 1 in float32 long before a large vocabulary's end.
    rest = jax.lax.cumsum(probabilities, axis=probabilities.ndim - 1, reverse=True)
    p = jnp.asarray(p, jnp.float32)
    inside = rest > (1.0 - p) * rest[:, :1]
    inside = inside.at[:, 0].set(True)
    least = jnp.min(jnp.where(inside, descending, jnp.inf), axis=-1, keepdims=True)
    return cut(logits, (logits >= least) | (p >= 1))


def keep_likely(logits: Array, p: float | Array) -> Array:
    """Keeps the tokens at least p times as likely as the most likely one."""
    below = logits - logits.max(axis=-1, keepdims=True)
    return cut(logits, below >= jnp.log(jnp.asarray(p, jnp.float32)))


def penalise(logits: Array, standing: Array, penalty: float | Array) -> Array:
    """Log-probabilities, times the penalty where a token stands in the row, `bool[N, V]`."""
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    return jnp.where(standing, log_probs * penalty, log_probs)
