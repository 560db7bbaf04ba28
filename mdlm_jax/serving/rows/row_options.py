"""What shapes each row, beside its state: temperature, nuclei, forbidden tokens, label, guidance.

The values are arguments of one program. What few rows ask for (sorting for a nucleus, forbidden
tokens, a penalty) is computed only in steps whose positions include such a row. All of it leaves
the logits of the other rows as they are, to the bit, so no row notices.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mdlm_jax.diffusion import transforms
from mdlm_jax.diffusion.reading import cuts
from mdlm_jax.serving.rows.given import Given

Array = jax.Array


class Options(NamedTuple):
    """Of each slot.

    Attributes:
      temperature: f32[S].
      top_k: i32[S].
      top_p: f32[S].
      min_p: f32[S].
      repetition_penalty: f32[S].
      forbids: bool[S], whether the row's tokens in `forbidden` count.
      guidance: f32[S].
      label: i32[S], -1 for none.
      valid: bool[S, L], False at padding.
    """

    temperature: Array
    top_k: Array
    top_p: Array
    min_p: Array
    repetition_penalty: Array
    forbids: Array
    guidance: Array
    label: Array
    valid: Array

    @property
    def rare(self) -> Array:
        """bool[S]: the rows with more than a temperature."""
        asked = self.forbids | (self.repetition_penalty != 1) | (self.min_p > 0)
        return asked | (self.top_k < jnp.iinfo(jnp.int32).max) | (self.top_p < 1)


def of_given(given: Given) -> Options:
    """The options of what was unpacked."""
    whole, real = given.whole, given.real
    return Options(
        temperature=real["temperature"],
        top_k=whole["top_k"],
        top_p=real["top_p"],
        min_p=real["min_p"],
        repetition_penalty=real["repetition_penalty"],
        forbids=whole["forbids"] > 0,
        guidance=real["guidance"],
        label=whole["label"],
        valid=given.valid,
    )


def batch_of(options: Options, *, padded: bool, labelled: bool) -> dict[str, Array]:
    """What the network is told of the rows, as `make_writer` has it."""
    batch = {"valid": options.valid} if padded else {}
    return {**batch, "label": options.label} if labelled else batch


def shaped(denoiser: Any, options: Options, active: Array, forbidden: Array, canvas: Array) -> Any:
    """The denoiser with the options of its rows, in the order of `runs.shaping.Shaping`.

    Args:
      denoiser: of rows or of blocks, of S rows.
      options: of the rows.
      active: bool[S], the rows that matter; what the others ask for costs nothing.
      forbidden: bool[S, V], used where `options.forbids`.
      canvas: i32[S, L], whose tokens are penalised.
    """

    def change(logits: Array, slot: Array) -> Array:  # f32[N, V], i32[N, 1]
        slot = slot[:, 0]
        own = jax.tree.map(lambda x: x[slot], options)
        return jax.lax.cond(
            (own.rare & active[slot]).any(),
            lambda: _changed(logits, own, forbidden, canvas, slot),
            lambda: cuts.scale(logits, own.temperature[:, None]),
        )

    return transforms.shaped(denoiser, change, jnp.arange(len(active)))


def _changed(logits: Array, own: Options, forbidden: Array, canvas: Array, slot: Array) -> Array:
    banned = own.forbids[:, None] & forbidden[slot]
    logits = jnp.where(banned, -jnp.inf, logits)
    logits = _penalised(logits, own.repetition_penalty, canvas, slot)
    logits = cuts.scale(logits, own.temperature[:, None])
    logits = cuts.keep_likely(logits, own.min_p[:, None])
    logits = jax.lax.cond(
        (own.top_k < logits.shape[-1]).any(),
        lambda: cuts.keep_best(logits, own.top_k[:, None]),
        lambda: logits,
    )
    return jax.lax.cond(
        (own.top_p < 1).any(),
        lambda: cuts.keep_nucleus(logits, own.top_p[:, None]),
        lambda: logits,
    )


def _penalised(logits: Array, penalty: Array, canvas: Array, slot: Array) -> Array:
    asks = (penalty != 1)[:, None]

    def penalise() -> Array:
        nothing = jnp.zeros(logits.shape, bool)
        rows = jnp.arange(len(logits))[:, None]
        standing = nothing.at[rows, canvas[slot]].set(True, mode="drop")
        # Log-probabilities and logits differ by the row's own constant.
        return jnp.where(asks, cuts.penalise(logits, standing, penalty[:, None]), logits)

    return jax.lax.cond(asks.any(), penalise, lambda: logits)
