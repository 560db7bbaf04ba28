"""Run by test_mesh.py in a process of its own with four virtual devices; prints what it found."""

import json
import sys

import jax
import numpy as np
import toy_regression as toy

from mdlm_jax.host import parallel
from mdlm_jax.training import checkpoints
from mdlm_jax.training.state import init_state


def main(directory):
    mesh = parallel.make_mesh(data=-1, fsdp=2)
    found = {"mesh": dict(mesh.shape)}
    found["rows"] = [
        shard.data.shape[0] for shard in toy.put(toy.batch(0), mesh)["x"].addressable_shards
    ]
    try:
        parallel.put_batch({"x": np.zeros((6, 2))}, mesh, 6)
    except ValueError as error:
        found["error"] = str(error)

    def run(state, step, put):
        for i in range(3):
            state, _ = step(state, put(toy.batch(i)))
        return state

    # The four pair weights give two microbatches of two, which two devices share.
    pairs = parallel.make_mesh(fsdp=2, devices=jax.devices()[:2])
    shardings = toy.shardings(pairs)
    step = toy.step(mesh=pairs, accumulation=2)
    sharded = run(
        init_state(toy.params(), toy.optimizer()[0], shardings),
        step,
        lambda batch: toy.put(batch, pairs),
    )
    plain = run(toy.state(), toy.step(), lambda batch: batch)
    found["step_difference"] = max(
        float(np.abs(np.asarray(a) - np.asarray(b)).max())
        for a, b in zip(jax.tree.leaves(sharded), jax.tree.leaves(plain), strict=True)
    )
    found["state_stays"] = jax.tree.map(lambda x: x.sharding, sharded) == shardings
    found["kernel_shard"] = sharded.opt_state[1][0].mu["kernel"].addressable_shards[0].data.shape
    found["compilations"] = step._cache_size()

    other = parallel.make_mesh(data=1, fsdp=1, tensor=2, devices=jax.devices()[:2])
    with checkpoints.open_checkpoints(directory) as checkpointer:
        checkpoints.save(checkpointer, sharded)
        checkpointer.wait()
        restored = checkpoints.restore(checkpointer, toy.abstract(other))
    found["restored_equal"] = all(
        bool((np.asarray(a) == np.asarray(b)).all())
        for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(sharded), strict=True)
    )
    found["restored_in_place"] = jax.tree.map(lambda x: x.sharding, restored) == toy.shardings(
        other
    )
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
