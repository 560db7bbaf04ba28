"""Run by test_in_blocks.py in a process of its own with four virtual devices; prints what holds."""

import dataclasses
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np

sys.path.append(str(Path(__file__).parents[1]))
from networks.tiny import BASE, MASK, params_of

from mdlm_jax import blocks
from mdlm_jax.host import parallel
from mdlm_jax.networks import bert

ROWS, LENGTH, SIZE = 4, 12, 3
CONFIG = dataclasses.replace(
    BASE, max_length=LENGTH, positions="rope", norm_position="pre", dropout=0.0
)
NOISY, CLEAN = np.random.default_rng(0).integers(0, 13, (2, ROWS, LENGTH), dtype=np.int32)
T = np.ones((ROWS, LENGTH // SIZE), np.float32)
CANVAS = np.where(np.arange(LENGTH) % 5 == 1, CLEAN, MASK)


def encode(params, noisy, clean, t):
    denoiser = bert.block_denoiser(params, CONFIG, SIZE)
    return denoiser.readout(denoiser.encode(noisy, clean, t).at, ())[..., MASK + 1 :]


def write(params, canvas, rows):
    denoiser = bert.block_denoiser(params, CONFIG, SIZE)
    return blocks.sample(denoiser, jax.random.key(0), canvas, mask_id=MASK, steps=2, rows=rows)


def main():
    params, rows = params_of(CONFIG), np.arange(ROWS)
    logits = jax.jit(encode)(params, NOISY, CLEAN, T)
    written = jax.jit(write)(params, CANVAS, rows)

    mesh = parallel.make_mesh(data=2, tensor=2)
    put = partial(jax.device_put, device=parallel.batch_sharding(mesh))

    def within(fn):
        def run(*args):
            with parallel.use(mesh):
                return fn(*args)

        return jax.jit(run)

    out = within(encode)(params, put(NOISY), put(CLEAN), put(T))
    np.testing.assert_allclose(out, logits, atol=1e-5)
    np.testing.assert_array_equal(within(write)(params, put(CANVAS), put(rows)), written)
    print("mesh")

    flat = jax.make_mesh((4,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.P("rows")
    mapped = jax.shard_map(write, mesh=flat, in_specs=(jax.P(), split, split), out_specs=split)
    np.testing.assert_array_equal(jax.jit(mapped)(params, CANVAS, rows), written)
    print("shard_map")


if __name__ == "__main__":
    main()
