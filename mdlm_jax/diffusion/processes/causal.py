"""The autoregressive baseline: the same encoder and loss, given the text before each token.

A causal encoder that reads `[start, x_1, ..., x_{L-1}]` and predicts `[x_1, ..., x_L]` is a
denoiser of one canvas in which every position is predicted. The chain rule makes its likelihood
exact,

    -log p(x) = sum_i -log p(x_i | x_1, ..., x_{i-1}),

where masked diffusion has a bound. Both are over the same tokens: those that `maskable` counts. The
encoder must not see what follows; here the text is only shifted. The same encoder writes text as a
denoiser of canvases whose blanks are filled from left to right.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mdlm_jax.diffusion import checks
from mdlm_jax.diffusion.denoisers import Denoiser, Hidden
from mdlm_jax.diffusion.likelihood import Likelihood
from mdlm_jax.diffusion.objectives import slot_nats
from mdlm_jax.diffusion.processes.corruption import Corrupted
from mdlm_jax.diffusion.values import Bound

Array = jax.Array


def corrupt_causal(tokens: Array, *, start_id: int, maskable: Array | None = None) -> Corrupted:
    """The text one position later, with every token to be predicted. Nothing is drawn.

    `corrupted_loss` of it is the cross-entropy in nats per token. The time is 1 in all rows.

    Args:
      tokens: i32[B, L].
      start_id: stands before the first token, so that this one counts too; the separator of texts.
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
    """A causal network as a denoiser of canvases, for `strategies.left_to_right` only.

    It predicts each position from those before it: the canvas is read one position later, as in
    training. With one step for each blank the samples follow the chain rule. It does not see text
    behind a blank.

    Args:
      denoiser: sees at each position that one and those before it.
      start_id: as it was trained with.
    """
    checks.check_denoiser(denoiser)
    checks.check_whole("start_id", start_id)
    return denoiser._replace(encode=Bound(_encode_later, (denoiser.encode, start_id)))


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
      ValueError, TypeError: as `corrupt_causal`; on a bare function for a denoiser.
    """
    checks.check_denoiser(denoiser)
    corrupted = corrupt_causal(tokens, start_id=start_id, maskable=maskable)
    nats = slot_nats(denoiser, corrupted, mask_id=None).nats.sum(axis=1)  # [B]
    counted = jnp.sum(corrupted.weights > 0, axis=1, dtype=jnp.int32)
    return Likelihood(nats=nats, mc_variance=jnp.zeros_like(nats), tokens=counted)


def _encode_later(encode: Callable, start_id: int, tokens: Array, t: Array) -> Hidden:
    return encode(_later(tokens, start_id), jnp.ones_like(t))


def _later(tokens: Array, start_id: int) -> Array:
    """The rows one position later, behind the start."""
    return jnp.pad(tokens[:, :-1], ((0, 0), (1, 0)), constant_values=start_id)
