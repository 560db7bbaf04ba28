"""A few steps on a mesh, run by test_topologies.py in processes of their own; writes what it saw.

python tests/on_topology.py OUTPUT.npz DATA,FSDP,TENSOR ACCUMULATION DROPOUT
"""

import sys

import jax
import numpy as np
from jax.experimental import multihost_utils

from mdlm_jax import data
from mdlm_jax.host import distributed, parallel
from mdlm_jax.runs.experiment import Experiment, default_config
from mdlm_jax.runs.program import make_prepare, make_program, pairs_rows

VOCABULARY = 127  # odd: the tensor axis makes it pad
ROWS, LENGTH, STEPS = 16, 8, 3


def experiment(accumulation, dropout):
    config = default_config()
    config.data.update(vocab_size=VOCABULARY, length=LENGTH)
    config.model.update(
        layers=2, width=32, heads=4, mlp_width=64, use_bias=False, dropout=dropout, remat="dots"
    )
    config.optimizer.warmup_steps = 1
    config.training.update(batch_size=ROWS, steps=STEPS, accumulation=accumulation)
    return Experiment.of(config.to_dict())


def corpus():
    draw = np.random.default_rng(0)
    tokens = draw.integers(0, VOCABULARY - 1, (40, LENGTH), dtype=np.int32)
    return data.Rows(tokens, np.full(40, -1, np.int32))


def main(output, sizes, accumulation, dropout):
    distributed.initialize()
    mesh = parallel.make_mesh(*map(int, sizes.split(",")))
    settings = experiment(int(accumulation), float(dropout))
    program = make_program(settings, settings.planned_encoder(), mesh)
    local = parallel.local_rows(mesh, ROWS)
    batches = data.train_batches(corpus(), batch_size=ROWS, seed=3, local=local)
    whole = parallel.replicated(mesh)
    prepare = jax.jit(
        make_prepare(settings, program.encoder, paired=pairs_rows(settings, mesh)),
        out_shardings=whole,
    )
    state, seen = program.init(), {"read": len(local)}
    for i in range(STEPS):
        batch = parallel.put_batch(batches.at(i), mesh, ROWS)
        seen[f"tokens {i}"] = multihost_utils.process_allgather(batch["tokens"], tiled=True)
        corrupted = prepare(jax.random.key(i), i, batch)["corrupted"]
        seen[f"canvas {i}"] = corrupted.canvas
        seen[f"slots {i}"] = np.sum(corrupted.weights > 0)
        state, metrics = program.step(state, batch)
        seen[f"loss {i}"], seen[f"masked {i}"] = metrics["loss"], metrics["aux"].masked
    for name in ("params", "ema"):
        tree = jax.jit(lambda x: x, out_shardings=whole)(getattr(state, name))
        for path, leaf in jax.tree.leaves_with_path(tree):
            key = jax.tree_util.keystr(path, simple=True, separator="/")
            if key.endswith("embeddings/tokens"):
                seen["padding"], leaf = leaf[VOCABULARY:], leaf[:VOCABULARY]
            seen[f"{name} {key}"] = leaf
    if jax.process_index() == 0:
        np.savez(output, **jax.device_get(seen))


if __name__ == "__main__":
    main(*sys.argv[1:])
