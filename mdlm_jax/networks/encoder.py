"""The encoder: one block, and the stack of them from tokens to hidden states."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mdlm_jax import parallel
from mdlm_jax.networks.attention import Mask, rope_angles
from mdlm_jax.networks.config import Config
from mdlm_jax.networks.layers import (
    Embeddings,
    LabelEmbedding,
    Mlp,
    SelfAttention,
    TimeEmbedding,
    dense,
    dropout,
    modulate,
    norm,
)

Array = jax.Array

_REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Block(nn.Module):
    """Attention and MLP, each a residual branch.

    Time conditioning is adaLN (Peebles and Xie 2023), zero at the start. Pre-norm, it shifts and
    scales each branch's input and gates its output, so a fresh block is the identity. Post-norm,
    it shifts and scales each norm's output, so a fresh block is the unconditioned one and
    pretrained weights keep their meaning.
    """

    config: Config

    @nn.compact
    def __call__(
        self,
        x: Array,
        condition: Array | None,
        seen: tuple,
        angles: tuple[Array, ...] | None,
        number: Array | None = None,
    ):
        """`x [B, L, D]` to `(x, None)`.

        Args:
          x: the residual stream.
          condition: `[B, D]`.
          seen: `(valid, segment_ids)`.
          angles: as for `rotate`; behind them those of the blocks that lift their window.
          number: of the block, i32, where blocks differ.
        """
        config = self.config
        everywhere = number % config.global_every == 0 if config.global_every else None
        mask = Mask(config.attention, config.window, *seen)
        turn = angles[0] if angles else None
        if angles and config.global_every:
            turn = jnp.where(everywhere, angles[1], angles[0])
        pre = config.norm_position == "pre"

        def add(x: Array, name: str, branch, shift=0.0, scale=0.0, gate=1.0) -> Array:
            normalise = norm(config, name + "_norm")
            if pre:
                normal = normalise(x)
                if config.embedding_norm and name == "attention":
                    normal = jnp.where(number == 0, x, normal)
                return x + gate * dropout(self, branch(modulate(normal, shift, scale)))
            return modulate(normalise(x + dropout(self, branch(x))), shift, scale)

        attention = SelfAttention(config, name="attention")
        mlp = Mlp(config, name="mlp")
        of_attention, of_mlp = (), ()
        if condition is not None:
            out = {"branches": 2, "modulation": 3 if pre else 2, "embed": config.width}
            parts = dense(config, "modulation", out, axes=("condition",), zero=True)(condition)
            of_attention, of_mlp = jnp.moveaxis(parts[:, None], (2, 3), (0, 1))  # [2|3, B, 1, D]
        x = add(x, "attention", lambda h: attention(h, mask, turn, everywhere), *of_attention)
        x = add(x, "mlp", mlp, *of_mlp)
        return parallel.spread_rows(x), None


def differ(config: Config) -> bool:
    """Whether blocks compute otherwise than each other, and so are told their number."""
    return bool(config.global_every) or config.embedding_norm


def blocks(config: Config, name: str) -> nn.Module:
    """`config.layers` blocks, their parameters on a leading axis, as one module."""
    block = Block
    if config.remat != "none":
        # In a scan, nothing can be merged with its recomputation; in line, it would be.
        policy = _REMAT_POLICIES[config.remat]
        block = nn.remat(block, policy=policy, prevent_cse=not config.scan)
    stack = nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(nn.broadcast,) * 3 + (0,) * differ(config),
        length=config.layers,
        unroll=1 if config.scan else config.layers,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    return stack(config, name=name)


class Encoder(nn.Module):
    """From tokens to hidden states; what its arguments mean, `bert.logits` says."""

    config: Config

    @nn.compact
    def __call__(
        self,
        tokens: Array,
        t: Array | None,
        *,
        valid: Array | None = None,
        segment_ids: Array | None = None,
        token_types: Array | None = None,
        label: Array | None = None,
    ) -> Array:
        """Tokens `i32[B, L]` to `[B, L, D]`, all that needs the row or `t` behind it."""
        config = self.config
        rows, length = tokens.shape
        condition = extra = None
        if config.classes:
            label = jnp.full(rows, -1) if label is None else label
            extra = LabelEmbedding(config, name="labels")(label)
        if config.time_conditioning:
            condition = TimeEmbedding(config, name="time")(t)
            if config.classes:
                condition += extra.astype(condition.dtype)
                extra = None
            condition = jax.nn.silu(condition)

        x = Embeddings(config, name="embeddings")(tokens, token_types, extra)
        angles: tuple[Array, ...] = ()
        if config.positions == "rope":
            thetas = (config.rope_theta, *[config.global_rope_theta] * bool(config.global_every))
            angles = tuple(rope_angles(length, config.head_dim, theta) for theta in thetas)
        numbers = (jnp.arange(config.layers),) * differ(config)
        x, _ = blocks(config, "blocks")(x, condition, (valid, segment_ids), angles, *numbers)

        if config.norm_position == "pre":
            x = norm(config, "final_norm")(x)
            if config.time_conditioning:
                out = {"modulation": 2, "embed": config.width}
                parts = dense(config, "final_modulation", out, axes=("condition",), zero=True)
                x = modulate(x, *jnp.moveaxis(parts(condition)[:, None], 2, 0))
        return x
