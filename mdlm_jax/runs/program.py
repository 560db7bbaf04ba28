"""From an experiment and a mesh to the training step that `train` and `compile_check` use.

Nothing here touches a device or knows where rows come from.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from optax.contrib import MuonDimensionNumbers

from mdlm_jax.diffusion import noise
from mdlm_jax.host import parallel
from mdlm_jax.runs.experiment import Experiment
from mdlm_jax.runs.families import network_of
from mdlm_jax.runs.families.base import Prepare
from mdlm_jax.training.optimizer import make_optimizer, without_gradient
from mdlm_jax.training.state import TrainState, abstract_state, init_state, state_shardings
from mdlm_jax.training.step import make_step

Array = jax.Array
PyTree = Any


# Axes of kernels along which they are matrices of their own.
_SEPARATE_MATRICES = ("layers", "qkv", "gate_up", "branches", "modulation")


class Program(NamedTuple):
    """A run's computations, and the placement of their arrays.

    Attributes:
      experiment: the config.
      encoder: the network, its vocabulary padded for the mesh.
      mesh: of devices, or of a topology that is not there.
      optimizer: of the run.
      shapes: of the parameters, a tree of `jax.ShapeDtypeStruct`.
      shardings: of the state.
      prepare: `(key, step, batch) -> batch` of the family, a part of the step.
      step: `(state, batch) -> (state, metrics)`, jitted, not compiled yet.
    """

    experiment: Experiment
    encoder: Any
    mesh: Mesh
    optimizer: optax.GradientTransformation
    shapes: PyTree
    shardings: TrainState
    prepare: Callable[[Array, Array, PyTree], PyTree]
    step: Callable[[TrainState, PyTree], tuple[TrainState, dict[str, Any]]]

    def init(self) -> TrainState:
        """The state before the first step. No device ever holds more than its part."""
        seed = self.experiment.training.seed

        def init(key: Array) -> TrainState:
            return init_state(network_of(self.encoder).init(key, self.encoder), self.optimizer)

        key = noise.derive(noise.seed_key(seed), "init")
        return jax.jit(init, out_shardings=self.shardings)(key)

    def place(self, params: PyTree) -> PyTree:
        """Brings parameters to the devices, as `put_parameters` does."""
        return put_parameters(params, self.encoder, self.shapes, self.shardings.params)

    def init_from(self, placed: PyTree) -> TrainState:
        """The state before the first step, from parameters of `place`, which are donated."""
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
    experiment: Experiment, encoder: Any, mesh: Mesh, *, start_id: int | None = None
) -> Program:
    """Builds the training step of an experiment, without compiling.

    Args:
      experiment: the config.
      encoder: the network.
      mesh: of devices, or of a topology that is not there.
      start_id: the separator, with which a row of an autoregressive model begins.

    Raises:
      ValueError: if the model or the batch does not fit the mesh, or the model the objective.
    """
    training, family = experiment.training, experiment.family
    encoder = padded_for(encoder, mesh)
    platform = mesh.devices.flat[0].platform
    encoder = family.network.for_devices(encoder, platform, strict=True)
    family.check(experiment.objective, encoder)
    _check_batch(experiment, mesh)
    paired = pairs_rows(experiment, mesh)
    prepare = make_prepare(experiment, encoder, paired=paired, start_id=start_id)
    frozen = frozen_parameters(experiment, encoder)
    optimizer, schedule = make_optimizer(
        experiment.optimizer,
        training.steps,
        matrices=matrices(experiment, encoder),
        multipliers=rate_multipliers(experiment, encoder),
        frozen=frozen,
    )
    loss_fn = family.make_loss(experiment.objective, encoder)
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


def frozen_parameters(experiment: Experiment, encoder: Any) -> PyTree | None:
    """Booleans, True at what `optimizer.freeze` names; None if all is trained.

    Raises:
      ValueError: if no parameters have a name, or nothing is left to train.
    """
    parts = experiment.optimizer.frozen_parts
    if not parts:
        return None
    try:
        frozen = network_of(encoder).select(encoder, parts)
    except ValueError as error:
        raise ValueError(f"optimizer.freeze: {error}") from None
    if all(jax.tree.leaves(frozen)):
        raise ValueError(
            f"optimizer.freeze {experiment.optimizer.freeze!r} leaves nothing to train: name fewer"
        )
    return frozen


def matrices(experiment: Experiment, encoder: Any) -> PyTree | None:
    """Of each kernel its rows and columns, as Muon wants them; None where AdamW does it all.

    Layers, the three of attention and the halves of a gated MLP are matrices of their own, as they
    are multiplied by themselves; the heads of one are side by side in one matrix.
    """
    if experiment.optimizer.name != "muon":
        return None

    def of(path: tuple, axes: tuple[str, ...]) -> MuonDimensionNumbers | None:
        if jax.tree_util.keystr(path[-1:], simple=True) != "kernel":
            return None
        places = [i for i, axis in enumerate(axes) if axis not in _SEPARATE_MATRICES]
        columns = 2 if axes[-1] == "head_dim" else 1
        return MuonDimensionNumbers(tuple(places[:-columns]), tuple(places[-columns:]))

    axes = network_of(encoder).logical_axes(encoder)
    return jax.tree.map_with_path(of, axes, is_leaf=lambda leaf: isinstance(leaf, tuple))


def rate_multipliers(experiment: Experiment, encoder: Any) -> PyTree | None:
    """The factor `optimizer.layer_decay ** distance to the head`; None if it is 1 everywhere."""
    decay = experiment.optimizer.layer_decay
    if decay == 1:
        return None
    return jax.tree.map(
        lambda distance: np.float32(decay) ** distance.astype(np.float32),
        network_of(encoder).distance_to_head(encoder),
    )


def place_parameters(encoder: Any, mesh: Mesh) -> tuple[PyTree, PyTree]:
    """The shapes of the encoder's parameters, and their placement on a mesh.

    Raises:
      ValueError: if the mesh does not split them.
    """
    network = network_of(encoder)
    network.check_mesh(encoder, mesh)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), encoder))
    placed = parallel.shardings(mesh, network.logical_axes(encoder), shapes)
    parallel.require_sharded(mesh, placed, shapes)
    return shapes, placed


def put_parameters(params: PyTree, encoder: Any, shapes: PyTree, placed: PyTree) -> PyTree:
    """Moves parameters from host memory to the devices; each device gets its part.

    Args:
      params: arrays as from `Network.init`, whole in every process, the vocabulary not padded.
      encoder: the network, its vocabulary padded for the mesh.
      shapes: from `place_parameters`.
      placed: from `place_parameters`.
    """
    padded = network_of(encoder).padded_leaves(encoder)

    def put(path: tuple, x: np.ndarray, shape: jax.ShapeDtypeStruct, sharding: Any) -> Array:
        if jax.tree_util.keystr(path, simple=True, separator="/") in padded:
            x = np.pad(x, [(0, to - has) for to, has in zip(shape.shape, x.shape, strict=True)])
        return jax.make_array_from_callback(shape.shape, sharding, lambda index: x[index])

    return jax.tree.map_with_path(put, params, shapes, placed)


def make_prepare(
    experiment: Experiment, encoder: Any, *, paired: bool, start_id: int | None = None
) -> Prepare:
    """`(key, step, batch) -> batch`, the family's preparation of a global batch for its loss.

    The key is that of the step.

    Args:
      experiment: the config.
      encoder: the network.
      paired: whether neighbouring rows share slots.
      start_id: the token before a row, for a model that reads from left to right.
    """
    return experiment.family.make_prepare(
        experiment.objective, encoder, paired=paired, start_id=start_id
    )


def padded_for(encoder: Any, mesh: Mesh) -> Any:
    """The network with a vocabulary that is padded for the tensor axis of the mesh."""
    return network_of(encoder).pad(encoder, mesh.shape["tensor"])


def could_pair_rows(experiment: Experiment) -> bool:
    """Whether the objective draws exact counts, so that neighbouring rows may share slots."""
    return experiment.family.pairs_rows(experiment.objective, experiment.data.length)


def pairs_rows(experiment: Experiment, mesh: Mesh) -> bool:
    """Whether they do, because no pair leaves its microbatch or its device."""
    parts = 2 * experiment.training.accumulation * parallel.row_shards(mesh)
    return could_pair_rows(experiment) and experiment.training.batch_size % parts == 0


def _check_batch(experiment: Experiment, mesh: Mesh) -> None:
    training, shards = experiment.training, parallel.row_shards(mesh)
    if training.batch_size % (training.accumulation * shards):
        raise ValueError(
            f"training.batch_size {training.batch_size} must be a multiple of the {shards} devices "
            f"that share the rows, times training.accumulation {training.accumulation}"
        )
