"""Rooms whose modules are loaded when they are first asked for."""

import importlib
import pkgutil
from collections.abc import Callable, Iterable
from types import ModuleType


def modules(
    package: str, path: Iterable[str], names: Iterable[str] = ()
) -> tuple[Callable[[str], ModuleType], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package: `mdlm_jax.networks.bert` needs no import.

    Args:
      package: its `__name__`.
      path: its `__path__`.
      names: what it offers besides its modules, for `dir`.
    """
    found = {module.name for module in pkgutil.iter_modules(path)}

    def load(name: str) -> ModuleType:
        if name in found:
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def listed() -> list[str]:
        return sorted({*found, *names})

    return load, listed
