"""Likelihood of a split of text: the NELBO with its two errors, and the curve over mask rates."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mdlm_jax import data, parallel
from mdlm_jax.diffusion import Denoiser, Likelihood, mlm_loss, nelbo
from mdlm_jax.evaluation.text_sizes import TextSize
from mdlm_jax.networks import bert

Array = jax.Array
PyTree = Any
DenoiserOf = Callable[[PyTree, dict[str, Array]], Denoiser]  # (params, batch) -> Denoiser

_NORMAL_95 = 1.959964  # standard errors to each side of a 95 % interval

RATES = (0.02, 0.05, 0.15, 0.3, 0.5, 0.7, 0.85, 1.0)


def denoiser_of(encoder: bert.Config) -> DenoiserOf:
    """The encoder as the denoiser of an evaluation batch, told its padding, and any labels."""

    def of_batch(params: PyTree, batch: dict[str, Array]) -> Denoiser:
        return bert.denoiser(
            params,
            encoder,
            valid=batch.get("valid"),
            label=batch["label"] if encoder.classes else None,
        )

    return of_batch


def make_nelbo(
    denoiser_of: DenoiserOf, *, mask_id: int, seed: int, draws: int, mesh: Mesh | None = None
) -> Callable:
    """`(params, rows, batch_size) -> Likelihood` of all rows; compiled once for a batch size.

    Args:
      denoiser_of: builds the denoiser of a batch from the parameters.
      mask_id: the mask token.
      seed: of the draws; a row's draws are a function of it and of the row's number.
      draws: corruptions of each row, at least 2.
      mesh: spreads the rows of a batch over its devices, which must share them evenly; every
        process has all rows, and gets the likelihood of all.
    """
    outputs = None if mesh is None else parallel.replicated(mesh)

    @functools.partial(jax.jit, out_shardings=outputs)
    def of_batch(params, batch):
        with parallel.use(mesh):
            return nelbo(
                denoiser_of(params, batch),
                jax.random.key(seed),
                batch["tokens"],
                mask_id=mask_id,
                draws=draws,
                maskable=batch["maskable"],
                rows=batch["rows"],
            )

    def put(batch):
        if mesh is None:
            return batch
        held = parallel.local_rows(mesh, len(batch["rows"]))
        return parallel.put_batch(
            {name: values[held] for name, values in batch.items()}, mesh, len(batch["rows"])
        )

    def of_rows(params: PyTree, rows: data.Rows, batch_size: int) -> Likelihood:
        parts = [of_batch(params, put(b)) for b in data.eval_batches(rows, batch_size=batch_size)]
        parts = jax.device_get(parts)  # waits once, for all
        return Likelihood(*(np.concatenate(leaves) for leaves in zip(*parts, strict=True)))

    return of_rows


def summary(likelihood: Likelihood) -> dict[str, Any]:
    """The figures of a likelihood, in nats but where the name says otherwise.

    `interval` is that of 95 % for the text that the rows are a sample of, `text_error` to both
    sides; None for a single row.
    """
    nats = float(likelihood.nats_per_token)
    reach = _NORMAL_95 * float(likelihood.text_error)
    return {
        "nats_per_token": nats,
        "mc_error": float(likelihood.mc_error),
        "text_error": float(likelihood.text_error),
        "interval": None if math.isnan(reach) else [nats - reach, nats + reach],
        "bits_per_token": nats / math.log(2),
        "perplexity": math.exp(nats),
        "tokens": int(likelihood.tokens.sum()),
        "rows": int((likelihood.tokens > 0).sum()),
    }


def per_text_unit(nats_per_token: float, tokens: int, size: TextSize) -> dict[str, float | int]:
    """The same likelihood by words and by characters, in which tokenizers compare.

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


def rate_curve(
    denoiser_of: DenoiserOf,
    params: PyTree,
    rows: data.Rows,
    *,
    mask_id: int,
    seed: int,
    batch_size: int,
    rates: Sequence[float] = RATES,
) -> list[dict[str, float]]:
    """Mean cross-entropy of a masked token at each mask rate: the NELBO's integrand.

    One corruption of each row at each rate. The error is the standard error over batches.

    Returns:
      Points `{"rate", "nats", "error", "accuracy"}`: nats per masked token, whose error is None of
      one batch, and the share of masked tokens whose most likely token is the right one.
    """

    def loss(params, batch, rate):
        key = jax.random.fold_in(jax.random.key(seed), round(rate * 1e6))
        nats, aux = mlm_loss(
            denoiser_of(params, batch),
            key,
            batch["tokens"],
            mask_id=mask_id,
            rate=rate,
            mask_share=1.0,
            random_share=0.0,
            maskable=batch["maskable"],
            rows=batch["rows"],
        )
        return nats, aux.masked.sum(), aux.correct.sum()

    of_batch = jax.jit(lambda params, batch: [loss(params, batch, rate) for rate in rates])
    parts = [of_batch(params, b) for b in data.eval_batches(rows, batch_size=batch_size)]
    parts = np.asarray(jax.device_get(parts), np.float64)  # [batches, rates, 3]
    nats, masked, correct = np.moveaxis(parts, -1, 0)
    accuracy = correct.sum(axis=0) / masked.sum(axis=0)
    mean = (nats * masked).sum(axis=0) / masked.sum(axis=0)
    batches = len(parts)
    residual = (nats - mean) * masked
    error = np.sqrt(batches / max(batches - 1, 1) * (residual**2).sum(axis=0)) / masked.sum(axis=0)
    return [
        {
            "rate": rate,
            "nats": float(m),
            "error": float(e) if batches > 1 else None,
            "accuracy": float(a),
        }
        for rate, m, e, a in zip(rates, mean, error, accuracy, strict=True)
    ]
