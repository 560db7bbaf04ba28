import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy_regression as toy
from hypothesis import given
from hypothesis import strategies as st

from mdlm_jax.diffusion import noise
from mdlm_jax.training.state import init_state
from mdlm_jax.training.step import make_step, split_batch


@pytest.fixture(scope="module")
def step():
    return toy.step()


def run(step, steps, bad=()):
    """States as numpy after 0, 1, ... steps, and the metrics of each step."""
    state, states, metrics = toy.state(), [], []
    states.append(jax.device_get(state))
    for _, batch in zip(range(steps), toy.Batches(bad).iterate(0), strict=False):
        state, new = step(state, batch)
        states.append(jax.device_get(state))
        metrics.append(jax.device_get(new))
    return states, metrics


def assert_close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("accumulation", [2, 4])
def test_accumulation_does_not_change_the_update(step, accumulation):
    whole, whole_metrics = run(step, 4)
    parts, parts_metrics = run(toy.step(accumulation=accumulation), 4)
    assert_close(whole[-1], parts[-1])
    assert_close(whole_metrics, parts_metrics)
    assert parts_metrics[0]["aux"]["weight"] == pytest.approx(1.0)


def test_loss_gradient_and_norm_are_those_of_the_prepared_batch(step):
    _, metrics = run(step, 1)
    of_step = noise.derive(noise.seed_key(0), "training", 0)
    batch = jax.device_get(toy.prepare(of_step, 0, toy.batch(0)))
    params = jax.device_get(toy.params())
    error = batch["x"] @ params["kernel"] + params["bias"] - batch["y"]
    weight = np.repeat(batch["weight"], 2)[:, None] / (2 * toy.OUTPUTS)  # [rows, 1]
    gradient = [batch["x"].T @ (2 * weight * error), (2 * weight * error).sum(0)]
    assert metrics[0]["loss"] == pytest.approx((weight * error**2).sum(), rel=1e-5)
    norm = np.sqrt(sum((g**2).sum() for g in gradient))
    assert metrics[0]["grad_norm"] == pytest.approx(norm, rel=1e-5)


def test_a_bad_update_is_skipped_and_counted(step):
    states, metrics = run(step, 5, bad=(2, 3))
    assert [int(m["bad_steps"]) for m in metrics] == [0, 1, 2, 0, 0]
    assert [int(s.step) for s in states] == [0, 1, 2, 3, 4, 5]
    for skipped in (2, 3):
        for part in ("params", "opt_state", "ema"):
            assert_same(getattr(states[skipped], part), getattr(states[1], part))
    assert np.abs(states[4].params["kernel"] - states[3].params["kernel"]).max() > 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(states))


def test_a_bad_microbatch_skips_the_whole_update():
    states, metrics = run(toy.step(accumulation=4), 1, bad=(1,))
    assert metrics[0]["bad_steps"] == 1
    assert_same(states[0].params, states[1].params)


def test_a_bad_gradient_of_a_finite_loss_is_skipped():
    def root(params, key, batch):
        return jnp.sqrt(params["x"] * batch["scale"]).sum(), {}  # at 0: value 0, slope inf

    sgd = optax.sgd(0.1)
    step = make_step(root, sgd, seed=0, ema_decay=0.9)
    state, metrics = step(init_state({"x": jnp.zeros(1)}, sgd), {"scale": jnp.ones(1)})
    assert np.isfinite(metrics["loss"])
    assert (int(state.bad_steps), float(state.params["x"][0])) == (1, 0.0)


def test_learning_rate_is_that_of_the_update(step):
    _, schedule = toy.optimizer()
    _, metrics = run(step, 5, bad=(2,))
    # The skipped update 2 does not count: the next good one takes its place in the schedule.
    want = [float(schedule(count)) for count in (0, 1, 1, 2, 3)]
    assert [float(m["learning_rate"]) for m in metrics] == pytest.approx(want)


def test_ema_follows_its_formula():
    decay = 0.3  # reached at the fourth step: both sides of the minimum are seen
    states, _ = run(toy.step(ema_decay=decay), 5)
    ema = np.asarray(states[0].params["kernel"], np.float64)
    for n, state in enumerate(states[1:]):
        d = min(decay, (1 + n) / (10 + n))
        ema = d * ema + (1 - d) * state.params["kernel"]
        np.testing.assert_allclose(state.ema["kernel"], ema, rtol=1e-5, atol=1e-6)


def test_noise_depends_on_seed_and_step_alone():
    def drawn(params, key, batch):
        return 0.0 * params["x"].sum(), {"noise": batch["noise"].sum(), "dropout": draw(key)}

    def draw(key):
        return jax.random.uniform(key)

    def prepare(key, step, batch):
        return {"noise": batch["rows"] * draw(key) / batch["rows"].sum()}

    def values(seed, accumulation):
        sgd = optax.sgd(0.1)
        step = make_step(
            drawn, sgd, seed=seed, ema_decay=0.9, accumulation=accumulation, prepare=prepare
        )
        state, seen = init_state({"x": jnp.zeros(1)}, sgd), []
        for _ in range(2):
            state, metrics = step(state, {"rows": jnp.ones(4)})
            seen.append((float(metrics["aux"]["noise"]), float(metrics["aux"]["dropout"])))
        return np.array(seen)

    once, twice, other = values(0, 1), values(0, 2), values(1, 1)
    np.testing.assert_allclose(once[:, 0], twice[:, 0], rtol=1e-6)
    assert len({*once.ravel(), *other.ravel()}) == 8
    # Two microbatches draw two dropout keys, the first of them that of the undivided batch.
    assert not np.isclose(twice[:, 1], 2 * once[:, 1]).any()


def test_what_is_prepared_is_told_the_step():
    def loss_fn(params, key, batch):
        return 0.0 * params["x"].sum(), {"step": batch["step"]}

    sgd = optax.sgd(0.1)
    prepare = lambda key, step, batch: {"step": step}  # noqa: E731
    step = make_step(loss_fn, sgd, seed=0, ema_decay=0.9, prepare=prepare)
    state, seen = init_state({"x": jnp.zeros(1)}, sgd), []
    for _ in range(3):
        state, metrics = step(state, {"rows": jnp.ones(4)})
        seen.append(int(metrics["aux"]["step"]))
    assert seen == [0, 1, 2]


@given(
    parts=st.integers(1, 4), size=st.integers(1, 3), width=st.integers(1, 3), pairs=st.booleans()
)
def test_split_keeps_neighbouring_rows_together(parts, size, width, pairs):
    rows = np.arange(2 * parts * size)
    batch = {"rows": np.repeat(rows[:, None], width, 1), "pairs": rows[::2] // 2}
    split = split_batch(batch, parts)
    assert split["rows"].shape == (parts, 2 * size, width)
    np.testing.assert_array_equal(split["rows"].reshape(-1, width), batch["rows"])
    np.testing.assert_array_equal(split["rows"][:, ::2, 0] // 2, split["pairs"])


@pytest.mark.parametrize(
    ("leaf", "shape"), [(np.zeros((6, 2)), r"\(6, 2\)"), (np.zeros(()), r"\(\)")]
)
def test_a_leading_axis_that_does_not_divide_is_refused(leaf, shape):
    step = toy.step(accumulation=4, prepare=None)
    with pytest.raises(ValueError, match=rf"batch\['x'\] of shape {shape}.* 4 micro") as error:
        step(toy.state(), {**toy.batch(0), "x": leaf})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("options", [{"ema_decay": 1.0}, {"ema_decay": -0.1}, {"accumulation": 0}])
def test_options_out_of_range_are_named(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name} must"):
        toy.step(**options)


def test_initial_state_does_not_take_the_callers_parameters(step):
    params = toy.params()
    state = init_state(params, toy.optimizer()[0])
    step(state, toy.batch(0))
    assert np.isfinite(params["kernel"]).all()
