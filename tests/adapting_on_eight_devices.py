"""Run by test_adapting.py in a process of its own with eight virtual devices; prints what it found.

A run from given parameters, with frozen and slower parts, a curriculum and kept prefixes: on one
device, and on a cube of eight, there saved and restored.
"""

import json
import sys

import jax
import numpy as np

from mdlm_jax.host import parallel
from mdlm_jax.networks import bert
from mdlm_jax.runs.experiment import Experiment, default_config
from mdlm_jax.runs.program import make_program
from mdlm_jax.training import checkpoints

VOCABULARY, ROWS, LENGTH, STEPS = 127, 16, 8, 3  # odd: the tensor axis makes it pad


def experiment():
    config = default_config()
    config.data.update(vocab_size=VOCABULARY, length=LENGTH)
    config.model.update(layers=2, width=32, heads=4, mlp_width=64, use_bias=False, dropout=0.2)
    config.objective.update(curriculum_steps=2, curriculum_rate=0.3, keep="prefix")
    config.optimizer.update(warmup_steps=1, freeze="embeddings, blocks/mlp", layer_decay=0.5)
    config.training.update(batch_size=ROWS, steps=STEPS)
    return Experiment.of(config.to_dict())


def plain(tree):
    """By path, without the rows that pad the vocabulary."""
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(x)
        for path, x in jax.tree.leaves_with_path(tree)
    }
    return {
        name: x[:VOCABULARY] if x.shape[:1] == (VOCABULARY + 1,) else x
        for name, x in leaves.items()
    }


def largest(first, second):
    first, second = plain(first), plain(second)
    assert first.keys() == second.keys()
    return max(float(np.abs(first[name] - second[name]).max()) for name in first)


def main(folder):
    settings = experiment()
    encoder = settings.planned_encoder()
    given = jax.device_get(bert.init(jax.random.key(7), encoder))
    tokens = np.random.default_rng(0).integers(0, VOCABULARY - 1, (STEPS, ROWS, LENGTH))

    def run(mesh):
        program = make_program(settings, encoder, mesh)
        state = program.init_from(program.place(given))
        began, losses = jax.device_get(state.params), []
        for i in range(STEPS):
            rows = {
                "tokens": tokens[i].astype(np.int32),
                "maskable": np.ones((ROWS, LENGTH), bool),
                "label": np.full(ROWS, -1, np.int32),
            }
            state, metrics = program.step(state, parallel.put_batch(rows, mesh, ROWS))
            losses.append(float(metrics["loss"]))
        return program, state, began, losses

    one = parallel.make_mesh(devices=jax.devices()[:1])
    cube = parallel.make_mesh(2, 2, 2)
    _, alone, _, expected = run(one)
    program, state, began, losses = run(cube)
    found = {
        "began": largest(began, given),
        "losses": float(np.abs(np.subtract(losses, expected)).max()),
        "params": largest(state.params, alone.params),
        "moved": {
            name: float(np.abs(x - plain(given)[name]).max())
            for name, x in plain(state.params).items()
        },
        "moments": sum(x.size for x in jax.tree.leaves(state.opt_state)),
        "in_place": jax.tree.map(lambda x: x.sharding, state) == program.shardings,
    }
    with checkpoints.open_checkpoints(folder) as checkpointer:
        checkpoints.save(checkpointer, state)
        checkpointer.wait()
        padded = bert.padded_leaves(program.encoder)
        restored = checkpoints.restore(checkpointer, program.abstract_state(), padded=padded)
        # ... and by a mesh that pads otherwise.
        elsewhere = make_program(settings, encoder, one).abstract_state()
        moved = checkpoints.restore(checkpointer, elsewhere, padded=padded)
    same = jax.tree.map(lambda a, b: bool(np.all(np.asarray(a) == np.asarray(b))), restored, state)
    found["restored"] = all(jax.tree.leaves(same))
    found["restored_elsewhere"] = largest(moved.params, state.params)
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
