"""What a family is: everything in which one kind of training differs from another.

A family is a file beside this one with a `FAMILY`, and a line in `families.NAMES`, by which
`objective.name` finds it. Programs, commands and folders of runs ask the family, and know neither
its objective nor its network.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
from jax.sharding import Mesh

from mdlm_jax.diffusion import Denoiser, Likelihood
from mdlm_jax.diffusion.blocks import BlockDenoiser
from mdlm_jax.diffusion.caching import CachedDenoiser
from mdlm_jax.training.step import LossFn

if TYPE_CHECKING:
    from mdlm_jax import data
    from mdlm_jax.evaluation.bounds.rate_curves import AtRates
    from mdlm_jax.runs.experiment import ObjectiveConfig

Array = jax.Array
PyTree = Any
Config = Any  # a frozen dataclass that describes a network
Prepare = Callable[[Array, Array, PyTree], PyTree]  # (key, step, batch) -> batch
Figures = dict[str, Any]


class Cache(NamedTuple):
    """What is kept from step to step while a network that sees the whole row writes it.

    Attributes:
      kind: 'prefix', 'dual' or 'vicinity', as in `bert.cached_denoiser`.
      width: the most positions of a block, or with 'prefix' from its first one to the row's end.
      refresh: steps from one look at the whole row to the next.
      around: positions on both sides of a block that 'vicinity' computes with it.
    """

    kind: str
    width: int
    refresh: int
    around: int = 0


class Blocks(NamedTuple):
    """How a text is cut into blocks that are written from left to right.

    Attributes:
      size: tokens of a block.
      window: tokens that a block sees before its own, a multiple of the size; None for all.
    """

    size: int
    window: int | None = None


class Network(NamedTuple):
    """A network, as functions of its config.

    Attributes:
      configure: `fields -> config`, from the section `model` of a run's config.json.
      init: `(key, config) -> params`.
      logical_axes: `config -> tree`: names of the axes of each parameter.
      padded_leaves: `config -> paths` of the parameters that grow with a padded vocabulary.
      pad: `(config, multiple) -> config`, its vocabulary padded to a multiple of a mesh's axis.
      check_mesh: `(config, mesh)`; a ValueError if the mesh does not split the network.
      for_devices: `(config, platform, strict) -> config`, as the devices run it. If they cannot run
        what the config names, a ValueError if `strict`, else what they run instead.
      select: `(config, parts) -> tree of bool`, the parameters of the named parts.
      distance_to_head: `config -> tree` of whole numbers, for layer-wise learning rates.
      prepare: `(params, config) -> params` in the form that evaluations use, which all denoisers
        take too: for who evaluates often and does not train.
      denoiser: `(params, config, batch, label, dropout_key) -> Denoiser` of a batch, which has
        "valid" bool `[B, L]` if rows have padding.
      check_cache: `(config, Cache)`; a ValueError if the network cannot keep that.
      cached_denoiser: `(params, config, cache, batch, label) -> CachedDenoiser`.
      causal_denoiser: `(params, config, start_id, label) -> CachedDenoiser` of a network that sees
        at each position that one and those before it, behind the start.
      block_denoiser: as `denoiser` with `Blocks` after the config: a denoiser of blocks.
    """

    configure: Callable[[Mapping[str, Any]], Config]
    init: Callable[[Array, Config], PyTree]
    logical_axes: Callable[[Config], PyTree]
    padded_leaves: Callable[[Config], tuple[str, ...]]
    pad: Callable[[Config, int], Config]
    check_mesh: Callable[[Config, Mesh], None]
    for_devices: Callable[..., Config]
    select: Callable[[Config, Sequence[str]], PyTree]
    distance_to_head: Callable[[Config], PyTree]
    prepare: Callable[[PyTree, Config], PyTree]
    denoiser: Callable[..., Denoiser]
    check_cache: Callable[[Config, Cache], None]
    cached_denoiser: Callable[..., CachedDenoiser]
    causal_denoiser: Callable[..., CachedDenoiser]
    block_denoiser: Callable[..., BlockDenoiser]


class Measure(NamedTuple):
    """How a model of a family is measured.

    Attributes:
      of_rows: `(params, rows, batch_size[, advance]) -> figures`; `advance(n)` is called for
        every n rows that are done, `passes` times for each row.
      passes: how often it goes through the rows.
    """

    of_rows: Callable[..., Figures]
    passes: int = 1


class About(NamedTuple):
    """The text about a run on its pages.

    Attributes:
      training: how it was trained, a sentence or more that follow "A ... encoder".
      loss: the name of its training loss in a legend.
      loss_note: what the training loss is, and whether it shows the likelihood.
    """

    training: str
    loss: str
    loss_note: str


def _about(objective: "ObjectiveConfig") -> About:
    return About(
        training=f"trained for the objective {objective.name!r}.",
        loss="training loss",
        loss_note=f"The training loss is that of the objective {objective.name!r}.",
    )


class Family(NamedTuple):
    """One kind of training.

    Attributes:
      network: the network that is trained.
      check: `(objective, config)`; a ValueError if the two do not fit.
      pairs_rows: `(objective, length) -> bool`, whether neighbouring rows of so many tokens may
        share slots.
      make_prepare: `(objective, config, paired, start_id) -> Prepare`: prepares a batch for the
        loss, drawn for the whole global batch at once. `start_id` is the token before a row.
      make_loss: `(objective, config) -> (params, key, batch) -> (loss, aux)`.
      make_likelihood: `(objective, config, start_id, seed, draws, mesh) -> (params, rows,
        batch_size[, advance]) -> Likelihood` of each row.
      make_measure: `(objective, config, start_id, seed, draws, mesh, curve) -> Measure`, with the
        curve over mask rates if it is asked for and exists.
      make_at_rates: `(objective, config, start_id, seed) -> rate_curves.AtRates`: the cross-entropy
        at mask rates in its two halves. What is exact has one rate, 1.
      check_rows: `(objective, data)`; a ValueError if it cannot be trained on such rows.
      blocks: `objective -> Blocks`, in which text is written after a cache; None for whole rows.
      is_exact: `objective -> bool`, whether the likelihood is exact rather than a bound.
      is_causal: whether text is written from left to right, one token an evaluation.
      about: `objective -> About`.
    """

    network: Network
    check: Callable[["ObjectiveConfig", Config], None]
    pairs_rows: Callable[["ObjectiveConfig", int], bool]
    make_prepare: Callable[..., Prepare]
    make_loss: Callable[["ObjectiveConfig", Config], LossFn]
    make_likelihood: Callable[..., Callable[..., Likelihood]]
    make_measure: Callable[..., Measure]
    make_at_rates: Callable[..., "AtRates"]
    check_rows: Callable[["ObjectiveConfig", "data.Config"], None] = lambda objective, rows: None
    blocks: Callable[["ObjectiveConfig"], Blocks | None] = lambda objective: None
    is_exact: Callable[["ObjectiveConfig"], bool] = lambda objective: False
    is_causal: bool = False
    about: Callable[["ObjectiveConfig"], About] = _about
