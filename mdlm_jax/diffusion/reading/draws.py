"""From logits to drawn tokens and their scores: exact tails, few random numbers, few passes.

The vocabulary is read in blocks of 128 (in one, if it is smaller). The sums of the blocks are kept,
so totals, draws and the best two tokens need no further pass over `[N, V]`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mdlm_jax.diffusion.reading.reductions import top_and_log_total

Array = jax.Array

_BLOCK = 128


class Distribution(NamedTuple):
    """Categorical distributions of N positions.

    Attributes:
      blocks: f32[N, M, W], the logits, filled up with `-inf`; W is 128, or V below that.
      top: f32[N, M], the largest of each block.
      log_totals: f32[N, M], the logarithm of the sum of each block's exponentials.
      log_total: f32[N], the logarithm of the sum of all exponentials.
    """

    blocks: Array
    top: Array
    log_totals: Array
    log_total: Array


# `(distribution, tokens i32[N]) -> f32[N]`, higher is surer.
Score = Callable[[Distribution, Array], Array]


def distribution(logits: Array) -> Distribution:
    """Of `logits f32[N, V]`, `-inf` where a token is impossible."""
    rows, size = logits.shape
    block = min(size, _BLOCK)
    filled = jnp.pad(logits, ((0, 0), (0, -size % block)), constant_values=-jnp.inf)
    blocks = filled.reshape(rows, -1, block)
    top, log_totals = top_and_log_total(blocks)
    return Distribution(blocks, top, log_totals, jax.nn.logsumexp(log_totals, axis=-1))


def draw(keys: Array, of: Distribution, noise: Array | float = 1.0) -> Array:
    """One token a position, `i32[N]`, drawn from `softmax(logits / noise)`.

    This is Gumbel-max (Maddison et al. 2014), `argmax_i x_i + s G_i`, in two stages. The maximum
    over a block is itself Gumbel, around `s log sum_i exp(x_i / s)`, so a block is drawn first,
    then one of its tokens. The law is the same with M + W Gumbels instead of V. Their tails are
    exact: a float32 uniform cannot resolve the tail of a vocabulary of 50,000.

    Args:
      keys: [N], one a position.
      of: the distributions.
      noise: s, one number or f32[N]; 1 draws, 0 takes the first of the most likely tokens.
    """
    first, second = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    as_they_are = isinstance(noise, float) and noise == 1.0
    scale = jnp.broadcast_to(jnp.asarray(noise, jnp.float32), keys.shape[:1])[:, None]
    totals = of.log_totals if as_they_are else _log_totals(of, scale)  # [N, M]
    block = jnp.argmax(totals + scale * _gumbel(first, totals.shape[1]), axis=-1)
    within = jnp.take_along_axis(of.blocks, block[:, None, None], axis=1)[:, 0]  # [N, W]
    width = within.shape[1]
    place = jnp.argmax(within + scale * _gumbel(second, width), axis=-1)
    return (block * width + place).astype(jnp.int32)


def probability(of: Distribution, tokens: Array) -> Array:
    """`log p(token)`."""
    logits = of.blocks.reshape(len(tokens), -1)
    return jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0] - of.log_total


def margin(of: Distribution, tokens: Array) -> Array:
    """The difference between the two highest probabilities, whatever was drawn."""
    del tokens
    # Without `top_k`, for which devices would gather the rows.
    best = jnp.argmax(of.top, axis=-1)
    block = jnp.take_along_axis(of.blocks, best[:, None, None], axis=1)[:, 0]  # [N, W]
    others = _without_first_best(of.top).max(axis=-1)
    second = jnp.maximum(others, _without_first_best(block).max(axis=-1))
    return jnp.exp(block.max(axis=-1) - of.log_total) - jnp.exp(second - of.log_total)


def entropy(of: Distribution, tokens: Array) -> Array:
    """Minus the entropy in nats, whatever was drawn."""
    del tokens
    log_p = of.blocks - of.log_total[:, None, None]
    p = jnp.exp(log_p)
    return jnp.sum(jnp.where(p > 0, p * log_p, 0.0), axis=(1, 2))


def _log_totals(of: Distribution, noise: Array) -> Array:
    """`s log sum_i exp(x_i / s)` of each block, with s `[N, 1]`; its largest logit where s is 0."""
    possible = jnp.isfinite(of.top)
    apart = of.blocks - jnp.where(possible, of.top, 0.0)[..., None]
    # Towards s = 0 each term becomes 1 at the maximum, 0 elsewhere.
    scale = jnp.maximum(noise, jnp.finfo(jnp.float32).tiny)
    terms = jnp.exp(apart / scale[..., None]).sum(axis=-1)
    return jnp.where(possible, of.top + noise * jnp.log(terms), -jnp.inf)  # 0 * -inf is no number


def _without_first_best(x: Array) -> Array:
    best = jnp.arange(x.shape[-1])[None] == jnp.argmax(x, axis=-1, keepdims=True)
    return jnp.where(best, -jnp.inf, x)


def _gumbel(keys: Array, size: int) -> Array:
    """f32[N, size]."""
    return jax.vmap(lambda key: jax.random.gumbel(key, (size,), mode="high"))(keys)
