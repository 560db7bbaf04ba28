"""From an experiment and a mesh to the training step that `train` runs, `compile_check` compiles.

Nothing here touches a device or knows where rows come from.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from mdlm_jax.diffusion import (
    corrupt,
    corrupt_causal,
    corrupt_mlm,
    corrupted_loss,
    keep_around,
    keep_prefix,
    noise,
)
from mdlm_jax.host import parallel
from mdlm_jax.networks import bert
from mdlm_jax.networks.attention import fastest, runs_on
from mdlm_jax.runs.experiment import SCHEDULES, Experiment, ObjectiveConfig
from mdlm_jax.training.optimizer import make_optimizer, without_gradient
from mdlm_jax.training.state import TrainState, abstract_state, init_state, state_shardings
from mdlm_jax.training.step import LossFn, make_step

Array = jax.Array
PyTree = Any

_KEEP = {"prefix": keep_prefix, "infill": keep_around}


class Program(NamedTuple):
    """A run's computations and where their arrays lie.

    Attributes:
      experiment: the config.
      encoder: the network, its vocabulary padded for the mesh.
      mesh: of devices, or of a topology that is not there.
      optimizer: of the run.
      shapes: of the parameters, a tree of `jax.ShapeDtypeStruct`.
      shardings: of the state.
      prepare: from `make_corruption`, a part of the step.
      step: `(state, batch) -> (state, metrics)`, jitted, not compiled yet.
    """

    experiment: Experiment
    encoder: bert.Config
    mesh: Mesh
    optimizer: optax.GradientTransformation
    shapes: PyTree
    shardings: TrainState
    prepare: Callable[[Array, Array, PyTree], PyTree]
    step: Callable[[TrainState, PyTree], tuple[TrainState, dict[str, Any]]]

    def init(self) -> TrainState:
        """The state before the first step; no device ever holds more of it than its part."""
        seed = self.experiment.training.seed

        def init(key: Array) -> TrainState:
            return init_state(bert.init(key, self.encoder), self.optimizer)

        key = noise.derive(noise.seed_key(seed), "init")
        return jax.jit(init, out_shardings=self.shardings)(key)

    def place(self, params: PyTree) -> PyTree:
        """Brings parameters to the devices, as `put_parameters` does."""
        return put_parameters(params, self.encoder, self.shapes, self.shardings.params)

    def init_from(self, placed: PyTree) -> TrainState:
        """The state before the first step, of parameters from `place`, which are given up."""
        init = functools.partial(init_state, optimizer=self.optimizer)
        return jax.jit(init, donate_argnums=0, out_shardings=self.shardings)(placed)

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
        if self.experiment.data.has_padding:
            shapes["valid"] = (tokens, "bool")
        return {
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
            for name, (shape, dtype) in shapes.items()
        }


def make_program(
    experiment: Experiment, encoder: bert.Config, mesh: Mesh, *, start_id: int | None = None
) -> Program:
    """Builds the training step of an experiment; compiles nothing.

    Args:
      experiment: the config.
      encoder: the network.
      mesh: of devices, or of a topology that is not there.
      start_id: the separator, with which a row of an autoregressive model begins.

    Raises:
      ValueError: if the model or the batch does not fit the mesh, or the model the objective.
    """
    encoder = pad_vocabulary(encoder, mesh)
    training = experiment.training
    _check_fit(experiment, encoder, mesh)
    encoder = _choose_attention(encoder, mesh)
    paired = pairs_rows(experiment, mesh)
    prepare = make_corruption(experiment, encoder, paired=paired, start_id=start_id)
    frozen = frozen_parameters(experiment, encoder)
    optimizer, schedule = make_optimizer(
        experiment.optimizer,
        training.steps,
        multipliers=rate_multipliers(experiment, encoder),
        frozen=frozen,
    )
    loss_fn = make_loss(encoder)
    shapes, placed = place_parameters(encoder, mesh)
    shardings = state_shardings(placed, shapes, optimizer)
    step = make_step(
        loss_fn if frozen is None else without_gradient(loss_fn, frozen),
        optimizer,
        seed=training.seed,
        ema_decay=training.ema_decay,
        accumulation=training.accumulation,
        prepare=prepare,
        schedule=schedule,
        shardings=shardings,
    )
    return Program(experiment, encoder, mesh, optimizer, shapes, shardings, prepare, step)


def frozen_parameters(experiment: Experiment, encoder: bert.Config) -> PyTree | None:
    """Booleans, True at what `optimizer.freeze` names; None where all is trained.

    Raises:
      ValueError: if a name is of no parameters, or nothing is left to train.
    """
    parts = experiment.optimizer.frozen_parts
    if not parts:
        return None
    try:
        frozen = bert.select(encoder, parts)
    except ValueError as error:
        raise ValueError(f"optimizer.freeze: {error}") from None
    if all(jax.tree.leaves(frozen)):
        raise ValueError(
            f"optimizer.freeze {experiment.optimizer.freeze!r} leaves nothing to train: name fewer"
        )
    return frozen


def rate_multipliers(experiment: Experiment, encoder: bert.Config) -> PyTree | None:
    """Of the learning rate, `optimizer.layer_decay` to the distance to the head; None where 1."""
    decay = experiment.optimizer.layer_decay
    if decay == 1:
        return None
    return jax.tree.map(
        lambda distance: np.float32(decay) ** distance.astype(np.float32),
        bert.distance_to_head(encoder),
    )


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


def put_parameters(params: PyTree, encoder: bert.Config, shapes: PyTree, placed: PyTree) -> PyTree:
    """Brings parameters from the machine's memory to the devices, each its part.

    Args:
      params: arrays as of `bert.init`, whole in every process, their vocabulary not padded.
      encoder: their network, its vocabulary padded for the mesh.
      shapes: from `place_parameters`.
      placed: likewise.
    """
    padded = bert.padded_leaves(encoder)

    def put(path: tuple, x: np.ndarray, shape: jax.ShapeDtypeStruct, sharding: Any) -> Array:
        if jax.tree_util.keystr(path, simple=True, separator="/") in padded:
            x = np.pad(x, [(0, to - has) for to, has in zip(shape.shape, x.shape, strict=True)])
        return jax.make_array_from_callback(shape.shape, sharding, lambda index: x[index])

    return jax.tree.map_with_path(put, params, shapes, placed)


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
    experiment: Experiment, encoder: bert.Config, *, paired: bool, start_id: int | None = None
) -> Callable[[Array, Array, PyTree], PyTree]:
    """`(key, step, batch) -> batch` that draws all masks of the global batch at once.

    The key is that of the step.

    Args:
      experiment: the config.
      encoder: the network.
      paired: whether neighbouring rows share slots, as `corrupt` has it.
      start_id: of an autoregressive model, which begins a row with it and draws nothing.
    """
    objective = experiment.objective

    def prepare(key: Array, step: Array, batch: PyTree) -> PyTree:
        maskable = batch["maskable"]
        if objective.keep:
            maskable = _KEEP[objective.keep](noise.derive(key, "prompts"), maskable)
        masks = noise.derive(key, "masks")
        shared = {"mask_id": encoder.mask_id, "maskable": maskable}
        if objective.name == "autoregressive":
            corrupted = corrupt_causal(
                batch["tokens"], start_id=start_id, maskable=batch["maskable"]
            )
        elif objective.name == "mlm":
            corrupted = corrupt_mlm(
                masks, batch["tokens"], vocab_size=encoder.vocab_size, rate=objective.rate, **shared
            )
        else:
            corrupted = corrupt(
                masks,
                batch["tokens"],
                schedule=SCHEDULES[objective.schedule](),
                corruption=objective.corruption,
                weighting=objective.weighting,
                max_rate=highest_rate(objective, step),
                paired=paired,
                **shared,
            )
        kept = {name: batch[name] for name in ("label", "valid") if name in batch}
        return {"corrupted": corrupted, **kept}

    return prepare


def highest_rate(objective: ObjectiveConfig, step: Array) -> Array | float:
    """The bound on the mask rate at a step (from 0): it rises from `curriculum_rate` to 1."""
    if not objective.curriculum_steps:
        return 1.0
    first = objective.curriculum_rate
    return jnp.minimum(1.0, first + (1.0 - first) * step / objective.curriculum_steps)


def make_loss(encoder: bert.Config) -> LossFn:
    """`(params, key, batch) -> (loss, aux)` of what the corruption prepared."""

    def loss_fn(params: PyTree, key: Array, batch: PyTree) -> tuple[Array, PyTree]:
        stochastic = encoder.dropout > 0 or encoder.class_dropout > 0
        denoiser = bert.denoiser(
            params,
            encoder,
            valid=bert.row_lengths(batch.get("valid")),
            label=batch["label"] if encoder.classes else None,
            dropout_key=key if stochastic else None,
        )
        return corrupted_loss(denoiser, batch["corrupted"])

    return loss_fn


def _choose_attention(encoder: bert.Config, mesh: Mesh) -> bert.Config:
    """With 'auto' decided where the mesh is of TPUs, which may not be JAX's own devices here."""
    platform = mesh.devices.flat[0].platform
    if encoder.attention_backend != "auto" or platform != "tpu":
        return encoder
    heads = (1, encoder.max_length, encoder.heads, encoder.head_dim)
    q = jax.ShapeDtypeStruct(heads, encoder.compute_dtype)
    backend = fastest(platform, q, lifted=encoder.global_every > 0)
    return dataclasses.replace(encoder, attention_backend=backend)


def _check_fit(experiment: Experiment, encoder: bert.Config, mesh: Mesh) -> None:
    platform = mesh.devices.flat[0].platform
    if not runs_on(encoder.attention_backend, platform):
        raise ValueError(
            f"model.attention_backend {encoder.attention_backend!r} is not for {platform} devices: "
            "take --config.model.attention_backend=xla, which computes the same"
        )
    if experiment.objective.name == "autoregressive" and encoder.attention != "causal":
        raise ValueError(
            f"model.attention {encoder.attention!r} sees what objective.name 'autoregressive' "
            "predicts: take --config.model.attention=causal (and model.window=0)"
        )
    training, shards = experiment.training, parallel.row_shards(mesh)
    if training.batch_size % (training.accumulation * shards):
        raise ValueError(
            f"training.batch_size {training.batch_size} must be a multiple of the {shards} devices "
            f"that share the rows, times training.accumulation {training.accumulation}"
        )
