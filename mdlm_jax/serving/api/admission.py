"""What a request gets: the model and the steps that it asks for, or those of a policy's stage."""

import dataclasses
from collections.abc import Callable
from typing import Any

from fastapi import Request

from mdlm_jax.serving.api import schemas
from mdlm_jax.serving.api.answering import Admitted, Front, key_of
from mdlm_jax.serving.offering.offers import Offer
from mdlm_jax.serving.offering.texts import Row
from mdlm_jax.serving.watching.policy import Stage

Plan = Callable[[Offer], list[Row]]


def admit(
    front: Front, request: Request, asked: schemas.Options, offer: Offer, plan: Plan
) -> Admitted:
    """Plans a request by the stage of its coming.

    A request that the model of the stage cannot take is written by the one that it asks for.

    Args:
      front: the server.
      request: of HTTP.
      asked: its body.
      offer: the model that it asks for.
      plan: its rows, of a model.

    Raises:
      ValueError: the model that it asks for cannot take it.
    """
    rows = plan(offer)
    if front.steering is None:
        return Admitted(offer, rows, None)
    pinned = asked.policy == "pinned"
    number, stage = front.steering.admit(pinned=pinned)
    told: dict[str, Any] = {"stage": number, "pinned": pinned}
    if (other := _other(front, request, asked, offer, stage)) is not None:
        try:
            offer, rows = other, plan(other)
            told["model"] = other.name
        except ValueError:
            pass
    if not offer.model.family.is_causal:  # which takes a step for each token
        rows = [_with_steps(row, stage.steps_of(row.job.steps)) for row in rows]
        told["steps"] = rows[0].job.steps
    request.state.told |= {"model": offer.name, "stage": number}
    return Admitted(offer, rows, told)


def _other(
    front: Front, request: Request, asked: schemas.Options, offer: Offer, stage: Stage
) -> Offer | None:
    """The model of the stage, if it is another."""
    if not stage.model:
        return None
    other = front.catalog.choose(stage.model, key_of(asked, request))
    return None if other is None or other.deployment == offer.deployment else other


def _with_steps(row: Row, steps: int) -> Row:
    return row._replace(job=dataclasses.replace(row.job, steps=steps))
