"""Models as clients know them, and the deployments of the engine that write for them."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

from mdlm_jax import data
from mdlm_jax.runs.experiment import SCHEDULES
from mdlm_jax.runs.models import Model
from mdlm_jax.serving.engine import Deployment
from mdlm_jax.writing import decoding, prompts, requests
from mdlm_jax.writing import model as models


@dataclasses.dataclass(frozen=True, eq=False)
class Offer:
    """A model that clients may ask for.

    Attributes:
      name: by which they ask.
      deployment: its name in the engine.
      model: parameters, network and tokenizer.
      asking: how prompts of a run of pairs are written; None for a run of texts.
      label_names: of a model with classes, in their order.
      lengths: of the rows that are compiled, ascending.
      strategies: of the kinds that are compiled, as `threshold(0.9)`.
      defaults: how it writes where a request does not say.
      fingerprints: by the length of the row, of all that decides a bit of a text.
      created: seconds since 1970.
    """

    name: str
    deployment: str
    model: Model
    asking: prompts.Asking | None
    label_names: Sequence[str]
    lengths: tuple[int, ...]
    strategies: tuple[str, ...]
    defaults: requests.Options
    fingerprints: Mapping[int, str]
    created: int

    @property
    def mask_id(self) -> int:
        """The mask of the tokenizer."""
        return self.model.encoder.mask_id


class Catalog(Protocol):
    """Which models a server offers."""

    def listed(self) -> Sequence[Offer]:
        """All of them, in order."""

    def choose(self, name: str, key: str) -> Offer | None:
        """The model of this name; None if there is none.

        Args:
          name: as the client gave it.
          key: of the request, by which several versions share the requests.
        """


@dataclasses.dataclass(frozen=True)
class Fixed:
    """A catalog of models that never change, by name."""

    offers: Mapping[str, Offer]

    def listed(self) -> Sequence[Offer]:
        """All of them, in order."""
        return [*self.offers.values()]

    def choose(self, name: str, key: str) -> Offer | None:
        """The model of this name."""
        del key
        return self.offers.get(name)


def offer(
    loaded: models.Model,
    name: str,
    *,
    lengths: Sequence[int] = (),
    strategies: Sequence[str] = ("exact_count",),
    defaults: requests.Options = requests.Options(),  # noqa: B008
    slots: int = 32,
    fingerprint: str = "",
) -> tuple[Deployment, Offer]:
    """A loaded model as a deployment, and what clients are told of it.

    Args:
      loaded: from `mdlm_jax.load`.
      name: by which clients ask for it.
      lengths: of the rows; by default that of the training.
      strategies: whose kinds are compiled; a causal model has its own.
      defaults: how it writes where a request does not say; its strategy is by default the first.
      slots: rows of a compiled shape.
      fingerprint: of all that decides a bit of a text, but for the length of the row.

    Raises:
      ValueError: the model has no such rows, no such strategy, or cannot take the defaults.
    """
    model = loaded.model
    lengths = tuple(sorted({*lengths})) or (model.length,)
    if model.family.is_causal:
        strategies = ("left_to_right",)
    elif defaults.strategy is None:
        defaults = dataclasses.replace(defaults, strategy=strategies[0])
    label_names = loaded.card.get("label_names", ()) if model.encoder.classes else ()
    # One gap in a row of each length: what cannot be planned is refused before it is compiled.
    methods = {
        length: requests.plan(
            model,
            [prompts.Prompt("[MASK]", label_names[0] if label_names else None)],
            dataclasses.replace(defaults, length=length),
            asking=None,
            label_names=label_names,
        ).method
        for length in lengths
    }
    in_blocks = {length: method.in_blocks for length, method in methods.items()}
    schedule = SCHEDULES[model.objective.schedule]()
    deployment = Deployment(
        name,
        model.params,
        model.encoder,
        lengths=lengths,
        strategies={each: decoding.strategy(each, schedule) for each in strategies},
        slots=slots,
        padded=model.padded or model.framed,
        blocks=None if None in in_blocks.values() else in_blocks,
        start_id=data.special_ids(model.tokenizer).sep if model.family.is_causal else None,
        mesh=loaded.mesh,
    )
    return deployment, Offer(
        name=name,
        deployment=name,
        model=model,
        asking=prompts.asking(loaded.card, model.tokenizer),
        label_names=label_names,
        lengths=lengths,
        strategies=tuple(strategies),
        defaults=defaults,
        fingerprints={length: f"{fingerprint}{length}" for length in lengths},
        created=int(time.time()),
    )
