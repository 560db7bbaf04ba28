"""The encoder formula by formula, in float64 NumPy: what every option of `bert.Config` means.

Written from the papers, not from the library: loops where the library has axes, complex numbers
where it has cosines and sines.
"""

import math

import jax
import numpy as np

ERF = np.vectorize(math.erf)
ACTIVATIONS = {
    "gelu": lambda x: x * (1 + ERF(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "silu": lambda x: x / (1 + np.exp(-x)),
}


def logits(
    params,
    config,
    tokens,
    t=None,
    *,
    valid=None,
    segment_ids=None,
    token_types=None,
    label=None,
    places=None,
    sees=None,
):
    """f64[B, L, vocab_size], as `bert.logits` without dropout.

    Token i of a row stands at `places[i]`, and `sees`, bool[B, L, L], may say who sees whom.
    """
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    rows, length = tokens.shape
    places = np.arange(length) if places is None else places
    if sees is None:
        sees = who_sees_whom(config, rows, length, valid, segment_ids)
    all_see = who_sees_whom(config, rows, length, valid, segment_ids, window=length)
    encoder, head = p["encoder"], p["head"]

    extra, condition = np.zeros((rows, config.width)), None
    if config.classes:
        label = np.full(rows, -1) if label is None else np.asarray(label)
        extra = np.stack(
            [encoder["labels"]["table"][i if i >= 0 else config.classes] for i in label]
        )
    if config.time_conditioning:
        condition = silu(time_embedding(encoder["time"], np.asarray(t, np.float64)) + extra)
        extra = np.zeros_like(extra)

    table = encoder["embeddings"]["tokens"]
    x = table[np.asarray(tokens)] + extra[:, None]
    if config.positions == "learned":
        x = x + encoder["embeddings"]["positions"][places]
    if config.token_types:
        types = np.zeros((rows, length), int) if token_types is None else np.asarray(token_types)
        x = x + encoder["embeddings"]["token_types"][types]
    if config.norm_position == "post" or config.embedding_norm:
        x = norm(config, encoder["embeddings"]["norm"], x)
    for i in range(config.layers):
        block = jax.tree.map(lambda leaf, i=i: leaf[i], encoder["blocks"])
        if config.global_every and i % config.global_every == 0:
            x = add_branches(
                config, block, x, condition, all_see, i, places, config.global_rope_theta
            )
        else:
            x = add_branches(config, block, x, condition, sees, i, places, config.rope_theta)
    if config.norm_position == "pre":
        x = norm(config, encoder["final_norm"], x)
        if config.time_conditioning:
            shift, scale = split(linear(encoder["final_modulation"], condition), 2)
            x = x * (1 + scale) + shift

    x = ACTIVATIONS[config.activation](linear(head["transform"], x))
    x = norm(config, head["norm"], x) @ table.T + head.get("bias", 0)
    return x[..., : config.vocab_size]


def who_sees_whom(config, rows, length, valid, segment_ids, window=None):
    """bool[B, query, key], by asking of every pair."""
    window = config.window if window is None else window
    sees = np.zeros((rows, length, length), bool)
    for row in range(rows):
        for query in range(length):
            for key in range(length):
                sees[row, query, key] = (
                    (config.attention != "causal" or key <= query)
                    and (config.attention != "local" or abs(key - query) <= window)
                    and (valid is None or valid[row][key])
                    and (segment_ids is None or segment_ids[row][query] == segment_ids[row][key])
                )
    return sees


def add_branches(config, block, x, condition, sees, number, places, theta):
    pre = config.norm_position == "pre"
    parts = 6 if pre else 4
    told = np.zeros((len(x), parts * config.width))
    if condition is not None:
        told = linear(block["modulation"], condition)
    told = split(told, parts)
    branches = {
        "attention": lambda h: attention(config, block["attention"], h, sees, places, theta),
        "mlp": lambda h: mlp(config, block["mlp"], h),
    }
    for i, (name, branch) in enumerate(branches.items()):
        shift, scale, *gate = told[i * parts // 2 : (i + 1) * parts // 2]
        weights = block[name + "_norm"]
        if pre:
            gate = gate[0] if condition is not None else 1
            bare = config.embedding_norm and number == 0 and name == "attention"
            normal = x if bare else norm(config, weights, x)
            x = x + gate * branch(normal * (1 + scale) + shift)
        else:
            x = norm(config, weights, x + branch(x)) * (1 + scale) + shift
    return x


def attention(config, weights, x, sees, places, theta):
    rows, length, _ = x.shape
    d = config.width // config.heads
    q, k, v = (
        h.reshape(rows, length, config.heads, d) for h in split(linear(weights["qkv"], x), 3)
    )
    if config.qk_norm:
        q, k = norm(config, weights["query_norm"], q), norm(config, weights["key_norm"], k)
    if config.positions == "rope":
        q, k = rope(q, places, theta), rope(k, places, theta)
    mixed = np.zeros_like(v)
    for head in range(config.heads):
        scores = q[:, :, head] @ k[:, :, head].transpose(0, 2, 1) / math.sqrt(d)
        scores = np.where(sees, scores, -np.inf)
        peak = scores.max(-1, keepdims=True)
        chances = np.exp(scores - np.where(np.isfinite(peak), peak, 0))
        total = chances.sum(-1, keepdims=True)
        # A query that sees no key (padding, at times) means nothing; any number will do.
        mixed[:, :, head] = chances / np.where(total > 0, total, 1) @ v[:, :, head]
    return linear(weights["out"], mixed.reshape(rows, length, -1))


def rope(x, places, theta):
    """`x [B, L, H, d]`: pairs (i, i + d/2) as complex numbers, turned by position."""
    half = x.shape[-1] // 2
    turn = places[:, None] * theta ** (-np.arange(half) / half)
    z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * turn)[:, None]
    return np.concatenate([z.real, z.imag], axis=-1)


def mlp(config, weights, x):
    activation, up = ACTIVATIONS[config.activation], linear(weights["up"], x)
    if config.gated:
        gate, value = np.split(up, 2, axis=-1)
        return linear(weights["down"], activation(gate) * value)
    return linear(weights["down"], activation(up))


def time_embedding(weights, t):
    waves = 1000 * t[:, None] * 10_000.0 ** (-np.arange(128) / 128)
    x = np.concatenate([np.cos(waves), np.sin(waves)], axis=-1)
    return linear(weights["down"], silu(linear(weights["up"], x)))


def norm(config, weights, x):
    if config.norm == "layernorm":
        x = x - x.mean(-1, keepdims=True)
    size = np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_eps)
    return x / size * weights["scale"] + weights.get("bias", 0)


def linear(weights, x):
    flat = weights["kernel"].reshape(x.shape[-1], -1)
    return x @ flat + np.reshape(weights.get("bias", 0), -1)


def split(x, parts):
    """`parts` equal parts of the last axis; of rows `[B, ...]` as `[B, 1, ...]`."""
    parts = np.split(x, parts, axis=-1)
    return parts if x.ndim == 3 else [part[:, None] for part in parts]


def silu(x):
    return ACTIVATIONS["silu"](x)
