"""Transforms of block denoisers that change the cache: guidance, and a penalty for repetitions.

They are the parts of `transforms.guide` and `transforms.repetition_penalty`. A guide has the caches
of two networks. A penalty has the tokens that stand in each row beside the cache. Nothing of
`blocks` is imported, which `mdlm_jax` does when it is first asked for.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp

from mdlm_jax.diffusion.denoisers import Hidden, PyTree, Readout, Shape, vocabulary_size
from mdlm_jax.diffusion.values import Bound

Array = jax.Array


def of_both(
    conditional: Any,
    unconditional: Any,
    join: Callable[[Hidden, Hidden, Array, Array], Hidden],
    readout: Readout,
    mask_id: int | None,
) -> Any:
    """Two denoisers of blocks as one, with a pair of caches.

    Args:
      conditional: of blocks.
      unconditional: of blocks of the same size.
      join: `(hidden, hidden, tokens i32[B, L], t) -> hidden` of both.
      readout: of that hidden.
      mask_id: of both, if known.

    Raises:
      ValueError: blocks of two sizes.
    """
    size, other = conditional.block_size, unconditional.block_size
    if size != other:
        raise ValueError(f"guide: blocks of {size} and of {other} tokens: they must be the same")

    def bound(function: Callable, name: str, *values: Any) -> Any:
        both = getattr(conditional, name), getattr(unconditional, name)
        return None if None in both else Bound(function, (*both, *values))

    return conditional._replace(
        encode=bound(_encode_both, "encode", join),
        start=bound(_start_both, "start"),
        extend=bound(_both, "extend"),
        encode_block=bound(_encode_block_of_both, "encode_block", join),
        readout=readout,
        mask_id=mask_id,
        advance=bound(_advance_both, "advance", join),
        clear=bound(_both, "clear"),
        prefill=bound(_both, "prefill"),
    )


def _both(first: Callable, second: Callable, caches: PyTree, *arguments: Any, **named: Any):
    return first(caches[0], *arguments, **named), second(caches[1], *arguments, **named)


def _start_both(first: Callable, second: Callable, batch: int, length: int) -> PyTree:
    return first(batch, length), second(batch, length)


def _encode_both(
    first: Callable, second: Callable, join: Callable, noisy: Array, clean: Array, t: Array
) -> Hidden:
    return join(first(noisy, clean, t), second(noisy, clean, t), noisy, t)


def _encode_block_of_both(
    first: Callable, second: Callable, join: Callable, caches: PyTree, noisy: Array, t: Array
) -> Hidden:
    return join(*_both(first, second, caches, noisy, t), noisy, t)


def _advance_both(
    first: Callable,
    second: Callable,
    join: Callable,
    caches: PyTree,
    tokens: Array,
    noisy: Array,
    t: Array,
    **named: Array,
) -> tuple[PyTree, Hidden]:
    ours, theirs = _both(first, second, caches, tokens, noisy, t, **named)
    return (ours[0], theirs[0]), join(ours[1], theirs[1], noisy, t)


class Standing(NamedTuple):
    """A cache, and what stands in what was committed to it.

    Attributes:
      cache: of the denoiser.
      tokens: bool[B, V].
    """

    cache: PyTree
    tokens: Array


def with_standing(
    denoiser: Any,
    join: Callable[[Hidden, Array, Array], Hidden],
    readout: Readout,
    shape: Shape,
) -> Any:
    """A denoiser of blocks that is told what stands in a row's blocks, up to the one at hand.

    It is for writing: all blocks at once would need a set of tokens each.

    Args:
      denoiser: of blocks.
      join: `(hidden, standing bool[B, V], t) -> hidden`.
      readout: of that hidden.
      shape: of it, too.
    """

    def bound(function: Callable, name: str, *values: Any) -> Any:
        own = getattr(denoiser, name)
        return None if own is None else Bound(function, (own, *values))

    return denoiser._replace(
        encode=_refuse_all_blocks,
        start=Bound(_start_standing, (denoiser,)),
        extend=bound(_extend_standing, "extend"),
        encode_block=bound(_encode_standing, "encode_block", join),
        readout=readout,
        shape=shape,
        advance=bound(_advance_standing, "advance", join),
        clear=bound(_clear_standing, "clear"),
        prefill=bound(_prefill_standing, "prefill", denoiser.block_size),
    )


def _refuse_all_blocks(noisy: Array, clean: Array, t: Array) -> NoReturn:
    raise TypeError(
        "repetition_penalty: of blocks it shapes what is written, not all blocks of a text at once"
    )


def _start_standing(denoiser: Any, batch: int, length: int) -> Standing:
    cache = denoiser.start(batch, length)
    noisy = jax.ShapeDtypeStruct((batch, denoiser.block_size), jnp.int32)
    t = jax.ShapeDtypeStruct((batch,), jnp.float32)
    hidden = jax.eval_shape(lambda *a: denoiser.encode_block(*a), cache, noisy, t)
    size = vocabulary_size(denoiser.readout, hidden)
    return Standing(cache, jnp.zeros((batch, size), bool))


def _marked(standing: Array, tokens: Array, where: Array | None = None) -> Array:
    """`standing bool[B, V]` with `tokens i32[B, L]`, in the rows or places that `where` marks."""
    if where is not None:
        where = where.reshape(len(tokens), -1)
        tokens = jnp.where(where, tokens, standing.shape[1])  # nowhere
    mark = jax.vmap(lambda row, tokens: row.at[tokens].set(True, mode="drop"))
    return mark(standing, tokens)


def _extend_standing(
    extend: Callable, seen: Standing, tokens: Array, where: Array | None = None
) -> Standing:
    return Standing(
        extend(seen.cache, tokens, **_if_given(where)), _marked(seen.tokens, tokens, where)
    )


def _encode_standing(
    encode_block: Callable, join: Callable, seen: Standing, noisy: Array, t: Array
) -> Hidden:
    return join(encode_block(seen.cache, noisy, t), _marked(seen.tokens, noisy), t)


def _advance_standing(
    advance: Callable,
    join: Callable,
    seen: Standing,
    tokens: Array,
    noisy: Array,
    t: Array,
    where: Array | None = None,
) -> tuple[Standing, Hidden]:
    cache, hidden = advance(seen.cache, tokens, noisy, t, **_if_given(where))
    standing = _marked(seen.tokens, tokens, where)
    return Standing(cache, standing), join(hidden, _marked(standing, noisy), t)


def _clear_standing(clear: Callable, seen: Standing, where: Array) -> Standing:
    return Standing(clear(seen.cache, where), seen.tokens & ~where[:, None])


def _prefill_standing(
    prefill: Callable, size: int, seen: Standing, text: Array, count: Array
) -> Standing:
    there = jnp.arange(text.shape[1])[None] < count[:, None] * size
    return Standing(prefill(seen.cache, text, count), _marked(seen.tokens, text, there))


def _if_given(where: Array | None) -> dict[str, Array]:
    return {} if where is None else {"where": where}
