"""The encoder: one block, and the stack of them from tokens to hidden states."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mdlm_jax.host import parallel
from mdlm_jax.networks.attention import Attend, Mask, rope_turns
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
PyTree = Any

_REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Block(nn.Module):
    """Attention and MLP, each a residual branch.

    Time conditioning is adaLN (Peebles and Xie 2023) and starts at zero. With pre-norm it shifts
    and scales each branch's input and gates its output, so a fresh block is the identity. With
    post-norm it shifts and scales each norm's output, so a fresh block is the unconditioned one and
    pretrained weights keep their meaning.
    """

    config: Config
    branches: tuple[str, ...] = ("attention", "mlp")  # or one of them
    asking: int | None = None  # as in `SelfAttention`

    @nn.compact
    def __call__(
        self,
        x: Array,
        condition: Array | None = None,
        seen: tuple = (None, None),
        turns: tuple[Array, ...] = (),
        attend: Attend | None = None,
        number: Array | None = None,
    ) -> tuple[Array, PyTree]:
        """`x [B, L, D]` to `(x [B, asking, D], kept)`; without attention, any `[..., D]`.

        Args:
          x: the residual stream.
          condition: `[B, D]`.
          seen: `(valid, segment_ids)`.
          turns: as in `rotate`, followed by those of the blocks that lift their window.
          attend: computes the attention in place of `attention`, and decides what is kept of it.
          number: i32, the number of the block, if blocks differ or `attend` is given.
        """
        config = self.config
        pre, kept = config.norm_position == "pre", None

        def add(x: Array, name: str, branch, shift=0.0, scale=0.0, gate=1.0) -> Array:
            normalise = norm(config, name + "_norm")
            if pre:
                normal = normalise(x)
                if config.embedding_norm and name == "attention":
                    normal = jnp.where(number == 0, x, normal)
                out = branch(modulate(normal, shift, scale))
                return _first(x, out) + gate * dropout(self, out)
            out = branch(x)
            return modulate(normalise(_first(x, out) + dropout(self, out)), shift, scale)

        def look(x: Array) -> Array:
            nonlocal kept
            everywhere = number % config.global_every == 0 if config.global_every else None
            mask = Mask(config.attention, config.window, *seen)
            turn = turns[0] if turns else None
            if turns and config.global_every:
                turn = jnp.where(everywhere, turns[1], turns[0])
            layer = SelfAttention(config, self.asking, name="attention")
            x, kept = layer(x, mask, turn, everywhere, attend, number)
            return x

        of_attention, of_mlp = (), ()
        if condition is not None:
            out = {"branches": 2, "modulation": 3 if pre else 2, "embed": config.width}
            parts = dense(config, "modulation", out, axes=("condition",), zero=True)(condition)
            of_attention, of_mlp = jnp.moveaxis(parts[:, None], (2, 3), (0, 1))  # [2|3, B, 1, D]
        if "attention" in self.branches:
            x = add(x, "attention", look, *of_attention)
        if "mlp" in self.branches:
            x = add(x, "mlp", Mlp(config, name="mlp"), *of_mlp)
        return parallel.spread_rows(x), kept


def _first(x: Array, like: Array) -> Array:
    """The positions of `x [B, L, ...]` that `like [B, n, ...]` has, which are the first."""
    return x if x.shape == like.shape else x[:, : like.shape[1]]


def differ(config: Config) -> bool:
    """Whether blocks differ in what they compute, and so need their number."""
    return bool(config.global_every) or config.embedding_norm


def blocks(config: Config, count: int, name: str, *, numbered: bool) -> nn.Module:
    """A stack of blocks as one module, with parameters on a leading axis.

    Its last argument, if they are `numbered`, is the number of each.
    """
    stack = nn.scan(
        # In a scan nothing can be merged with its recomputation; in line it would be.
        _recomputing(config, prevent_cse=not config.scan),
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(nn.broadcast,) * 4 + (0,) * numbered,
        length=count,
        unroll=1 if config.scan else count,
        check_constancy_invariants=False,  # or it traces each block twice
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    return stack(config, name=name)


def _recomputing(config: Config, *, prevent_cse: bool = True) -> type[nn.Module]:
    """`Block` with the recomputation in the backward pass that `remat` names."""
    if config.remat == "none":
        return Block
    return nn.remat(Block, policy=_REMAT_POLICIES[config.remat], prevent_cse=prevent_cse)


class Encoder(nn.Module):
    """From tokens to hidden states. `bert.logits` explains the arguments.

    Unless it is `whole`, it ends after the last block's attention. From there on no position looks
    at another, and `Finish` is the rest. The last block's parameters are then those of "last".
    """

    config: Config
    whole: bool = True

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
        positions: Array | None = None,
        attend: Attend | None = None,
        asking: int | None = None,
    ) -> Array | tuple[Array, PyTree]:
        """Tokens `i32[B, L]` to `[B, L, D]`, with all that depends on the row or `t` done.

        With `attend`, which computes the attention of every block in place of `attention`, also
        what it keeps, on a leading axis of blocks. Who sees whom is then its affair, also in a
        causal encoder, and so are `valid` and `segment_ids`.
        With `asking`, only that many of a row's first positions are returned; where the last block
        stands apart, the others are no more than keys and values there.
        """
        config = self.config
        if attend is not None and config.attention == "local":
            raise ValueError("attention='local': must be 'full' or 'causal' with keys of elsewhere")
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

        x = Embeddings(config, name="embeddings")(tokens, token_types, extra, positions)
        turns: tuple[Array, ...] = ()
        if config.positions == "rope":
            thetas = (config.rope_theta, *[config.global_rope_theta] * bool(config.global_every))
            turns = tuple(rope_turns(length, config.head_dim, theta, positions) for theta in thetas)
        shared = (condition, (valid, segment_ids), turns, attend)
        number = jnp.arange(config.layers)
        numbered = differ(config) or attend is not None
        stacked = config.layers if self.whole else config.layers - 1
        kept = []
        if stacked:
            stack = blocks(config, stacked, "blocks", numbered=numbered)
            x, of_stack = stack(x, *shared, *(number[:stacked],) * numbered)
            kept.append(of_stack)
        if not self.whole:
            last = _recomputing(config)(config, ("attention",), asking, name="last")
            x, of_last = last(x, *shared, number[-1])
            kept.append(jax.tree.map(lambda leaf: leaf[None], of_last))
        else:
            x = self._finish(x[:, :asking], condition)
        if attend is None:
            return x
        return x, jax.tree.map(lambda *parts: jnp.concatenate(parts), *kept)

    def _finish(self, x: Array, condition: Array | None) -> Array:
        """The final norm, where there is one."""
        config = self.config
        if config.norm_position == "pre":
            x = norm(config, "final_norm")(x)
            if config.time_conditioning:
                out = {"modulation": 2, "embed": config.width}
                parts = dense(config, "final_modulation", out, axes=("condition",), zero=True)
                x = modulate(x, *jnp.moveaxis(parts(condition)[:, None], 2, 0))
        return x


class Finish(nn.Module):
    """The last block's MLP and the final norm, for the positions that are read out only.

    Networks with time conditioning cannot use it, because their norms depend on the row.
    """

    config: Config

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """From the output `[..., D]` of an `Encoder` that is not `whole` to hidden states."""
        x, _ = Block(self.config, ("mlp",), name="last")(x)
        return norm(self.config, "final_norm")(x) if self.config.norm_position == "pre" else x
