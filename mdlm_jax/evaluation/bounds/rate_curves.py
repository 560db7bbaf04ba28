"""The curve over mask rates: cross-entropy, accuracy and calibration of masked tokens."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mdlm_jax import data
from mdlm_jax.diffusion import AtRate, Schedule, at_rate, blocks, noise, schedules
from mdlm_jax.diffusion.blocks.as_rows import noise_of_blocks
from mdlm_jax.evaluation import spreading
from mdlm_jax.evaluation.bounds.likelihoods import BlockDenoiserOf, DenoiserOf
from mdlm_jax.evaluation.samples import text_metrics

PyTree = Any
Point = dict[str, float | None]

RATES = (0.02, 0.05, 0.15, 0.3, 0.5, 0.7, 0.85, 1.0)
BERT_RATE = 0.15


def make_rate_curve(
    denoiser_of: DenoiserOf,
    *,
    mask_id: int,
    seed: int,
    schedule: Schedule = schedules.linear(),
    rates: Sequence[float] = RATES,
    mesh: Mesh | None = None,
) -> Callable[..., list[Point]]:
    """`(params, rows, batch_size) -> points`, one a rate: the NELBO's integrand.

    Each row is corrupted once at each rate. A fourth argument `advance` is called with n whenever n
    more rows are done.

    A point has "rate"; "nats", the mean cross-entropy of a masked token, with "error", its standard
    error over the rows (None of a single row); "accuracy", the share of masked tokens whose most
    likely token is the right one; "confidence", the mean probability of that most likely token; and
    "calibration_error", how far the two are apart: `sum_b n_b / n |accuracy_b - confidence_b|` over
    ten bins of confidence (the expected calibration error of Guo et al. 2017, eq. 3).

    Args:
      denoiser_of: builds the denoiser of a batch from the parameters.
      mask_id: the mask token.
      seed: of the masks. The masks of a row are a function of the seed, the rate and the row's
        number.
      schedule: that the model was trained with; it turns the mask rate into the time.
      rates: in (0, 1].
      mesh: as of `spreading.over_rows`.
    """

    def of_batch(params: PyTree, batch: dict[str, jax.Array]) -> list[AtRate]:
        return [
            at_rate(
                denoiser_of(params, batch),
                noise.derive(noise.seed_key(seed), "rates", round(rate * 1e6)),
                batch["tokens"],
                mask_id=mask_id,
                rate=rate,
                maskable=batch["maskable"],
                rows=batch["rows"],
                schedule=schedule,
            )
            for rate in rates
        ]

    return _curve(of_batch, rates, mesh)


def make_block_curve(
    denoiser_of: BlockDenoiserOf,
    size: int,
    *,
    mask_id: int,
    seed: int,
    schedule: Schedule = schedules.linear(),
    rates: Sequence[float] = RATES,
    mesh: Mesh | None = None,
) -> Callable[..., list[Point]]:
    """As `make_rate_curve`, with all blocks of a row masked at the rate; errors are over rows.

    A block of `size` tokens has `size` rates, k / size. Those next to `rates` are measured.
    """
    counts = sorted({max(1, round(rate * size)) for rate in rates})

    def of_batch(params: PyTree, batch: dict[str, jax.Array]) -> list[AtRate]:
        tokens = batch["tokens"]
        own = blocks.given(denoiser_of(params, batch), tokens)
        each = tokens.shape[1] // size

        def at(count: int) -> AtRate:
            key = noise.derive(noise.seed_key(seed), "rates", count)
            _, _, numbers = noise_of_blocks(key, None, batch["rows"], tokens, each)
            read = at_rate(
                own,
                key,
                tokens.reshape(-1, size),
                mask_id=mask_id,
                rate=count / size,
                maskable=batch["maskable"].reshape(-1, size),
                rows=numbers,
                schedule=schedule,
            )
            nats, masked = (x.reshape(-1, each).sum(axis=1) for x in (read.nats, read.masked))
            return read._replace(nats=nats, masked=masked)

        return [at(count) for count in counts]

    return _curve(of_batch, [count / size for count in counts], mesh)


def mean_over_counts(curve: Sequence[Point], size: int) -> float:
    """The mean of the curve over every count of masks of a block, nats per token.

    Counts that were not measured lie on straight lines between the others. As `trapezoid` it is a
    check of the NELBO by other draws.
    """
    rates, nats = zip(*((point["rate"], point["nats"]) for point in curve), strict=True)
    return float(np.interp(np.arange(1, size + 1) / size, rates, nats).mean())


def _curve(
    of_batch: Callable[[PyTree, dict[str, jax.Array]], list[AtRate]],
    rates: Sequence[float],
    mesh: Mesh | None,
) -> Callable[..., list[Point]]:
    of_rows = spreading.over_rows(of_batch, mesh)

    def curve(params: PyTree, rows: data.Rows, batch_size: int, *advance) -> list[Point]:
        parts = of_rows(params, rows, batch_size, *advance)  # [batches][rates]
        by_rate = zip(*parts, strict=True)
        return [{"rate": rate, **_point(of)} for rate, of in zip(rates, by_rate, strict=True)]

    return curve


def trapezoid(curve: Sequence[Point]) -> float:
    """The mean of the curve over the rates from 0 to 1 by the trapezoidal rule, nats per token.

    A check of the NELBO by other draws, and not a bound itself. The NELBO is the mean over every
    count of masks. Here a few rates are joined by straight lines, and the curve is level from the
    first rate down to 0.
    """
    rates = [0.0, *(point["rate"] for point in curve)]
    nats = [curve[0]["nats"], *(point["nats"] for point in curve)]
    return float(np.trapezoid(nats, rates) / rates[-1])


def _point(parts: Sequence[AtRate]) -> Point:
    """The figures at one rate, from the batches."""
    nats, masked = (
        np.concatenate([getattr(part, name) for part in parts]).astype(np.float64)
        for name in ("nats", "masked")
    )
    binned, confidence, correct = (
        np.sum([getattr(part, name) for part in parts], axis=0, dtype=np.float64)
        for name in ("binned", "confidence", "correct")
    )
    there = masked > 0
    mean = text_metrics.mean(nats[there], masked[there])
    count = masked.sum()
    return {
        "nats": mean.value,
        "error": None if np.isnan(mean.error) else mean.error,
        "accuracy": float(correct.sum() / count),
        "confidence": float(confidence.sum() / count),
        "calibration_error": float(np.abs(correct - confidence).sum() / binned.sum()),
    }
