"""`/v1/models`: what the regions offer together."""

import asyncio
import json
from typing import Any

from mdlm_jax.serving.gateway import racing, tries
from mdlm_jax.serving.gateway.asked import Asked
from mdlm_jax.serving.gateway.chain import Round, Standing
from mdlm_jax.serving.gateway.failures import Answer, Failure, Unanswered
from mdlm_jax.serving.gateway.racing import Gateway
from mdlm_jax.serving.gateway.tries import Place


async def listed(gateway: Gateway, asked: Asked, made: Round) -> Answer:
    """The models of all regions that answer, each once, in the order of the regions.

    Raises:
      Unanswered: no region did.
    """
    standings = gateway.chain.standings
    said = await asyncio.gather(*(_of(gateway, each, asked, made) for each in standings))
    answers = [answer for answer in said if answer is not None]
    found: dict[str, Any] = {}
    for answer in answers:
        if answer.status == 200:
            for model in _models(answer.body):
                found.setdefault(model["id"], model)
    if found or any(answer.status == 200 for answer in answers):
        body = json.dumps({"object": "list", "data": [*found.values()]})
        return Answer(200, body.encode())
    if answers:
        return answers[0]
    raise Unanswered(made.failures, "all were asked", gateway.chain.retry_after(made.caller))


def _models(body: bytes) -> list[dict[str, Any]]:
    """What of a list can be read."""
    data = json.loads(body).get("data")
    found = data if isinstance(data, list) else []
    return [each for each in found if isinstance(each, dict) and isinstance(each.get("id"), str)]


async def _of(gateway: Gateway, standing: Standing, asked: Asked, made: Round) -> Answer | None:
    waits = standing.healthy is False or standing.waits(made.caller)
    permit = None if waits else standing.breaker.permit()
    if permit is None:
        return None
    try:
        answer = await tries.whole(Place(gateway.session, standing.region, standing.key), asked)
        permit.succeeded()
        return answer
    except Failure as failure:
        racing.failed(gateway, made, standing, permit, failure)
        return None
    finally:
        permit.released()
