"""The training step on every mesh of this host's devices: does it compute the same, how fast is it.

    python -m benchmarks.scaling [--config=bert_base] [--batch_size=256] [--steps=50]

Takes `--steps` steps on one device, then on all of them along `data`, along `fsdp` and along
`tensor`, from the same parameters, rows and masks; the rows are random tokens. Prints one JSON line
a mesh:

  largest_difference  of the losses of the steps, from those of one device, relative
  tokens_per_second   over the last four fifths of the steps, device time alone: rows are there
  speedup             over one device with the same batch
  step_memory         bytes that a device holds at the peak of the step, as XLA planned it
"""

import itertools
import json
import time

import jax
import numpy as np
from absl import flags

from mdlm_jax.host import command_line, parallel
from mdlm_jax.runs import starting
from mdlm_jax.runs.experiment import Experiment
from mdlm_jax.runs.program import Program, make_program

_CONFIG = command_line.define_config()
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 256, "Rows a step, of all devices together.")
_STEPS = flags.DEFINE_integer("steps", 50, "Steps on each mesh.")
command_line.require("config")

DIFFERENT_BATCHES = 4


def main() -> int:
    """Prints a line a mesh."""
    with command_line.bad_input():
        config = command_line.chosen_config(_CONFIG)
        config["training"].update(batch_size=_BATCH_SIZE.value, steps=_STEPS.value)
        config["optimizer"]["warmup_steps"] = _STEPS.value // 5
        experiment = Experiment.of(config)
        devices = parallel.available_devices()
    meshes = [parallel.make_mesh(devices=devices[:1])]
    if len(devices) > 1:
        meshes += [parallel.make_mesh(**{"data": 1, axis: len(devices)}) for axis in parallel.AXES]
    first = None
    for mesh in meshes:
        losses, tokens_per_second, memory = _run(experiment, mesh)
        first = first or (losses, tokens_per_second)
        difference = np.abs(losses / first[0] - 1).max()
        line = {
            "mesh": {axis: size for axis, size in mesh.shape.items() if size > 1},
            "losses": [round(float(loss), 5) for loss in losses[:: max(1, len(losses) // 5)]],
            "largest_difference": float(difference),
            "tokens_per_second": round(tokens_per_second),
            "speedup": round(tokens_per_second / first[1], 3),
            "step_memory": memory,
            "device": devices[0].device_kind,
        }
        print(json.dumps(line), flush=True)
    return 0


def _run(experiment: Experiment, mesh: jax.sharding.Mesh) -> tuple[np.ndarray, float, int]:
    """The losses of all steps, tokens a second of the last four fifths, peak bytes of a step."""
    encoder = experiment.planned_encoder(starting.architecture(experiment.start))
    program = make_program(experiment, encoder, mesh, start_id=0)
    shape = (experiment.training.batch_size, experiment.data.length)
    state = program.init()
    step = program.step.lower(state, program.abstract_batch()).compile()
    batches = itertools.cycle(
        [parallel.put_batch(_batch(i, program), mesh, shape[0]) for i in range(DIFFERENT_BATCHES)]
    )
    count = experiment.training.steps
    skipped, begun, losses = count // 5, 0.0, []
    for i in range(count):
        if i == skipped:
            jax.block_until_ready(state)
            begun = time.perf_counter()
        state, metrics = step(state, next(batches))
        losses.append(metrics["loss"])
    jax.block_until_ready(state)
    seconds = time.perf_counter() - begun
    planned = step.memory_analysis()
    memory = planned.argument_size_in_bytes + planned.temp_size_in_bytes
    return (
        np.array(jax.device_get(losses)),
        (count - skipped) * shape[0] * shape[1] / seconds,
        memory,
    )


def _batch(seed: int, program: Program) -> dict[str, np.ndarray]:
    """Random tokens, the rarer the higher their number, so that there is something to learn."""
    draw = np.random.default_rng(seed)
    filled = {name: np.ones(x.shape, x.dtype) for name, x in program.abstract_batch().items()}
    shape, last = filled["tokens"].shape, program.encoder.vocab_size - 1
    return {**filled, "tokens": (draw.random(shape) ** 4 * last).astype(np.int32)}


if __name__ == "__main__":
    command_line.run(main)
