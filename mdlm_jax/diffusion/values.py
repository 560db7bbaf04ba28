"""Functions that are compared by what they do, not by where they were made."""

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Bound:
    """`function(*values, *arguments)`: a `functools.partial` that is equal by value.

    Two are equal, and hash alike, where their functions and values do. What is made of them (a
    `Denoiser` and its transforms) may so be a static argument of a jitted function; values that are
    traced may be neither compared nor hashed.

    Attributes:
      function: of a module, not a lambda: those of two calls differ.
      values: its first arguments.
    """

    function: Callable
    values: tuple

    def __call__(self, *arguments: Any) -> Any:
        """The function of all of them."""
        return self.function(*self.values, *arguments)
