"""Tables of a TOML file as dataclasses of numbers and texts, each value checked."""

import dataclasses
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mdlm_jax.host import nearest


def number(default: float | None, low: float, high: float = 86_400.0) -> Any:
    """A field of numbers from `low` to `high`: whole ones if `low` is. None is no number yet."""
    return dataclasses.field(default=default, metadata={"low": low, "high": high})


def read(path: str) -> dict[str, Any]:
    """The tables of a file.

    Raises:
      ValueError: it is no TOML.
      OSError: it cannot be read.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no TOML: {error}") from None


def build(kind: type, given: Mapping[str, Any], where: str) -> Any:
    """The dataclass of a table.

    Args:
      kind: of dataclass. A field without a range is a text.
      given: the table.
      where: it stands, for messages.

    Raises:
      ValueError: a key is unknown, or a value not accepted.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}
    known(given, fields, f"{where} has")
    for name, value in given.items():
        field = fields[name]
        if not field.metadata:
            if not isinstance(value, str):
                raise ValueError(f"{where}: {name} = {value} must be a text")
            continue
        low, high = field.metadata["low"], field.metadata["high"]
        whole = isinstance(low, int)
        right = isinstance(value, int) or (isinstance(value, float) and not whole)
        if not right or isinstance(value, bool) or not low <= value <= high:
            kind_of = "a whole number" if whole else "a number"
            raise ValueError(f"{where}: {name} = {value} must be {kind_of} from {low} to {high}")
    return kind(**given)


def table(value: Any, where: str) -> dict[str, Any]:
    """The value, which is a table.

    Raises:
      ValueError: it is none.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be a table")
    return value


def known(given: Iterable[str], names: Iterable[str], there: str) -> None:
    """Refuses keys that there are not.

    Raises:
      ValueError: there is one; the message goes on with `there`, and the names.
    """
    names = [*names]
    for name in given:
        if name not in names:
            raise ValueError(
                f"unknown key {name}{nearest.meant(name, names)}: {there} {', '.join(names)}"
            )
