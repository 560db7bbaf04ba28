import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax import schedules

ALL = {
    "linear": (schedules.linear(), lambda t: 1 - t),
    "cosine": (schedules.cosine(), lambda t: 1 - np.cos(np.pi / 2 * (1 - t))),
    "square": (schedules.polynomial(2), lambda t: 1 - t**2),
    "root": (schedules.polynomial(0.5), lambda t: 1 - t**0.5),
}
TIMES = np.concatenate([10.0 ** np.arange(-6, 0), np.linspace(0.15, 0.95, 9)])


@pytest.mark.parametrize("name", ALL)
def test_functions_of_time_agree_with_the_formula_in_float64(name):
    schedule, alpha = ALL[name]
    t = jnp.asarray(TIMES, jnp.float32)
    exact = np.asarray(t, np.float64)
    if name == "cosine":
        rate, dalpha = np.sin(np.pi / 2 * exact), -np.pi / 2 * np.cos(np.pi / 2 * exact)
    else:
        exponent = {"linear": 1, "square": 2, "root": 0.5}[name]
        rate, dalpha = exact**exponent, -exponent * exact ** (exponent - 1)
    np.testing.assert_allclose(schedule.alpha(t), alpha(exact), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(schedule.dalpha(t), dalpha, rtol=1e-5)
    # Relative precision also where 1 - alpha(t) has none left: the weight is exact near 0.
    np.testing.assert_allclose(schedule.rate(t), rate, rtol=1e-5)
    np.testing.assert_allclose(schedule.weight(t), -dalpha / rate, rtol=1e-5)
    np.testing.assert_allclose(schedule.rate_to_time(schedule.rate(t)), exact, rtol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_ends_and_derivative(name):
    schedule, _ = ALL[name]
    ends = jnp.array([0.0, 1.0])
    np.testing.assert_allclose(schedule.alpha(ends), [1, 0], atol=1e-6)
    np.testing.assert_allclose(schedule.rate(ends), [0, 1], atol=1e-6)
    np.testing.assert_allclose(schedule.rate_to_time(ends), [0, 1], atol=1e-6)
    t = jnp.linspace(0.05, 0.95, 7)
    derivative = jax.vmap(jax.grad(schedule.alpha))(t)
    np.testing.assert_allclose(derivative, schedule.dalpha(t), rtol=1e-4)


def test_bad_exponent_is_named():
    with pytest.raises(ValueError, match="exponent is 0"):
        schedules.polynomial(0)
