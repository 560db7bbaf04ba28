"""A linear regression, with what `make_step` and `fit` need of it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mdlm_jax.host import parallel
from mdlm_jax.training.optimizer import OptimizerConfig, make_optimizer
from mdlm_jax.training.state import abstract_state, init_state, state_shardings
from mdlm_jax.training.step import make_step

STEPS = 12
ROWS, INPUTS, OUTPUTS = 8, 4, 2
AXES = {"kernel": (None, "embed"), "bias": (None,)}
CONFIG = OptimizerConfig(learning_rate=0.1, warmup_steps=2)


def params():
    key = jax.random.key(0)
    return {"kernel": jax.random.normal(key, (INPUTS, OUTPUTS)), "bias": jnp.zeros(OUTPUTS)}


def shapes():
    return jax.eval_shape(params)


def batch(step):
    """Rows and, as leaves of half the length, one weight a pair of rows."""
    rng = np.random.default_rng(step)
    return {
        "x": rng.normal(size=(ROWS, INPUTS)).astype(np.float32),
        "y": rng.normal(size=(ROWS, OUTPUTS)).astype(np.float32),
        "weight": rng.uniform(size=ROWS // 2).astype(np.float32),
    }


def prepare(key, step, batch):
    """Draws noise, and normalises the weights by the global batch."""
    del step
    noise = 0.1 * jax.random.normal(key, batch["x"].shape)
    weight = batch["weight"] / batch["weight"].sum()
    return {**batch, "x": batch["x"] + noise, "weight": weight}


def loss_fn(params, key, batch):
    del key
    error = batch["x"] @ params["kernel"] + params["bias"][None] - batch["y"]  # [rows, OUTPUTS]
    pairs = jnp.square(error).mean(-1).reshape(-1, 2).mean(-1)  # [pairs]
    loss = (batch["weight"] * pairs).sum()
    return loss, {"weight": batch["weight"].sum()}


def put(rows, mesh):
    """On the mesh, each leaf by its own number of rows."""
    return {
        name: parallel.put_batch({name: leaf}, mesh, len(leaf))[name] for name, leaf in rows.items()
    }


class Batches:
    """Batches of `batch`; those of the steps in `bad` (from 1) hold a NaN."""

    def __init__(self, bad=(), length=10**6):
        self.bad, self.length = set(bad), length

    def iterate(self, start_step):
        for step in range(start_step, self.length):
            rows = batch(step)
            if step + 1 in self.bad:
                rows["x"][0, 0] = np.nan
            yield rows


@functools.cache
def optimizer():
    return make_optimizer(CONFIG, STEPS)


@functools.cache
def step(*, mesh=None, **options):
    """One compilation serves all tests with the same options."""
    transform, schedule = optimizer()
    options = {"seed": 0, "ema_decay": 0.9, "prepare": prepare, "schedule": schedule, **options}
    placed = None if mesh is None else shardings(mesh)
    return make_step(loss_fn, transform, shardings=placed, **options)


def state(mesh=None):
    fresh = jax.tree.map(jnp.copy, _initial())
    return fresh if mesh is None else jax.device_put(fresh, shardings(mesh))


@functools.cache
def _initial():
    return init_state(params(), optimizer()[0])


def shardings(mesh):
    placed = parallel.shardings(mesh, AXES, shapes())
    return state_shardings(placed, shapes(), optimizer()[0])


def abstract(mesh):
    return abstract_state(shapes(), optimizer()[0], shardings(mesh))
