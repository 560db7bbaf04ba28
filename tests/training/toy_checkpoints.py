"""Toy states as checkpoints: saved, and read back onto one device."""

import jax
import jax.numpy as jnp
import toy_regression as toy

from mdlm_jax.host import parallel
from mdlm_jax.training import checkpoints

MESH = parallel.make_mesh(devices=jax.devices()[:1])


def at(state, step):
    return state._replace(step=jnp.int32(step))


def save_all(directory, states, **policy):
    with checkpoints.open_checkpoints(directory, **policy) as checkpointer:
        for state in states:
            checkpoints.save(checkpointer, state)


def restore(directory):
    with checkpoints.open_checkpoints(directory) as checkpointer:
        return checkpoints.restore(checkpointer, toy.abstract(MESH))


def params_abstract():
    return toy.abstract(MESH).params
