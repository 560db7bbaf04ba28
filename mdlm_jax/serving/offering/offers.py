"""Models as clients know them, and the deployments of the engine that write for them."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

import jax

from mdlm_jax.runs.models import Model
from mdlm_jax.serving import digests
from mdlm_jax.serving.batching.engine import Deployment
from mdlm_jax.serving.offering.loading import deployment_of
from mdlm_jax.writing import model as models
from mdlm_jax.writing import prompts, requests


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
    version: digests.Version | None = None,
    created: int | None = None,
) -> tuple[Deployment, Offer]:
    """A loaded model as a deployment, and what clients are told of it.

    Args:
      loaded: from `mdlm_jax.load`.
      name: by which clients ask for it.
      lengths: of the rows; by default that of the training.
      strategies: whose kinds are compiled; a causal model has its own.
      defaults: how it writes where a request does not say; its strategy is by default the first.
      slots: rows of a compiled shape.
      version: that it was registered as; by default its parameters are read for their digest.
      created: seconds since 1970; by default now.

    Raises:
      ValueError: the model has no such rows, no such strategy, or cannot take the defaults.
    """
    model = loaded.model
    lengths = tuple(sorted({*lengths})) or (model.length,)
    deployment = deployment_of(name, model, strategies=strategies, lengths=lengths, slots=slots)
    if not model.family.is_causal and defaults.strategy is None:
        defaults = dataclasses.replace(defaults, strategy=strategies[0])
    label_names = loaded.card.get("label_names", ()) if model.encoder.classes else ()
    for length in lengths:  # what cannot be planned is refused before it is compiled
        requests.plan(
            model,
            [prompts.Prompt("[MASK]", label_names[0] if label_names else None)],
            dataclasses.replace(defaults, length=length),
            asking=None,
            label_names=label_names,
        )
    version = version or digests.of(loaded, defaults)
    device = next(iter(jax.tree.leaves(model.params)[0].devices()))
    fingerprints = {
        length: digests.fingerprint(
            version, model.encoder, slots=slots, length=length, device=device
        )
        for length in lengths
    }
    return deployment, Offer(
        name=name,
        deployment=name,
        model=model,
        asking=prompts.asking(loaded.card, model.tokenizer),
        label_names=label_names,
        lengths=lengths,
        strategies=tuple(deployment.strategies),
        defaults=defaults,
        fingerprints=fingerprints,
        created=int(time.time()) if created is None else created,
    )
