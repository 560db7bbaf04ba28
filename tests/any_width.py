"""A block denoiser of any width, by arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
from oracle import MASK

from mdlm_jax import blocks
from mdlm_jax.diffusion import clocks


def of_any_width(size, calls=None, fused=False, ahead=False, seed=2):
    """It writes what the clean tokens before a block and its own tokens say.

    What it is called with goes to `calls`, if given. `fused` has `advance`, `ahead` `prefill`.
    """
    weights = jax.random.normal(jax.random.key(seed), (64, MASK + 1))

    def tell(what, *arrays):
        if calls is not None:
            jax.debug.callback(
                lambda *a: calls.append((what, *map(np.asarray, a))), *arrays, ordered=True
            )

    def logits(noisy, clean, t):
        place = jnp.arange(noisy.shape[1])
        first = place // size * size
        before = jnp.cumsum((clean + 1) * (place + 1), axis=1)
        seen = jnp.where(first > 0, before[:, jnp.maximum(first - 1, 0)], 0)
        own = ((noisy + 2) * (place * place + 3)).reshape(len(noisy), -1, size).sum(axis=-1)
        return weights[(seen + jnp.repeat(own, size, axis=1) + place) % 64]

    inner = blocks.as_block_denoiser(logits, size, MASK)

    def committed(cache, tokens, where):
        after = inner.extend(cache, tokens)
        return after if where is None else clocks.choose(where, after, cache)

    def extend(cache, tokens, where=None):
        tell("extend", tokens)
        return committed(cache, tokens, where)

    def prefill(cache, text, count):
        tell("prefill", count)
        there = jnp.arange(text.shape[1])[None] < count[:, None] * size
        return cache._replace(tokens=jnp.where(there, text, 0), length=count * size)

    def encode_block(cache, noisy, t):
        tell("encode_block", noisy, cache.length)
        return inner.encode_block(cache, noisy, t)

    def advance(cache, tokens, noisy, t, where=None):
        tell("advance", tokens, noisy)
        cache = committed(cache, tokens, where)
        return cache, inner.encode_block(cache, noisy, t)

    return inner._replace(
        extend=extend,
        encode_block=encode_block,
        advance=advance if fused else None,
        prefill=prefill if ahead else None,
    )
