"""What a compiled program of the engine depends on, and what it tells of its rows."""

import dataclasses
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from mdlm_jax.diffusion import Strategy
from mdlm_jax.runs.families import Blocks

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Kind:
    """Rows of one kind are one compiled program, whatever their numbers.

    Attributes:
      encoder: the config of the network.
      mesh: holds the parameters and the rows.
      slots: rows of a program, S; all of them are computed, also for one request.
      length: tokens of a row, L.
      strategy: the structure of the strategies, without their numbers (`jax.tree.structure`).
      guided: whether the network is evaluated without the label as well.
      padded: whether rows may have padding, which the network does not see.
      blocks: those of a model that writes them after a cache; None for whole rows.
      start_id: of a causal network, the token before a row; None for one that fills masks.
    """

    encoder: Any
    mesh: Mesh
    slots: int
    length: int
    strategy: Any
    guided: bool = False
    padded: bool = False
    blocks: Blocks | None = None
    start_id: int | None = None

    @property
    def mask_id(self) -> int:
        """The token where text is wanted."""
        return self.encoder.mask_id

    @property
    def labelled(self) -> bool:
        """Whether the network has classes."""
        return bool(self.encoder.classes)

    @property
    def numbers(self) -> int:
        """How many numbers the strategy has."""
        return self.strategy.num_leaves

    def strategy_of(self, numbers: tuple) -> Strategy:
        """The strategy with these numbers, one for all rows or `[S]`."""
        return jax.tree.unflatten(self.strategy, numbers)


class Seen(NamedTuple):
    """What the host is told of the rows.

    Attributes:
      tokens: i32[S, L].
      step: i32[S, L].
      log_prob: f32[S, L].
      evaluations: i32[S].
      done: bool[S].
    """

    tokens: Array
    step: Array
    log_prob: Array
    evaluations: Array
    done: Array
