"""The same arrays in two layouts: ours, and PyTorch's by name.

Ours stacks the blocks, fuses queries, keys and values, and multiplies from the right: a kernel is
`[in, out]` with heads as an axis. PyTorch's linear layers hold `[out, in]`, one array each.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from mdlm_jax.interop.families import Family
from mdlm_jax.networks import bert

PyTree = Any

_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}
_STACKED = "encoder/blocks/"
_FIRST_NORM = _STACKED + "attention_norm/"


class Part(NamedTuple):
    """The arrays that become a leaf of ours, or one block of it.

    Attributes:
      names: of the arrays that are joined, without prefix; none if the family lacks the norm, and
        ours is idle there.
      shape: the shape of each of them.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]


def parts(family: Family, config: bert.Config) -> dict[str, list[Part]]:
    """For each leaf of `bert.init(key, config)`, by its path, the arrays of each block in order."""
    out = {
        path: [
            Part(tuple(name.format(block) for name in names), shape)
            for block in range(config.layers if path.startswith(_STACKED) else 1)
        ]
        for path, names, shape in _leaves(family, config)
    }
    if family.bare_first_block:
        for path in out:
            if path.startswith(_FIRST_NORM):
                out[path][0] = out[path][0]._replace(names=())
    return out


def is_head(path: str) -> bool:
    """Whether a leaf belongs to the masked-LM head."""
    return path.startswith("head/")


def to_params(
    family: Family, config: bert.Config, arrays: Mapping[str, np.ndarray], head: bool = True
) -> PyTree:
    """Parameters of `bert`, made of arrays that have the names and shapes of `parts`.

    Args:
      family: gives the names.
      config: of the parameters.
      arrays: by name, prefix left out.
      head: whether they hold the head's; without, the tree has no "head".
    """
    shapes = _shapes(config)
    tree: dict[str, Any] = {}
    for path, blocks in parts(family, config).items():
        if is_head(path) and not head:
            continue
        each = [_ours(path, [arrays[name] for name in part.names], part.shape) for part in blocks]
        *way, leaf = path.split("/")
        place = tree
        for step in way:
            place = place.setdefault(step, {})
        place[leaf] = np.stack(each).reshape(shapes[path])
    return tree


def from_params(family: Family, config: bert.Config, params: PyTree) -> dict[str, np.ndarray]:
    """The inverse of `to_params`: arrays by name, prefix left out."""
    leaves = {_path(path): np.asarray(x) for path, x in jax.tree.leaves_with_path(params)}
    arrays = {}
    for path, blocks in parts(family, config).items():
        each = leaves[path] if path.startswith(_STACKED) else leaves[path][None]
        for block, part in zip(each, blocks, strict=True):
            arrays.update(zip(part.names, _theirs(path, block, part), strict=True))
    return arrays


def _ours(path: str, arrays: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    if not arrays:
        return np.full(shape, float(path.endswith("/scale")), np.float32)
    joined = np.concatenate(arrays) if len(arrays) > 1 else arrays[0]
    return joined.T if path.endswith("/kernel") else joined


def _theirs(path: str, block: np.ndarray, part: Part) -> list[np.ndarray]:
    if not part.names:
        return []
    if path.endswith("/kernel"):
        block = block.reshape(part.shape[1], -1).T
    else:
        block = block.reshape(len(part.names) * part.shape[0], *part.shape[1:])
    return np.split(block, len(part.names))


def _leaves(
    family: Family, config: bert.Config
) -> Iterator[tuple[str, tuple[str, ...], tuple[int, ...]]]:
    """Path of each leaf, their names for it, and the shape of each."""
    modules = {**family.modules, **family.head}
    for path, shape in _shapes(config).items():
        module, _, leaf = path.rpartition("/")
        named, suffix = (path, "") if path in modules else (module, f".{_LEAVES[leaf]}")
        names = modules[named]
        names = (names,) if isinstance(names, str) else names
        shape = shape[1:] if path.startswith(_STACKED) else shape
        if leaf == "kernel":
            inner = math.prod(shape[:2]) if module.endswith("/out") else shape[0]
            shape = (math.prod(shape) // inner // len(names), inner)
        elif leaf == "bias":
            shape = (math.prod(shape) // len(names),)
        yield path, tuple(name + suffix for name in names), shape


def _shapes(config: bert.Config) -> dict[str, tuple[int, ...]]:
    tree = jax.eval_shape(lambda: bert.init(jax.random.key(0), config))
    return {_path(path): x.shape for path, x in jax.tree.leaves_with_path(tree)}


def _path(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
