"""Transforms, denoiser to denoiser: temperature, nuclei, penalties, guidance.

    denoiser = transforms.top_p(transforms.temperature(denoiser, 0.8), 0.95)

`guide` and `within` change the model and its own logits. All others shape the law that tokens are
drawn from and keep the model's own logits, by which strategies choose positions. So `guide` and
`within` come first. Each transform keeps the split in two halves, so only the positions that are
read out are transformed. They are applied from the inside out, as functions are. A strength is one
number, or `[B]`, one a row. It may be traced: another temperature does not recompile. All but
`within` take a `BlockDenoiser` too.

A logit of `-inf` (the mask's, a forbidden token's) stays `-inf` under all of them. Tokens that
`top_k`, `top_p` and `min_p` cut off are not removed but set far below the rest. Their probability
is 0 in float32, but if all that was kept is forbidden later, the next best remains. So something is
left to draw in any order of transforms.
"""

import functools
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from mdlm_jax.diffusion import block_transforms
from mdlm_jax.diffusion.denoisers import (
    Denoiser,
    Hidden,
    PyTree,
    Readout,
    Shape,
    along_last,
    check_mask,
    unshaped,
    vocabulary_size,
)
from mdlm_jax.diffusion.reading import cuts
from mdlm_jax.diffusion.values import Bound

if TYPE_CHECKING:
    from mdlm_jax.diffusion.blocks.denoisers import BlockDenoiser

Array = jax.Array
Kind = TypeVar("Kind", Denoiser, "BlockDenoiser")


def temperature(denoiser: Kind, value: float | Array) -> Kind:
    """`logits / value`: below 1 is sharper, above 1 flatter, 0 nearly always the likeliest token.

    Raises:
      ValueError: if the value is known and is negative or not finite.
    """
    _require(
        "temperature", "value", value, lambda v: (v >= 0) & (v < np.inf), "at least 0 and finite"
    )
    return shaped(denoiser, cuts.scale, value)


def top_k(denoiser: Kind, k: int | Array) -> Kind:
    """Keeps the k most likely tokens (Fan et al. 2018), and those that tie with the last.

    Raises:
      ValueError: if k is not whole, or is known and below 1.
    """
    accepted = "at least 1, a whole number"
    whole = not isinstance(k, bool) and jnp.issubdtype(jnp.result_type(k), jnp.integer)
    if not whole:
        raise ValueError(f"top_k: k is {k}, it must be {accepted}")
    _require("top_k", "k", k, lambda v: v >= 1, accepted)
    return shaped(denoiser, cuts.keep_best, k)


def top_p(denoiser: Kind, p: float | Array) -> Kind:
    """The nucleus: the fewest tokens that hold a probability of p (Holtzman et al. 2020, eq. 2).

    Tokens that tie with the last are kept too, and so is always the most likely one. p = 1 keeps
    all.

    Raises:
      ValueError: if p is known and is outside (0, 1].
    """
    _require("top_p", "p", p, lambda v: (v > 0) & (v <= 1), "above 0 and at most 1")
    return shaped(denoiser, cuts.keep_nucleus, p)


def min_p(denoiser: Kind, p: float | Array) -> Kind:
    """The tokens at least p times as likely as the most likely one (Nguyen et al. 2025).

    Raises:
      ValueError: if p is known and is outside [0, 1].
    """
    _require("min_p", "p", p, lambda v: (v >= 0) & (v <= 1), "from 0 to 1")
    return shaped(denoiser, cuts.keep_likely, p)


def forbid(denoiser: Kind, tokens: Sequence[int]) -> Kind:
    """Removes these tokens.

    Args:
      denoiser: any.
      tokens: ids.

    Raises:
      ValueError: here if an id is negative; at the readout if one is not in the vocabulary.
    """
    ids = tuple(np.asarray(tokens, int).reshape(-1).tolist())
    if min(ids, default=0) < 0:
        raise ValueError(f"forbid: token {min(ids)} must not be negative")
    return denoiser._replace(shape=Bound(_change, (denoiser.shape, _remove, ids)))


def _remove(logits: Array, ids: tuple[int, ...]) -> Array:
    size = logits.shape[-1]
    if max(ids, default=-1) >= size:
        raise ValueError(f"forbid: token {max(ids)} must be below {size}")
    forbidden = np.zeros(size, bool)
    forbidden[list(ids)] = True
    return jnp.where(forbidden, -jnp.inf, logits)


def repetition_penalty(denoiser: Kind, penalty: float | Array) -> Kind:
    """Multiplies `log p` of tokens in the row by the penalty (Keskar et al. 2019, CTRL, 4.1).

    CTRL divides logits, which depends on their arbitrary zero; log-probabilities have a fixed one.
    Above 1 repeats are less likely, below 1 more likely. With blocks, the tokens of those that were
    committed count, and of the one at hand.

    Raises:
      ValueError: if the penalty is known and is not positive, or not finite.
      TypeError: where all blocks of a text are evaluated at once, as in a likelihood.
    """
    _require(
        "repetition_penalty",
        "penalty",
        penalty,
        lambda v: (v > 0) & (v < np.inf),
        "positive and finite",
    )
    halves = Bound(_read_inner, (denoiser.readout,)), Bound(_penalise, (denoiser.shape,))
    if _is_of_blocks(denoiser):
        return block_transforms.with_standing(denoiser, Bound(_standing, (penalty,)), *halves)
    encode = Bound(_encode_with_standing, (denoiser, penalty))
    return denoiser._replace(encode=encode, readout=halves[0], shape=halves[1])


def _encode_with_standing(
    denoiser: Denoiser, penalty: float | Array, tokens: Array, t: Array
) -> Hidden:
    hidden = denoiser.encode(tokens, t)
    size = vocabulary_size(denoiser.readout, hidden)
    stands = jax.vmap(lambda row: jnp.zeros(size, bool).at[row].set(True, mode="drop"))
    return _standing(penalty, hidden, stands(tokens), t)


def _standing(penalty: float | Array, hidden: Hidden, stands: Array, t: Array) -> Hidden:
    return Hidden(hidden.at, (hidden.row, stands, _a_row(penalty, t)))  # bool[B, V], [B]


def _penalise(inner: Shape, logits: Array, row: PyTree) -> Array:
    inner_row, stands, penalty = row
    before = inner(logits, inner_row).astype(jnp.float32)
    return cuts.penalise(before, stands, penalty[:, None])


def guide(
    conditional: Kind,
    unconditional: Kind,
    weight: float | Array,
    schedule: Callable[[Array], Array] | None = None,
) -> Kind:
    """Classifier-free guidance: `p(x | c)^w p(x)^(1 - w)`, normalised (Ho and Salimans 2022).

    For discrete diffusion see Nisonoff et al. 2025 and Schiff et al. 2025. It evaluates both
    networks. A token that either network rules out is not drawn, unless that network's weight is 0.

    Args:
      conditional: the network with the condition.
      unconditional: the same network without it, or a weaker one (autoguidance).
      weight: f32[] or f32[B]; 1 is the conditional, 0 the unconditional. Above 1 goes beyond the
        conditional, away from the unconditional.
      schedule: `t f32[B] -> f32[B]` scales `weight - 1` over time; default 1 throughout. The time
        of blocks is that of the block.

    Raises:
      ValueError: if either is already shaped, they are known to fill different masks, or their
        blocks have different sizes.
      TypeError: if one is of blocks and the other is not.
    """
    for name, one in (("conditional", conditional), ("unconditional", unconditional)):
        if one.shape is not unshaped:
            raise ValueError(
                f"guide: the {name} is shaped already (by temperature, top_p or the like): "
                "shape after guiding"
            )
    if _is_of_blocks(conditional) != _is_of_blocks(unconditional):
        raise TypeError("guide: one is a BlockDenoiser, the other is not")
    mask_id = conditional.mask_id
    check_mask(unconditional, mask_id)
    mask_id = unconditional.mask_id if mask_id is None else mask_id
    join = Bound(_joined, (weight, schedule))
    readout = Bound(_mix, (conditional.readout, unconditional.readout))
    if _is_of_blocks(conditional):
        return block_transforms.of_both(conditional, unconditional, join, readout, mask_id)
    encode = Bound(_encode_both, (conditional, unconditional, join))
    return conditional._replace(encode=encode, readout=readout, mask_id=mask_id)


def _encode_both(
    conditional: Denoiser, unconditional: Denoiser, join: Callable, tokens: Array, t: Array
) -> Hidden:
    return join(conditional.encode(tokens, t), unconditional.encode(tokens, t), tokens, t)


def _joined(
    weight: float | Array,
    schedule: Callable[[Array], Array] | None,
    with_it: Hidden,
    without: Hidden,
    tokens: Array,
    t: Array,
) -> Hidden:
    """Both, with the weight at each position; `t [B]`, or `[B, n]` of n blocks."""
    times = t.reshape(len(t), -1)
    scale = 1.0 if schedule is None else schedule(times.reshape(-1)).reshape(times.shape)
    w = 1.0 + (_a_row(weight, t).astype(jnp.float32)[:, None] - 1.0) * scale
    w = jnp.repeat(jnp.broadcast_to(w, times.shape), tokens.shape[1] // times.shape[1], axis=1)
    return Hidden((with_it.at, without.at, w), (with_it.row, without.row))


def _mix(conditional: Readout, unconditional: Readout, at: PyTree, row: PyTree) -> Array:
    with_it = conditional(at[0], row[0]).astype(jnp.float32)
    without = unconditional(at[1], row[1]).astype(jnp.float32)
    w = at[2][:, None]
    weighed = ((w, with_it), (1.0 - w, without))
    removed = _any((scale != 0) & jnp.isneginf(x) for scale, x in weighed)
    # A difference of such logits is meaningless and may overflow.
    hopeless = _any((scale != 0) & _is_hopeless(x) for scale, x in weighed)
    mixed = sum(scale * jnp.where(_is_hopeless(x), 0.0, x) for scale, x in weighed)
    return jnp.where(removed, -jnp.inf, cuts.cut(mixed, ~hopeless))


def within(denoiser: Denoiser, first: Array, behind: Array) -> Denoiser:
    """Allows at each position only a range of tokens: ids from `first` to `behind - 1`.

    It is for rows whose parts have their own vocabularies (text, then an image), or for a position
    that may only hold a digit. Other tokens are ruled out as the mask is, also in losses.

    Args:
      denoiser: one that is not shaped yet.
      first: i32[B, L], or what broadcasts to it.
      behind: i32[B, L], or what broadcasts to it, above `first`.

    Raises:
      ValueError: if the denoiser is already shaped.
    """
    _require_rows("within", denoiser)
    if denoiser.shape is not unshaped:
        raise ValueError("within: the denoiser is shaped already: shape after it")
    return denoiser._replace(
        encode=Bound(_encode_with_ranges, (denoiser, first, behind)),
        readout=Bound(_read_within, (denoiser.readout,)),
    )


def _encode_with_ranges(
    denoiser: Denoiser, first: Array, behind: Array, tokens: Array, t: Array
) -> Hidden:
    hidden = denoiser.encode(tokens, t)
    with jax.numpy_rank_promotion("allow"):
        ranges = tuple(
            jnp.broadcast_to(jnp.asarray(x, jnp.int32), tokens.shape) for x in (first, behind)
        )
    return Hidden((hidden.at, *ranges), hidden.row)


def _read_within(inner: Readout, at: PyTree, row: PyTree) -> Array:
    own, first, behind = at
    logits = inner(own, row).astype(jnp.float32)
    ids = along_last(logits)
    return jnp.where((ids >= first[:, None]) & (ids < behind[:, None]), logits, -jnp.inf)


def shaped(denoiser: Kind, change: Callable[[Array, Any], Array], value: Any) -> Kind:
    """The denoiser with `change(logits f32[N, V], value)` after its other shapes.

    It is for shapes of your own: the temperature is one with `change = cuts.scale`.

    Args:
      denoiser: any.
      change: `(logits, value) -> logits f32[N, V]`.
      value: one number, or `[B]`, one a row, which goes with the row to where its positions are
        read out, as `[N, 1]`.
    """
    if not jnp.ndim(value):
        return denoiser._replace(shape=Bound(_change, (denoiser.shape, change, value)))
    encoders: dict[str, Any] = {
        name: Bound(_encode_with_value, (getattr(denoiser, name), value))
        for name in ("encode", "encode_block")
        if hasattr(denoiser, name)
    }
    advance = getattr(denoiser, "advance", None)
    if advance is not None:
        encoders["advance"] = Bound(_advance_with_value, (advance, value))
    return denoiser._replace(
        **encoders,
        readout=Bound(_read_inner, (denoiser.readout,)),
        shape=Bound(_change_a_row, (denoiser.shape, change)),
    )


def _encode_with_value(encode: Callable[..., Hidden], value: Array, *arguments: Array) -> Hidden:
    hidden = encode(*arguments)
    return Hidden(hidden.at, (hidden.row, _a_row(value, arguments[-1])))


def _advance_with_value(
    advance: Callable, value: Array, *arguments: Any, **named: Any
) -> tuple[PyTree, Hidden]:
    cache, hidden = advance(*arguments, **named)
    return cache, Hidden(hidden.at, (hidden.row, _a_row(value, arguments[3])))


def _a_row(value: float | Array, t: Array) -> Array:
    """The value of each row, `[B]`, of a batch whose times `t [B, ...]` lead with the rows."""
    rows = t.shape[:1]
    if jnp.ndim(value) and jnp.shape(value) != rows:
        raise ValueError(
            f"a strength has shape {jnp.shape(value)}: it must be one number, or one a row, {rows}"
        )
    return jnp.broadcast_to(jnp.asarray(value), rows)


def _read_inner(inner: Readout, at: PyTree, row: PyTree) -> Array:
    return inner(at, row[0])


def _change_a_row(inner: Shape, change: Callable, logits: Array, row: PyTree) -> Array:
    inner_row, value = row
    return change(inner(logits, inner_row).astype(jnp.float32), value[:, None])


def _change(inner: Shape, change: Callable, value: Any, logits: Array, row: PyTree) -> Array:
    return change(inner(logits, row).astype(jnp.float32), value)


def _any(conditions: Iterable[Array]) -> Array:
    return functools.reduce(operator.or_, conditions)


def _is_hopeless(logits: Array) -> Array:
    """Whether each logit is removed, or a thousand nats below the best."""
    return logits < logits.max(axis=-1, keepdims=True) - 1e3


def _is_of_blocks(denoiser: Any) -> bool:
    return hasattr(denoiser, "encode_block")


def _require_rows(transform: str, denoiser: Any) -> None:
    if _is_of_blocks(denoiser):
        raise TypeError(f"{transform}: it takes a Denoiser of whole rows, not a BlockDenoiser")


def _require(transform, name, value, within, accepted) -> None:
    if not isinstance(value, jax.core.Tracer) and not np.all(within(np.asarray(value))):
        raise ValueError(f"{transform}: {name} is {value}, it must be {accepted}")
