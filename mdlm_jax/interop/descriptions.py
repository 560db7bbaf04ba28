"""config.json, read into a `bert.Config` and written from one."""

from pathlib import Path
from typing import Any, NamedTuple

from mdlm_jax.data import json_text
from mdlm_jax.interop import modernbert
from mdlm_jax.interop.families import (
    ACTIVATIONS,
    BERT,
    DISTILBERT,
    DISTILBERT_NORM_EPS,
    ROBERTA,
    Family,
    refuse,
)
from mdlm_jax.interop.modernbert import MODERNBERT
from mdlm_jax.networks import bert

FAMILIES = {family.model_type: family for family in (BERT, ROBERTA, DISTILBERT, MODERNBERT)}

# What sizes and rates are below: a table of more rows has no positions that are numbered.
_LARGEST = 2**31

# No family has these.
_NEVER = {"qk_norm": False, "time_conditioning": False, "classes": 0}


class Description(NamedTuple):
    """The contents of a config.json.

    Attributes:
      family: whose it is.
      config: of the encoder; its mask_id is 0, because config.json does not hold it.
      mask_id: if our own `write` has written it, else None.
      position_offset: rows of the position table before that of the first position.
      type_rows: rows of the token-type table.
      tied: whether the output layer's matrix is the embedding table.
    """

    family: Family
    config: bert.Config
    mask_id: int | None
    position_offset: int
    type_rows: int
    tied: bool


def read(folder: Path) -> Description:
    """Reads the config.json of a folder.

    A dropout rate of the attention weights is ignored; `bert.Config.dropout` says why.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is damaged, of another family, or asks for what the encoder does not compute.
        The message names the key and what is accepted.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no config.json: it is no Hugging Face checkpoint")
    contents = json_text.load(path)
    model_type = contents.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ValueError(f"{path}: model_type={model_type!r}: must be one of {list(FAMILIES)}")
    family = FAMILIES[model_type]
    try:
        return _described(family, contents)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def write(config: bert.Config, pad_id: int | None) -> tuple[Family, dict[str, Any]]:
    """The family a model is written as, and its config.json.

    Pre-norm it is ModernBERT; else BERT, or without token types DistilBERT.

    Args:
      config: of the model.
      pad_id: the padding token, if known.

    Raises:
      ValueError: no family computes the same; every field that stands in the way is named.
    """
    family = BERT if config.token_types else DISTILBERT
    if config.norm_position == "pre":
        family = MODERNBERT
    differing = [
        f"{name}={getattr(config, name)!r} must be {value!r}"
        for name, value in {**family.written, **_NEVER}.items()
        if getattr(config, name) != value
    ]
    if family is MODERNBERT and config.attention == "causal":
        differing.append("attention='causal' must be 'full' or 'local'")
    if differing:
        raise ValueError(
            f"the model cannot be written as {family.architecture}: {', '.join(differing)}"
        )
    contents: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "mask_token_id": config.mask_id,
        "tie_word_embeddings": True,
        # It is never dropped here: training goes on as it did.
        "attention_probs_dropout_prob" if family is BERT else "attention_dropout": 0.0,
        "pad_token_id": pad_id,
    }
    for field, (key, _) in family.fields.items():
        value = getattr(config, field)
        contents[key] = ACTIVATIONS[value][0] if field == "activation" else value
    return family, contents | (modernbert.keys(config) if family is MODERNBERT else {})


def _described(family: Family, contents: dict[str, Any]) -> Description:
    for key, accepted in family.fixed.items():
        value = contents.get(key, accepted[0])
        if value not in accepted:
            refuse(key, value, " or ".join(repr(each) for each in accepted))
    fields = {field: _value(contents, field, *key) for field, key in family.fields.items()}
    fields["activation"] = _activation(family, fields["activation"])
    types = fields.get("token_types", 0)
    if family is DISTILBERT:
        fields |= {"token_types": 0, "norm_eps": DISTILBERT_NORM_EPS}
    elif family is MODERNBERT:
        fields |= modernbert.fields(contents, fields["layers"])
    elif types not in (1, 2):
        refuse("type_vocab_size", types, "1 or 2")
    else:
        fields["token_types"] = 2  # One type is two of which the second is never asked for.
    offset = 0
    if family is ROBERTA:
        pad = contents.get("pad_token_id", 1)
        if type(pad) is not int or not 0 <= pad < fields["max_length"] - 1:
            refuse("pad_token_id", pad, "the number of a row of the position table but the last")
        offset = pad + 1
        fields["max_length"] -= offset
    try:
        config = bert.Config(**fields, mask_id=0)
    except ValueError as error:
        field = str(error).partition("=")[0]
        raise ValueError(f"{family.fields.get(field, [field])[0]}, our {error}") from None
    mask_id = contents.get("mask_token_id")
    return Description(
        family,
        config,
        mask_id if type(mask_id) is int else None,
        offset,
        types,
        tied=bool(contents.get("tie_word_embeddings", True)),
    )


def _value(contents: dict[str, Any], field: str, key: str, default: Any) -> Any:
    value = contents.get(key, default)
    if isinstance(default, str):
        return value  # looked up by who reads it
    wanted = (int, float) if isinstance(default, float) else (int,)
    if type(value) not in wanted or not abs(value) < _LARGEST:
        accepted = "a number" if float in wanted else "a whole number"
        refuse(key, value, f"{accepted} below 2^31")
    return float(value) if isinstance(default, float) else value


def _activation(family: Family, name: Any) -> str:
    for ours, theirs in ACTIVATIONS.items():
        if name in theirs:
            return ours
    accepted = [name for theirs in ACTIVATIONS.values() for name in theirs]
    refuse(family.fields["activation"][0], name, f"one of {accepted}")
