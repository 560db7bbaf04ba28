"""The device mesh and the table that places arrays on it.

One program runs from a laptop to a pod: arrays carry a `NamedSharding`, `jax.jit` does the rest.
Parameters name their axes logically (`("layers", "embed", "mlp")`); only `RULES` knows the mesh.
"""

import contextlib
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

Array = jax.Array
PyTree = Any

AXES = ("data", "fsdp", "tensor")

# Mesh axes over which rows (the leading axis of a batch) are split.
ROW_AXES = ("data", "fsdp")

# Logical axis -> mesh axis. Other names ("layers", "positions", None) are not sharded.
RULES = {
    "embed": "fsdp",
    "heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
}

# Norms and biases of an odd size may stay whole; more than this share of all parameters may not.
LARGEST_UNSHARDED_SHARE = 0.02


def available_devices() -> list[jax.Device]:
    """`jax.devices()`.

    Raises:
      ValueError: if the devices of JAX_PLATFORMS are not there.
    """
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # jax 0.10 asserts where CUDA is missing
        asked = os.environ.get("JAX_PLATFORMS", "")
        why = f" ({error})" if str(error) else ""
        raise ValueError(f"no device: JAX_PLATFORMS={asked!r} is not to be had here{why}") from None


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh of all devices with the axes `("data", "fsdp", "tensor")`.

    On TPUs neighbours in the mesh are neighbours in the torus, and with several slices only `data`
    crosses the slow network between them. Elsewhere devices are in the order of their processes, so
    `tensor`, the innermost axis, stays within a host.

    Args:
      data: devices over which rows are split and parameters are copied; -1 means the rest.
      fsdp: devices over which rows and parameters are both split; -1 means the rest.
      tensor: devices over which the inner axes of the layers are split; -1 means the rest.
      devices: the devices to use, all of them by default.

    Raises:
      ValueError: if the sizes do not multiply to the number of devices, or `data` does not split
        over the slices.
    """
    devices = available_devices() if devices is None else list(devices)
    sizes = dict(zip(AXES, (data, fsdp, tensor), strict=True))
    asked = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
    free = [axis for axis, size in sizes.items() if size == -1]
    if any(size < 1 and size != -1 for size in sizes.values()) or len(free) > 1:
        raise ValueError(f"mesh {asked}: sizes must be at least 1, and one of them may be -1")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if len(devices) % fixed or (not free and len(devices) != fixed):
        raise ValueError(f"mesh {asked}: {len(devices)} devices cannot be arranged so")
    shape = tuple(len(devices) // fixed if size == -1 else size for size in sizes.values())
    # Explicit axes, the default of newer versions, fail under Linen's sharding constraints.
    return Mesh(_arranged(devices, shape, asked), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _arranged(devices: list[jax.Device], shape: tuple[int, ...], asked: str) -> np.ndarray:
    if devices[0].platform != "tpu":
        return np.array(devices).reshape(shape)
    # The devices of a topology with one slice have no slice number.
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    data, *within = shape
    if data % slices:
        raise ValueError(f"mesh {asked}: data={data} must be a multiple of the {slices} slices")
    inside = (data // slices, *within)
    if slices == 1:
        return mesh_utils.create_device_mesh(inside, devices, allow_split_physical_axes=True)
    return mesh_utils.create_hybrid_device_mesh(
        inside, (slices, 1, 1), devices, allow_split_physical_axes=True
    )


def shardings(mesh: Mesh, logical_axes: PyTree, shapes: PyTree) -> PyTree:
    """The `NamedSharding` of every parameter, by `RULES`.

    An array axis stays whole if its name has no rule, if the mesh axis does not divide it, or if an
    earlier axis of the same array already took that mesh axis.

    Args:
      mesh: from `make_mesh`.
      logical_axes: the tree of `shapes`, with a tuple of names (or None) for each leaf, one for
        each array axis; None for a leaf that is not sharded at all.
      shapes: arrays or `jax.ShapeDtypeStruct`s.

    Raises:
      ValueError: if a leaf has another number of axes than of names.
    """

    def place(path: tuple, leaf: Any, names: Sequence[str | None] | None) -> NamedSharding:
        names = (None,) * len(leaf.shape) if names is None else tuple(names)
        if len(names) != len(leaf.shape):
            raise ValueError(
                f"{jax.tree_util.keystr(path)} has shape {leaf.shape} but logical axes {names}"
            )
        taken: list[str | None] = []
        for size, name in zip(leaf.shape, names, strict=True):
            axis = RULES.get(name)
            fits = axis is not None and axis not in taken and size % mesh.shape[axis] == 0
            taken.append(axis if fits else None)
        return NamedSharding(mesh, PartitionSpec(*taken))

    return jax.tree.map_with_path(place, shapes, logical_axes)


def require_sharded(mesh: Mesh, placed: PyTree, shapes: PyTree) -> None:
    """Checks that `fsdp` splits nearly all parameters.

    Args:
      mesh: from `make_mesh`.
      placed: from `shardings`.
      shapes: arrays or `jax.ShapeDtypeStruct`s.

    Raises:
      ValueError: if more than `LARGEST_UNSHARDED_SHARE` of the parameters would lie whole on every
        device of `fsdp`.
    """
    if mesh.shape["fsdp"] == 1:
        return
    sizes = {
        jax.tree_util.keystr(path, simple=True, separator="/"): (leaf, math.prod(leaf.shape))
        for path, leaf in jax.tree.leaves_with_path(shapes)
    }
    whole = {
        name: (leaf, size)
        for (name, (leaf, size)), sharding in zip(
            sizes.items(), jax.tree.leaves(placed), strict=True
        )
        if "fsdp" not in sharding.spec
    }
    share = sum(size for _, size in whole.values()) / sum(size for _, size in sizes.values())
    if share > LARGEST_UNSHARDED_SHARE:
        name, (leaf, _) = max(whole.items(), key=lambda item: item[1][1])
        raise ValueError(
            f"mesh fsdp={mesh.shape['fsdp']}: {share:.1%} of the parameters would lie whole on "
            f"every device (at most {LARGEST_UNSHARDED_SHARE:.0%} may), first {name} of shape "
            f"{tuple(leaf.shape)}: take an fsdp that divides the width"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows (the leading axis) split over `data` and `fsdp`; everything else whole."""
    return NamedSharding(mesh, PartitionSpec(ROW_AXES))


def row_shards(mesh: Mesh | AbstractMesh) -> int:
    """The number of parts into which a batch's rows are split."""
    return math.prod(mesh.shape[axis] for axis in ROW_AXES)


def use(mesh: Mesh | None) -> contextlib.AbstractContextManager:
    """The mesh that `spread_rows` and attention kernels find, while a function is traced."""
    if mesh is None:
        return contextlib.nullcontext()
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def mesh_in_use() -> AbstractMesh | None:
    """The mesh in `use`, if it is from `make_mesh` and this is not within a `shard_map`.

    With another mesh, of the user's program, XLA decides alone.
    """
    mesh = jax.sharding.get_abstract_mesh()
    ours = {*AXES} <= {*mesh.axis_names}
    return mesh if ours and all(kind == AxisType.Auto for kind in mesh.axis_types) else None


def spread_rows(x: Array) -> Array:
    """Keeps `x [B, ...]` split along its rows over the mesh in `use`, whole along the other axes.

    Within a jitted function this fixes where activations lie, so that XLA moves parameters to the
    rows and never rows to the parameters. Without a mesh, or if B does not split, it returns `x`.
    """
    mesh = mesh_in_use()
    if mesh is None or x.shape[0] % row_shards(mesh):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(ROW_AXES))


def splits_layers() -> bool:
    """Whether the mesh in `use` splits the inner axes of layers over several devices."""
    mesh = mesh_in_use()
    return mesh is not None and mesh.shape["tensor"] > 1


def gather_parameter(x: Array, names: Sequence[str | None]) -> Array:
    """A parameter as rows need it: whole over `fsdp`, still split over `tensor`.

    It is for parameters that are indexed. Otherwise XLA would split the rows' result as the
    parameter is split, and then move it whole ("involuntary full rematerialization").

    Args:
      x: the parameter.
      names: the logical names of its axes.
    """
    mesh = mesh_in_use()
    if mesh is None:
        return x
    axes = [RULES.get(name) for name in names]
    kept = [
        axis if axis == "tensor" and size % mesh.shape[axis] == 0 else None
        for axis, size in zip(axes, x.shape, strict=True)
    ]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*kept))


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """The rows of a global batch that the devices of this process hold, `i64[b]`, ascending.

    Processes that share rows (a `tensor` axis over several hosts) hold the same ones.

    Raises:
      ValueError: if the rows do not split over the mesh.
    """
    shards = row_shards(mesh)
    if batch_size % shards:
        raise ValueError(
            f"batch_size {batch_size} is not a multiple of the {shards} devices that share the "
            f"rows (mesh {', '.join(f'{axis}={size}' for axis, size in mesh.shape.items())})"
        )
    index = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    return np.unique(np.concatenate([np.arange(batch_size)[rows] for (rows,) in index.values()]))


def put_batch(batch: Mapping[str, Any], mesh: Mesh, batch_size: int) -> dict[str, Array]:
    """Makes global device arrays `[batch_size, ...]` of the numpy rows that this process holds.

    Args:
      batch: arrays `[b, ...]` of the rows `local_rows(mesh, batch_size)`.
      mesh: from `make_mesh`.
      batch_size: rows of all processes together.

    Raises:
      ValueError: if the rows do not split over the mesh, or an array holds another number of them.
    """
    sharding = batch_sharding(mesh)
    held = local_rows(mesh, batch_size)

    def put(name: str, rows: np.ndarray) -> Array:
        if rows.shape[0] != len(held):
            raise ValueError(
                f"batch[{name!r}] has {rows.shape[0]} rows, this process holds {len(held)} of "
                f"{batch_size}"
            )

        def of_device(index: tuple[slice, ...]) -> np.ndarray:
            first, last, _ = index[0].indices(batch_size)
            start = np.searchsorted(held, first)
            return rows[start : start + last - first]

        return jax.make_array_from_callback((batch_size, *rows.shape[1:]), sharding, of_device)

    return {name: put(name, rows) for name, rows in batch.items()}


def put_rows(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, Array]:
    """`put_batch` for a batch that every process holds whole.

    Raises:
      ValueError: if the rows do not split over the mesh.
    """
    size = len(next(iter(batch.values())))
    held = local_rows(mesh, size)
    return put_batch({name: rows[held] for name, rows in batch.items()}, mesh, size)
