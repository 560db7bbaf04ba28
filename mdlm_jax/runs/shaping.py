"""Shapes the law that tokens are drawn from: temperature, nuclei, forbidden tokens."""

import dataclasses
import math
from typing import Any

import jax

from mdlm_jax.diffusion import Denoiser, transforms


@dataclasses.dataclass(frozen=True)
class Shaping:
    """Transforms of a denoiser, applied in this order; the defaults change nothing.

    The values may be traced (`dataclasses.replace(shaping, temperature=t)` within a jitted
    function). Then that transform is applied for any value.

    Attributes:
      forbid: ids that are never written.
      repetition_penalty: above 1 makes tokens of the row less likely.
      temperature: below 1 is sharper, 0 takes the most likely.
      min_p: drops tokens less than this many times as likely as the best.
      top_k: keeps this many tokens; None for all.
      top_p: keeps the fewest tokens that hold this much probability.
    """

    forbid: tuple[int, ...] = ()
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    min_p: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self):
        nothing = Denoiser(lambda tokens, t: None, lambda at, row: None)
        for name, value in self.changed().items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name}: it is {value}, it must be a finite number")
            getattr(transforms, name)(nothing, value)  # raises for a wrong value

    def __call__(self, denoiser: Denoiser) -> Denoiser:
        """The denoiser with every transform whose value is not its default."""
        for name, value in self.changed().items():
            denoiser = getattr(transforms, name)(denoiser, value)
        return denoiser

    def changed(self) -> dict[str, Any]:
        """The values that are traced or not the default, by name, in the order of the fields."""
        values = [(field, getattr(self, field.name)) for field in dataclasses.fields(self)]
        return {
            field.name: value
            for field, value in values
            if isinstance(value, jax.core.Tracer) or value != field.default
        }

    def strengths(self) -> dict[str, float]:
        """Those of the changed values that may be traced, and the temperature in any case.

        A jitted function that takes them as arguments is one program for all their values.
        """
        traceable = ("repetition_penalty", "temperature", "min_p", "top_p")
        changed = {name: v for name, v in self.changed().items() if name in traceable}
        return {"temperature": self.temperature, **changed}
