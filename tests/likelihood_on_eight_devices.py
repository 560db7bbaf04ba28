"""Likelihoods on several meshes of eight devices, run by test_models.py; prints the figures.

python tests/likelihood_on_eight_devices.py WORKDIR
"""

import json
import sys

import jax
import numpy as np

from mdlm_jax import data
from mdlm_jax.evaluation.bounds import likelihoods, rate_curves
from mdlm_jax.host import parallel
from mdlm_jax.runs import models
from mdlm_jax.writing import filling

MESHES = ("data=8", "data=2,fsdp=2,tensor=2")
COUNT, LENGTH = 21, 16  # two batches of eight, and what is left


def corpus():
    draw = np.random.default_rng(0)
    sizes = np.full(COUNT, LENGTH, np.int32)
    sizes[-1] = 5
    return data.Rows(draw.integers(5, 60, (COUNT, LENGTH)), np.full(COUNT, -1, np.int32), sizes)


def measure(model, mesh):
    of_batch = likelihoods.denoiser_of(model.encoder)
    drawn = {"mask_id": model.encoder.mask_id, "seed": 0}
    nelbo = likelihoods.make_nelbo(of_batch, draws=2, mesh=mesh, **drawn)
    exact = likelihoods.make_causal_likelihood(of_batch, start_id=2, mesh=mesh)
    halves = rate_curves.masks_at_rates(of_batch, rates=(0.15, 1.0), **drawn)
    curve = rate_curves.curve_of(halves, mesh)
    return {
        "nelbo": likelihoods.summary(nelbo(model.params, corpus(), 6)),
        "exact": likelihoods.summary(exact(model.params, corpus(), 6)),
        "curve": curve(model.params, corpus(), 6),
    }


def main(folder):
    meshes = {sizes: filling.make_mesh(sizes) for sizes in MESHES}
    meshes["one device"] = parallel.make_mesh(devices=jax.devices()[:1])
    told = {}
    for name, mesh in meshes.items():
        model = models.load(folder, mesh)
        table = model.params["encoder"]["embeddings"]["tokens"]
        held = table.addressable_shards[0].data.size / table.size
        told[name] = {"figures": measure(model, mesh), "held": held, "vocabulary": len(table)}
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
