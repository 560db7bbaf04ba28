"""A tiny encoder, and random parameters for whatever is made of it."""

import functools

import jax
import numpy as np

from mdlm_jax.networks import bert

MASK = 3
BASE = bert.Config(
    vocab_size=13,
    mask_id=MASK,
    max_length=8,
    layers=2,
    width=16,
    heads=2,
    mlp_width=24,
    norm_eps=1e-6,
)


@functools.cache
def params_of(config, noise=0.2):
    """Random parameters; scales lie around 1, all else around 0. Nothing is compiled."""
    shapes = jax.eval_shape(lambda: bert.init(jax.random.key(0), config))
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        center = float(path[-1].key == "scale")
        return (center + noise * rng.standard_normal(leaf.shape)).astype(np.float32)

    return jax.tree.map_with_path(draw, shapes)
