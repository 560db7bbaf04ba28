"""The counted operations against those of the traced computation."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest

from mdlm_jax.networks import bert
from mdlm_jax.pods import flops

CONFIG = bert.Config(
    vocab_size=300,
    mask_id=4,
    vocab_multiple=128,
    max_length=32,
    layers=3,
    width=24,
    heads=2,
    mlp_width=80,
    dropout=0.0,
    scan=False,
)
ROWS, LENGTH, READ = 4, 32, 50


def products(jaxpr):
    """Operations of all matrix products in it."""
    count = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            inner = math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
            count += 2 * inner * math.prod(eqn.outvars[0].aval.shape)
        for value in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                times = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
                count += times * products(inner)
    return count


def traced(config, differentiate):
    params = jax.eval_shape(lambda: bert.init(jax.random.key(0), config))
    tokens, t = jnp.zeros((ROWS, LENGTH), jnp.int32), jnp.zeros(ROWS)

    def loss(params):
        denoiser = bert.denoiser(params, config)
        at = denoiser.encode(tokens, t).at.reshape(ROWS * LENGTH, -1)[:READ]
        return jnp.where(jnp.isfinite(logits := denoiser.readout(at, ())), logits, 0).sum()

    return products(jax.make_jaxpr(jax.grad(loss) if differentiate else loss)(params).jaxpr)


@pytest.mark.parametrize("gated", [False, True])
def test_a_step_and_its_forward_pass(gated):
    config = dataclasses.replace(CONFIG, gated=gated)
    counted = flops.training_step(config, ROWS, LENGTH, READ)
    assert counted.recomputed == 0
    assert counted.model == traced(config, differentiate=True)
    assert counted.model == 3 * traced(config, differentiate=False)


def test_a_step_that_computes_the_whole_encoder_everywhere():
    late, whole = (
        flops.training_step(CONFIG, ROWS, LENGTH, READ, whole=whole).model
        for whole in (False, True)
    )
    mlp = 2 * CONFIG.width * CONFIG.mlp_width
    assert whole - late == 3 * 2 * mlp * (ROWS * LENGTH - READ)


def test_full_remat_runs_the_blocks_again():
    config = dataclasses.replace(CONFIG, remat="full", scan=True)
    counted = flops.training_step(config, ROWS, LENGTH, READ)
    assert sum(counted) == traced(config, differentiate=True)


def test_time_conditioning_adds_work_a_row_not_a_token():
    config = dataclasses.replace(CONFIG, time_conditioning=True)
    counted = flops.training_step(config, ROWS, LENGTH, READ).model
    # The time's own embedding is left out.
    assert counted == pytest.approx(traced(config, differentiate=True), rel=0.02)
    assert counted > flops.training_step(CONFIG, ROWS, LENGTH, READ).model


def test_a_window_is_less_work():
    local = dataclasses.replace(CONFIG, attention="local", window=2)
    saved = 3 * 4 * ROWS * LENGTH * (LENGTH - 5) * CONFIG.width * CONFIG.layers
    full, less = (flops.training_step(c, ROWS, LENGTH, READ) for c in (CONFIG, local))
    assert full.model - less.model == saved


def test_a_sampler_encodes_each_step_and_reads_each_position_once():
    one, two = (flops.sampler(CONFIG, ROWS, LENGTH, steps) for steps in (1, 2))
    forward = flops.training_step(CONFIG, ROWS, LENGTH, 0).model / 3
    assert two - one == forward
    assert one == flops.training_step(CONFIG, ROWS, LENGTH, ROWS * LENGTH).model / 3


def test_blocks_that_see_everything_are_counted_so():
    local = dataclasses.replace(CONFIG, layers=5, attention="local", window=2)
    alternating = dataclasses.replace(local, global_every=3)  # blocks 0 and 3
    full = dataclasses.replace(local, attention="full", window=0)
    one, two, three = (
        flops.sampler(config, ROWS, LENGTH, 1) for config in (local, alternating, full)
    )
    assert two - one == pytest.approx(2 / 5 * (three - one))
