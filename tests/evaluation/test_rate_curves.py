"""The curve over mask rates, on denoisers whose cross-entropy and confidence are known."""

import jax.numpy as jnp
import numpy as np
import pytest
from evaluation.test_likelihoods import MASK, ROWS, of_count

from mdlm_jax import as_denoiser, data
from mdlm_jax.evaluation.bounds import rate_curves


def curve(denoiser_of, *rates):
    halves = rate_curves.masks_at_rates(denoiser_of, mask_id=MASK, seed=0, rates=rates)
    return rate_curves.curve_of(halves)


def cost(token, k):
    return np.log(2 + np.exp(k)) - (k if token == 0 else 0)


def test_points_have_the_mean_and_the_error_of_the_rows():
    of_rows = curve(of_count, 0.25, 1.0)
    for point, k in zip(of_rows(1.0, ROWS, 2), (2, 8), strict=True):
        nats = np.array([cost(token, k) for token in ROWS.tokens[:, 0]])  # of a token in each row
        assert point["nats"] == pytest.approx(nats.mean(), rel=1e-5)
        assert point["error"] == pytest.approx(nats.std(ddof=1) / np.sqrt(5), rel=1e-4)
        assert point["accuracy"] == pytest.approx(2 / 5)  # 0 is always the likeliest
        sure = np.exp(k) / (2 + np.exp(k))
        assert point["confidence"] == pytest.approx(sure, rel=1e-5)
        assert point["calibration_error"] == pytest.approx(abs(sure - 2 / 5), rel=1e-4)


def test_the_batch_is_no_unit():
    """Neither figures nor errors depend on how many rows come at a time."""
    of_rows = curve(of_count, 0.5)
    (one,), (five,) = (of_rows(0.3, ROWS, size) for size in (1, 5))
    assert one == pytest.approx(five, rel=1e-6)


def test_calibration_is_by_confidence():
    """Where means would agree, too: of what it is sure of it is wrong, and right of the rest."""

    def of_place(params, batch):
        def logits(tokens, t):
            sure = jnp.where(jnp.arange(8) < 4, params[0], params[1])[:, None]
            rest = (1 - sure) / 2
            p = jnp.where(jnp.arange(4) == 0, sure, rest)
            return jnp.broadcast_to(jnp.log(p), (*tokens.shape, 4))

        return as_denoiser(logits, MASK)

    def point(sure, tokens):
        of_rows = curve(of_place, 1.0)
        rows = data.Rows(np.asarray(tokens, np.int32), np.zeros(len(tokens), np.int32))
        return of_rows(jnp.asarray(sure), rows, 4)[0]

    always = point((0.95, 0.45), [[0] * 8])
    assert always["calibration_error"] == pytest.approx((0.05 + 0.55) / 2, rel=1e-4)
    assert always["error"] is None  # of a single row
    # Sure at 0.95 and wrong, unsure at 0.45 and right: together as often right as they say.
    crossed = point((0.95, 0.45), [[1] * 4 + [0] * 4])
    assert abs(crossed["accuracy"] - crossed["confidence"]) == pytest.approx(0.2, rel=1e-4)
    assert crossed["calibration_error"] == pytest.approx((0.95 + 0.55) / 2, rel=1e-4)


def test_trapezoid_is_exact_for_what_is_straight_between_the_points():
    line = [{"rate": r, "nats": 2 + 3 * r} for r in (0.25, 0.5, 1.0)]
    from_zero = 0.25 * 2.75 + 0.75 * (2.75 + 5) / 2  # level before the first point
    assert rate_curves.trapezoid(line) == pytest.approx(from_zero)
    assert rate_curves.trapezoid([{"rate": r, "nats": 4.0} for r in (0.1, 1.0)]) == 4.0
