import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import MuonDimensionNumbers

from mdlm_jax.training.optimizer import (
    OptimizerConfig,
    decay_mask,
    make_optimizer,
    without_gradient,
)

STACKED = {
    "layers": {"dense": {"kernel": jnp.ones((2, 3, 3)), "bias": jnp.ones((2, 3))}},
    "norm": {"scale": jnp.ones(3)},
    "tokens": {"embedding": jnp.ones((5, 3))},
}
CONFIG = OptimizerConfig(learning_rate=1.0, warmup_steps=10, final_fraction=0.1)


def expected(decay, step):
    if step < 10:
        return step / 10
    progress = min(1.0, (step - 10) / 90)
    return {
        "constant": 1.0,
        "linear": 1.0 - 0.9 * progress,
        "cosine": 0.1 + 0.9 * (1 + math.cos(math.pi * progress)) / 2,
    }[decay]


@pytest.mark.parametrize("decay", ["cosine", "linear", "constant"])
def test_schedule_warms_up_and_decays(decay):
    _, schedule = make_optimizer(dataclasses.replace(CONFIG, decay=decay), steps=100)
    for step in (0, 1, 9, 10, 11, 55, 99, 100, 120):
        assert float(schedule(step)) == pytest.approx(expected(decay, step), abs=1e-6)


def test_no_warmup_starts_at_the_peak():
    _, schedule = make_optimizer(dataclasses.replace(CONFIG, warmup_steps=0), steps=100)
    assert float(schedule(0)) == 1.0


def test_decay_mask_goes_by_name():
    assert decay_mask(STACKED) == {
        "layers": {"dense": {"kernel": True, "bias": False}},
        "norm": {"scale": False},
        "tokens": {"embedding": False},
    }


def test_weight_decay_shrinks_kernels_alone():
    config = OptimizerConfig(
        learning_rate=0.5, warmup_steps=0, decay="constant", weight_decay=0.2, clip_norm=1.0
    )
    optimizer, _ = make_optimizer(config, steps=10)
    zeros = jax.tree.map(jnp.zeros_like, STACKED)
    updates, _ = optimizer.update(zeros, optimizer.init(STACKED), STACKED)
    np.testing.assert_allclose(updates["layers"]["dense"]["kernel"], -0.1, rtol=1e-6)
    assert not updates["tokens"]["embedding"].any()
    assert not updates["layers"]["dense"]["bias"].any()
    assert not updates["norm"]["scale"].any()


def test_two_updates_are_clipped_adamw():
    """Against the paper's Algorithm 2 in numpy float64."""
    config = OptimizerConfig(
        learning_rate=0.1, warmup_steps=0, decay="constant", weight_decay=0.3, clip_norm=0.5
    )
    optimizer, _ = make_optimizer(config, steps=10)
    rng = np.random.default_rng(0)
    x = rng.normal(size=3)
    params = {"kernel": jnp.asarray(x, jnp.float32)}
    state = optimizer.init(params)
    mean, square = np.zeros(3), np.zeros(3)
    for t, scale in ((1, 5.0), (2, 0.01)):  # the first is clipped, the second is not
        g = scale * rng.normal(size=3)
        updates, state = optimizer.update({"kernel": jnp.asarray(g, jnp.float32)}, state, params)
        params = {"kernel": params["kernel"] + updates["kernel"]}
        g *= min(1.0, 0.5 / np.linalg.norm(g))
        mean = 0.9 * mean + 0.1 * g
        square = 0.98 * square + 0.02 * g**2
        adam = (mean / (1 - 0.9**t)) / (np.sqrt(square / (1 - 0.98**t)) + 1e-8)
        x = x - 0.1 * (adam + 0.3 * x)
        np.testing.assert_allclose(params["kernel"], x, rtol=1e-5)


def test_infinite_clip_norm_never_clips():
    optimizer, _ = make_optimizer(
        dataclasses.replace(CONFIG, warmup_steps=0, clip_norm=math.inf), steps=10
    )
    updates, _ = optimizer.update(
        {"bias": jnp.float32(1e10)}, optimizer.init({"bias": 0.0}), {"bias": 0.0}
    )
    assert np.isfinite(updates["bias"])


def updates_of(optimizer, gradients, params=STACKED):
    state, out = optimizer.init(params), []
    for gradient in gradients:
        updates, state = jax.jit(optimizer.update)(gradient, state, params)
        out.append(updates)
    return out, state


def drawn(seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), STACKED)


FLAT = dataclasses.replace(CONFIG, warmup_steps=0, weight_decay=0.3)


def test_multipliers_scale_the_update_with_its_weight_decay():
    gradients = [drawn(0), drawn(1)]
    multipliers = jax.tree.map(lambda x: np.ones((), np.float32), STACKED)
    multipliers["layers"]["dense"] = {
        "kernel": np.array([0.25, 0.5]).reshape(2, 1, 1),
        "bias": np.array([0.25, 0.5]).reshape(2, 1),
    }
    plain, _ = updates_of(make_optimizer(FLAT, steps=10)[0], gradients)
    scaled, _ = updates_of(make_optimizer(FLAT, 10, multipliers=multipliers)[0], gradients)
    for before, after in zip(plain, scaled, strict=True):
        expected = jax.tree.map(np.multiply, before, multipliers)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), after, expected)


def test_frozen_leaves_stay_have_no_moments_and_do_not_count_in_the_norm():
    frozen = jax.tree.map(lambda x: False, STACKED)
    frozen["tokens"]["embedding"] = True
    gradients = [drawn(0), drawn(1)]
    optimizer, _ = make_optimizer(FLAT, 10, frozen=frozen)
    frozen_updates, state = updates_of(optimizer, gradients)
    rest = {name: STACKED[name] for name in ("layers", "norm")}
    alone, alone_state = updates_of(
        make_optimizer(FLAT, 10)[0], [{n: g[n] for n in rest} for g in gradients], rest
    )
    for with_frozen, without in zip(frozen_updates, alone, strict=True):
        assert not with_frozen["tokens"]["embedding"].any()
        for name in rest:
            jax.tree.map(np.testing.assert_array_equal, with_frozen[name], without[name])
    count = lambda state: sum(x.size for x in jax.tree.leaves(state))  # noqa: E731
    assert count(state) == count(alone_state)


def test_the_state_of_old_runs_is_the_same():
    """Their checkpoints are restored by its structure."""
    optimizer, _ = make_optimizer(dataclasses.replace(CONFIG, layer_decay=1.0, freeze=""), 100)
    clip, (adam, decay, rate) = optimizer.init(STACKED)
    assert (type(clip).__name__, type(decay).__name__) == ("EmptyState", "MaskedState")
    assert set(adam._fields) == {"count", "mu", "nu"} and set(rate._fields) == {"count"}


def test_a_frozen_leaf_has_no_gradient_and_none_is_computed():
    def loss_fn(params, key, batch):
        return jnp.sum((batch @ params["a"] @ params["b"]) ** 2), {}

    params = {"a": jnp.ones((64, 64)), "b": jnp.ones((64, 64))}
    batch = jnp.ones((64, 64))

    def gradient_of(loss):
        return jax.jit(jax.grad(lambda params: loss(params, None, batch)[0]))

    plain = gradient_of(loss_fn)
    frozen = gradient_of(without_gradient(loss_fn, {"a": True, "b": False}))
    assert not frozen(params)["a"].any()
    np.testing.assert_allclose(frozen(params)["b"], plain(params)["b"], rtol=1e-6)
    flops = [f.lower(params).compile().cost_analysis()["flops"] for f in (plain, frozen)]
    assert flops[0] - flops[1] >= 2 * 2 * 64**3  # the products behind the gradient of a


def test_parts_are_named_with_commas_between():
    assert OptimizerConfig(freeze=" embeddings, blocks/mlp,").frozen_parts == (
        "embeddings",
        "blocks/mlp",
    )
    assert OptimizerConfig().frozen_parts == ()


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"warmup_steps": -1},
        {"decay": "exponential"},
        {"final_fraction": 1.5},
        {"weight_decay": -0.1},
        {"b1": 1.0},
        {"b2": -0.1},
        {"eps": 0.0},
        {"clip_norm": 0.0},
        {"layer_decay": 0.0},
        {"layer_decay": 1.01},
    ],
)
def test_values_out_of_range_are_named(change):
    (name,) = change
    with pytest.raises(ValueError, match=f"optimizer.{name} must") as error:
        OptimizerConfig(**change)
    assert "\n" not in str(error.value)


def test_warmup_longer_than_the_run_is_refused():
    with pytest.raises(ValueError, match="warmup_steps must be at most the run's 5 steps, not 10"):
        make_optimizer(CONFIG, steps=5)
    assert make_optimizer(OptimizerConfig(warmup_steps=5), 5)[1](5) == pytest.approx(3e-4)


MUON = OptimizerConfig(
    name="muon", learning_rate=0.5, matrix_learning_rate=0.2, warmup_steps=0, decay="constant",
    weight_decay=0.1, clip_norm=math.inf,
)  # fmt: skip
KERNELS = {
    "layers": {
        "dense": {"kernel": MuonDimensionNumbers((1,), (2,)), "bias": None},
    },
    "norm": {"scale": None},
    "tokens": {"embedding": None},
}


def orthogonalised(gradient):
    """Muon's first step for one matrix in numpy float64 (Jordan et al. 2024)."""
    x = np.asarray(gradient, np.float64)
    x = x / np.linalg.norm(x)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.775 * square + 2.0315 * square @ square) @ x
    return x


def test_muon_makes_each_kernels_update_orthogonal_and_leaves_the_rest_to_adam():
    gradient = drawn(3)
    (updates,), _ = updates_of(make_optimizer(MUON, 10, matrices=KERNELS)[0], [gradient])
    for layer in range(2):
        expected = orthogonalised(gradient["layers"]["dense"]["kernel"][layer])
        found = updates["layers"]["dense"]["kernel"][layer]
        np.testing.assert_allclose(found, -0.2 * (expected + 0.1 * 1.0), rtol=2e-3, atol=2e-5)
    for found, g in (
        (updates["layers"]["dense"]["bias"], gradient["layers"]["dense"]["bias"]),
        (updates["tokens"]["embedding"], gradient["tokens"]["embedding"]),
    ):  # Adam's first step is the gradient's sign; Nesterov's look ahead makes it a little longer.
        assert (np.sign(found) == -np.sign(g)).all()
        np.testing.assert_allclose(np.abs(found), np.abs(found).ravel()[0], rtol=1e-4)


def test_muon_takes_wide_matrices_further():
    """By the root of outputs over inputs, so that the outputs move alike."""
    gradient = np.random.default_rng(0).normal(size=(3, 12)).astype(np.float32)
    config = dataclasses.replace(MUON, weight_decay=0.0)
    sizes = []
    for kernel in (gradient, gradient.T):
        matrices = {"kernel": MuonDimensionNumbers((0,), (1,))}
        params = {"kernel": jnp.zeros(kernel.shape)}
        optimizer, _ = make_optimizer(config, 10, matrices=matrices)
        (updates,), _ = updates_of(optimizer, [{"kernel": kernel}], params)
        sizes.append(np.linalg.norm(updates["kernel"]))
    assert sizes[0] / sizes[1] == pytest.approx(2.0, rel=1e-3)


def test_muons_parts_follow_one_schedule():
    config = dataclasses.replace(MUON, warmup_steps=4, weight_decay=0.0, decay="linear")
    optimizer, schedule = make_optimizer(config, 8, matrices=KERNELS)
    flat, _ = make_optimizer(
        dataclasses.replace(config, warmup_steps=0, decay="constant"), 8, matrices=KERNELS
    )
    gradients = [drawn(i) for i in range(3)]
    (moving, state), (still, _) = updates_of(optimizer, gradients), updates_of(flat, gradients)
    for step, (a, b) in enumerate(zip(moving, still, strict=True)):
        factor = float(schedule(step)) / 0.5
        jax.tree.map(lambda x, y, f=factor: np.testing.assert_allclose(x, f * y, rtol=1e-5), a, b)
    assert int(optax.tree.get(state, "ScaleByScheduleState").count) == 3


def test_muon_leaves_what_is_frozen_alone():
    frozen = jax.tree.map(lambda x: False, STACKED)
    frozen["tokens"]["embedding"] = True
    optimizer, _ = make_optimizer(MUON, 10, matrices=KERNELS, frozen=frozen)
    (updates,), state = updates_of(optimizer, [drawn(0)])
    (free,), _ = updates_of(make_optimizer(MUON, 10, matrices=KERNELS)[0], [drawn(0)])
    assert not updates["tokens"]["embedding"].any()
    np.testing.assert_array_equal(
        updates["layers"]["dense"]["kernel"], free["layers"]["dense"]["kernel"]
    )
    assert (5, 3) not in {leaf.shape for leaf in jax.tree.leaves(state)}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"name": "sgd"}, "optimizer.name must be one of adamw, muon, not 'sgd'"),
        ({"name": "muon"}, "matrix_learning_rate must be positive where optimizer.name is 'muon'"),
        ({"matrix_learning_rate": 0.1}, "must be 0 where optimizer.name is not 'muon'"),
    ],
)
def test_a_rate_for_matrices_is_muons(changes, told):
    with pytest.raises(ValueError, match=told):
        OptimizerConfig(**changes)
