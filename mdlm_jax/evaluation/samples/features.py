"""Features of rows of tokens by an encoder of this library, for MAUVE and BERTScore.

    trained = workdir.load(folder)
    rows = features.reencode(samples, tokenizer, trained.tokenizer, trained.encoder.max_length)
    features.of_rows(trained.params, trained.encoder, rows)  # f32[N, D]

Take the encoder of another run than the one that wrote the samples: a model's own features see only
what it has learned. Means over tokens reflect words and topics; those of a small encoder reflect
little of the word order.
"""

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tokenizers import Tokenizer

from mdlm_jax import data
from mdlm_jax.evaluation import spreading
from mdlm_jax.networks import bert

Array = jax.Array


def of_rows(
    params: Any,
    encoder: bert.Config,
    rows: data.Rows,
    *,
    batch_size: int = 32,
    mesh: Mesh | None = None,
) -> np.ndarray:
    """The mean over a row's tokens of the encoder's last hidden states, padding left out.

    The text is read without masks, at time 0 and without a class.

    Args:
      params: of the encoder.
      encoder: the config of the encoder.
      rows: N rows in the encoder's own tokens; see `reencode`.
      batch_size: rows at a time; one program is compiled for each size.
      mesh: as of `spreading.over_rows`.

    Returns:
      f32[N, D].

    Raises:
      ValueError: rows that the encoder cannot read: empty, too long, or with foreign ids.
    """
    return _collect(params, encoder, rows, batch_size, mesh, pooled=True)


def of_tokens(
    params: Any,
    encoder: bert.Config,
    rows: data.Rows,
    *,
    batch_size: int = 32,
    mesh: Mesh | None = None,
) -> np.ndarray:
    """The encoder's last hidden state of every token, 0 at padding: f32[N, L, D].

    Arguments and errors as for `of_rows`.
    """
    return _collect(params, encoder, rows, batch_size, mesh, pooled=False)


def reencode(rows: data.Rows, tokenizer: Tokenizer, other: Tokenizer, length: int) -> data.Rows:
    """Rows of one tokenizer in the tokens of another, document by document.

    Rows of the same tokenizer that fit are returned as they are. A separator becomes the other's
    separator. A row is cut after `length` tokens. A row without text becomes one separator.

    Args:
      rows: N rows.
      tokenizer: of the rows.
      other: of what is returned.
      length: of the rows that are returned.

    Returns:
      N padded rows `[N, length]` with their labels, of the same shape for any text.
    """
    if tokenizer.to_str() == other.to_str() and rows.tokens.shape[1] <= length:
        return rows
    separator, pad = data.special_ids(tokenizer).sep, data.special_ids(other).pad
    parts = [np.split(row, np.flatnonzero(row == separator)) for row in rows.texts()]
    documents = (data.decode(tokenizer, part) for row in parts for part in row)
    encoded = data.encode_documents(other, documents)  # each ended by a separator
    found = [np.concatenate([next(encoded) for _ in row]) for row in parts]
    # A separator was added after the last piece, which is no whole document: cut it off.
    found = [row[: max(len(row) - 1, 1)][:length] for row in found]
    sizes = np.array([len(row) for row in found], np.int32)
    tokens = np.full((len(found), length), pad, np.int32)
    tokens[np.arange(length) < sizes[:, None]] = np.concatenate(found)
    return data.Rows(tokens, rows.labels, sizes)


def _collect(
    params: Any,
    encoder: bert.Config,
    rows: data.Rows,
    batch_size: int,
    mesh: Mesh | None,
    *,
    pooled: bool,
) -> np.ndarray:
    _check(encoder, rows)
    parts = _over_rows(encoder, pooled, mesh)(params, rows, batch_size)
    return np.concatenate(parts)[: len(rows)]


@lru_cache(maxsize=64)
def _over_rows(encoder: bert.Config, pooled: bool, mesh: Mesh | None) -> Any:
    def of_batch(params: Any, batch: dict[str, Array]) -> Array:
        return _states(params, encoder, batch["tokens"], batch.get("valid"), pooled=pooled)

    return spreading.over_rows(of_batch, mesh)


def _states(
    params: Any, encoder: bert.Config, tokens: Array, valid: Array | None, *, pooled: bool
) -> Array:
    """Hidden states f32[B, L, D] of a batch, or where `pooled` their means f32[B, D]."""
    lengths = bert.row_lengths(valid)
    states = bert.hidden_states(params, encoder, tokens, jnp.zeros(len(tokens)), valid=lengths)
    states = states.astype(jnp.float32)
    weight = jnp.ones(tokens.shape) if valid is None else valid.astype(jnp.float32)
    # The states at padding are undefined, and may be nan.
    states = jnp.where(weight[..., None] > 0, states, 0.0)
    if not pooled:
        return states
    return states.sum(axis=1) / jnp.maximum(weight.sum(axis=1), 1.0)[:, None]


def _check(encoder: bert.Config, rows: data.Rows) -> None:
    rows.check("rows", encoder.vocab_size)
    length = rows.tokens.shape[1]
    if length > encoder.max_length:
        raise ValueError(f"rows have length {length}: max_length is {encoder.max_length}")
