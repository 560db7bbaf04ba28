"""A stream for a user, that goes on in another region when its region dies."""

import json
from collections.abc import AsyncGenerator, Awaitable

from mdlm_jax.serving.gateway import failures, racing, tries
from mdlm_jax.serving.gateway.asked import Asked
from mdlm_jax.serving.gateway.chain import Round
from mdlm_jax.serving.gateway.failures import Answer, Failure, Unanswered
from mdlm_jax.serving.gateway.racing import Gateway
from mdlm_jax.serving.gateway.sse import Event
from mdlm_jax.serving.gateway.told import Garbage, OtherVersion, Told, read_chunk
from mdlm_jax.serving.gateway.tries import Stream


class Ended(Exception):
    """A stream that ends in an error.

    Attributes:
      answer: the error.
    """

    def __init__(self, answer: Answer):
        super().__init__(answer.status)
        self.answer = answer


async def frames(
    gateway: Gateway, asked: Asked, made: Round, seen: Told
) -> AsyncGenerator[bytes, None]:
    """The events for the user, encoded; the last is `[DONE]`.

    Args:
      gateway: the regions.
      asked: the request.
      made: is filled with its tries.
      seen: is filled with what was told.

    Raises:
      Ended: what the user is told instead of an answer, or of the rest of it.
    """

    def begin(place: tries.Place) -> Awaitable[Stream | Answer]:
        # No region's policy may change what was begun.
        return tries.opened(place, asked.as_begun(seen.policy), seen.fingerprint)

    while True:
        try:
            won = await racing.race(gateway, asked, made, begin)
        except Unanswered as unanswered:
            raise Ended(unanswered.answer) from None
        opened = won.result
        if isinstance(opened, Answer):
            raise Ended(opened)
        seen.begin()
        if seen.characters:
            gateway.metrics.continued.inc()
        try:
            async for event in opened.events():
                if frame := _frame(event, asked, opened, seen):
                    yield frame
            return
        except Failure as failure:
            racing.failed(gateway, made, won.standing, won.permit, failure)
        finally:
            opened.close()


def _frame(event: Event, asked: Asked, opened: Stream, seen: Told) -> bytes | None:
    """What the user gets of an event; None for nothing.

    Raises:
      Failure: the region broke the contract, or told an error that another may not have.
      Ended: it told an error that every region would tell.
    """
    name = opened.region.name
    if not event.name:
        return None  # the gateway keeps its own connection alive
    if event.name != "message":  # what is provisional cannot be told twice in the same way
        return event.encoded() if seen.tries == 1 else None
    try:
        if event.data == tries.DONE:
            seen.check_end()
            return event.encoded()
        chunk = read_chunk(event.data)
        if "error" in chunk:
            said = tries.error_event(opened.region, asked, chunk)
            raise said if isinstance(said, Failure) else Ended(said)
        new = seen.take(chunk)
    except Garbage as error:
        raise Failure(failures.GARBAGE, name, str(error)) from None
    except OtherVersion:
        message = "it changed its version within a stream"
        raise Failure(failures.VERSION, name, message) from None
    if new is chunk:
        return event.encoded()
    return Event("message", json.dumps(new)).encoded() if new is not None else None
