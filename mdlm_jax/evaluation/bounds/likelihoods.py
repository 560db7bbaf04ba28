"""Likelihood of a split of text: the NELBO with its two errors, or exactly by the chain rule."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mdlm_jax import data
from mdlm_jax.diffusion import (
    Denoiser,
    Likelihood,
    Schedule,
    blocks,
    causal_likelihood,
    nelbo,
    noise,
    schedules,
)
from mdlm_jax.evaluation import spreading
from mdlm_jax.evaluation.bounds.text_sizes import TextSize
from mdlm_jax.networks import bert

Array = jax.Array
PyTree = Any
DenoiserOf = Callable[[PyTree, dict[str, Array]], Denoiser]  # (params, batch) -> Denoiser
BlockDenoiserOf = Callable[[PyTree, dict[str, Array]], blocks.BlockDenoiser]
OfRows = Callable[..., Likelihood]  # (params, rows, batch_size, advance)

_NORMAL_95 = 1.959964  # standard errors to each side of a 95 % interval


@functools.lru_cache(maxsize=64)
def denoiser_of(encoder: bert.Config) -> DenoiserOf:
    """The encoder as the denoiser of an evaluation batch, given its padding and its labels.

    The same encoder gives the same function, so that functions compiled with it are reused.
    """

    def of_batch(params: PyTree, batch: dict[str, Array]) -> Denoiser:
        return bert.denoiser(
            params,
            encoder,
            valid=bert.row_lengths(batch.get("valid")),
            label=batch["label"] if encoder.classes else None,
        )

    return of_batch


@functools.lru_cache(maxsize=64)
def block_denoiser_of(
    encoder: bert.Config, size: int, window: int | None = None
) -> BlockDenoiserOf:
    """As `denoiser_of`, in blocks of `size` tokens that see `window` tokens before them, or all."""

    def of_batch(params: PyTree, batch: dict[str, Array]) -> blocks.BlockDenoiser:
        return bert.block_denoiser(
            params,
            encoder,
            size,
            valid=bert.row_lengths(batch.get("valid")),
            label=batch["label"] if encoder.classes else None,
            window=window,
        )

    return of_batch


def bound(
    denoiser: Denoiser | blocks.BlockDenoiser,
    key: Array,
    batch: dict[str, Array],
    *,
    mask_id: int,
    draws: int,
    schedule: Schedule,
    steps: int | None = None,
) -> Likelihood:
    """The NELBO of a batch's rows: over its blocks, if the denoiser is one of blocks.

    With `steps`, for a denoiser of whole rows, it is as that of `nelbo`.
    """
    of = blocks.nelbo if isinstance(denoiser, blocks.BlockDenoiser) else nelbo
    in_steps = {} if steps is None else {"steps": steps}
    return of(
        denoiser,
        key,
        batch["tokens"],
        mask_id=mask_id,
        draws=draws,
        maskable=batch["maskable"],
        rows=batch["rows"],
        schedule=schedule,
        **in_steps,
    )


@functools.lru_cache(maxsize=64)
def make_nelbo(
    denoiser_of: DenoiserOf | BlockDenoiserOf,
    *,
    mask_id: int,
    seed: int,
    draws: int,
    schedule: Schedule = schedules.linear(),
    mesh: Mesh | None = None,
    steps: int | None = None,
) -> OfRows:
    """`(params, rows, batch_size) -> Likelihood` of all rows; compiled once for a batch size.

    A fourth argument `advance` is called with n whenever n more rows are done. The same arguments
    give the same function, so that compiled programs are reused.

    Args:
      denoiser_of: builds the denoiser of a batch from the parameters, or its denoiser of blocks.
      mask_id: the mask token.
      seed: of the draws. A row's draws are a function of the seed and the row's number.
      draws: corruptions of each row, at least 2.
      schedule: that the model was trained with; it turns the mask rate into the time.
      mesh: as of `spreading.over_rows`.
      steps: of the sampler whose law is bounded, as of `nelbo`; not for a denoiser of blocks.
    """

    def of_batch(params: PyTree, batch: dict[str, Array]) -> Likelihood:
        return bound(
            denoiser_of(params, batch),
            noise.derive(noise.seed_key(seed), "evaluation"),
            batch,
            mask_id=mask_id,
            draws=draws,
            schedule=schedule,
            steps=steps,
        )

    return _of_rows(of_batch, mesh)


@functools.lru_cache(maxsize=64)
def make_causal_likelihood(
    denoiser_of: DenoiserOf, *, start_id: int, mesh: Mesh | None = None
) -> OfRows:
    """As `make_nelbo`, but exact: for a model that was trained autoregressively.

    Args:
      denoiser_of: builds the denoiser of a batch from the parameters.
      start_id: stands before the first token of a row, as in training: the separator.
      mesh: as of `spreading.over_rows`.
    """

    def of_batch(params: PyTree, batch: dict[str, Array]) -> Likelihood:
        return causal_likelihood(
            denoiser_of(params, batch),
            batch["tokens"],
            start_id=start_id,
            maskable=batch["maskable"],
        )

    return _of_rows(of_batch, mesh)


def summary(likelihood: Likelihood) -> dict[str, Any]:
    """The figures of a likelihood, in nats unless the name says otherwise.

    `interval` is the 95 % confidence interval for the text that the rows are a sample of, from
    `text_error`. Both are None for a single row.
    """
    nats, error = float(likelihood.nats_per_token), float(likelihood.text_error)
    reach = _NORMAL_95 * error
    return {
        "nats_per_token": nats,
        "mc_error": float(likelihood.mc_error),
        "text_error": None if math.isnan(error) else error,
        "interval": None if math.isnan(error) else [nats - reach, nats + reach],
        "bits_per_token": nats / math.log(2),
        "perplexity": math.exp(nats),
        "tokens": int(likelihood.tokens.sum()),
        "rows": int((likelihood.tokens > 0).sum()),
    }


def per_text_unit(nats_per_token: float, tokens: int, size: TextSize) -> dict[str, float | int]:
    """The same likelihood a word and a character, which compare between tokenizers.

    Args:
      nats_per_token: of the text.
      tokens: of the text.
      size: of the text.
    """
    nats = nats_per_token * tokens
    by_word, by_character = nats / max(size.words, 1), nats / max(size.characters, 1)
    return {
        "words": size.words,
        "characters": size.characters,
        "nats_per_word": by_word,
        "bits_per_word": by_word / math.log(2),
        "nats_per_character": by_character,
        "bits_per_character": by_character / math.log(2),
    }


def _of_rows(of_batch: Callable[[PyTree, dict[str, Array]], Likelihood], mesh: Mesh | None):
    over_rows = spreading.over_rows(of_batch, mesh)

    def of_rows(params: PyTree, rows: data.Rows, batch_size: int, *advance) -> Likelihood:
        parts = over_rows(params, rows, batch_size, *advance)
        leaves = (np.concatenate(leaf)[: len(rows)] for leaf in zip(*parts, strict=True))
        return Likelihood(*leaves)._replace(tokens=rows.counts)

    return of_rows
