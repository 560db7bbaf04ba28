"""BERT (Devlin et al. 2019) and its modern variants: `params -> Denoiser`.

    config = bert.Config(vocab_size=8192, mask_id=4, norm_position="pre", positions="rope")
    params = bert.init(jax.random.key(0), config)
    logits = bert.logits(params, config, tokens)  # the masked language model
    denoiser = bert.denoiser(params, config)  # the same, as objectives and samplers take it
    blocks = bert.block_denoiser(params, config, 16)  # the same, from left to right in blocks of 16
    cached = bert.cached_denoiser(params, config, "dual", 32, 8)  # the same, mostly from memory

The parameters are a plain nested dict `{"encoder": ..., "head": ...}`. Those of the blocks are
stacked on a leading axis.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mdlm_jax.diffusion import checks
from mdlm_jax.diffusion.blocks.denoisers import BlockDenoiser
from mdlm_jax.diffusion.caching import CachedDenoiser
from mdlm_jax.diffusion.denoisers import Denoiser, Hidden, Readout, along_last, remove_mask
from mdlm_jax.diffusion.processes.causal import causal_denoiser
from mdlm_jax.networks import arguments, causal_cache, in_blocks, token_by_token, with_cache
from mdlm_jax.networks.config import Config
from mdlm_jax.networks.encoder import Encoder, Finish
from mdlm_jax.networks.layers import Head
from mdlm_jax.networks.parameters import (
    distance_to_head,
    init,
    logical_axes,
    name_of,
    padded_leaves,
    select,
)

__all__ = [
    "Config",
    "Prepared",
    "block_denoiser",
    "cached_denoiser",
    "causal_block_denoiser",
    "causal_cached_denoiser",
    "denoiser",
    "distance_to_head",
    "hidden_states",
    "init",
    "logical_axes",
    "logits",
    "padded_leaves",
    "prepare",
    "row_lengths",
    "select",
]

Array = jax.Array
PyTree = Any


class Prepared(NamedTuple):
    """Parameters as evaluations use them, from `prepare`; all denoisers take them for `params`."""

    encoder: PyTree
    head: PyTree
    cast: Array


def prepare(params: PyTree, config: Config) -> Prepared:
    """The parameters as evaluations use them: scales within kernels, and these in their type.

    A denoiser of them is that of `params`, and spares each call the work: for who evaluates often
    and does not train. Outside of `jax.jit`, what need not change is the same array.

    Args:
      params: from `init`; prepared ones stay as they are.
      config: of the parameters.
    """
    if isinstance(params, Prepared):
        return params
    return _prepared(params, config, config.time_conditioning)


def logits(
    params: PyTree,
    config: Config,
    tokens: Array,
    t: Array | None = None,
    *,
    valid: Array | None = None,
    segment_ids: Array | None = None,
    token_types: Array | None = None,
    label: Array | None = None,
    positions: Array | None = None,
    dropout_key: Array | None = None,
) -> Array:
    """The masked language model's forward pass: logits of every token at every position.

    Args:
      params: from `init`.
      config: of the parameters.
      tokens: i32 `[B, L]`, `L <= max_length`.
      t: float `[B]` in [0, 1]; needed with `time_conditioning`, ignored without.
      valid: bool `[B, L]`, True at real tokens, False at padding. No position attends to padding,
        and the output at padding means nothing. (Hugging Face's `attention_mask`.) Or i32 `[B]`,
        the tokens of each row if padding is at its end; GPUs then skip the padding (`row_lengths`).
      segment_ids: i32 `[B, L]`; positions attend within their own segment. Positions are counted
        from the start of the row.
      token_types: i32 `[B, L]`, 0 or 1; all 0 if not given.
      positions: i32 `[B, L]`, from 0 up: the tokens' places in their text; by default the order of
        the row. With learned positions they are below `max_length`. Causal and local attention
        follow the order of the row in any case.
      label: i32 `[B]` in `[-1, classes)`; -1, the default, is "no label". It is added to the time's
        condition, or else to the embedding of every position. A traced label out of this range
        makes the row's logits NaN.
      dropout_key: if given, dropout and class dropout are on.

    Returns:
      f32 `[B, L, vocab_size]`, with the mask token's logit.

    Raises:
      ValueError: an argument of the wrong shape or type, or one that the config does not use; or
        known tokens or labels that do not exist.
    """
    rows = {
        "valid": valid,
        "segment_ids": segment_ids,
        "token_types": token_types,
        "label": label,
        "positions": positions,
    }
    arguments.check_rows(config, tokens, t, **rows)
    encode, project = _halves(params, config, dropout_key, whole=True)
    return project(encode(tokens, t, **rows))[..., : config.vocab_size]


def row_lengths(valid: Array | None) -> Array | None:
    """The lengths of rows with padding at their end, for `valid`.

    Args:
      valid: bool `[B, L]`, in each row True up to some position and False from there on, as in the
        batches of `mdlm_jax.data`. Other rows are not detected.

    Returns:
      i32 `[B]`, or None for None.
    """
    return None if valid is None else valid.sum(axis=1, dtype=jnp.int32)


def hidden_states(
    params: PyTree,
    config: Config,
    tokens: Array,
    t: Array | None = None,
    *,
    dropout_key: Array | None = None,
    **rows: Array | None,
) -> Array:
    """The encoder's output `[B, L, D]` in the config's type; arguments as in `logits`."""
    arguments.check_rows(config, tokens, t, **rows)
    encode, _ = _halves(params, config, dropout_key, whole=True)
    return encode(tokens, t, **rows)


def denoiser(
    params: PyTree,
    config: Config,
    *,
    valid: Array | None = None,
    segment_ids: Array | None = None,
    token_types: Array | None = None,
    label: Array | None = None,
    positions: Array | None = None,
    dropout_key: Array | None = None,
) -> Denoiser:
    """The network as a denoiser of rows `[B, L]`; arguments and errors as in `logits`.

    The logits have `padded_vocab` columns; those of the mask token and of the padding are `-inf`.
    Without time conditioning and dropout the last block's MLP is part of the readout, because each
    position needs only its own state there.
    """
    rows = {
        "valid": valid,
        "segment_ids": segment_ids,
        "token_types": token_types,
        "label": label,
        "positions": positions,
    }
    drops = dropout_key is not None and config.dropout > 0
    whole = drops or config.time_conditioning
    encode_tokens, project = _halves(params, config, dropout_key, whole=whole)

    def encode(tokens: Array, t: Array) -> Hidden:
        arguments.check_rows(config, tokens, t, **rows)
        return Hidden(at=encode_tokens(tokens, t, **rows))

    return Denoiser(encode, _readout(project, config), mask_id=config.mask_id)


def block_denoiser(
    params: PyTree,
    config: Config,
    block_size: int,
    *,
    valid: Array | None = None,
    label: Array | None = None,
    dropout_key: Array | None = None,
    window: int | None = None,
) -> BlockDenoiser:
    """The network as a denoiser of blocks: each sees its noisy tokens and the clean ones before it.

    (Arriola et al. 2025, BD3-LM.) It has the parameters of `denoiser`, and with one block a row it
    is the same. All blocks at once are two streams in one pass, which cost about two passes of
    `denoiser`. One block at a time keeps the keys and values of the text before it,
    `[layers, B, room, heads, head_dim]` each, and costs what its own tokens and their context cost,
    whatever the room. Both agree to rounding. `t` is not used.

    `extend` and `advance` also take `where`, bool `[B]`: the rows that commit the tokens. For the
    others nothing is committed, and `advance` encodes the noisy block after what they have. A row
    that was given more than it has room for is NaN from there on.

    Args:
      params: from `init`.
      config: of the parameters; 'full' attention, no time conditioning.
      block_size: tokens of a block.
      valid: bool `[B, L]` or i32 `[B]`, as in `logits`, in `encode`. A cache takes none.
      label: i32 `[B]`, as in `logits`.
      dropout_key: if given, dropout and class dropout are on.
      window: how many tokens before its own a block sees, a multiple of the block size; by default
        all. A cache keeps no more than these, so that with rotary positions a text may be of any
        length: positions go on, and distances stay what they were.

    Raises:
      TypeError: a block size that is no whole number.
      ValueError: a config, block size or window that does not fit, and where the functions are
        called, arguments as in `logits`; a cache for more tokens than there are positions.
    """
    in_blocks.check(config, block_size, window)
    drops = dropout_key is not None and config.dropout > 0
    encode, project = _halves(params, config, dropout_key, whole=drops)
    readout = _readout(project, config)
    return in_blocks.build(encode, readout, config, block_size, window, valid, label)


def cached_denoiser(
    params: PyTree,
    config: Config,
    kind: str,
    width: int,
    refresh: int | Array,
    *,
    around: int = 0,
    valid: Array | None = None,
    label: Array | None = None,
) -> CachedDenoiser:
    """The network as a denoiser that keeps keys and values of earlier steps, for `sample`.

    In the first step of a block, and every `refresh` steps from then on, a row is encoded whole.
    In the others a window around the block is, and what it sees of the rest is from its last look:
    an approximation, which the network was not trained for. With `refresh=1` it is `denoiser`, to
    rounding. With time conditioning what is kept is of an earlier time as well.

    Every row has its own clock, and no row's text depends on the others. A step in which some rows
    are due and others are not computes both, whole rows and windows.

    Args:
      params: from `init`.
      config: of the parameters; 'full' attention.
      kind: what the window holds. 'dual': the block. 'prefix': the block and all that follows it.
        'vicinity': the block and `around` positions on both sides.
      width: the most positions from a block's first blank to its last; with 'prefix', to the end of
        the row (`caching.widest`). A row with more is encoded whole in every step.
      refresh: steps from one look at the whole row to the next, at least 1; may be traced, and may
        be i32 `[B]`.
      around: of 'vicinity'.
      valid: bool `[B, L]` or i32 `[B]`, as in `logits`.
      label: i32 `[B]`, as in `logits`.

    Raises:
      TypeError: a width or `around` that is no whole number.
      ValueError: an unknown kind, a config with other attention, numbers out of their range; where
        it is called, arguments as in `logits`.
    """
    with_cache.check(config, kind, width, refresh, around)
    encode, project = _halves(params, config, None, whole=config.time_conditioning)
    readout = _readout(project, config)
    return with_cache.build(encode, readout, config, kind, width, refresh, around, valid, label)


def causal_block_denoiser(
    params: PyTree, config: Config, start_id: int, *, label: Array | None = None
) -> BlockDenoiser:
    """A causal network as a denoiser of blocks of one token, which writes with a cache.

    It predicts a token from the start and the tokens before it, so the noisy token is not used.
    `blocks.nelbo` of it is `causal_likelihood`, and `blocks.sample` writes from left to right. All
    tokens at once are `causal_denoiser`. One at a time each goes through the network once, when it
    is committed: the cache holds its keys and values, as in `block_denoiser`, and the state of the
    last one, which `encode_block` returns without a pass. `t` is not used.

    `extend` also takes `where`, bool `[B]`: the rows that commit the token. A row that was given
    more than it has room for is NaN from there on.

    Args:
      params: from `init`.
      config: of the parameters; 'causal' attention.
      start_id: stands before the first token, as in training.
      label: i32 `[B]`, as in `logits`.

    Raises:
      TypeError: a start that is no whole number.
      ValueError: another attention, a start that is no token, and where the functions are called,
        arguments as in `logits`; a cache for more than `max_length` tokens.
    """
    token_by_token.check(config, start_id)
    at_once = causal_denoiser(denoiser(params, config, label=label), start_id=start_id)
    encode, _ = _halves(params, config, None, whole=config.time_conditioning)
    return token_by_token.build(at_once, encode, config, start_id, label)


def causal_cached_denoiser(
    params: PyTree, config: Config, start_id: int, *, label: Array | None = None
) -> CachedDenoiser:
    """A causal network as a denoiser of canvases that keeps keys and values, for `sample`.

    To rounding it is `causal_denoiser`, for any strategy. Where a row asks for one position, as
    `strategies.left_to_right` does with a step for each blank, only the tokens before it that are
    not kept yet go through the network, and nothing behind it. In a step in which some row asks
    for several, all rows are encoded whole. A strategy that jumps about keeps little, and may be
    slower than with `causal_denoiser`.

    Args:
      params: from `init`.
      config: of the parameters; 'causal' attention.
      start_id: stands before the first token, as in training.
      label: i32 `[B]`, as in `logits`.

    Raises:
      TypeError: a start that is no whole number.
      ValueError: another attention, a start that is no token; where it is called, arguments as in
        `logits`.
    """
    token_by_token.check(config, start_id)
    at_once = causal_denoiser(denoiser(params, config, label=label), start_id=start_id)
    encode, _ = _halves(params, config, None, whole=config.time_conditioning)
    return causal_cache.build(at_once, encode, config, start_id, label)


def _readout(project: Callable[[Any], Any], config: Config) -> Readout:
    """Logits, `-inf` at the mask token and the padding of the vocabulary."""

    def readout(at: Array, row: PyTree) -> Array:
        del row
        out = remove_mask(project(at), config.mask_id)
        return jnp.where(along_last(out) < config.vocab_size, out, -jnp.inf)

    return readout


def _halves(params: PyTree, config: Config, dropout_key: Array | None, *, whole: bool):
    """`encode(tokens, t, ...) -> [B, L, D]` and `project(at [..., D]) -> [..., padded_vocab]`.

    If `whole`, the encoder runs to its end in the first; otherwise the second finishes it.
    """
    if not isinstance(params, Prepared):
        # Here the weights are cast once for all evaluations of a sampler's loop.
        params = _prepared(params, config, whole)
    elif whole != config.time_conditioning:
        raise ValueError("prepared parameters are for denoisers without dropout: give params")
    encoder, head, cast = params
    table = encoder["embeddings"]["tokens"]
    rngs = {} if dropout_key is None else {"dropout": dropout_key}
    encode = partial(Encoder(config, whole).apply, {"params": encoder}, rngs=rngs)

    def project(at: Any) -> Any:  # as Linen's `apply` is typed
        if not whole:
            at = Finish(config).apply({"params": encoder}, at)
        return Head(config).apply({"params": head}, at, table, cast)

    return encode, project


def _prepared(params: PyTree, config: Config, whole: bool) -> Prepared:
    for path, leaf in jax.tree.leaves_with_path(params):
        checks.check_not_explicit(name_of(path), leaf)
    encoder, head = _absorb_scales(params["encoder"], config), params["head"]
    cast_kernel = partial(_cast_kernel, dtype=config.compute_dtype)
    encoder, head = jax.tree.map_with_path(cast_kernel, (encoder, head))
    cast = encoder["embeddings"]["tokens"].astype(config.compute_dtype)
    if not whole:
        stack = encoder["blocks"]
        encoder = encoder | {
            "blocks": jax.tree.map(lambda x: x[:-1], stack),
            "last": jax.tree.map(lambda x: x[-1], stack),
        }
    return Prepared(encoder, head, cast)


def _absorb_scales(encoder: PyTree, config: Config) -> PyTree:
    """The encoder's parameters, the scales of its blocks' norms moved into the kernels behind them.

        (x / rms(x) * scale) @ kernel = x / rms(x) @ (scale[:, None] * kernel)

    (FlashNorm, Graef et al. 2024.) The gradient of a scale is then a sum over a matrix of weights
    instead of over all tokens. Norms that do not feed a kernel directly are unchanged.
    """
    biased = config.norm == "layernorm" and config.use_bias
    between = biased or config.time_conditioning or config.embedding_norm
    if config.norm_position == "post" or between:
        return encoder

    def absorb(block: PyTree, norm: str, branch: str, layer: str) -> PyTree:
        scale, kernel = block[norm]["scale"], block[branch][layer]["kernel"]
        scaled = scale.reshape(*scale.shape, *(1,) * (kernel.ndim - scale.ndim)) * kernel
        changed = block[branch] | {layer: block[branch][layer] | {"kernel": scaled}}
        return block | {norm: {"scale": jnp.ones(scale.shape)}, branch: changed}

    blocks = absorb(encoder["blocks"], "attention_norm", "attention", "qkv")
    return encoder | {"blocks": absorb(blocks, "mlp_norm", "mlp", "up")}


def _cast_kernel(path: tuple, leaf: Array, dtype: jnp.dtype) -> Array:
    return leaf.astype(dtype) if path[-1].key == "kernel" else leaf
