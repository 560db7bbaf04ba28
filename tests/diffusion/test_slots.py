"""The loss whose gradient is taken in the forward pass, against autodiff of its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.diffusion.denoisers import Hidden
from mdlm_jax.diffusion.reading import slots

B, L, D, V, GROUPS, C = 4, 6, 5, 11, 2, 7


@pytest.fixture(scope="module")
def batch():
    draw = np.random.default_rng(0)
    return {
        "positions": jnp.asarray(draw.integers(0, B // GROUPS * L, (GROUPS, C)), jnp.int32),
        "targets": jnp.asarray(draw.integers(1, V, (GROUPS, C)), jnp.int32),
        "weights": jnp.asarray(draw.random((GROUPS, C)) * (draw.random((GROUPS, C)) < 0.8)),
    }


@pytest.fixture(scope="module")
def params():
    draw = np.random.default_rng(1)
    shapes = {"at": (B, L, D), "row": (B, D), "table": (D, V)}
    return {name: jnp.asarray(draw.normal(size=shape)) for name, shape in shapes.items()}


def fused(params, batch):
    def readout(at, row):
        return jnp.tanh(at + row) @ params["table"]

    hidden = Hidden(params["at"], params["row"])
    return slots.cross_entropy(readout, hidden, **batch, mask_id=0)


def plain(params, batch):
    logits = jnp.tanh(params["at"] + params["row"][:, None]) @ params["table"]
    log_p = jax.nn.log_softmax(logits.at[..., 0].set(-jnp.inf)).reshape(GROUPS, -1, V)
    at_slots = jnp.take_along_axis(log_p, batch["positions"][..., None], axis=1)
    nats = -jnp.take_along_axis(at_slots, batch["targets"][..., None], axis=-1)[..., 0]
    return jnp.sum(batch["weights"] * nats), jnp.where(batch["weights"] > 0, nats, 0.0)


def of_slots(params, batch):
    def readout(at, row):
        return jnp.tanh(at + row) @ params["table"]

    hidden = Hidden(params["at"], params["row"])
    read = slots.slot_nats(readout, hidden, **batch, mask_id=0)
    return jnp.sum(batch["weights"] * read.nats), read


@pytest.mark.parametrize("logits_at_a_time", [2**28, 4 * V])
@pytest.mark.parametrize("loss", [fused, of_slots])
def test_loss_slots_and_gradients_are_those_of_the_formula(
    loss, logits_at_a_time, params, batch, monkeypatch
):
    monkeypatch.setattr(slots, "_LOGITS", logits_at_a_time)
    expected, of_params = jax.value_and_grad(lambda p: plain(p, batch)[0])(params)
    (got, read), gradient = jax.value_and_grad(lambda p: loss(p, batch), has_aux=True)(params)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    np.testing.assert_allclose(read.nats, plain(params, batch)[1], rtol=1e-4, atol=1e-5)
    for name in params:
        np.testing.assert_allclose(gradient[name], of_params[name], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(loss(params, batch)[0], expected, rtol=1e-5)  # not differentiated


def test_a_scaled_loss_has_a_scaled_gradient_also_by_the_weights(params, batch):
    def scaled(loss):
        def value(params, weights):
            return 3.0 * loss(params, {**batch, "weights": weights})[0]

        return jax.grad(value, argnums=(0, 1))(params, batch["weights"])

    filled = batch["weights"] > 0
    (got, by_weight), (expected, by_weight_expected) = scaled(fused), scaled(plain)
    for name in params:
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(by_weight[filled], by_weight_expected[filled], rtol=1e-4)


def test_hessian_vector_products_forward_over_reverse(params, batch):
    def product(loss):
        gradient = jax.grad(lambda p: loss(p, batch)[0])
        return jax.jvp(gradient, (params,), (jax.tree.map(jnp.cos, params),))[1]

    got, expected = product(fused), product(plain)
    for name in params:
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-3, atol=1e-4)


def test_what_is_no_float_goes_through_without_a_gradient(params, batch):
    """What a row has said already (booleans), where its positions are (integers)."""
    said = jnp.arange(B * V).reshape(B, V) % 3 == 0

    def loss(params, of):
        def readout(at, row):
            x, place = at
            row, said = row
            logits = jnp.tanh(x + row) @ params["table"] + place[:, None] * 0.1
            return jnp.where(said, 1.3 * logits, logits)

        place = jnp.broadcast_to(jnp.arange(L), (B, L))
        hidden = Hidden((params["at"], place), (params["row"], said))
        value = of(readout, hidden, **batch, mask_id=0)
        return value[0] if of is slots.cross_entropy else jnp.sum(batch["weights"] * value.nats)

    got = jax.grad(loss)(params, slots.cross_entropy)
    expected = jax.grad(loss)(params, slots.slot_nats)
    for name in params:
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-4, atol=1e-5)


def test_forward_is_refused_and_open_to_the_slots_alone(params, batch):
    along = (params,), (jax.tree.map(jnp.cos, params),)
    with pytest.raises(TypeError, match="forward-mode autodiff"):
        jax.jvp(lambda p: fused(p, batch)[0], *along)
    got = jax.jvp(lambda p: of_slots(p, batch)[0], *along)
    np.testing.assert_allclose(got, jax.jvp(lambda p: plain(p, batch)[0], *along), rtol=1e-4)


def soft_cross_entropy(logits, slot):
    """Of a teacher's probabilities, tempered a row; and how often both have the same best token."""
    log_p = jax.nn.log_softmax(jnp.where(jnp.isfinite(logits), logits, -30.0))
    same = jnp.argmax(logits, axis=-1) == jnp.argmax(slot["p"], axis=-1)
    return -slot["scale"] * jnp.sum(slot["p"] * log_p, axis=-1), same


SOFT = slots.by_gradient(soft_cross_entropy)


@pytest.mark.parametrize("logits_at_a_time", [2**28, 4 * V])
@pytest.mark.parametrize("summed", [True, False])
def test_any_loss_of_logits_and_slot_has_its_value_and_gradient(
    summed, logits_at_a_time, params, batch, monkeypatch
):
    monkeypatch.setattr(slots, "_LOGITS", logits_at_a_time)
    draw = np.random.default_rng(2)
    slot = {
        "p": jnp.asarray(draw.dirichlet(np.ones(V), (GROUPS, C)), jnp.float32),
        "scale": jnp.asarray(draw.random((GROUPS, C)), jnp.float32),
    }
    at = {name: batch[name] for name in ("positions", "weights")}

    def found(params, slot):
        def readout(at, row):
            return jnp.tanh(at + row) @ params["table"]

        hidden = Hidden(params["at"], params["row"])
        if summed:
            return slots.weighted_loss(SOFT, readout, hidden, slot=slot, **at, mask_id=None)[0]
        value, _ = slots.slot_values(SOFT, readout, hidden, slot=slot, **at, mask_id=None)
        return jnp.sum(batch["weights"] * value)

    def formula(params, slot):
        logits = jnp.tanh(params["at"] + params["row"][:, None]) @ params["table"]
        logits = logits.reshape(GROUPS, -1, V)
        at_slots = jnp.take_along_axis(logits, batch["positions"][..., None], axis=1)
        return jnp.sum(batch["weights"] * soft_cross_entropy(at_slots, slot)[0])

    for argument in (0, 1) if summed else (0,):
        value, gradient = jax.jit(jax.value_and_grad(found, argument))(params, slot)
        expected, of_formula = jax.jit(jax.value_and_grad(formula, argument))(params, slot)
        if argument == 1:  # what a slot holds has no gradient
            of_formula = jax.tree.map(jnp.zeros_like, of_formula)
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5),
            gradient, of_formula,
        )  # fmt: skip


def test_what_a_loss_tells_besides_comes_back_slot_by_slot(params, batch):
    slot = {"p": jax.nn.one_hot(batch["targets"], V), "scale": jnp.ones((GROUPS, C))}

    def readout(at, row):
        return jnp.tanh(at + row) @ params["table"]

    hidden = Hidden(params["at"], params["row"])
    at = {name: batch[name] for name in ("positions", "weights")}
    _, nats, correct = slots.weighted_loss(SOFT, readout, hidden, slot=slot, **at, mask_id=None)
    _, read = slots.cross_entropy(readout, hidden, **batch, mask_id=None)
    np.testing.assert_allclose(nats, read.nats, rtol=1e-5)
    filled = batch["weights"] > 0
    np.testing.assert_array_equal(correct & filled, read.correct)


def test_weights_of_either_sign_count(params, batch):
    """As those of rewards are."""
    slot = {"p": jax.nn.one_hot(batch["targets"], V), "scale": jnp.ones((GROUPS, C))}

    def readout(at, row):
        return jnp.tanh(at + row) @ params["table"]

    hidden, weights = Hidden(params["at"], params["row"]), batch["weights"]

    def total(weights):
        at = {"positions": batch["positions"], "weights": weights}
        return slots.weighted_loss(SOFT, readout, hidden, slot=slot, **at, mask_id=None)[0]

    signs = jnp.where(jnp.arange(C) % 2, 1.0, -1.0)[None]
    both = total(weights * signs)
    parts = total(weights * (signs > 0)) - total(weights * (signs < 0))
    np.testing.assert_allclose(both, parts, rtol=1e-5)
