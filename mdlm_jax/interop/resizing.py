"""Another vocabulary for a pretrained model, in which known tokens keep their rows."""

import dataclasses
from typing import NamedTuple

import jax
import numpy as np
from tokenizers import Tokenizer

from mdlm_jax import data
from mdlm_jax.interop.pretrained import Pretrained
from mdlm_jax.networks import bert


class Resized(NamedTuple):
    """A model with another vocabulary.

    Attributes:
      pretrained: the model in host memory, the vocabulary not padded.
      found: tokens of the vocabulary that keep rows of the model.
      size: tokens of the vocabulary.
    """

    pretrained: Pretrained
    found: int
    size: int


def resize_vocabulary(pretrained: Pretrained, tokenizer: Tokenizer) -> Resized:
    """Gives a model the vocabulary of another tokenizer.

    A token takes the row of the embeddings, and the output bias, of the token with the same role
    (mask, separator, padding, unknown, start) or else the same spelling. A new token gets the mean
    of all rows (Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language Models") and
    the mean of all biases. Its logit is then the mean of the old ones in any context, and its
    exponential is at most their mean exponential (Jensen). So it takes no more probability than an
    old token does on average. With a bias of 0 it could take more where the others are negative.

    Args:
      pretrained: the model. If it has no tokenizer, its rows must be as many as the tokens of
        `tokenizer` and in their order.
      tokenizer: one with a mask and a separator. Ids that it leaves out get the mean too.

    Raises:
      ValueError: the model has no tokenizer and another number of tokens.
    """
    config, size = pretrained.config, data.vocabulary_size(tokenizer)
    if pretrained.tokenizer is not None:
        source = _sources(pretrained.tokenizer, tokenizer)
    elif config.vocab_size == size:
        source = np.arange(size)
    else:
        raise ValueError(
            f"the checkpoint has no tokenizer for its {config.vocab_size:,} tokens: data."
            f"tokenizer must have as many, and has {size:,}"
        )
    tables = bert.padded_leaves(config)

    def resize(path: tuple, x: np.ndarray) -> np.ndarray:
        if jax.tree_util.keystr(path, simple=True, separator="/") not in tables:
            return x
        old = x[: config.vocab_size]
        mean = old.mean(axis=0, dtype=np.float64).astype(old.dtype)
        known = (source >= 0).reshape(-1, *[1] * (old.ndim - 1))
        return np.where(known, old[source], mean)

    params = jax.tree.map_with_path(resize, jax.tree.map(np.asarray, pretrained.params))
    config = dataclasses.replace(
        config, vocab_size=size, mask_id=data.special_ids(tokenizer).mask, vocab_multiple=1
    )
    return Resized(Pretrained(params, config, tokenizer), int((source >= 0).sum()), size)


def _sources(old: Tokenizer, new: Tokenizer) -> np.ndarray:
    """For each id of `new` the id of the same token in `old`, or -1."""
    source = np.full(data.vocabulary_size(new), -1)
    ids = old.get_vocab(with_added_tokens=True)
    for token, index in new.get_vocab(with_added_tokens=True).items():
        source[index] = ids.get(token, -1)
    theirs = _roles(old)
    for role, index in _roles(new).items():
        source[index] = theirs.get(role, source[index])
    return source


def _roles(tokenizer: Tokenizer) -> dict[str, int]:
    ids = data.special_ids(tokenizer)
    roles = {role: index for role, index in ids._asdict().items() if index is not None}
    if ids.pad == ids.sep:  # it has no padding of its own
        del roles["pad"]
    return roles
