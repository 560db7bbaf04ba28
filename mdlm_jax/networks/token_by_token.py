"""A causal BERT token by token: block diffusion with blocks of one, and a cache for writing."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mdlm_jax.diffusion import checks
from mdlm_jax.diffusion.blocks.denoisers import BlockDenoiser
from mdlm_jax.diffusion.denoisers import Denoiser, Hidden
from mdlm_jax.networks import arguments, pieces
from mdlm_jax.networks.attention import cached
from mdlm_jax.networks.config import Config

Array = jax.Array


class Written(NamedTuple):
    """The cache of a causal network.

    Attributes:
      before: keys and values of the start and of the tokens that were committed.
      last: `[B, 1, D]`, the encoder's state at the last of them: the law of the next token.
    """

    before: cached.Cache
    last: Array


def check(config: Config, start_id: int) -> None:
    """Raises: TypeError, ValueError: as `bert.causal_block_denoiser` of this config and start."""
    if config.attention != "causal":
        raise ValueError(f"attention={config.attention!r}: must be 'causal'")
    checks.check_whole("start_id", start_id)
    if not 0 <= start_id < config.vocab_size:
        raise ValueError(f"start_id is {start_id}: must be from 0 to {config.vocab_size - 1}")


def build(
    at_once: Denoiser,
    encode_tokens: Callable[..., Any],
    config: Config,
    start_id: int,
    label: Array | None,
) -> BlockDenoiser:
    """`bert.causal_block_denoiser` of the network as a denoiser of texts, and of its encoder.

    Args:
      at_once: `causal_denoiser` of the network.
      encode_tokens: `(tokens, t, attend=..., ...) -> (x, kept)`.
      config, start_id, label: as in `bert.causal_block_denoiser`.
    """

    def encode(noisy: Array, clean: Array, t: Array) -> Hidden:
        arguments.check_tokens("noisy tokens", noisy, config, config.max_length)
        return at_once.encode(clean, t[:, 0])

    def start(batch: int, length: int) -> Written:
        if length > config.max_length:
            raise ValueError(
                f"a cache for {length} tokens: max_length is {config.max_length}, and a causal "
                "network has no window"
            )
        sizes = (config.layers, batch, length, config.heads, config.head_dim)
        nothing = cached.empty(*sizes, config.compute_dtype)
        return follow(nothing, jnp.full((batch, 1), start_id, jnp.int32))

    def extend(cache: Written, tokens: Array, where: Array | None = None) -> Written:
        rows = cache.before.length.shape
        arguments.check("tokens", tokens, (*rows, 1), jnp.int32, "int32")
        arguments.check_range("tokens", tokens, 0, config.vocab_size)
        arguments.check("where", where, rows, jnp.bool_, "bool")
        after = follow(cache.before, tokens, where)
        if where is None:
            return after
        return after._replace(last=jnp.where(where[:, None, None], after.last, cache.last))

    def clear(cache: Written, where: Array) -> Written:
        first = jnp.full((len(where), 1), start_id, jnp.int32)
        return extend(cache._replace(before=cached.clear(cache.before, where)), first, where)

    def prefill(cache: Written, text: Array, count: Array) -> Written:
        rows = cache.before.length.shape
        arguments.check_given(text, count, *rows, config)
        # The start is the first token of the network's text. The last one is committed alone, for
        # its state.
        lacks = cache.before.length <= count
        whole = jnp.pad(text, ((0, 0), (1, 0)), constant_values=start_id)
        encode = partial(encode_tokens, t=jnp.ones(rows, jnp.float32), label=label)
        before = pieces.commit(
            encode, cache.before, whole, count, 1, backend=config.attention_backend
        )
        last = jnp.take_along_axis(whole, count[:, None], axis=1)
        return extend(cache._replace(before=before), last, lacks)

    def encode_block(cache: Written, noisy: Array, t: Array) -> Hidden:
        del t
        arguments.check("noisy", noisy, (*cache.before.length.shape, 1), jnp.int32, "int32")
        return Hidden(at=cache.last)

    def follow(before: cached.Cache, tokens: Array, where: Array | None = None) -> Written:
        """One token more: its state, and its keys and values behind those before it."""
        arguments.check_label(label, config, len(tokens))
        places = before.length[:, None]
        last, own = encode_tokens(
            tokens,
            jnp.ones(len(tokens), jnp.float32),
            label=label,
            positions=places,
            attend=cached.after(
                before, jnp.ones((1, 1, 1), bool), places, backend=config.attention_backend
            ),
        )
        # The start takes a place too. So the last token that there is room for has none left for
        # its keys, which no token that there is room for looks for.
        last = jnp.where(cached.overflows(before, None)[:, None, None], jnp.nan, last)
        # A row that is lost commits nothing. So nothing is written before the last layer has read,
        # and the cache is written in place.
        kept = ~jnp.isnan(last).any(axis=(1, 2))
        return Written(
            cached.commit(before, own, None, kept if where is None else kept & where), last
        )

    return BlockDenoiser(
        1,
        encode,
        start,
        extend,
        encode_block,
        at_once.readout,
        mask_id=config.mask_id,
        clear=clear,
        prefill=prefill,
    )
