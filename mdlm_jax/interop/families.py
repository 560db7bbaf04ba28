"""The families of masked language models that can be read and written, with a table for each.

A table holds the family's names of our modules, and the keys of its config.json for the fields of
`bert.Config`. The families here are BERT (Devlin et al. 2019) with other names. RoBERTa (Liu et al.
2019) begins its positions behind the padding's, and DistilBERT (Sanh et al. 2019) has no token
types.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn

# Ours: theirs, which differ in rounding only; the first is written.
ACTIVATIONS = {
    "gelu": ("gelu", "gelu_python"),
    "gelu_tanh": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"),
    "silu": ("silu", "swish"),
}


class Family(NamedTuple):
    """One family.

    Attributes:
      model_type: what config.json calls it.
      architecture: its masked language model.
      prefix: of the encoder's names, if there is a head.
      modules: path of our module, or of a lone array, to its module or array; three of them where
        ours is their stack. `{}` is the number of the block.
      head: the same, of the masked-LM head.
      decoder: names of the output layer's matrix and bias, which repeat what `modules` and `head`
        name and may be absent.
      fields: field of `bert.Config` to key of config.json and the value of a key that is absent.
      fixed: values that a key must have, the first of them where it is absent.
      written: fields that a model must have to be written as this family; with none it never is.
      bare_first_block: whether its first block has no norm before attention.
    """

    model_type: str
    architecture: str
    prefix: str
    modules: Mapping[str, str | tuple[str, ...]]
    head: Mapping[str, str]
    decoder: tuple[str, str]
    fields: Mapping[str, tuple[str, Any]]
    fixed: Mapping[str, tuple]
    written: Mapping[str, Any] = MappingProxyType({})
    bare_first_block: bool = False


def refuse(key: str, value: Any, accepted: str) -> NoReturn:
    """Raises the ValueError of a key of config.json."""
    raise ValueError(f"{key}={value!r}: must be {accepted}")


_BLOCK = "encoder.layer.{}."
_BERT_MODULES = {
    "encoder/embeddings/tokens": "embeddings.word_embeddings.weight",
    "encoder/embeddings/positions": "embeddings.position_embeddings.weight",
    "encoder/embeddings/token_types": "embeddings.token_type_embeddings.weight",
    "encoder/embeddings/norm": "embeddings.LayerNorm",
    "encoder/blocks/attention/qkv": (
        _BLOCK + "attention.self.query",
        _BLOCK + "attention.self.key",
        _BLOCK + "attention.self.value",
    ),
    "encoder/blocks/attention/out": _BLOCK + "attention.output.dense",
    "encoder/blocks/attention_norm": _BLOCK + "attention.output.LayerNorm",
    "encoder/blocks/mlp/up": _BLOCK + "intermediate.dense",
    "encoder/blocks/mlp/down": _BLOCK + "output.dense",
    "encoder/blocks/mlp_norm": _BLOCK + "output.LayerNorm",
}
_BERT_FIELDS = {
    "vocab_size": ("vocab_size", 30522),
    "max_length": ("max_position_embeddings", 512),
    "layers": ("num_hidden_layers", 12),
    "width": ("hidden_size", 768),
    "heads": ("num_attention_heads", 12),
    "mlp_width": ("intermediate_size", 3072),
    "activation": ("hidden_act", "gelu"),
    "dropout": ("hidden_dropout_prob", 0.1),
    "token_types": ("type_vocab_size", 2),
    "norm_eps": ("layer_norm_eps", 1e-12),
    "init_scale": ("initializer_range", 0.02),
}
_BERT_FIXED = {
    "position_embedding_type": ("absolute", None),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
}
_BERT_WRITTEN = {
    "norm_position": "post",
    "norm": "layernorm",
    "positions": "learned",
    "gated": False,
    "attention": "full",
    "use_bias": True,
}

BERT = Family(
    model_type="bert",
    architecture="BertForMaskedLM",
    prefix="bert.",
    modules=_BERT_MODULES,
    head={
        "head/transform": "cls.predictions.transform.dense",
        "head/norm": "cls.predictions.transform.LayerNorm",
        "head/bias": "cls.predictions.bias",
    },
    decoder=("cls.predictions.decoder.weight", "cls.predictions.decoder.bias"),
    fields=_BERT_FIELDS,
    fixed=_BERT_FIXED,
    written={**_BERT_WRITTEN, "token_types": 2},
)

ROBERTA = Family(
    model_type="roberta",
    architecture="RobertaForMaskedLM",
    prefix="roberta.",
    modules=_BERT_MODULES,
    head={
        "head/transform": "lm_head.dense",
        "head/norm": "lm_head.layer_norm",
        "head/bias": "lm_head.bias",
    },
    decoder=("lm_head.decoder.weight", "lm_head.decoder.bias"),
    fields={**_BERT_FIELDS, "vocab_size": ("vocab_size", 50265)},
    # Its head has the exact GELU, whatever hidden_act says.
    fixed={**_BERT_FIXED, "hidden_act": ("gelu", "gelu_python")},
)

DISTILBERT_NORM_EPS = 1e-12  # from its code; config.json does not hold it
_LAYER = "transformer.layer.{}."
DISTILBERT = Family(
    model_type="distilbert",
    architecture="DistilBertForMaskedLM",
    prefix="distilbert.",
    modules={
        "encoder/embeddings/tokens": "embeddings.word_embeddings.weight",
        "encoder/embeddings/positions": "embeddings.position_embeddings.weight",
        "encoder/embeddings/norm": "embeddings.LayerNorm",
        "encoder/blocks/attention/qkv": (
            _LAYER + "attention.q_lin",
            _LAYER + "attention.k_lin",
            _LAYER + "attention.v_lin",
        ),
        "encoder/blocks/attention/out": _LAYER + "attention.out_lin",
        "encoder/blocks/attention_norm": _LAYER + "sa_layer_norm",
        "encoder/blocks/mlp/up": _LAYER + "ffn.lin1",
        "encoder/blocks/mlp/down": _LAYER + "ffn.lin2",
        "encoder/blocks/mlp_norm": _LAYER + "output_layer_norm",
    },
    head={
        "head/transform": "vocab_transform",
        "head/norm": "vocab_layer_norm",
        "head/bias": "vocab_projector.bias",
    },
    decoder=("vocab_projector.weight", "vocab_projector.bias"),
    fields={
        "vocab_size": ("vocab_size", 30522),
        "max_length": ("max_position_embeddings", 512),
        "layers": ("n_layers", 6),
        "width": ("dim", 768),
        "heads": ("n_heads", 12),
        "mlp_width": ("hidden_dim", 3072),
        "activation": ("activation", "gelu"),
        "dropout": ("dropout", 0.1),
        "init_scale": ("initializer_range", 0.02),
    },
    fixed={"pruned_heads": ({}, None), "quantization_config": (None,)},
    written={**_BERT_WRITTEN, "token_types": 0, "norm_eps": DISTILBERT_NORM_EPS},
)
