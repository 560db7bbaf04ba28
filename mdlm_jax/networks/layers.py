"""The pieces of an encoder: dense layers, norms, embeddings, attention, MLP, head."""

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mdlm_jax.diffusion import shards
from mdlm_jax.host import parallel
from mdlm_jax.networks.attention import Attend, Mask, attention, rotate
from mdlm_jax.networks.config import Config

Array = jax.Array
PyTree = Any


@jax.custom_jvp
def gelu_tanh(x: Array) -> Array:
    """`x / 2 (1 + tanh(s / 2))`, `s = sqrt(8 / pi) (x + 0.044715 x^3)`, as `x sigmoid(s)`.

    Hendrycks and Gimpel 2016, section 2, computed in float32. Without a tanh and a division a GPU
    is limited only by memory here, hence the sigmoid as the square of an inverse root.
    """
    wide = x.astype(jnp.float32)
    return (wide * _gelu_gate(wide)).astype(x.dtype)


@gelu_tanh.defjvp
def _gelu_tanh_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    wide = x.astype(jnp.float32)
    gate = _gelu_gate(wide)
    inner = math.sqrt(8 / math.pi) * (1 + 3 * 0.044715 * wide**2)
    slope = gate + wide * gate * (1 - gate) * inner
    return gelu_tanh(x), (slope * dx.astype(jnp.float32)).astype(x.dtype)


def _gelu_gate(x: Array) -> Array:
    s = math.sqrt(8 / math.pi) * (x + 0.044715 * x**3)
    return jnp.square(jax.lax.rsqrt(1 + jnp.exp(-s)))


ACTIVATIONS = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": gelu_tanh,
    "silu": jax.nn.silu,
}
_TIME_FREQUENCIES = 128


def weight_init(config: Config, *axes: str):
    """Truncated normal weights that carry the logical names of their axes."""
    init = nn.initializers.truncated_normal(config.init_scale)
    return nn.with_logical_partitioning(init, axes)


def dense(
    config: Config, name: str, out: dict[str, int], *, axes: tuple[str, ...], zero: bool = False
) -> nn.Module:
    """A dense layer from the input's last axes to new ones.

    Args:
      config: decides type, bias and initial scale.
      name: name of the parameters.
      out: logical name and size of each new axis.
      axes: logical names of the input axes that are contracted.
      zero: start at zero.
    """
    names = (*axes, *out)
    zeros = nn.initializers.zeros
    zero_kernel = nn.with_logical_partitioning(zeros, names)
    return nn.DenseGeneral(
        tuple(out.values()),
        axis=tuple(range(-len(axes), 0)),
        use_bias=config.use_bias,
        dtype=config.compute_dtype,
        kernel_init=zero_kernel if zero else weight_init(config, *names),
        bias_init=nn.with_logical_partitioning(zeros, tuple(out)),
        dot_general=_matrix_product,
        name=name,
    )


def _matrix_product(x: Array, kernel: Array, dimension_numbers, precision=None, **options) -> Array:
    """`dot_general` of the last axes of `x` with the first of `kernel`, as one matrix product.

    XLA's CPU backend runs a gradient that contracts over two axes (rows and positions) as a slow
    loop. Over one axis it calls a matrix product, which is three times as fast. GPUs and TPUs do
    not care.
    """
    (contracted, _), _ = dimension_numbers
    if parallel.splits_layers():
        # Flattening would lose the sharding of an output axis that is not the first.
        return jax.lax.dot_general(x, kernel, dimension_numbers, precision=precision, **options)
    lead = x.shape[: x.ndim - len(contracted)]
    inner, out = math.prod(x.shape[len(lead) :]), kernel.shape[len(contracted) :]
    flat = jax.lax.dot_general(
        x.reshape(-1, inner),
        kernel.reshape(inner, -1),
        (((1,), (0,)), ((), ())),
        precision=precision,
        **options,
    )
    return flat.reshape(*lead, *out)


class _LayerNorm(nn.LayerNorm):
    """Flax's norm, for JAX's strict switches too: its statistics are wider than `x`."""

    def __call__(self, x: Array) -> Array:
        with jax.numpy_dtype_promotion("standard"):
            return super().__call__(x)


class _RMSNorm(nn.RMSNorm):
    """As `_LayerNorm`."""

    def __call__(self, x: Array) -> Array:
        with jax.numpy_dtype_promotion("standard"):
            return super().__call__(x)


def norm(config: Config, name: str, axis: str = "embed") -> nn.Module:
    """The config's norm over the last axis, statistics in float32."""
    options = {
        "epsilon": config.norm_eps,
        "dtype": config.compute_dtype,
        "use_fast_variance": False,  # E[x^2] - E[x]^2 cancels where a row's mean is large
        "scale_init": nn.with_logical_partitioning(nn.initializers.ones, (axis,)),
        "name": name,
    }
    if config.norm == "rmsnorm":
        return _RMSNorm(**options)
    bias_init = nn.with_logical_partitioning(nn.initializers.zeros, (axis,))
    return _LayerNorm(**options, use_bias=config.use_bias, bias_init=bias_init)


@jax.custom_vjp
def tied_logits(x: Array, table: Array, cast: Array) -> Array:
    """`x [..., D]` times the table `f32[V, D]` to logits `f32[..., V]`.

    The gradient by the logits is cast to the type of `x` once, for both backward products. Autodiff
    would write it several times in float32.

    Args:
      x: hidden states.
      table: takes the gradient, in float32.
      cast: the table in the type of `x`, which the product uses. It is cast outside of any loop
        around this.
    """
    del table
    return jnp.einsum("...d,vd->...v", x, cast, preferred_element_type=jnp.float32)


def _tied_forward(x: Array, table: Array, cast: Array):
    return tied_logits(x, table, cast), (x, cast)


def _tied_backward(left, slope: Array):
    x, cast = left
    slope = slope.astype(x.dtype)
    of_x = jnp.einsum("...v,vd->...d", slope, cast)
    of_table = jnp.einsum("...v,...d->vd", slope, x, preferred_element_type=jnp.float32)
    return of_x, of_table, jnp.zeros_like(cast)


tied_logits.defvjp(_tied_forward, _tied_backward)


def modulate(x: Array, shift: Array | float, scale: Array | float) -> Array:
    """`x (1 + scale) + shift`: a norm's affine part, from the condition."""
    return x * (1 + scale) + shift


def dropout(module: nn.Module, x: Array) -> Array:
    """Dropout at the config's rate wherever `module` runs with a 'dropout' key."""
    deterministic = not module.has_rng("dropout")
    return nn.Dropout(module.config.dropout, deterministic=deterministic)(x)


class Embeddings(nn.Module):
    """Sum of token, position, token-type and extra embeddings, normalised if the config says so."""

    config: Config

    @nn.compact
    def __call__(
        self,
        tokens: Array,
        token_types: Array | None,
        extra: Array | None,
        positions: Array | None = None,
    ) -> Array:
        """Tokens `i32[B, L]`, types and positions alike, extra `f32[B, D]` to `[B, L, D]`."""
        config = self.config

        def table(name: str, axis: str, rows: int) -> Array:
            return self.param(name, weight_init(config, axis, "embed"), (rows, config.width))

        # Gathered in float32 and cast after: the gradient of a bfloat16 gather is a bfloat16
        # scatter-add onto the few rows that most positions share, [MASK] first.
        embedding = table("tokens", "vocab", config.padded_vocab)
        x = jnp.take(parallel.gather_parameter(embedding, ("vocab", "embed")), tokens, axis=0)
        if config.positions == "learned":
            learned = table("positions", "positions", config.max_length)
            if positions is None:
                x += learned[None, : tokens.shape[1]]
            else:
                x += jnp.take(learned, positions, axis=0)
        if config.token_types:
            types = table("token_types", "token_types", config.token_types)
            x += types[None, :1] if token_types is None else jnp.take(types, token_types, axis=0)
        if extra is not None:
            x += extra[:, None]
        # At once: otherwise a table sharded along D would shard all that follows.
        x = parallel.spread_rows(x)
        if config.norm_position == "post" or config.embedding_norm:
            x = norm(config, "norm")(x)
        return dropout(self, x.astype(config.compute_dtype))


class LabelEmbedding(nn.Module):
    """One learned row a class, and one for "no label"."""

    config: Config

    @nn.compact
    def __call__(self, label: Array) -> Array:
        """Label `i32[B]`, -1 for none, to `f32[B, D]`; NaN for a label that is no class."""
        config = self.config
        if self.has_rng("dropout"):
            key = self.make_rng("dropout")
            drop = jax.random.bernoulli(key, config.class_dropout, label.shape)
            label = jnp.where(drop, -1, label)
        init = weight_init(config, "classes", "embed")
        table = self.param("table", init, (config.classes + 1, config.width))
        # An index out of range would count from the end, or be clipped: another class.
        exists = (label >= -1) & (label < config.classes)
        row = jnp.where(exists, jnp.where(label < 0, config.classes, label), config.classes + 1)
        return jnp.take(table, row, axis=0, mode="fill", fill_value=jnp.nan)


class TimeEmbedding(nn.Module):
    """Sinusoids of the time, then an MLP (Peebles and Xie 2023)."""

    config: Config

    @nn.compact
    def __call__(self, t: Array) -> Array:
        """Time `f32[B]` in [0, 1] to `[B, D]`."""
        config = self.config
        steps = jnp.arange(_TIME_FREQUENCIES) / _TIME_FREQUENCIES
        angles = 1000 * t.astype(jnp.float32)[:, None] * (10_000.0**-steps)[None]
        x = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
        x = dense(config, "up", {"condition": config.width}, axes=("frequencies",))(x)
        x = jax.nn.silu(x)
        return dense(config, "down", {"embed": config.width}, axes=("condition",))(x)


class SelfAttention(nn.Module):
    """Multi-head self-attention, with one kernel for its three input projections."""

    config: Config
    asking: int | None = None  # how many of a row's first positions ask; by default all

    @nn.compact
    def __call__(
        self,
        x: Array,
        mask: Mask,
        turns: Array | None,
        everywhere: Array | None = None,
        attend: Attend | None = None,
        number: Array | None = None,
    ) -> tuple[Array, PyTree]:
        """`x [B, L, D]` to `[B, asking, D]` and what `attend` keeps of the layer.

        Args:
          x: input of the layer.
          mask: as in `attention`; not used where `attend` is given.
          turns: as in `rotate`.
          everywhere: as in `attention`.
          attend: computes the attention in its place.
          number: of the layer, for `attend`.
        """
        config = self.config
        heads = {"heads": config.heads, "head_dim": config.head_dim}
        x = dense(config, "qkv", {"qkv": 3, **heads}, axes=("embed",))(x)
        q, k, v = jnp.unstack(x, axis=-3)  # each [B, L, H, d]
        if config.qk_norm:
            q = norm(config, "query_norm", "head_dim")(q)
            k = norm(config, "key_norm", "head_dim")(k)
        if turns is not None:
            q, k = rotate(q, turns), rotate(k, turns)
        q, kept = q[:, : self.asking], None
        if attend is None:
            x = attention(q, k, v, mask, backend=config.attention_backend, everywhere=everywhere)
        else:
            x, kept = attend(q, k, v, number)
        return dense(config, "out", {"embed": config.width}, axes=("heads", "head_dim"))(x), kept


class Mlp(nn.Module):
    """`down(act(up x))`; gated (Shazeer 2020): `down(act(gate x) * up x)`, one kernel for both."""

    config: Config

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[..., D]` to `[..., D]`."""
        config = self.config
        activation = ACTIVATIONS[config.activation]
        halves = {"gate_up": 2} if config.gated else {}
        x = dense(config, "up", {**halves, "mlp": config.mlp_width}, axes=("embed",))(x)
        if config.gated:
            gate, up = jnp.unstack(x, axis=-2)
            x = jax.checkpoint(lambda gate, up: activation(gate) * up)(gate, up)
        else:
            x = jax.checkpoint(activation)(x)
        return dense(config, "down", {"embed": config.width}, axes=("mlp",))(x)


class Head(nn.Module):
    """BERT's masked-LM head: dense, activation, norm, and the embedding table transposed."""

    config: Config

    @nn.compact
    def __call__(self, x: Array, table: Array, cast: Array) -> Array:
        """`x [..., D]` and the table, `f32[V, D]` and cast, to logits `f32[..., V]`."""
        config = self.config
        x = dense(config, "transform", {"transform": config.width}, axes=("embed",))(x)
        x = norm(config, "norm")(ACTIVATIONS[config.activation](x))
        cast = parallel.gather_parameter(cast, ("vocab", "embed"))
        logits = tied_logits(*shards.alike((x, table, cast)))
        if config.use_bias or config.output_bias:
            init = nn.with_logical_partitioning(nn.initializers.zeros, ("vocab",))
            bias = self.param("bias", init, table.shape[:1])
            logits += bias.reshape(*(1,) * (logits.ndim - 1), -1)
        return logits
