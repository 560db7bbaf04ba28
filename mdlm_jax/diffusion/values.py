"""Functions that compare by their values, not by identity."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

_HERE = type("_Here", (), {"__repr__": lambda self: "*"})()  # where a child was taken out


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, eq=False)
class Bound:
    """`function(*values, *arguments)`: a `functools.partial` that is equal by value, and a pytree.

    Two are equal and hash alike if their functions and values do. So what is made of them (a
    schedule, a strategy, a transform) may be a static argument of a jitted function. It may be a
    traced one too: its leaves are its numbers and arrays. An array, traced or not, is equal only to
    itself and has no hash.

    Attributes:
      function: a module's function. A lambda would differ from call to call.
      values: its first arguments.
    """

    function: Callable
    values: tuple

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Calls the function with the values, then the arguments."""
        return self.function(*self.values, *arguments, **named)

    def __eq__(self, other: Any) -> bool:
        if not isinstance(other, Bound):
            return NotImplemented
        return (
            self.function == other.function
            and len(self.values) == len(other.values)
            and all(map(_equal, self.values, other.values))
        )

    def __hash__(self) -> int:
        for value in self.values:
            if isinstance(value, jax.Array | np.ndarray):
                raise TypeError(
                    f"{self.function.__name__.strip('_')} holds an array: as a static argument it "
                    "must hold a number, float(x); an array belongs in an argument that is traced"
                )
        return hash((self.function, self.values))

    def __repr__(self) -> str:
        return f"{self.function.__name__}({', '.join(map(repr, self.values))}, ...)"

    def tree_flatten(self) -> tuple:
        """The values that may be traced, and everything else."""
        children, rest = _split(self.values, lambda value: _is_number(value) or _holds(value))
        return children, (self.function, rest)

    @classmethod
    def tree_unflatten(cls, static: tuple, children: tuple) -> "Bound":
        """From what `tree_flatten` returned."""
        function, rest = static
        return cls(function, _join(rest, children))


_HOLDING: set[type] = {Bound}  # types whose instances may hold values


def holds_values(cls: type) -> type:
    """Makes a NamedTuple of functions a pytree: `Bound` ones vary, all else is static."""

    def flatten(fields: tuple) -> tuple:
        return _split(tuple(fields), _holds)

    jax.tree_util.register_pytree_node(cls, flatten, lambda rest, bound: cls(*_join(rest, bound)))
    _HOLDING.add(cls)
    return cls


def _split(values: tuple, varies: Callable[[Any], bool]) -> tuple[tuple, tuple]:
    """Those that vary, and the others in their places."""
    children = tuple(value for value in values if varies(value))
    return children, tuple(_HERE if varies(value) else value for value in values)


def _join(rest: tuple, children: tuple) -> tuple:
    """The inverse of `_split`."""
    left = iter(children)
    return tuple(next(left) if value is _HERE else value for value in rest)


def _holds(value: Any) -> bool:
    return type(value) in _HOLDING


def _is_number(value: Any) -> bool:
    number = isinstance(value, int | float | np.number | np.ndarray | jax.Array)
    return number and not isinstance(value, bool)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, jax.Array | np.ndarray) or isinstance(other, jax.Array | np.ndarray):
        return one is other
    return one == other
