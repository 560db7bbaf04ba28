"""The baseline: the same encoder and step as one writes them in Flax and optax at first.

Logits of every position, `f32[B, L, V]`, through optax's softmax cross-entropy; one mask rate a
row, each token masked alone; clipping, AdamW and EMA as optax has them.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from benchmarks import building
from benchmarks.shapes import Shape
from mdlm_jax.networks import bert
from mdlm_jax.networks.attention import cudnn, rope_turns, rotate
from mdlm_jax.training.state import TrainState, init_state

Array = jax.Array
PyTree = Any


class Block(nn.Module):
    """Attention and MLP, pre-norm."""

    config: bert.Config

    @nn.compact
    def __call__(self, x: Array, mask: Array | None, turns: Array) -> Array:
        """`[B, L, D]` to `[B, L, D]`; `mask` broadcasts to `bool[B, H, L, L]`."""
        config = self.config
        dense = partial(nn.Dense, use_bias=config.use_bias, dtype=config.compute_dtype)
        norm = partial(nn.RMSNorm, epsilon=config.norm_eps, dtype=config.compute_dtype)
        h = dense(3 * config.width, name="qkv")(norm(name="attention_norm")(x))
        q, k, v = jnp.unstack(h.reshape(*x.shape[:2], 3, config.heads, -1), axis=2)
        if config.qk_norm:
            q, k = norm(name="query_norm")(q), norm(name="key_norm")(k)
        q, k = rotate(q, turns), rotate(k, turns)
        fused = config.attention_backend == "cudnn" and not cudnn.refused(q)
        kernel = "cudnn" if fused else "xla"
        h = jax.nn.dot_product_attention(q, k, v, mask=mask, implementation=kernel)
        x = x + dense(config.width, name="out")(h.reshape(x.shape))
        h = nn.gelu(dense(config.mlp_width, name="up")(norm(name="mlp_norm")(x)))
        return x + dense(config.width, name="down")(h)


class Encoder(nn.Module):
    """Of the configs in `benchmarks.shapes`: pre-norm, RMSNorm, RoPE, GELU by tanh, tied head."""

    config: bert.Config

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        """`i32[B, L]` to logits `f32[B, L, padded_vocab]`."""
        config = self.config
        embed = nn.Embed(config.padded_vocab, config.width, name="embed")
        x = embed(tokens).astype(config.compute_dtype)
        turns = rope_turns(tokens.shape[1], config.head_dim)
        places = jnp.arange(tokens.shape[1])
        near = jnp.abs(places - places[:, None]) <= config.window
        mask = near[None, None] if config.attention == "local" else None
        for i in range(config.layers):
            x = Block(config, name=f"block_{i}")(x, mask, turns)
        norm = partial(nn.RMSNorm, epsilon=config.norm_eps, dtype=config.compute_dtype)
        x = norm(name="final_norm")(x)
        dense = partial(nn.Dense, use_bias=config.use_bias, dtype=config.compute_dtype)
        x = norm(name="head_norm")(nn.gelu(dense(config.width, name="transform")(x)))
        logits = (x @ embed.embedding.astype(x.dtype).T).astype(jnp.float32)
        if config.use_bias:
            logits += self.param("bias", nn.initializers.zeros, (config.padded_vocab,))
        return logits


def params_of(params: PyTree, config: bert.Config) -> PyTree:
    """The library's parameters under this `Encoder`'s names."""
    encoder, head = params["encoder"], params["head"]

    def block(i: int) -> PyTree:
        leaves = jax.tree.map(lambda x: x[i], encoder["blocks"])
        attention, mlp = leaves["attention"], leaves["mlp"]
        norms = {name: leaves[name] for name in ("attention_norm", "mlp_norm")}
        if config.qk_norm:
            norms |= {name: attention[name] for name in ("query_norm", "key_norm")}
        out = attention["out"]
        return {
            **norms,
            "qkv": _dense(attention["qkv"]),
            "out": {**out, "kernel": out["kernel"].reshape(-1, config.width)},
            "up": _dense(mlp["up"]),
            "down": _dense(mlp["down"]),
        }

    return {
        "embed": {"embedding": encoder["embeddings"]["tokens"]},
        **{f"block_{i}": block(i) for i in range(config.layers)},
        "final_norm": encoder["final_norm"],
        "transform": _dense(head["transform"]),
        "head_norm": head["norm"],
        **({"bias": head["bias"]} if config.use_bias else {}),
    }


def build_plain_step(shape: Shape) -> building.Step:
    """The baseline's step on one device, from the product's initial parameters."""
    config = shape.encoder
    optimizer = building.optimizer_of_run()
    encoder = Encoder(config)

    def loss_fn(params: PyTree, canvas: Array, tokens: Array, weights: Array) -> Array:
        logits = encoder.apply({"params": params}, canvas)  # [B, L, V]
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, tokens)
        return jnp.mean(weights * nats)

    @partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, batch: PyTree) -> tuple[TrainState, dict[str, Array]]:
        tokens = batch["tokens"]
        of_time, of_masks = jax.random.split(jax.random.fold_in(jax.random.key(0), state.step))
        t = jax.random.uniform(of_time, (shape.rows, 1), minval=1e-3)
        masked = jax.random.uniform(of_masks, tokens.shape) < t
        canvas = jnp.where(masked, config.mask_id, tokens)
        loss, grads = jax.value_and_grad(loss_fn)(state.params, canvas, tokens, masked / t)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = optax.incremental_update(params, state.ema, 1 - building.EMA_DECAY)
        new = state._replace(step=state.step + 1, params=params, opt_state=opt_state, ema=ema)
        return new, {"loss": loss}

    params = params_of(bert.init(jax.random.key(0), config), config)
    read_out = shape.rows * shape.length
    return building.Step(init_state(params, optimizer), step, building.counted(shape, read_out))


def _dense(leaves: PyTree) -> PyTree:
    """A dense layer of one input axis, its output axes as one."""
    flat = {"kernel": leaves["kernel"].reshape(leaves["kernel"].shape[0], -1)}
    return {**flat, "bias": leaves["bias"].reshape(-1)} if "bias" in leaves else flat
