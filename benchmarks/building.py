"""The training step of a shape, as `train` builds it, and rows to feed it."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.shapes import Shape
from mdlm_jax import data
from mdlm_jax.diffusion.reading import slots as slot_losses
from mdlm_jax.host import parallel
from mdlm_jax.pods import flops
from mdlm_jax.runs.experiment import Experiment, ObjectiveConfig, TrainingConfig
from mdlm_jax.runs.program import make_program
from mdlm_jax.training.optimizer import OptimizerConfig, make_optimizer
from mdlm_jax.training.state import TrainState

Array = jax.Array
PyTree = Any

STEPS = 10_000  # that the run would have
DIFFERENT_BATCHES = 4
OPTIMIZER = OptimizerConfig(warmup_steps=100)
EMA_DECAY = 0.9999
FULL = ObjectiveConfig()  # full diffusion


class Step(NamedTuple):
    """A training step that can be run.

    Attributes:
      state: before the first step; the step donates it.
      step: `(state, batch) -> (state, metrics)`, jitted, not compiled yet.
      flops: matrix operations of a step, counted.
    """

    state: TrainState
    step: Callable[[TrainState, PyTree], tuple[TrainState, dict[str, Any]]]
    flops: float


def build_step(shape: Shape, objective: ObjectiveConfig = FULL) -> Step:
    """The step that `train` runs, on one device: corruption, loss, gradient, AdamW, EMA."""
    experiment = Experiment(
        objective=objective,
        data=data.Config(length=shape.length),
        optimizer=OPTIMIZER,
        training=TrainingConfig(batch_size=shape.rows, steps=STEPS, ema_decay=EMA_DECAY),
    )
    mesh = parallel.make_mesh(devices=jax.devices()[:1])
    program = make_program(experiment, shape.encoder, mesh, start_id=0)
    size = objective.block_size or None
    work = counted(shape, slots(shape, objective), block_size=size)
    return Step(program.init(), program.step, work)


def optimizer_of_run() -> optax.GradientTransformation:
    """That of every training step that is timed."""
    return make_optimizer(OPTIMIZER, steps=STEPS)[0]


def slots(shape: Shape, objective: ObjectiveConfig = FULL) -> int:
    """Positions that a step reads out: `L + 1` of each pair of rows, or as many of blocks."""
    if objective.name == "autoregressive":
        return shape.rows * shape.length
    size = objective.block_size or shape.length
    return shape.rows * shape.length * (size + 1) // (2 * size)


def counted(
    shape: Shape, read_out: int, *, block_size: int | None = None, whole: bool = False
) -> float:
    """Matrix operations of a step that reads out so many positions, recomputed ones among them.

    Args:
      shape: of the batch.
      read_out: positions.
      block_size, whole: as of `flops.training_step`.
    """
    sizes = (shape.rows, shape.length, read_out, block_size)
    step = flops.training_step(shape.encoder, *sizes, whole=whole)
    return sum(step)


def batches(shape: Shape) -> list[dict[str, Array]]:
    """Rows of random tokens, the rarer the higher their number, on the device."""
    return [
        {
            "tokens": jnp.asarray(random_tokens(seed, shape)),
            "maskable": jnp.ones((shape.rows, shape.length), bool),
            "label": jnp.full(shape.rows, -1, jnp.int32),
        }
        for seed in range(DIFFERENT_BATCHES)
    ]


def random_tokens(seed: int, shape: Shape) -> np.ndarray:
    """`i32[B, L]`, the rarer the higher their number, never the mask."""
    draw = np.random.default_rng(seed).random((shape.rows, shape.length))
    return (draw**4 * (shape.encoder.vocab_size - 1)).astype(np.int32)


@contextlib.contextmanager
def logits_at_a_time(count: int | None) -> Iterator[None]:
    """Within it, programs that are traced hold so many logits at a time; None: as the library."""
    before = slot_losses._LOGITS
    if count is not None:
        slot_losses._LOGITS = count
    try:
        yield
    finally:
        slot_losses._LOGITS = before
