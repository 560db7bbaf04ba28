"""The arrays of a checkpoint that make the model: all that are needed, or an error."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mdlm_jax.interop import layout
from mdlm_jax.interop.descriptions import Description
from mdlm_jax.interop.families import Family

_TABLE = "encoder/embeddings/tokens"
_POSITIONS = "embeddings.position_embeddings.weight"
_TYPES = "embeddings.token_type_embeddings.weight"
# The names of a layer norm's two arrays in checkpoints that began in TensorFlow.
_OLD = {".gamma": ".weight", ".beta": ".bias"}


class Selected(NamedTuple):
    """Arrays with the names and shapes of `layout.parts`.

    Attributes:
      arrays: by name, prefix left out.
      head: whether the masked-LM head is among them.
      notes: lines for the user: a head that is new, arrays that are left out.
    """

    arrays: dict[str, np.ndarray]
    head: bool
    notes: tuple[str, ...]


def select(folder: Path, described: Description, arrays: Mapping[str, np.ndarray]) -> Selected:
    """Takes from a checkpoint's arrays those of the model.

    Args:
      folder: named in errors.
      described: what its config.json says.
      arrays: as read.

    Raises:
      ValueError: arrays are missing, have another shape or no floats (each is named), or the output
        layer is not the embedding table.
    """
    family = described.family
    original = {_plain_name(family, name): name for name in arrays}
    found = {plain: arrays[name] for plain, name in original.items()}
    matrix, bias = family.decoder
    if bias in found:  # they are one array, saved by either name or by both
        found.setdefault(family.head["head/bias"], found[bias])
    shapes = _shapes(described)
    of_head = {name for name in shapes if _is_head(family, name)}
    head = not of_head.isdisjoint(found)
    if not head:
        shapes = {name: shape for name, shape in shapes.items() if name not in of_head}
    elif not described.tied:
        shapes[matrix] = shapes[family.modules[_TABLE]]
    _check(folder, family, shapes, found, original)
    if head:
        _check_output(folder, family, found)
    left = sorted(original[name] for name in found.keys() - shapes.keys() - {matrix, bias})
    notes = () if head else ("no masked-LM head there: the model's is new, and untrained",)
    if left:
        notes += (f"left out, as the encoder has no place for them: {', '.join(left)}",)
    chosen = {name: found[name] for name in shapes}
    if described.position_offset:
        chosen[_POSITIONS] = chosen[_POSITIONS][described.position_offset :]
    if described.type_rows == 1:
        chosen[_TYPES] = np.repeat(chosen[_TYPES], 2, axis=0)
    return Selected(chosen, head, notes)


def prefixed(family: Family, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays by their full names."""
    return {_full_name(family, name): array for name, array in arrays.items()}


def _shapes(described: Description) -> dict[str, tuple[int, ...]]:
    parts = layout.parts(described.family, described.config)
    shapes = {name: p.shape for blocks in parts.values() for p in blocks for name in p.names}
    width = described.config.width
    if described.position_offset:
        shapes[_POSITIONS] = (described.config.max_length + described.position_offset, width)
    if described.type_rows:
        shapes[_TYPES] = (described.type_rows, width)
    return shapes


def _check(
    folder: Path,
    family: Family,
    shapes: Mapping[str, tuple[int, ...]],
    found: Mapping[str, np.ndarray],
    original: Mapping[str, str],
) -> None:
    missing = [_full_name(family, name) for name in shapes if name not in found]
    wrong = [
        f"{original.get(name, name)} is {found[name].dtype} {list(found[name].shape)}, must be "
        f"float {list(shape)}"
        for name, shape in shapes.items()
        if name in found and (found[name].shape != shape or found[name].dtype != np.float32)
    ]
    if missing or wrong:
        problems = [f"missing: {', '.join(missing)}"] * bool(missing) + wrong
        raise ValueError(
            f"{folder}: its weights are not those of its config: {'; '.join(problems)}"
        )


def _check_output(folder: Path, family: Family, found: Mapping[str, np.ndarray]) -> None:
    twins = (family.modules[_TABLE], family.head["head/bias"])
    for name, twin in zip(family.decoder, twins, strict=True):
        if name in found and not np.array_equal(found[name], found[twin]):
            raise ValueError(
                f"{folder}: {name} differs from {_full_name(family, twin)}: the output layer must "
                "be tied to it"
            )


def _plain_name(family: Family, name: str) -> str:
    name = name.removeprefix(family.prefix)
    for old, new in _OLD.items():
        if name.endswith(old):
            name = name.removesuffix(old) + new
    return name


def _full_name(family: Family, plain: str) -> str:
    return plain if _is_head(family, plain) or plain in family.decoder else family.prefix + plain


def _is_head(family: Family, plain: str) -> bool:
    return any(plain == name or plain.startswith(name + ".") for name in family.head.values())
