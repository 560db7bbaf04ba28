"""Another vocabulary for a pretrained model: what it knows of a token goes with the token."""

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
      pretrained: its parameters in the machine's memory, the vocabulary not padded.
      found: tokens of the vocabulary whose rows are those that the model had.
      size: tokens of the vocabulary.
    """

    pretrained: Pretrained
    found: int
    size: int


def resize_vocabulary(pretrained: Pretrained, tokenizer: Tokenizer) -> Resized:
    """Gives a model the vocabulary of another tokenizer.

    A token takes the row of the embeddings, and the output bias, of the token that has its role
    (mask, separator, padding, unknown, start) or else is spelt as it is. A new token gets the mean
    of all rows (Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language Models") and
    the mean of all biases. Its logit is then the mean of the old ones in any context, and its
    exponential at most their mean exponential (Jensen): it takes no more of the probability than
    the old tokens do on average. With a bias of 0, where the others are negative, it could.

    Args:
      pretrained: the model. Where it has no tokenizer, the rows are taken to be in the order of
        `tokenizer`, of which there must be as many.
      tokenizer: with a mask and a separator. Ids that it leaves out get the mean too.

    Raises:
      ValueError: the model has no tokenizer, and another number of tokens.
    """
    config, size = pretrained.config, data.vocabulary_size(tokenizer)
    if pretrained.tokenizer is not None:
        source = _sources(pretrained.tokenizer, tokenizer)
    elif config.vocab_size == size:
        source = np.arange(size)
    else:
        raise ValueError(
            f"the checkpoint has no tokenizer to tell its {config.vocab_size:,} tokens: data."
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
    """For each id of `new` the id of the same token in `old`, -1 where there is none."""
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
