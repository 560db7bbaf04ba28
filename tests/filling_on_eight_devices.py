"""Fills rows on several meshes of eight devices, run by test_filling.py; prints the tokens.

python tests/filling_on_eight_devices.py WORKDIR
"""

import json
import sys

import jax
import numpy as np
from etils import epath

from mdlm_jax.diffusion import schedules
from mdlm_jax.host import parallel
from mdlm_jax.runs import workdir
from mdlm_jax.runs.sampler import Method
from mdlm_jax.runs.shaping import Shaping
from mdlm_jax.writing import canvases, filling
from mdlm_jax.writing.decoding import strategy

MESHES = ("data=8", "fsdp=2,tensor=2")
TEXTS = ("", "the river {mask:5}", "{mask:3} salt {mask:2}")


def main(folder):
    meshes = {sizes: filling.make_mesh(sizes) for sizes in MESHES}
    meshes["one device"] = parallel.make_mesh(devices=jax.devices()[:1])
    told = {}
    for name, mesh in meshes.items():
        trained = workdir.load(epath.Path(folder), mesh=mesh)
        canvas = canvases.canvas(TEXTS, trained.tokenizer, trained.encoder.max_length)
        method = Method(
            strategy("confidence(margin)", schedules.linear()),
            Shaping(temperature=0.9, top_p=0.95),
            steps=5,
            guidance=1.5,
        )
        filled = filling.fill(
            trained.params, trained.encoder, mesh, method, canvas,
            labels=np.array([0, 1, 1], np.int32), samples=3, batch_size=4,
        )  # fmt: skip
        rows = [row for batch in filled for row in batch]
        table = trained.params["encoder"]["embeddings"]["tokens"]
        told[name] = {
            "numbers": [row.number for row in rows],
            "tokens": [row.tokens.tolist() for row in rows],
            "evaluations": [row.evaluations for row in rows],
            "vocabulary": table.shape[0],
            "held": table.addressable_shards[0].data.size / table.size,
        }
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
