"""A pretrained masked language model: read from Hugging Face's files, and written to them."""

import dataclasses
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from mdlm_jax import data
from mdlm_jax.interop import descriptions, hub, layout, named_arrays, vocabulary, weights
from mdlm_jax.networks import bert

PyTree = Any


class Pretrained(NamedTuple):
    """A model, ready for `bert.denoiser(params, config)`.

    Attributes:
      params: as of `bert.init(key, config)`, float32.
      config: what they are the parameters of.
      tokenizer: None where the folder has none.
    """

    params: PyTree
    config: bert.Config
    tokenizer: Tokenizer | None


class Read(NamedTuple):
    """A model in host memory, and lines about it for the user."""

    pretrained: Pretrained
    notes: tuple[str, ...]


def load_pretrained(path_or_name: str | Path, *, mask_id: int | None = None) -> Pretrained:
    """Reads a checkpoint of Hugging Face.

    `BertForMaskedLM`, `BertForPreTraining`, `RobertaForMaskedLM`, `DistilBertForMaskedLM`,
    `ModernBertForMaskedLM`, and models of these families without their masked-LM head, whose head
    is then new. Each thing that is new, left out or assumed is a line on stderr. RoBERTa's
    positions are those of rows that are padded on the right.

    Args:
      path_or_name: a folder; or, if there is none, a name of the Hugging Face hub.
      mask_id: the mask token, if the folder has no tokenizer with one.

    Returns:
      The model, its parameters on the default device.

    Raises:
      FileNotFoundError: no folder there, or a file of it is missing.
      ValueError: a file is damaged; config.json asks for what the encoder does not compute; weights
        are missing or of another shape (all are named); the hub does not provide it; tokenizer and
        model do not fit.
      ImportError: a library that reads the file is not installed.
    """
    pretrained, notes = read_pretrained(path_or_name, mask_id=mask_id)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    return pretrained._replace(params=jax.tree.map(jnp.asarray, pretrained.params))


def read_pretrained(path_or_name: str | Path, *, mask_id: int | None = None) -> Read:
    """As `load_pretrained`, with NumPy arrays on no device. It prints nothing."""
    folder = hub.folder(path_or_name)
    described = descriptions.read(folder)
    size = described.config.vocab_size
    given = described.mask_id if mask_id is None else mask_id
    if given is not None and not 0 <= given < size:
        raise ValueError(f"mask_id={given}: must be in [0, {size}), the model's vocabulary")
    words = vocabulary.read(folder, size, given)
    found = named_arrays.select(folder, described, weights.read(folder))
    params = layout.to_params(described.family, described.config, found.arrays, head=found.head)
    if not found.head:
        params["head"] = jax.device_get(_new_head(described.config))
    if words.mask_id >= size:
        params = _with_mask(params, words.mask_id)
        size = words.mask_id + 1
    config = dataclasses.replace(described.config, mask_id=words.mask_id, vocab_size=size)
    notes = tuple(f"{folder}: {note}" for note in (*words.notes, *found.notes))
    return Read(Pretrained(params, config, words.tokenizer), notes)


def read_architecture(path_or_name: str | Path) -> bert.Config:
    """The network of a config.json. No weights are read or fetched.

    Its mask_id is 0, because config.json does not hold it.

    Raises:
      FileNotFoundError, ValueError: as `load_pretrained`.
    """
    return descriptions.read(hub.folder(path_or_name, weights=False)).config


def save_pretrained(folder: str | Path, pretrained: Pretrained) -> None:
    """Writes a folder that `AutoModelForMaskedLM` and `AutoTokenizer` of transformers open.

    A pre-norm model is written as ModernBERT. Of the others, one with token types is written as
    BERT (RoBERTa's too, which computes the same), and one without as DistilBERT. `load_pretrained`
    gives the same parameters again, to the bit.

    Args:
      folder: empty, or made if it is missing.
      pretrained: the model; the padding of its vocabulary is left out.

    Raises:
      ValueError: the folder is not empty, no family computes the same as the model (the fields are
        named), or the parameters are not those of the config.
      ImportError: the safetensors library is not installed.
    """
    folder = Path(folder)
    params, config, tokenizer = pretrained
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not an empty folder: take another")
    pad_id = None if tokenizer is None else data.special_ids(tokenizer).pad
    family, contents = descriptions.write(config, pad_id)
    config, params = _without_padding(config, params)
    arrays = layout.from_params(family, config, params)
    folder.mkdir(parents=True, exist_ok=True)
    weights.write(folder / "model.safetensors", named_arrays.prefixed(family, arrays))
    if tokenizer is not None:
        vocabulary.write(folder, tokenizer, config)
    text = json.dumps(contents, indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")  # last: now it is a checkpoint
    # safetensors makes its files unreadable for others.
    (folder / "model.safetensors").chmod((folder / "config.json").stat().st_mode)


@partial(jax.jit, static_argnums=0)
def _new_head(config: bert.Config) -> PyTree:
    """A fresh masked-LM head, always the same. The rest of `init` is not computed."""
    return bert.init(jax.random.key(0), config)["head"]


def _with_mask(params: PyTree, mask_id: int) -> PyTree:
    """Adds a row for the mask, the mean of all others (Hewitt 2021), and its bias, 0."""
    embeddings = params["encoder"]["embeddings"]
    table = embeddings["tokens"]
    rows = mask_id + 1 - len(table)
    more = np.tile(table.mean(axis=0), (rows, 1))
    embeddings = {**embeddings, "tokens": np.concatenate([table, more])}
    head = dict(params["head"])
    if "bias" in head:
        head["bias"] = np.append(head["bias"], np.zeros(rows, np.float32))
    return {"encoder": {**params["encoder"], "embeddings": embeddings}, "head": head}


def _without_padding(config: bert.Config, params: PyTree) -> tuple[bert.Config, PyTree]:
    """The same model in host memory, with a vocabulary that is not padded."""
    padded = bert.padded_leaves(config)
    shapes = jax.eval_shape(lambda: bert.init(jax.random.key(0), config))
    if jax.tree.map(np.shape, params) != jax.tree.map(lambda x: x.shape, shapes):
        raise ValueError("the parameters are not those of the config: they must be as of bert.init")

    def trim(path: tuple, x: Any) -> np.ndarray:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return np.asarray(x)[: config.vocab_size] if name in padded else np.asarray(x)

    plain = dataclasses.replace(config, vocab_multiple=1)
    return plain, jax.tree.map_with_path(trim, params)
