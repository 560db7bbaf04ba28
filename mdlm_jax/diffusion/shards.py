"""Which mesh an array lies on, and over which of its axes it varies.

Within a `jax.shard_map` that checks (`check_vma=True`, JAX's default) the type of an array says
over which mesh axes it varies, and a loop's carry must keep its type.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType

Array = jax.Array
PyTree = Any


def varying(tree: PyTree) -> frozenset[str]:
    """The mesh axes over which any leaf varies, within a `shard_map` that checks; else none."""
    return frozenset().union(*(_varying(x) for x in jax.tree.leaves(tree)))


def alike(tree: PyTree, *others: PyTree) -> PyTree:
    """The same arrays, each typed as varying wherever any of them, or of the others, varies.

    So the gradient of a leaf that varied nowhere is summed over the devices outside of the
    computation that uses it.
    """
    axes = varying((tree, others))

    def cast(x: Array) -> Array:
        missing = tuple(sorted(axes - _varying(x)))
        if not missing:
            return x
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            data = jax.lax.pcast(jax.random.key_data(x), missing, to="varying")
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
        return jax.lax.pcast(x, missing, to="varying")

    return jax.tree.map(cast, tree) if axes else tree


def devices() -> int:
    """How many devices of the mesh in use, if any, an array is spread over.

    Within a `shard_map` each device has its own part, so an array there is spread over one.
    """
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_sizes, mesh.axis_types, strict=True)
    return math.prod(size for size, kind in kinds if kind != AxisType.Manual)


def explicit_axes(x: Any) -> tuple[str, ...]:
    """The mesh axes of `AxisType.Explicit` that `x` is split over."""
    kind = jax.typeof(x)
    sharding = getattr(kind, "sharding", None)
    if sharding is None or sharding.mesh.empty:
        return ()
    used = {axis for part in sharding.spec if part for axis in _names(part)}
    return tuple(axis for axis in sharding.mesh.explicit_axes if axis in used)


def _names(part: Any) -> tuple:
    return part if isinstance(part, tuple) else (part,)


def _varying(x: Any) -> frozenset[str]:
    kind = jax.typeof(x)
    return kind.mat.varying if hasattr(kind, "mat") else getattr(kind, "vma", frozenset())
