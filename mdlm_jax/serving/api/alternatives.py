"""What else the model finds likely at a place of a written text, given all the rest.

No program of its own: a row with that one gap is written in one step at temperature 0, then again
without the tokens that are known already, as often as alternatives are asked for.
"""

import dataclasses
from typing import Any

import numpy as np
from fastapi import Request

from mdlm_jax import data
from mdlm_jax.serving import jobs
from mdlm_jax.serving.api import errors
from mdlm_jax.serving.api.flights import Engine, Flight
from mdlm_jax.serving.offering import plans, texts
from mdlm_jax.serving.offering.offers import Offer
from mdlm_jax.serving.offering.texts import Row


async def look(
    engine: Engine, offer: Offer, request: Request, place: plans.Place, top: int
) -> dict[str, Any]:
    """The most likely tokens of a place, and the one that stands there, for JSON.

    The log-probabilities are the model's own, of the token given all others of the row, earlier and
    later ones (as far as the model sees them): not those of the moment when it was written.

    Args:
      engine: of the process.
      offer: the model.
      request: of HTTP.
      place: from `plans.place`.
      top: how many.

    Raises:
      ApiError: the rows were not taken, or failed.
    """
    vocabulary = offer.model.encoder.vocab_size
    found: list[tuple[int, float]] = []
    for _ in range(min(top, vocabulary - 1)):
        found.append(await _likeliest(engine, offer, request, place, {i for i, _ in found}))
    log_probs = dict(found)
    if place.chosen not in log_probs:
        others = {*range(vocabulary)} - {place.chosen}
        found.append(await _likeliest(engine, offer, request, place, others))
        log_probs |= dict(found)
    pieces = {token: _piece(offer, place, token) for token in log_probs}

    def told(token: int) -> dict[str, Any]:
        return {"id": token, "token": pieces[token], "logprob": log_probs[token]}

    listed = [told(token) for token, _ in found[:top]]
    return {"object": "list", "model": offer.name, "data": listed, "chosen": told(place.chosen)}


async def _likeliest(
    engine: Engine, offer: Offer, request: Request, place: plans.Place, without: set[int]
) -> tuple[int, float]:
    mask = {offer.mask_id} & without
    job = dataclasses.replace(place.job, forbid=tuple(sorted(without - mask)), progress=False)
    row = Row(job, texts.Extent(job.fill))
    try:
        flight = Flight(engine, offer.deployment, [row], whole=True)
    except (jobs.NotTaken, ValueError) as error:
        raise errors.not_taken(error) from None
    async with flight.watched(request):
        async for event in flight.events(plans.FOREVER):
            if event is not None and event[1].done:
                _, written = event
                at = int(np.argmax(job.fill))
                return int(written.tokens[at]), float(written.log_prob[at])
    raise AssertionError("a flight ends with a row that is done or an error")


def _piece(offer: Offer, place: plans.Place, token: int) -> str:
    """What the token would add to the text."""
    at = int(np.argmax(place.job.fill))
    ids = place.job.tokens.copy()
    ids[at] = token
    seen = place.shown & (np.arange(len(ids)) <= at)
    return data.token_pieces(offer.model.tokenizer, ids[seen][-8:])[-1]
