"""ModernBERT (Warner et al. 2024): its names, and the keys of its config.json that are not fields.

It is pre-norm with a norm on the embeddings, RoPE, gated MLPs and local attention. Every n-th block
sees all positions and rotates by another theta.
"""

from collections.abc import Mapping
from typing import Any

from mdlm_jax.interop.families import ACTIVATIONS, Family, refuse
from mdlm_jax.networks import bert

_LAYER = "layers.{}."
MODERNBERT = Family(
    model_type="modernbert",
    architecture="ModernBertForMaskedLM",
    prefix="model.",
    modules={
        "encoder/embeddings/tokens": "embeddings.tok_embeddings.weight",
        "encoder/embeddings/norm": "embeddings.norm",
        "encoder/blocks/attention/qkv": _LAYER + "attn.Wqkv",
        "encoder/blocks/attention/out": _LAYER + "attn.Wo",
        "encoder/blocks/attention_norm": _LAYER + "attn_norm",
        "encoder/blocks/mlp/up": _LAYER + "mlp.Wi",
        "encoder/blocks/mlp/down": _LAYER + "mlp.Wo",
        "encoder/blocks/mlp_norm": _LAYER + "mlp_norm",
        "encoder/final_norm": "final_norm",
    },
    head={
        "head/transform": "head.dense",
        "head/norm": "head.norm",
        "head/bias": "decoder.bias",
    },
    decoder=("decoder.weight", "decoder.bias"),
    fields={
        "vocab_size": ("vocab_size", 50368),
        "max_length": ("max_position_embeddings", 8192),
        "layers": ("num_hidden_layers", 22),
        "width": ("hidden_size", 768),
        "heads": ("num_attention_heads", 12),
        "mlp_width": ("intermediate_size", 1152),
        "activation": ("hidden_activation", "gelu"),
        "dropout": ("mlp_dropout", 0.0),
        "norm_eps": ("norm_eps", 1e-5),
        "init_scale": ("initializer_range", 0.02),
    },
    fixed={"rope_scaling": (None,), "quantization_config": (None,)},
    written={
        "norm_position": "pre",
        "norm": "layernorm",
        "embedding_norm": True,
        "positions": "rope",
        "gated": True,
        "token_types": 0,
    },
    bare_first_block=True,
)
_BIASES = ("norm_bias", "attention_bias", "mlp_bias", "classifier_bias")
_FULL, _LOCAL = "full_attention", "sliding_attention"
_THETAS = {_FULL: ("global_rope_theta", 160_000.0), _LOCAL: ("local_rope_theta", 10_000.0)}


def fields(told: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """Fields of `bert.Config` that follow from several keys.

    Args:
      told: config.json.
      layers: number of blocks.

    Raises:
      ValueError: keys that describe another encoder.
    """
    biases = {key: told.get(key, False) for key in _BIASES}
    use_bias = biases["norm_bias"]
    for key, value in biases.items():
        if value is not use_bias:
            refuse(key, value, f"{use_bias!r}, as norm_bias is")
    decoder_bias = told.get("decoder_bias", True)
    if use_bias and not decoder_bias:
        refuse("decoder_bias", decoder_bias, "True where norm_bias is")
    activations = [told.get(f"{part}_activation", "gelu") for part in ("hidden", "classifier")]
    if not any(all(name in theirs for name in activations) for theirs in ACTIVATIONS.values()):
        refuse("classifier_activation", activations[1], f"as hidden_activation, {activations[0]!r}")
    return {
        "norm_position": "pre",
        "embedding_norm": True,
        "positions": "rope",
        "gated": True,
        "token_types": 0,
        "use_bias": use_bias,
        "output_bias": bool(decoder_bias) and not use_bias,
        **_attention(told, layers),
    }


def keys(config: bert.Config) -> dict[str, Any]:
    """The inverse: keys of config.json beside those of `Family.fields`."""
    every = config.global_every
    local = config.attention == "local"
    layer_types = [
        _LOCAL if local and not (every and block % every == 0) else _FULL
        for block in range(config.layers)
    ]
    thetas = {_LOCAL: config.rope_theta, _FULL: config.rope_theta}
    if every:
        thetas[_FULL] = config.global_rope_theta
    activation = ACTIVATIONS[config.activation][0]
    return {
        **dict.fromkeys(_BIASES, config.use_bias),
        "decoder_bias": config.use_bias or config.output_bias,
        "classifier_activation": activation,
        "layer_types": layer_types,
        "local_attention": 2 * config.window,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in thetas.items()
        },
        # transformers 4 reads these instead of layer_types and rope_parameters.
        "global_attn_every_n_layers": every or (config.layers if local else 1),
        **{key: thetas[kind] for kind, (key, _) in _THETAS.items()},
        # The family's own lie in its vocabulary of 50,368.
        **dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")),
    }


def _attention(told: Mapping[str, Any], layers: int) -> dict[str, Any]:
    every = told.get("global_attn_every_n_layers", 3)
    types = told.get("layer_types")
    if types is None:
        if type(every) is not int or every < 1:
            refuse("global_attn_every_n_layers", every, "a whole number, at least 1")
        types = [_LOCAL if block % every else _FULL for block in range(layers)]
    thetas = {kind: _theta(told, kind) for kind in _THETAS}
    if types == [_FULL] * layers:
        return {"attention": "full", "rope_theta": thetas[_FULL]}
    window = told.get("local_attention", 128)
    if type(window) is not int or window < 2:
        refuse("local_attention", window, "a whole number, at least 2")
    local = {"attention": "local", "window": window // 2, "rope_theta": thetas[_LOCAL]}
    if types == [_LOCAL] * layers:
        return local
    everywhere = [block for block, kind in enumerate(types) if kind == _FULL]
    every = everywhere[1] if len(everywhere) > 1 else layers
    if types != [_LOCAL if block % every else _FULL for block in range(layers)]:
        accepted = f"{layers} of them, {_FULL!r} at 0, n, 2n, ... and {_LOCAL!r} between"
        refuse("layer_types", types, accepted)
    return {**local, "global_every": every, "global_rope_theta": thetas[_FULL]}


def _theta(told: Mapping[str, Any], kind: str) -> float:
    key, default = _THETAS[kind]
    told_rope = told.get("rope_parameters") or {}
    rope = (told_rope.get(kind) or {}) if isinstance(told_rope, dict) else None
    if not isinstance(rope, dict):
        refuse("rope_parameters", told_rope, f"a table of tables, for {_FULL} and {_LOCAL}")
    if rope.get("rope_type", "default") != "default":
        refuse("rope_type", rope["rope_type"], "'default'")
    theta = rope.get("rope_theta", told.get(key, default))
    if theta is None and kind == _LOCAL:  # as transformers 4 has it
        return _theta(told, _FULL)
    if type(theta) not in (int, float):
        refuse(key, theta, "a number")
    return float(theta)
