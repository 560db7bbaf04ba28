"""A version of a model: everything that decides its text, with digests.

version = digests.of(mdlm_jax.load("runs/quickstart"), Options(steps=64), dtype="bfloat16")
version.digest  # equal for equal parameters, tokenizer, sampler, steps and dtype, anywhere
digests.fingerprint(version, encoder, slots=8, length=128, device=jax.devices()[0])
"""

import dataclasses
import hashlib
import json
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jaxlib
import numpy as np

from mdlm_jax import __version__
from mdlm_jax.runs.families import network_of
from mdlm_jax.writing import prompts, requests
from mdlm_jax.writing.model import Model

FORMAT = 1

# Of a network's config: what changes how it is trained or compiled, and not what it means.
_NO_MEANING = (
    "attention_backend",
    "class_dropout",
    "dropout",
    "dtype",
    "init_scale",
    "remat",
    "scan",
    "vocab_multiple",
)
_CARD = ("prompt_field", "messages_field")  # which decide how a prompt is laid out
_VECTORS = re.compile(r"amx|asimd|avx|bf16|f16c|fma|neon|sse|sve")


@dataclasses.dataclass(frozen=True)
class Version:
    """Parameters, tokenizer, sampler, default steps and dtype. It never changes.

    Attributes:
      weights: sha256 of the parameters. Versions with equal ones can share them in memory.
      model: sha256 of all that the folder of a model decides of its text: parameters, tokenizer,
        network, objective, and how prompts are laid out.
      defaults: how it writes where a request does not say.
      dtype: of the activations, 'float32' or 'bfloat16'.
    """

    weights: str
    model: str
    defaults: requests.Options
    dtype: str

    @property
    def digest(self) -> str:
        """sha256 of the bytes that decide its text, in hexadecimal digits."""
        return _digest({"format": FORMAT, **self.as_json()})

    def as_json(self) -> dict[str, Any]:
        """The fields; of the defaults those that are set, so that new options change no digest."""
        return {
            "weights": self.weights,
            "model": self.model,
            "defaults": set_options(self.defaults),
            "dtype": self.dtype,
        }

    def of_model(self, model: Model) -> Model:
        """The model in the dtype of the version.

        Raises:
          ValueError: the network has no such dtype.
        """
        encoder = dataclasses.replace(model.encoder, dtype=self.dtype)
        return dataclasses.replace(model, model=model.model._replace(encoder=encoder))


def of(model: Model, defaults: requests.Options, dtype: str | None = None) -> Version:
    """The version of a loaded model. Reads every parameter once.

    Args:
      model: from `writing.model.load`.
      defaults: how it writes. Steps and strategy are written out where they are not given.
      dtype: of the activations; by default that of the training.

    Raises:
      ValueError: another dtype, or options that the model cannot take; they are named.
    """
    encoder = dataclasses.replace(model.encoder, dtype=dtype or model.encoder.dtype)
    written_out = _written_out(model, defaults)
    _check(model, written_out)
    weights = weights_digest(model.params, model.encoder)
    return Version(weights, _model_digest(model, weights), written_out, encoder.dtype)


def from_json(fields: Mapping[str, Any]) -> Version:
    """What `Version.as_json` gave.

    Raises:
      ValueError: it is no version, or one of a newer format.
    """
    try:
        defaults = dict(fields["defaults"])
        if "forbid" in defaults:
            defaults["forbid"] = tuple(defaults["forbid"])
        named = {name: fields[name] for name in ("weights", "model", "dtype")}
        return Version(defaults=requests.Options(**defaults), **named)
    except (KeyError, TypeError) as error:
        raise ValueError(f"no version that mdlm_jax {__version__} reads: {error}") from None


def set_options(options: requests.Options) -> dict[str, Any]:
    """The options that differ from those of `requests.Options()`, for JSON."""
    fields = [(f.name, f.default, getattr(options, f.name)) for f in dataclasses.fields(options)]
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, default, value in fields
        if value != default
    }


def fingerprint(
    version: Version, encoder: Any, *, slots: int, length: int, device: jax.Device
) -> str:
    """A short hash of everything that decides a bit of what a server writes.

    Equal ones promise the same text for the same request and seed. Beside the version these are the
    shape of the compiled program, how it was compiled, and by what for what.

    Args:
      version: what is served.
      encoder: the network as it is compiled.
      slots: rows of a batch.
      length: tokens of a row: the bucket of the request.
      device: one of those that compute.
    """
    parts = {
        "version": version.digest,
        "encoder": dataclasses.asdict(encoder),
        "slots": slots,
        "length": length,
        "device": device_kind(device),
        "jax": (jax.__version__, jaxlib.__version__),
        "mdlm_jax": __version__,
        "precision": str(jax.config.jax_default_matmul_precision),
        "generator": str(jax.config.jax_default_prng_impl),
    }
    return f"fp_{_digest(parts)[:12]}"


def device_kind(device: jax.Device) -> str:
    """The kind of a device, as far as it decides a bit: of a CPU, the vectors it computes with."""
    if device.platform != "cpu":
        return device.device_kind
    return f"{platform.machine()} {' '.join(_vectors())}"


def weights_digest(params: Any, encoder: Any) -> str:
    """sha256 of parameters: names, shapes, types and values, one leaf at a time.

    Rows that a mesh or an alignment added to the vocabulary do not count.
    """
    padded = network_of(encoder).padded_leaves(encoder)
    digest = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        value = np.ascontiguousarray(jax.device_get(leaf))
        if name.endswith(padded):
            value = value[: encoder.vocab_size]
        digest.update(f"{name} {value.dtype} {value.shape}\n".encode())
        digest.update(value.reshape(-1).view(np.uint8))
    return digest.hexdigest()


def _model_digest(model: Model, weights: str) -> str:
    own, config = model.model, model.card.get("config", {})
    network = dataclasses.asdict(own.encoder)
    return _digest(
        {
            "weights": weights,
            "tokenizer": hashlib.sha256(own.tokenizer.to_str().encode()).hexdigest(),
            "network": {name: network[name] for name in network if name not in _NO_MEANING},
            "objective": dataclasses.asdict(own.objective),
            "rows": {"length": own.length, "padded": own.padded, "framed": own.framed},
            "prompts": {name: bool(config.get(name)) for name in _CARD},
            "chat_template": model.card.get("chat_template"),
            "labels": model.card.get("label_names"),
        }
    )


def _written_out(model: Model, defaults: requests.Options) -> requests.Options:
    if not isinstance(defaults.forbid, str):  # else `_check` says so
        defaults = dataclasses.replace(defaults, forbid=tuple(defaults.forbid))
    if model.model.family.is_causal:
        return defaults
    steps = 64 if defaults.steps is None else defaults.steps
    return dataclasses.replace(
        defaults, steps=steps, strategy=(defaults.strategy or "exact_count").strip()
    )


def _check(model: Model, options: requests.Options) -> None:
    """Plans an empty prompt: what no request could use is refused before it is stored."""
    names = model.card.get("label_names", ())
    label = names[0] if names and options.guidance is not None else None
    asking = prompts.asking(model.card, model.tokenizer)
    asked = [prompts.Prompt("", label)]
    requests.plan(model.model, asked, options, asking=asking, label_names=names)


def _vectors() -> list[str]:
    """What XLA may compile for: the flags of this CPU that are about vectors."""
    try:
        flags = re.findall(r"^(?:flags|Features)\s*:(.*)", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:  # not Linux
        return [platform.processor()]
    return sorted({word for line in flags for word in line.split() if _VECTORS.match(word)})


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
