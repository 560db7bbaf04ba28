"""The families: what can be trained, by `objective.name`."""

import importlib
from typing import Any

from mdlm_jax.runs.families.base import Blocks, Cache, Family, Measure, Network

NAMES = {  # objective.name: the file
    "diffusion": "masks",
    "mlm": "mlm",
    "autoregressive": "causal",
    "block": "blocks",
}

__all__ = ["NAMES", "Blocks", "Cache", "Family", "Measure", "Network", "family_of", "network_of"]


def family_of(name: str) -> Family:
    """The family that an `objective.name` names.

    Raises:
      ValueError: there is none.
    """
    if name not in NAMES:
        raise ValueError(f"objective.name must be one of {', '.join(NAMES)}, not {name!r}")
    return importlib.import_module(f"mdlm_jax.runs.families.{NAMES[name]}").FAMILY


def network_of(config: Any) -> Network:
    """The network that a config describes, by the config's type."""
    from mdlm_jax.runs.families import encoder

    return {encoder.Config: encoder.NETWORK}[type(config)]
