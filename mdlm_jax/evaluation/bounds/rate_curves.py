"""The curve over mask rates: cross-entropy, accuracy and calibration of masked tokens."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from mdlm_jax import data
from mdlm_jax.diffusion import AtRate, Schedule, blocks, corrupt_causal, noise, schedules
from mdlm_jax.diffusion.blocks.as_rows import noise_of_blocks
from mdlm_jax.diffusion.integrand import corrupt_at_rate, read_at_rate
from mdlm_jax.diffusion.processes.corruption import Corrupted
from mdlm_jax.evaluation import spreading
from mdlm_jax.evaluation.bounds.likelihoods import BlockDenoiserOf, DenoiserOf
from mdlm_jax.evaluation.samples import text_metrics

PyTree = Any
Point = dict[str, float | None]

RATES = (0.02, 0.05, 0.15, 0.3, 0.5, 0.7, 0.85, 1.0)
BERT_RATE = 0.15


class AtRates(NamedTuple):
    """A measurement at mask rates in two halves, so that masks can be drawn long before.

    Attributes:
      rates: ascending, in (0, 1].
      corrupt: `(batch, rate, whole=False) -> Corrupted`, of a batch of `data.eval_batches`. With
        `whole` there is room for as many masks as there are tokens, so that all rates have one
        shape; otherwise for as many as the rate needs.
      read: `(params, batch, corrupted) -> AtRate`, its sums by row.
    """

    rates: tuple[float, ...]
    corrupt: Callable[..., Corrupted]
    read: Callable[[PyTree, dict[str, jax.Array], Corrupted], AtRate]


def masks_at_rates(
    denoiser_of: DenoiserOf,
    *,
    mask_id: int,
    seed: int,
    schedule: Schedule = schedules.linear(),
    rates: Sequence[float] = RATES,
) -> AtRates:
    """Of masked diffusion: the NELBO's integrand.

    Args:
      denoiser_of: builds the denoiser of a batch from the parameters.
      mask_id: the mask token.
      seed: of the masks. The masks of a row are a function of the seed, the rate and the row's
        number.
      schedule: that the model was trained with; it turns the mask rate into the time.
      rates: in (0, 1].
    """

    def corrupt(batch: dict[str, jax.Array], rate: float, whole: bool = False) -> Corrupted:
        return corrupt_at_rate(
            noise.derive(noise.seed_key(seed), "rates", round(rate * 1e6)),
            batch["tokens"],
            mask_id=mask_id,
            rate=rate,
            maskable=batch["maskable"],
            rows=batch["rows"],
            schedule=schedule,
            slots=batch["tokens"].shape[1] if whole else None,
        )

    def read(params: PyTree, batch: dict[str, jax.Array], corrupted: Corrupted) -> AtRate:
        return read_at_rate(denoiser_of(params, batch), corrupted, mask_id=mask_id)

    return AtRates(tuple(rates), corrupt, read)


def blocks_at_rates(
    denoiser_of: BlockDenoiserOf,
    size: int,
    *,
    mask_id: int,
    seed: int,
    schedule: Schedule = schedules.linear(),
    rates: Sequence[float] = RATES,
) -> AtRates:
    """As `masks_at_rates`, with all blocks of a row masked at the rate; sums are over rows.

    A block of `size` tokens has `size` rates, k / size. Those next to `rates` are measured.
    """
    counts = sorted({max(1, round(rate * size)) for rate in rates})

    def corrupt(batch: dict[str, jax.Array], rate: float, whole: bool = False) -> Corrupted:
        tokens, count = batch["tokens"], round(rate * size)
        key = noise.derive(noise.seed_key(seed), "rates", count)
        each = tokens.shape[1] // size
        _, _, numbers = noise_of_blocks(key, None, batch["rows"], tokens, each)
        return corrupt_at_rate(
            key,
            tokens.reshape(-1, size),
            mask_id=mask_id,
            rate=count / size,
            maskable=batch["maskable"].reshape(-1, size),
            rows=numbers,
            schedule=schedule,
            slots=size if whole else None,
        )

    def read(params: PyTree, batch: dict[str, jax.Array], corrupted: Corrupted) -> AtRate:
        tokens = batch["tokens"]
        own = blocks.given(denoiser_of(params, batch), tokens)
        of_blocks = read_at_rate(own, corrupted, mask_id=mask_id)
        nats, masked = (
            x.reshape(len(tokens), -1).sum(axis=1) for x in (of_blocks.nats, of_blocks.masked)
        )
        return of_blocks._replace(nats=nats, masked=masked)

    return AtRates(tuple(count / size for count in counts), corrupt, read)


def causal_at_rates(denoiser_of: DenoiserOf, *, start_id: int) -> AtRates:
    """Of an autoregressive model: its one rate is 1, each token given those before it.

    Args:
      denoiser_of: builds the denoiser of a batch from the parameters.
      start_id: stands before the first token of a row, as in training: the separator.
    """

    def corrupt(batch: dict[str, jax.Array], rate: float, whole: bool = False) -> Corrupted:
        del rate, whole
        return corrupt_causal(batch["tokens"], start_id=start_id, maskable=batch["maskable"])

    def read(params: PyTree, batch: dict[str, jax.Array], corrupted: Corrupted) -> AtRate:
        return read_at_rate(denoiser_of(params, batch), corrupted, mask_id=None)

    return AtRates((1.0,), corrupt, read)


def mean_over_counts(curve: Sequence[Point], size: int) -> float:
    """The mean of the curve over every count of masks of a block, nats per token.

    Counts that were not measured lie on straight lines between the others. As `trapezoid` it is a
    check of the NELBO by other draws.
    """
    rates, nats = zip(*((point["rate"], point["nats"]) for point in curve), strict=True)
    return float(np.interp(np.arange(1, size + 1) / size, rates, nats).mean())


def curve_of(halves: AtRates, mesh: Mesh | None = None) -> Callable[..., list[Point]]:
    """`(params, rows, batch_size) -> points`, one a rate, all rates of a batch in one program.

    Each row is corrupted once at each rate. A fourth argument `advance` is called with n whenever n
    more rows are done.

    A point has "rate"; "nats", the mean cross-entropy of a masked token, with "error", its standard
    error over the rows (None of a single row); "accuracy", the share of masked tokens whose most
    likely token is the right one; "confidence", the mean probability of that most likely token; and
    "calibration_error", how far the two are apart: `sum_b n_b / n |accuracy_b - confidence_b|` over
    ten bins of confidence (the expected calibration error of Guo et al. 2017, eq. 3).

    Args:
      halves: what is measured.
      mesh: as of `spreading.over_rows`.
    """

    def of_batch(params: PyTree, batch: dict[str, jax.Array]) -> list[AtRate]:
        corrupted = [halves.corrupt(batch, rate) for rate in halves.rates]
        return [halves.read(params, batch, each) for each in corrupted]

    of_rows = spreading.over_rows(of_batch, mesh)

    def curve(params: PyTree, rows: data.Rows, batch_size: int, *advance) -> list[Point]:
        parts = of_rows(params, rows, batch_size, *advance)  # [batches][rates]
        by_rate = zip(*parts, strict=True)
        return [_point(rate, of) for rate, of in zip(halves.rates, by_rate, strict=True)]

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


def _point(rate: float, parts: Sequence[AtRate]) -> Point:
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
        "rate": rate,
        "nats": mean.value,
        "error": None if np.isnan(mean.error) else mean.error,
        "accuracy": float(correct.sum() / count),
        "confidence": float(confidence.sum() / count),
        "calibration_error": float(np.abs(correct - confidence).sum() / binned.sum()),
    }
