import numpy as np
import pytest

from mdlm_jax.evaluation.samples import paired


def test_the_interval_holds_the_truth_as_often_as_it_says(monkeypatch):
    """Skewed differences of 40 prompts with a shared part that is much larger."""
    monkeypatch.setattr(paired, "RESAMPLES", 999)
    rng, held = np.random.default_rng(0), 0
    for number in range(200):
        shared = 50 * rng.normal(size=40)
        a, b = shared + rng.gamma(2.0, size=40), shared + rng.gamma(3.0, size=40)
        found = paired.difference(a, b, seed=number)
        held += found.low <= 1.0 <= found.high
        assert found.high - found.low < 2.5  # what is shared takes no part
    assert 176 <= held <= 199  # 95 %, and 5 standard deviations; BCa of 40 is a bit narrow


def test_means_and_difference():
    found = paired.difference(np.array([0.0, 1.0, 1.0]), np.array([1.0, 1.0, 1.0]), seed=0)
    assert found.a == pytest.approx(2 / 3) and found.b == 1.0
    assert found.difference == pytest.approx(1 / 3)
    assert found.low < 1 / 3 < found.high and not found.differs
    assert found == paired.difference(np.array([0.0, 1.0, 1.0]), np.ones(3), seed=0)


def test_the_same_difference_everywhere_has_no_width():
    found = paired.difference(np.arange(5.0), np.arange(5.0) + 2, seed=0)
    assert found == (2.0, 4.0, 2.0, 2.0, 2.0) and found.differs
    same = paired.difference(np.arange(5.0), np.arange(5.0), seed=0)
    assert (same.low, same.high) == (0.0, 0.0) and not same.differs


def test_a_single_prompt_has_no_interval():
    found = paired.difference(np.array([1.0]), np.array([3.0]), seed=0)
    assert found.difference == 2.0 and np.isnan([found.low, found.high]).all()
    assert not found.differs


def test_many_prompts_are_resampled_in_parts(monkeypatch):
    a, b = np.zeros(50), np.random.default_rng(1).normal(1.0, size=50)
    whole = paired.difference(a, b, seed=3)
    monkeypatch.setattr(paired, "_AT_ONCE", 60)
    monkeypatch.setattr(paired, "RESAMPLES", 999)
    assert paired.difference(a, b, seed=3).low == pytest.approx(whole.low, abs=0.1)
