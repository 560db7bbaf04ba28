"""Answers to requests: rows are planned, submitted and followed, whole or piece by piece."""

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, NamedTuple

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from mdlm_jax.serving import jobs
from mdlm_jax.serving.api import errors, guards, schemas
from mdlm_jax.serving.api.flights import Engine, Flight, Gone
from mdlm_jax.serving.api.limits import Limits
from mdlm_jax.serving.api.shapes import Head, Shape, head
from mdlm_jax.serving.offering import texts
from mdlm_jax.serving.offering.offers import Catalog, Offer
from mdlm_jax.serving.offering.plans import Wanted
from mdlm_jax.serving.offering.texts import Read, Row, Token
from mdlm_jax.serving.watching.steering import Steering

_LOG = logging.getLogger(__name__)
_ALIVE = 5.0  # seconds of silence after which a stream says that it is still there


class Front(NamedTuple):
    """What the endpoints work with.

    Attributes:
      engine: of the process.
      catalog: the models.
      limits: of a request.
      steering: of a policy; None for full service, whatever the load is.
    """

    engine: Engine
    catalog: Catalog
    limits: Limits
    steering: Steering | None = None


class Admitted(NamedTuple):
    """A request that is to be written.

    Attributes:
      offer: the model that writes it.
      rows: of it.
      policy: what the client is told of the policy; None on a server without one.
    """

    offer: Offer
    rows: Sequence[Row]
    policy: Mapping[str, Any] | None


class Done(NamedTuple):
    """A row that is answered.

    Attributes:
      read: its text.
      written: the row.
      tokens: those of the text; None where nobody asked.
    """

    read: Read
    written: jobs.Written
    tokens: list[Token] | None


def choose(front: Front, asked: schemas.Options | schemas.Alternatives, request: Request) -> Offer:
    """The model that a request is for.

    Raises:
      ApiError: there is none of this name.
    """
    offer = front.catalog.choose(asked.model, key_of(asked, request))
    if offer is None:
        raise errors.unknown_model(asked.model, [each.name for each in front.catalog.listed()])
    request.state.told |= {"model": offer.name}
    return offer


def key_of(asked: schemas.Options | schemas.Alternatives, request: Request) -> str:
    """The key of a request, by which several versions share the requests."""
    return request.headers.get("x-request-key") or asked.user or secrets.token_hex(8)


def wanted(front: Front, asked: schemas.Options, prompts: int, request: Request) -> Wanted:
    """What all prompts of a request have in common.

    Raises:
      ApiError: it is more than the server takes.
    """
    n, limits = asked.n or 1, front.limits
    if n * prompts > limits.rows:
        raise errors.ApiError(
            400, f"n: {n} answers to {prompts} prompts, at most {limits.rows} rows are taken",
            param="n",
        )  # fmt: skip
    if asked.canvases and not asked.stream:
        raise errors.ApiError(400, "canvases are for a stream: stream=true", param="canvases")
    if asked.stream_options is not None and not asked.stream:
        raise errors.ApiError(400, "stream_options are for a stream", param="stream_options")
    return Wanted(
        # JavaScript's numbers hold it whole.
        seed=secrets.randbelow(2**53) if asked.seed is None else asked.seed,
        n=n,
        options=asked.options(),
        label=asked.label,
        stops=asked.stops,
        deadline=deadline(front, asked.timeout, request),
    )


def deadline(front: Front, timeout: float | None, request: Request) -> float:
    """When a request is given up, by `time.monotonic()`.

    Args:
      front: the server.
      timeout: that the request asks for.
      request: of HTTP. A gateway tells in its header how much time is left.

    Raises:
      ApiError: it asks for more time than there is, or the header is no number.
    """
    most = front.limits.timeout
    if timeout is not None and timeout > most:
        raise errors.ApiError(
            400, f"timeout is {timeout:g}: at most {most:g} seconds are taken", param="timeout"
        )
    seconds = min(most if timeout is None else timeout, guards.seconds_left(request.headers))
    return time.monotonic() + seconds


async def answer(
    front: Front,
    request: Request,
    asked: schemas.Options,
    shape: Shape,
    admitted: Admitted,
    *,
    logprobs: bool,
) -> Response:
    """Submits the rows and answers the request.

    Args:
      front: the server.
      request: of HTTP.
      asked: its body.
      shape: of the endpoint.
      admitted: what is written.
      logprobs: whether the tokens are told.

    Raises:
      ApiError: the rows were not taken, or one failed.
    """
    whole = not asked.stream
    offer, rows, policy = admitted
    try:
        flight = Flight(front.engine, offer.deployment, rows, whole=whole)
    except (jobs.NotTaken, ValueError) as error:
        raise errors.not_taken(error) from None
    answering = _Answering(head(shape, offer, rows), rows, flight, logprobs, policy)
    request.state.told |= {"answer": answering.head.id, "rows": len(rows)}
    if not whole:
        return StreamingResponse(
            _stream(answering, request, asked),
            media_type="text/event-stream",
            # A proxy must not gather the pieces.
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )
    async with flight.watched(request):
        done: dict[int, Done] = {}
        try:
            async for event in flight.events(_ALIVE):
                if event is not None and (made := await answering.finished(*event)) is not None:
                    done[event[0]] = made
        except Gone:
            return Response(status_code=499)  # nobody reads it
    usage = answering.usage(done)
    request.state.told |= usage
    choices = [
        shape.choice(index, made.read.text, made.read.reason, made.tokens)
        for index, made in sorted(done.items())
    ]
    told = {**answering.head.json(shape.whole), **answering.of_policy}
    return JSONResponse({**told, "choices": choices, "usage": usage})


class _Answering(NamedTuple):
    head: Head
    rows: Sequence[Row]
    flight: Flight
    logprobs: bool
    policy: Mapping[str, Any] | None

    @property
    def of_policy(self) -> dict[str, Any]:
        """What is told of the policy, once."""
        return {} if self.policy is None else {"policy": self.policy}

    def read(self, index: int, written: jobs.Written) -> Read:
        offer = self.head.offer
        return texts.read(self.rows[index], written, offer.model.tokenizer, offer.mask_id)

    def grew(self, index: int, written: jobs.Written, ahead: list[int]) -> bool:
        """Whether more of a row is final than `ahead` says, which is noted; most steps add none."""
        row, before = self.rows[index], ahead[index]
        ahead[index] = len(texts.final_places(row, written, self.head.offer.mask_id))
        return written.done or ahead[index] > before

    async def finished(self, index: int, written: jobs.Written) -> Done | None:
        """The answer, if the row is done or a stop ended it."""
        made = self.read(index, written)
        return None if made.reason is None else await self.done(index, written, made)

    async def done(self, index: int, written: jobs.Written, made: Read) -> Done:
        if not written.done:
            self.flight.finish(index)
        tokens = None
        # Where a stop cut the text, it takes the tokens to count them.
        if self.logprobs or self.rows[index].extent.stops:
            tokens = await asyncio.to_thread(
                texts.tokens_of,
                self.rows[index],
                written,
                made,
                self.head.offer.model.tokenizer,
            )
        return Done(made, written, tokens)

    def usage(self, done: Mapping[int, Done]) -> dict[str, int]:
        """What the answer took: tokens given and written, and network evaluations of its rows."""
        prompts = {row.extent.prompt: row.extent.given for row in self.rows}
        given = sum(prompts.values())
        written = sum(
            texts.count(self.rows[index], made.written, made.tokens, self.head.offer.mask_id)
            for index, made in done.items()
        )
        return {
            "prompt_tokens": given,
            "completion_tokens": written,
            "total_tokens": given + written,
            "evaluations": sum(made.written.evaluations for made in done.values()),
        }


async def _stream(
    answering: _Answering, request: Request, asked: schemas.Options
) -> AsyncIterator[bytes]:
    request.state.told |= {"status": 499}  # unless it is told to its end
    try:
        async with answering.flight.watched(request):
            async for piece in _pieces(answering, request, asked):
                yield piece
    except Gone:
        return
    except errors.ApiError as error:
        request.state.told |= {"status": error.status}
        yield _event(error.body())
    except Exception:
        _LOG.exception("a stream failed")
        request.state.told |= {"status": 500}
        yield _event(errors.ApiError(500, "internal error").body())


async def _pieces(
    answering: _Answering, request: Request, asked: schemas.Options
) -> AsyncIterator[bytes]:
    made_of, shape = answering.head, answering.head.shape
    with_usage = asked.stream_options is not None and asked.stream_options.include_usage
    no_usage = {"usage": None} if with_usage else {}

    def piece(*choices: dict[str, Any], **once: Any) -> bytes:
        return _event({**made_of.json(shape.piece), **once, "choices": [*choices], **no_usage})

    count = len(answering.rows)
    openings = (shape.delta(index, "", None, None) for index in range(count))
    yield piece(*openings, **answering.of_policy)
    sent, ahead, done = [""] * count, [-1] * count, dict[int, Done]()
    async for event in answering.flight.events(_ALIVE):
        if event is None:
            yield b": still there\n\n"
            continue
        index, written = event
        if asked.canvases:
            yield await _canvas(answering, index, written)
        if not answering.grew(index, written, ahead):
            continue
        made = answering.read(index, written)
        fresh = texts.fresh(sent[index], made)
        sent[index] += fresh
        if fresh and "first" not in request.state.told:
            request.state.told["first"] = time.monotonic()
        if made.reason is not None:
            done[index] = await answering.done(index, written, made)
            tokens = done[index].tokens if answering.logprobs else None
            yield piece(shape.delta(index, fresh, made.reason, tokens))
        elif fresh:
            yield piece(shape.delta(index, fresh, None, None))
    usage = answering.usage(done)
    request.state.told |= usage
    if with_usage:
        yield _event({**made_of.json(shape.piece), "choices": [], "usage": usage})
    request.state.told |= {"status": 200}
    yield b"data: [DONE]\n\n"


async def _canvas(answering: _Answering, index: int, written: jobs.Written) -> bytes:
    """What is written anywhere; a client that knows only OpenAI's events finds no choice in it."""
    row, tokenizer = answering.rows[index], answering.head.offer.model.tokenizer
    told = await asyncio.to_thread(texts.canvas_of, row, written, tokenizer)
    canvas = {"index": index, "evaluations": written.evaluations, "done": written.done, **told}
    body = answering.head.json(f"{answering.head.shape.whole}.canvas")
    return _event({**body, "choices": [], "canvas": canvas}, "canvas")


def _event(body: Mapping[str, Any], name: str = "") -> bytes:
    line = f"event: {name}\n" if name else ""
    return f"{line}data: {json.dumps(body)}\n\n".encode()
