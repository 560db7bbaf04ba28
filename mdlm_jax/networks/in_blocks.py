"""BERT block by block: all blocks of a text at once, or one block after a cache."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from mdlm_jax.diffusion import checks
from mdlm_jax.diffusion.blocks.denoisers import BlockDenoiser, check_block_size, count_blocks
from mdlm_jax.diffusion.denoisers import Hidden, Readout
from mdlm_jax.networks import arguments, pieces
from mdlm_jax.networks.attention import cached
from mdlm_jax.networks.attention.cached import Cache
from mdlm_jax.networks.attention.layout import Streams
from mdlm_jax.networks.attention.masks import Mask, by_position
from mdlm_jax.networks.attention.streams import two_streams
from mdlm_jax.networks.config import Config

Array = jax.Array


def check(config: Config, size: int, window: int | None) -> None:
    """Raises: TypeError, ValueError: as `bert.block_denoiser` of this config, size and window."""
    check_block_size(size)
    if config.attention != "full":
        raise ValueError(f"attention={config.attention!r}: must be 'full' for blocks")
    if config.time_conditioning:
        raise ValueError("time_conditioning=True: must be False for blocks: clean text has no time")
    if window is not None:
        checks.check_whole("window", window)
    if window is not None and (window < size or window % size):
        raise ValueError(f"window is {window}: must be a multiple of block_size={size}, or None")


def build(
    encode_tokens: Callable[..., Any],
    readout: Readout,
    config: Config,
    size: int,
    window: int | None,
    valid: Array | None,
    label: Array | None,
) -> BlockDenoiser:
    """`bert.block_denoiser` of an encoder: `(tokens, t, attend=..., ...) -> (x, kept)`."""

    def encode(noisy: Array, clean: Array, t: Array) -> Hidden:
        del t
        length, endless = noisy.shape[-1], window is not None and config.positions == "rope"
        longest = length if endless else config.max_length
        arguments.check_tokens("noisy tokens", noisy, config, longest)
        arguments.check_tokens("clean tokens", clean, config, longest)
        arguments.check("clean", clean, noisy.shape, jnp.int32, "int32")
        arguments.check_valid(valid, *noisy.shape)
        arguments.check_label(label, config, len(noisy))
        if count_blocks("noisy", noisy, size) == 1:
            return Hidden(at=encode_tokens(noisy, None, valid=valid, label=label))
        streams = Streams(length, size, window)
        places = jnp.arange(length, dtype=jnp.int32)[None]
        look = partial(_look_at_streams, streams=streams, backend=config.attention_backend)
        seen = by_position(Mask(valid=valid), length).valid
        x, _ = encode_tokens(
            streams.join(noisy, clean),
            None,
            label=label,
            positions=streams.join(places, places),
            attend=jax.tree_util.Partial(look, valid=seen),
            asking=length,
        )
        return Hidden(at=x)

    def start(batch: int, length: int) -> Cache:
        if valid is not None:
            raise ValueError("valid given to a network with a cache: must be None")
        if length < 1:
            raise ValueError(f"a cache for {length} tokens: must be for at least one")
        bounded = window is None or config.positions == "learned"
        if bounded and length > config.max_length:
            more = ", or more with a window" if config.positions == "rope" else ""
            raise ValueError(
                f"a cache for {length} tokens: max_length is {config.max_length}{more}"
            )
        kept = length if window is None else min(length, window)
        sizes = (config.layers, batch, kept, config.heads, config.head_dim)
        return cached.empty(*sizes, config.compute_dtype)

    def extend(cache: Cache, tokens: Array, where: Array | None = None) -> Cache:
        check_block(cache, "tokens", tokens)
        arguments.check("where", where, cache.length.shape, jnp.bool_, "bool")
        _, own = after(cache, tokens, *_alone(cache, size))
        return cached.commit(cache, own, window, where)

    def prefill(cache: Cache, text: Array, count: Array) -> Cache:
        count_blocks("text", text, size)
        arguments.check_given(text, count, *cache.length.shape, config)
        arguments.check_label(label, config, *cache.length.shape)
        encode = partial(encode_tokens, t=None, label=label)
        return pieces.commit(
            encode, cache, text, count * size, size, window, backend=config.attention_backend
        )

    def encode_block(cache: Cache, noisy: Array, t: Array) -> Hidden:
        del t
        check_block(cache, "noisy", noisy)
        x, _ = after(cache, noisy, *_alone(cache, size))
        return Hidden(at=_or_nan(x, cached.overflows(cache, window)))

    def advance(
        cache: Cache, tokens: Array, noisy: Array, t: Array, where: Array | None = None
    ) -> tuple[Cache, Hidden]:
        del t
        check_block(cache, "tokens", tokens)
        check_block(cache, "noisy", noisy)
        arguments.check("where", where, cache.length.shape, jnp.bool_, "bool")
        commits = jnp.ones(cache.length.shape, bool) if where is None else where
        both = jnp.concatenate([noisy, tokens], axis=1)
        x, own = after(cache, both, *_in_pairs(cache, size, commits), asking=size)
        own = jax.tree.map(lambda leaf: leaf[:, :, size:], own)
        # A row that is lost commits nothing. So nothing is written before the last layer has read,
        # and the cache is written in place; a barrier would not be kept by all of XLA's passes.
        cache = cached.commit(cache, own, window, commits & ~jnp.isnan(x).any(axis=(1, 2)))
        return cache, Hidden(at=_or_nan(x, cached.overflows(cache, window)))

    def check_block(cache: Cache, name: str, tokens: Array) -> None:
        rows = cache.length.shape
        arguments.check(name, tokens, (*rows, size), jnp.int32, "int32")
        arguments.check_range(name, tokens, 0, config.vocab_size)
        arguments.check_label(label, config, *rows)

    def after(cache: Cache, tokens: Array, own: Array, starts: Array, asking: int | None = None):
        """Tokens that follow a cache: their states `[B, asking, D]`, and keys and values."""
        inside = jnp.tile(jnp.arange(size, dtype=jnp.int32), tokens.shape[1] // size)[None]
        return encode_tokens(
            tokens,
            None,
            label=label,
            positions=starts + inside,
            attend=cached.after(cache, own, starts, window, backend=config.attention_backend),
            asking=asking,
        )

    return BlockDenoiser(
        size,
        encode,
        start,
        extend,
        encode_block,
        readout,
        mask_id=config.mask_id,
        advance=advance,
        clear=cached.clear,
        prefill=prefill,
    )


def _look_at_streams(q: Array, k: Array, v: Array, number: Array, *, valid, **how):
    """`two_streams` as an `Attend` that keeps nothing."""
    del number
    return two_streams(q, k, v, valid=valid, **how), ()


def _alone(cache: Cache, size: int) -> tuple[Array, Array]:
    """One block after the cache: who sees whom, and where it begins."""
    starts = jnp.broadcast_to(cache.length[:, None], (cache.length.shape[0], size))
    return jnp.ones((1, size, size), bool), starts


def _in_pairs(cache: Cache, size: int, commits: Array) -> tuple[Array, Array]:
    """A noisy block, and the clean one before it in the rows that commit it."""
    noisy = jnp.arange(2 * size) < size
    same = noisy[:, None] == noisy[None]
    sees_clean = (noisy[:, None] & ~noisy[None])[None] & commits[:, None, None]
    starts = jnp.where((noisy[None] & commits[:, None]), size, 0) + cache.length[:, None]
    return same[None] | sees_clean, starts.astype(jnp.int32)


def _or_nan(x: Array, lost: Array) -> Array:
    """`x [B, L, D]`, NaN in the rows `bool[B]` that are lost."""
    return jnp.where(lost[:, None, None], jnp.nan, x)
