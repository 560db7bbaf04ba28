"""From an experiment and a mesh to the training step that `train` runs, `compile_check` compiles.

Nothing here touches a device or knows where rows come from.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh

from mdlm_jax import parallel
from mdlm_jax.diffusion import corrupt, corrupt_mlm, corrupted_loss
from mdlm_jax.experiment import SCHEDULES, Experiment
from mdlm_jax.networks import bert
from mdlm_jax.training.optimizer import make_optimizer
from mdlm_jax.training.state import TrainState, abstract_state, init_state, state_shardings
from mdlm_jax.training.step import LossFn, make_step

Array = jax.Array
PyTree = Any


class Program(NamedTuple):
    """A run's computations and where their arrays lie.

    Attributes:
      experiment: the config.
      encoder: the network, its vocabulary padded for the mesh.
      mesh: of devices, or of a topology that is not there.
      optimizer: of the run.
      shapes: of the parameters, a tree of `jax.ShapeDtypeStruct`.
      shardings: of the state.
      step: `(state, batch) -> (state, metrics)`, jitted, not compiled yet.
    """

    experiment: Experiment
    encoder: bert.Config
    mesh: Mesh
    optimizer: optax.GradientTransformation
    shapes: PyTree
    shardings: TrainState
    step: Callable[[TrainState, PyTree], tuple[TrainState, dict[str, Any]]]

    def init(self) -> TrainState:
        """The state before the first step; no device ever holds more of it than its part."""
        seed = self.experiment.training.seed

        def init(key: Array) -> TrainState:
            return init_state(bert.init(key, self.encoder), self.optimizer)

        return jax.jit(init, out_shardings=self.shardings)(jax.random.key(seed))

    def abstract_state(self) -> TrainState:
        """The state as shapes with shardings."""
        return abstract_state(self.shapes, self.optimizer, self.shardings)

    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """A batch as shapes with shardings."""
        rows = self.experiment.training.batch_size
        sharding = parallel.batch_sharding(self.mesh)
        tokens = (rows, self.experiment.data.length)
        shapes = {
            "tokens": (tokens, "int32"),
            "maskable": (tokens, "bool"),
            "label": ((rows,), "int32"),
        }
        if self.experiment.data.rows == "padded":
            shapes["valid"] = (tokens, "bool")
        return {
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
            for name, (shape, dtype) in shapes.items()
        }


def make_program(experiment: Experiment, encoder: bert.Config, mesh: Mesh) -> Program:
    """Builds the training step of an experiment; compiles nothing.

    Raises:
      ValueError: if the model or the batch does not fit the mesh.
    """
    encoder = pad_vocabulary(encoder, mesh)
    training = experiment.training
    _check_fit(experiment, encoder, mesh)
    optimizer, schedule = make_optimizer(experiment.optimizer, training.steps)
    shapes, placed = place_parameters(encoder, mesh)
    shardings = state_shardings(placed, shapes, optimizer)
    step = make_step(
        make_loss(encoder),
        optimizer,
        seed=training.seed,
        ema_decay=training.ema_decay,
        accumulation=training.accumulation,
        prepare=make_corruption(experiment, encoder, paired=pairs_rows(experiment, mesh)),
        schedule=schedule,
        shardings=shardings,
    )
    return Program(experiment, encoder, mesh, optimizer, shapes, shardings, step)


def place_parameters(encoder: bert.Config, mesh: Mesh) -> tuple[PyTree, PyTree]:
    """The shapes of the encoder's parameters, and where a mesh holds them.

    Raises:
      ValueError: if the mesh does not split them.
    """
    tensor = mesh.shape["tensor"]
    for name in ("heads", "mlp_width"):
        if getattr(encoder, name) % tensor:
            raise ValueError(
                f"mesh tensor={tensor} does not divide model.{name} {getattr(encoder, name)}"
            )
    shapes = jax.eval_shape(lambda: bert.init(jax.random.key(0), encoder))
    placed = parallel.shardings(mesh, bert.logical_axes(encoder), shapes)
    parallel.require_sharded(mesh, placed, shapes)
    return shapes, placed


def pad_vocabulary(encoder: bert.Config, mesh: Mesh) -> bert.Config:
    """The encoder, its embedding table padded to as many rows as the tensor axis divides."""
    tensor = mesh.shape["tensor"]
    if encoder.padded_vocab % tensor == 0:
        return encoder
    return dataclasses.replace(encoder, vocab_multiple=math.lcm(encoder.vocab_multiple, tensor))


def could_pair_rows(experiment: Experiment) -> bool:
    """Whether the objective draws exact counts, so that neighbouring rows may share slots."""
    return (experiment.objective.name, experiment.objective.corruption) == ("diffusion", "exact")


def pairs_rows(experiment: Experiment, mesh: Mesh) -> bool:
    """Whether they do: where a pair never leaves its microbatch and its device."""
    parts = 2 * experiment.training.accumulation * parallel.row_shards(mesh)
    return could_pair_rows(experiment) and experiment.training.batch_size % parts == 0


def make_corruption(
    experiment: Experiment, encoder: bert.Config, *, paired: bool
) -> Callable[[Array, PyTree], PyTree]:
    """`(key, batch) -> batch` that draws all masks of the global batch at once."""
    objective = experiment.objective

    def prepare(key: Array, batch: PyTree) -> PyTree:
        shared = {"mask_id": encoder.mask_id, "maskable": batch["maskable"]}
        if objective.name == "mlm":
            corrupted = corrupt_mlm(
                key, batch["tokens"], vocab_size=encoder.vocab_size, rate=objective.rate, **shared
            )
        else:
            corrupted = corrupt(
                key,
                batch["tokens"],
                schedule=SCHEDULES[objective.schedule](),
                corruption=objective.corruption,
                weighting=objective.weighting,
                paired=paired,
                **shared,
            )
        kept = {name: batch[name] for name in ("label", "valid") if name in batch}
        return {"corrupted": corrupted, **kept}

    return prepare


def make_loss(encoder: bert.Config) -> LossFn:
    """`(params, key, batch) -> (loss, aux)` of what the corruption prepared."""

    def loss_fn(params: PyTree, key: Array, batch: PyTree) -> tuple[Array, PyTree]:
        stochastic = encoder.dropout > 0 or encoder.class_dropout > 0
        denoiser = bert.denoiser(
            params,
            encoder,
            valid=batch.get("valid"),
            label=batch["label"] if encoder.classes else None,
            dropout_key=key if stochastic else None,
        )
        return corrupted_loss(denoiser, batch["corrupted"])

    return loss_fn


def _check_fit(experiment: Experiment, encoder: bert.Config, mesh: Mesh) -> None:
    platform = mesh.devices.flat[0].platform
    if encoder.attention_backend == "splash" and platform != "tpu":
        raise ValueError(
            f"model.attention_backend 'splash' is for TPUs, not for {platform} devices: take "
            "--config.model.attention_backend=xla, which computes the same"
        )
    training, shards = experiment.training, parallel.row_shards(mesh)
    if training.batch_size % (training.accumulation * shards):
        raise ValueError(
            f"training.batch_size {training.batch_size} must be a multiple of the {shards} devices "
            f"that share the rows, times training.accumulation {training.accumulation}"
        )
