"""Transforms, denoiser to denoiser: temperature, nuclei, penalties, guidance.

    denoiser = transforms.top_p(transforms.temperature(denoiser, 0.8), 0.95)

Each keeps the split in two halves, so that the positions that are read out are the only ones
transformed. They are applied from the inside out, as functions are. The strengths may be traced:
another temperature is not another program.

A logit of `-inf` (the mask's, a forbidden token's) stays `-inf` under all of them. What `top_k`,
`top_p` and `min_p` cut off is not removed but set far below the rest: its probability is 0 in
float32, but if all that they kept is forbidden later, the next best remains. No order of transforms
leaves nothing to draw.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mdlm_jax.diffusion.denoisers import Denoiser, Hidden, PyTree, vocabulary_size

Array = jax.Array

# Far more than logits differ by and Gumbel noise reaches, at temperatures up to 100; little enough
# that float32 still tells the logits below it apart.
_CUT = 1e5


def temperature(denoiser: Denoiser, value: float | Array) -> Denoiser:
    """`logits / value`: below 1 sharper, above 1 flatter, 0 all but always the most likely token.

    Raises:
      ValueError: if the value can be seen and is negative.
    """
    _require("temperature", "value", value, lambda v: v >= 0, "at least 0")
    # Small enough for 0; not so small that a cut-off logit overflows.
    scale = 1.0 / jnp.maximum(jnp.asarray(value, jnp.float32), 1e-6)
    return _mapped(denoiser, lambda logits: logits * scale)


def top_k(denoiser: Denoiser, k: int) -> Denoiser:
    """The k most likely tokens (Fan et al. 2018), and those that tie with the last.

    Raises:
      ValueError: if k < 1.
    """
    if k < 1:
        raise ValueError(f"top_k: k is {k}, it must be at least 1")

    def keep(logits):
        # Sorted: before a `top_k` devices would gather the rows.
        least = jnp.sort(logits, axis=-1)[:, max(logits.shape[-1] - k, 0), None]
        return logits >= least

    return _mapped(denoiser, lambda logits: _cut(logits, keep(logits)))


def top_p(denoiser: Denoiser, p: float | Array) -> Denoiser:
    """The nucleus: the fewest tokens that hold a probability of p (Holtzman et al. 2020, eq. 2).

    With them, those that tie with the last; always the most likely one.

    Raises:
      ValueError: if p can be seen and is outside (0, 1].
    """
    _require("top_p", "p", p, lambda v: 0 < v <= 1, "above 0 and at most 1")

    def keep(logits):
        descending = -jnp.sort(-logits, axis=-1)
        probabilities = jax.nn.softmax(descending, axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities  # of the more likely ones
        inside = (before < p).at[:, 0].set(True)
        least = jnp.min(jnp.where(inside, descending, jnp.inf), axis=-1, keepdims=True)
        return logits >= least

    return _mapped(denoiser, lambda logits: _cut(logits, keep(logits)))


def min_p(denoiser: Denoiser, p: float | Array) -> Denoiser:
    """The tokens at least p times as likely as the most likely one (Nguyen et al. 2025).

    Raises:
      ValueError: if p can be seen and is outside [0, 1].
    """
    _require("min_p", "p", p, lambda v: 0 <= v <= 1, "from 0 to 1")

    def keep(logits):
        best = logits.max(axis=-1, keepdims=True)
        return logits >= best + jnp.log(jnp.asarray(p, jnp.float32))

    return _mapped(denoiser, lambda logits: _cut(logits, keep(logits)))


def forbid(denoiser: Denoiser, tokens: Sequence[int]) -> Denoiser:
    """Never these tokens.

    Args:
      denoiser: any.
      tokens: ids.

    Raises:
      ValueError: if an id is negative, here; not below the vocabulary's size, when it is read out.
    """
    ids = np.asarray(tokens, int).reshape(-1)
    if np.any(ids < 0):
        raise ValueError(f"forbid: token {ids.min()} must not be negative")

    def remove(logits):
        if np.any(ids >= logits.shape[-1]):
            raise ValueError(f"forbid: token {ids.max()} must be below {logits.shape[-1]}")
        forbidden = np.zeros(logits.shape[-1], bool)
        forbidden[ids] = True
        return jnp.where(forbidden, -jnp.inf, logits)

    return _mapped(denoiser, remove)


def repetition_penalty(denoiser: Denoiser, penalty: float | Array) -> Denoiser:
    """`log p` of tokens that stand in the row, times the penalty (Keskar et al. 2019, CTRL, 4.1).

    CTRL divides logits, which depends on where their zero is; log-probabilities have one. Above 1
    repeats are less likely, below 1 more.

    Raises:
      ValueError: if the penalty can be seen and is not positive.
    """
    _require("repetition_penalty", "penalty", penalty, lambda v: v > 0, "positive")

    def encode(tokens: Array, t: Array) -> Hidden:
        hidden = denoiser.encode(tokens, t)
        size = vocabulary_size(denoiser.readout, hidden)
        stands = jax.vmap(lambda row: jnp.zeros(size, bool).at[row].set(True, mode="drop"))
        return Hidden(hidden.at, (hidden.row, stands(tokens)))  # bool[B, V]

    def readout(at: PyTree, row: PyTree) -> Array:
        inner, stands = row
        log_probs = jax.nn.log_softmax(denoiser.readout(at, inner).astype(jnp.float32), axis=-1)
        return jnp.where(stands, log_probs * penalty, log_probs)

    return Denoiser(encode, readout)


def guide(
    conditional: Denoiser,
    unconditional: Denoiser,
    weight: float | Array,
    schedule: Callable[[Array], Array] | None = None,
) -> Denoiser:
    """Classifier-free guidance: `p(x | c)^w p(x)^(1 - w)`, normalised (Ho and Salimans 2022).

    For discrete diffusion: Nisonoff et al. 2025; Schiff et al. 2025. It evaluates both networks. A
    token that either rules out is not drawn, unless its weight is 0.

    Args:
      conditional: told the condition.
      unconditional: the same network without it, or a weaker one (autoguidance).
      weight: f32[] or f32[B]; 1 is the conditional, 0 the unconditional, above 1 is further from
        the unconditional than the conditional is.
      schedule: `t f32[B] -> f32[B]` scales `weight - 1` over time; default 1 throughout.
    """

    def encode(tokens: Array, t: Array) -> Hidden:
        with_it, without = conditional.encode(tokens, t), unconditional.encode(tokens, t)
        scale = 1.0 if schedule is None else schedule(t)
        w = jnp.broadcast_to(1.0 + (jnp.asarray(weight, jnp.float32) - 1.0) * scale, t.shape)
        return Hidden((with_it.at, without.at), (with_it.row, without.row, w))

    def readout(at: PyTree, row: PyTree) -> Array:
        with_it = conditional.readout(at[0], row[0]).astype(jnp.float32)
        without = unconditional.readout(at[1], row[1]).astype(jnp.float32)
        w = row[2][:, None]
        weighed = ((w, with_it), (1.0 - w, without))
        removed = sum((scale != 0) & jnp.isneginf(x) for scale, x in weighed) > 0
        cut = sum((scale != 0) & _is_cut(x) for scale, x in weighed) > 0
        mixed = sum(scale * jnp.where(_is_cut(x), 0.0, x) for scale, x in weighed)
        return jnp.where(removed, -jnp.inf, _cut(mixed, ~cut))

    return Denoiser(encode, readout)


def _mapped(denoiser: Denoiser, change: Callable[[Array], Array]) -> Denoiser:
    """The denoiser with `change` applied to its logits `f32[N, V]`."""
    return Denoiser(
        denoiser.encode, lambda at, row: change(denoiser.readout(at, row).astype(jnp.float32))
    )


def _cut(logits: Array, keep: Array) -> Array:
    return jnp.where(keep, logits, logits - _CUT)


def _is_cut(logits: Array) -> Array:
    """Cut off or removed; or, all the same, a thousand nats less likely than the best."""
    return logits < logits.max(axis=-1, keepdims=True) - _CUT / 100


def _require(transform, name, value, within, accepted) -> None:
    if not isinstance(value, jax.core.Tracer) and not within(value):
        raise ValueError(f"{transform}: {name} is {value}, it must be {accepted}")
