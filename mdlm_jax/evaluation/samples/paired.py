"""Paired differences of two models over the same prompts, with bootstrap intervals."""

from typing import NamedTuple

import numpy as np
from scipy import stats

RESAMPLES = 9_999
_AT_ONCE = 10_000_000  # numbers of resamples that are held


class Difference(NamedTuple):
    """What two models did on the same prompts.

    Attributes:
      a: the mean of the first.
      b: the mean of the second.
      difference: the mean of `b - a` over prompts.
      low: of the 95 % interval of the difference, for the prompts that these are a sample of.
      high: likewise; both are nan for a single prompt.
    """

    a: float
    b: float
    difference: float
    low: float
    high: float

    @property
    def differs(self) -> bool:
        """Whether the interval is on one side of 0."""
        return self.low > 0 or self.high < 0


def difference(a: np.ndarray, b: np.ndarray, *, seed: int) -> Difference:
    """The mean paired difference, with a 95 % interval by the bootstrap over prompts.

    What is resampled are the differences, so that what makes a prompt hard for both takes no part.
    The interval is Efron's BCa (1987), bias-corrected and accelerated: it suits shares that are
    nearly 0 or 1, and is as wide on each side as the differences are skewed.

    Args:
      a: f64[N], a figure of each prompt.
      b: f64[N], the same of the other model.
      seed: of the resamples.
    """
    differences = np.asarray(b, float) - np.asarray(a, float)
    means = float(np.mean(a)), float(np.mean(b)), float(differences.mean())
    if len(differences) < 2:
        return Difference(*means, np.nan, np.nan)
    if np.ptp(differences) == 0:  # every resample is the same
        return Difference(*means, means[2], means[2])
    interval = stats.bootstrap(
        (differences,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(_AT_ONCE // len(differences), 1),
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Difference(*means, float(interval.low), float(interval.high))
