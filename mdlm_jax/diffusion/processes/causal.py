"""The autoregressive baseline: the same encoder and loss, told the text before each token.

A causal encoder that reads `[start, x_1, ..., x_{L-1}]` and predicts `[x_1, ..., x_L]` is a
denoiser of one canvas, every position of it asked for. The chain rule makes its likelihood exact,

    -log p(x) = sum_i -log p(x_i | x_1, ..., x_{i-1}),

where masked diffusion has a bound, over the same tokens: those that `maskable` counts. That
nothing is seen of what follows is up to the encoder; here the text is only shifted. The same
encoder writes text as a denoiser of canvases whose blanks are filled from left to right.
"""

import jax
import jax.numpy as jnp

from mdlm_jax.diffusion import checks
from mdlm_jax.diffusion.denoisers import Denoiser, Hidden
from mdlm_jax.diffusion.likelihood import Likelihood
from mdlm_jax.diffusion.objectives import slot_nats
from mdlm_jax.diffusion.processes.corruption import Corrupted

Array = jax.Array


def corrupt_causal(tokens: Array, *, start_id: int, maskable: Array | None = None) -> Corrupted:
    """The text one position later, every token of it to be predicted; nothing is drawn.

    `corrupted_loss` of it is the cross-entropy in nats per token. The time is 1 in all rows: a
    network that is conditioned on it is told nothing.

    Args:
      tokens: i32[B, L].
      start_id: stands before the first token, which so counts too; the separator of texts.
      maskable: bool[B, L], the tokens that count; all by default.

    Raises:
      ValueError, TypeError: on arrays that do not fit.
    """
    checks.check_text("tokens", tokens)
    checks.check_whole("start_id", start_id)
    maskable = jnp.ones(tokens.shape, bool) if maskable is None else maskable
    checks.check_maskable("maskable", maskable, tokens.shape)
    batch, width = tokens.shape
    return Corrupted(
        canvas=_later(tokens, start_id),
        t=jnp.ones(batch, jnp.float32),
        rate=jnp.ones(batch, jnp.float32),
        positions=jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32), tokens.shape),
        targets=tokens,
        weights=maskable.astype(jnp.float32) / jnp.maximum(maskable.sum(), 1).astype(jnp.float32),
    )


def causal_denoiser(denoiser: Denoiser, *, start_id: int) -> Denoiser:
    """A causal network as what a sampler fills canvases with, `strategies.left_to_right` alone.

    Of each position it is asked what stands there, given all before it: the canvas is read one
    position later, as in training. With a step for each blank the samples follow the chain rule;
    text behind a blank is not seen.

    Args:
      denoiser: sees at each position that one and those before it.
      start_id: as it was trained with.
    """
    checks.check_denoiser(denoiser)
    checks.check_whole("start_id", start_id)

    def encode(tokens: Array, t: Array) -> Hidden:
        return denoiser.encode(_later(tokens, start_id), jnp.ones_like(t))

    return denoiser._replace(encode=encode)


def causal_likelihood(
    denoiser: Denoiser, tokens: Array, *, start_id: int, maskable: Array | None = None
) -> Likelihood:
    """Each row's exact `-log p`, by the chain rule: the variance is 0.

    Args:
      denoiser: sees at each position that one and those before it.
      tokens: i32[B, L].
      start_id: as it was trained with.
      maskable: bool[B, L], the tokens that count, given all before them; all by default.

    Raises:
      ValueError, TypeError: as `corrupt_causal`; on a function for a denoiser.
    """
    checks.check_denoiser(denoiser)
    corrupted = corrupt_causal(tokens, start_id=start_id, maskable=maskable)
    nats = slot_nats(denoiser, corrupted, mask_id=None).nats.sum(axis=1)  # [B]
    counted = jnp.sum(corrupted.weights > 0, axis=1, dtype=jnp.int32)
    return Likelihood(nats=nats, mc_variance=jnp.zeros_like(nats), tokens=counted)


def _later(tokens: Array, start_id: int) -> Array:
    """The rows one position later, behind the start."""
    return jnp.pad(tokens[:, :-1], ((0, 0), (1, 0)), constant_values=start_id)
