"""The encoder of `benchmarks.shapes` in PyTorch, and its loss over exact mask counts.

As strong as plain PyTorch makes it: fused attention, one kernel for queries, keys and values, the
vocabulary read out at the slots alone, two rows sharing theirs (`mdlm_jax.corrupt`).
Everything else is left to `torch.compile`.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdlm_jax.networks.config import Config

PyTree = Any


class Slots(NamedTuple):
    """A corrupted batch; G pairs of rows.

    Attributes:
      canvas: i64[B, L].
      positions: i64[G, C], in the pair's rows laid end to end.
      targets: i64[G, C].
      weights: f32[G, C], 0 in an empty slot.
    """

    canvas: Tensor
    positions: Tensor
    targets: Tensor
    weights: Tensor


class RMSNorm(nn.Module):
    """Zhang and Sennrich 2019, statistics in float32."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """`[..., D]` to `[..., D]`."""
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps) * self.scale
        return y.to(x.dtype)


class Dense(nn.Linear):
    """A dense layer, float32 parameters cast to the type of its input."""

    def forward(self, x: Tensor) -> Tensor:
        """`[..., inputs]` to `[..., outputs]`."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


class Block(nn.Module):
    """Attention and MLP, pre-norm."""

    def __init__(self, config: Config):
        super().__init__()
        width, bias = config.width, config.use_bias
        self.heads = config.heads
        self.attention_norm = RMSNorm(width, config.norm_eps)
        self.qkv = Dense(width, 3 * width, bias)
        if config.qk_norm:
            self.query_norm = RMSNorm(config.head_dim, config.norm_eps)
            self.key_norm = RMSNorm(config.head_dim, config.norm_eps)
        self.qk_norm = config.qk_norm
        self.out = Dense(width, width, bias)
        self.mlp_norm = RMSNorm(width, config.norm_eps)
        self.up = Dense(width, config.mlp_width, bias)
        self.down = Dense(config.mlp_width, width, bias)

    def forward(self, x: Tensor, mask: Tensor | None, cos: Tensor, sin: Tensor) -> Tensor:
        """`[B, L, D]` to `[B, L, D]`; `mask` is `bool[L, L]`, `cos` and `sin` `[L, d / 2]`."""
        h = self.qkv(self.attention_norm(x)).view(*x.shape[:2], 3, self.heads, -1)
        q, k, v = h.unbind(2)  # each [B, L, H, d]
        if self.qk_norm:
            q, k = self.query_norm(q), self.key_norm(k)
        q, k, v = (y.transpose(1, 2) for y in (rotate(q, cos, sin), rotate(k, cos, sin), v))
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.out(h.transpose(1, 2).reshape(x.shape))
        h = F.gelu(self.up(self.mlp_norm(x)), approximate="tanh")
        return x + self.down(h)


class Encoder(nn.Module):
    """From tokens to hidden states, and from these to logits, `benchmarks.plain.Encoder` in halves.

    Args:
      config: of a shape.
      dtype: what activations are computed in.
    """

    def __init__(self, config: Config, dtype: torch.dtype):
        super().__init__()
        self.config, self.dtype = config, dtype
        self.embed = nn.Embedding(config.padded_vocab, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.final_norm = RMSNorm(config.width, config.norm_eps)
        self.transform = Dense(config.width, config.width, config.use_bias)
        self.head_norm = RMSNorm(config.width, config.norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.padded_vocab)) if config.use_bias else None
        half = config.head_dim // 2
        frequencies = config.rope_theta ** (-torch.arange(half) / half)
        places = torch.arange(config.max_length)
        angles = places[:, None] * frequencies
        near = (places - places[:, None]).abs() <= config.window
        tokens = torch.arange(config.padded_vocab)
        written = (tokens < config.vocab_size) & (tokens != config.mask_id)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())
        self.register_buffer("mask", near if config.attention == "local" else None)
        self.register_buffer("written", written)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.trunc_normal_(parameter, std=config.init_scale)

    def forward(self, tokens: Tensor) -> Tensor:
        """`i64[B, L]` to `[B, L, D]`."""
        x = self.embed(tokens).to(self.dtype)
        for block in self.blocks:
            x = block(x, self.mask, self.cos, self.sin)
        return self.final_norm(x)

    def logits(self, x: Tensor) -> Tensor:
        """`[..., D]` to `[..., V]`, the mask's and the padding's `-inf`."""
        x = self.head_norm(F.gelu(self.transform(x), approximate="tanh"))
        out = F.linear(x, self.embed.weight.to(x.dtype)).float()
        if self.bias is not None:
            out = out + self.bias
        return out.masked_fill(~self.written, -math.inf)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns the feature pairs `(i, i + d/2)` of `x [B, L, H, d]`, in float32."""
    first, second = x.float().chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)


def corrupt(tokens: Tensor, mask_id: int) -> Slots:
    """Exact mask counts, two rows of `tokens i64[B, L]` sharing `L + 1` slots."""
    rows, length = tokens.shape
    pairs, device = rows // 2, tokens.device
    first = torch.randint(1, length + 1, (pairs, 1), device=device)
    count = torch.cat([first, length + 1 - first], dim=1)  # [G, 2], uniform each
    order = torch.rand(rows, length, device=device).argsort(dim=1).view(pairs, 2, length)
    slot = torch.arange(length + 1, device=device)
    in_first = slot < first  # [G, C]
    of_first = order[:, 0].gather(1, slot.clamp(max=length - 1).expand(pairs, -1))
    of_second = length + order[:, 1].gather(1, (slot - first).clamp(0, length - 1))
    positions = torch.where(in_first, of_first, of_second)
    flat = tokens.view(pairs, 2 * length)
    canvas = flat.scatter(1, positions, mask_id).view(rows, length)
    weights = torch.where(in_first, 1 / count[:, :1], 1 / count[:, 1:]) / rows
    return Slots(canvas, positions, flat.gather(1, positions), weights)


def slots_loss(encoder: Encoder, slots: Slots) -> Tensor:
    """`sum(weights * -log p(target))`, read out at the slots alone."""
    pairs, width = len(slots.positions), encoder.config.width
    hidden = encoder(slots.canvas).view(pairs, -1, width)
    hidden = hidden.gather(1, slots.positions[..., None].expand(-1, -1, width))
    nats = F.cross_entropy(
        encoder.logits(hidden).flatten(0, 1), slots.targets.flatten(), reduction="none"
    )
    return slots.weights.flatten() @ nats


def full_loss(encoder: Encoder, slots: Slots) -> Tensor:
    """The same from logits of every position."""
    pairs = len(slots.positions)
    nothing = torch.zeros(pairs, slots.canvas.numel() // pairs, device=slots.canvas.device)
    weights = nothing.scatter(1, slots.positions, slots.weights)
    targets = nothing.long().scatter(1, slots.positions, slots.targets)
    logits = encoder.logits(encoder(slots.canvas))
    nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return weights.flatten() @ nats


def load(encoder: Encoder, params: PyTree) -> None:
    """Copies parameters from the tree of `benchmarks.plain.params_of` into the module."""

    def leaves(tree: PyTree, prefix: str) -> dict[str, Tensor]:
        out = {}
        for name, value in tree.items():
            path = prefix + name.replace("block_", "blocks.")
            if isinstance(value, dict):
                out |= leaves(value, path + ".")
                continue
            array = np.array(value)
            path = path.replace("embedding", "weight")
            if name == "kernel":
                path, array = prefix + "weight", array.T
            out[path] = torch.from_numpy(np.ascontiguousarray(array))
        return out

    wanted = dict(encoder.named_buffers())
    encoder.load_state_dict({**wanted, **leaves(params, "")})
