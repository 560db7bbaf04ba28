"""The training step of a shape, built from the product's own parts, and rows to feed it."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.shapes import Shape
from mdlm_jax import flops
from mdlm_jax.diffusion import corrupt, corrupted_loss
from mdlm_jax.diffusion import slots as slot_losses
from mdlm_jax.networks import bert
from mdlm_jax.training.optimizer import OptimizerConfig, make_optimizer
from mdlm_jax.training.state import TrainState, init_state
from mdlm_jax.training.step import make_step

Array = jax.Array
PyTree = Any

EMA_DECAY = 0.9999
DIFFERENT_BATCHES = 4


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


def build_step(shape: Shape) -> Step:
    """The whole step that `train` runs, on one device: corruption, loss, gradient, AdamW, EMA."""
    encoder = shape.encoder
    optimizer, schedule = optimizer_of_run()

    def prepare(key: Array, step: Array, batch: PyTree) -> PyTree:
        del step  # no curriculum
        drawn = corrupt(key, **batch, mask_id=encoder.mask_id, paired=True)
        return {"corrupted": drawn}

    def loss_fn(params: PyTree, key: Array, batch: PyTree) -> tuple[Array, PyTree]:
        del key  # no dropout
        return corrupted_loss(bert.denoiser(params, encoder), batch["corrupted"])

    step = make_step(
        loss_fn, optimizer, seed=0, ema_decay=EMA_DECAY, prepare=prepare, schedule=schedule
    )
    state = init_state(bert.init(jax.random.key(0), encoder), optimizer)
    return Step(state, step, counted(shape, slots(shape)))


def optimizer_of_run() -> tuple[optax.GradientTransformation, optax.Schedule]:
    """That of every training step that is timed."""
    return make_optimizer(OptimizerConfig(warmup_steps=100), steps=10_000)


def slots(shape: Shape) -> int:
    """Positions that a step reads out: `L + 1` of each pair of rows."""
    return shape.rows // 2 * (shape.length + 1)


def counted(shape: Shape, read_out: int) -> float:
    """Matrix operations of a step that reads out so many positions, recomputed ones among them."""
    return sum(flops.training_step(shape.encoder, shape.rows, shape.length, read_out))


def batches(shape: Shape) -> list[dict[str, Array]]:
    """Rows of random tokens, the rarer the higher their number, on the device."""
    return [
        {
            "tokens": jnp.asarray(random_tokens(seed, shape)),
            "maskable": jnp.ones((shape.rows, shape.length), bool),
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
