"""The device mesh and the table that places arrays on it.

One program runs from a laptop to a pod: arrays carry a `NamedSharding`, `jax.jit` does the rest.
Parameters name their axes logically (`("layers", "embed", "mlp")`); only `RULES` knows the mesh.
"""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

PyTree = Any

AXES = ("data", "fsdp", "tensor")

# Logical axis -> mesh axis. What is not named here ("layers", "positions", None) is not sharded.
RULES = {
    "embed": "fsdp",
    "heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
}


def available_devices() -> list[jax.Device]:
    """`jax.devices()`.

    Raises:
      ValueError: if those that JAX_PLATFORMS asks for are not there.
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

    Args:
      data: devices over which rows are split and parameters are copied; -1 means the rest.
      fsdp: devices over which rows and parameters are both split; -1 means the rest.
      tensor: devices over which the inner axes of the layers are split; -1 means the rest.
      devices: the devices to use, all of them by default.

    Raises:
      ValueError: if the sizes do not multiply to the number of devices.
    """
    devices = available_devices() if devices is None else devices
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
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def shardings(mesh: Mesh, logical_axes: PyTree, shapes: PyTree) -> PyTree:
    """The `NamedSharding` of every parameter, by `RULES`.

    An array axis stays whole where its name has no rule, where the mesh axis does not divide it,
    and where an earlier axis of the same array already took that mesh axis.

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


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows (the leading axis) split over `data` and `fsdp`; everything else whole."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def put_batch(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
    """Makes global device arrays `[B, ...]` of the numpy rows that this process holds.

    Every process passes its own rows, in process order; B is their sum.

    Raises:
      ValueError: if the rows of this process do not split over its devices.
    """
    sharding = batch_sharding(mesh)
    shards = len({index[0].start for index in _local_rows(sharding)})
    for name, rows in batch.items():
        if rows.shape[0] % shards:
            raise ValueError(
                f"batch[{name!r}] has {rows.shape[0]} rows here, not a multiple of the "
                f"{shards} shards of this process (mesh {dict(mesh.shape)})"
            )
    return {
        name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()
    }


def _local_rows(sharding: NamedSharding) -> list[tuple[slice, ...]]:
    """Which rows the devices of this process hold, of as many rows as there are devices."""
    return list(sharding.addressable_devices_indices_map((sharding.mesh.size,)).values())
