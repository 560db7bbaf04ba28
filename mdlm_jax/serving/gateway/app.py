"""The gateway as an ASGI app."""

import contextlib
import urllib.parse
from collections.abc import AsyncIterator, Sequence
from typing import Any

import aiohttp
import prometheus_client
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from mdlm_jax.serving.api import guards
from mdlm_jax.serving.gateway import failures, health, models, racing
from mdlm_jax.serving.gateway.budget import Budget
from mdlm_jax.serving.gateway.chain import Chain, Standing
from mdlm_jax.serving.gateway.exchange import Ask, Exchange
from mdlm_jax.serving.gateway.metrics import Metrics
from mdlm_jax.serving.gateway.racing import Gateway
from mdlm_jax.serving.gateway.regions import Settings

_STREAMED = ("/v1/completions", "/v1/chat/completions")


def make_app(
    settings: Settings, *, keys: Sequence[bytes] = (), cors: Sequence[str] = ()
) -> Starlette:
    """The app of the regions. Their health is watched while it runs.

    Args:
      settings: of `regions.toml`.
      keys: of which a request must send one; () asks for none, the regions may.
      cors: origins of pages that may ask it; "*" for all.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        limits = settings.limits
        standings = [Standing(region) for region in settings.regions]
        budget = Budget(limits.retry_share, limits.retry_burst, limits.retries_per_s)
        # The requests are bounded, so that the connections need not be: none waits for another.
        connector = aiohttp.TCPConnector(limit=0)
        async with (
            aiohttp.ClientSession(connector=connector, auto_decompress=False) as session,
            health.watched(standings, session),
        ):
            app.state.gateway = Gateway(
                Chain(standings), limits, budget, Metrics(standings, budget), session
            )
            yield

    guarded = [Middleware(guards.Keys, keys=keys)] if keys else []
    if cors:
        across = Middleware(
            CORSMiddleware,
            allow_origins=[*cors],
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-Request-Key", "X-Request-Timeout"],
            expose_headers=["X-Request-Id", "X-Gateway-Region", "Retry-After"],
        )
        guarded.insert(0, across)
    return Starlette(
        routes=[
            *(Route(path, _Endpoint(path, racing.whole, "POST")) for path in _STREAMED),
            Route("/v1/models", _Endpoint("/v1/models", models.listed, "GET")),
            Route("/v1/models/{id:path}", _Endpoint("/v1/models/{id}", racing.whole, "GET")),
            Route("/healthz", _healthz),
            Route("/readyz", _readyz),
            Route("/metrics", _metrics),
        ],
        exception_handlers={HTTPException: _in_form, Exception: _in_form},
        middleware=guarded,
        lifespan=lifespan,
    )


class _Endpoint:
    """A path that the regions answer."""

    def __init__(self, path: str, ask: Ask, method: str):
        self._path, self._ask, self._method = path, ask, method

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        if request.method != self._method:
            raise HTTPException(405)
        target = self._path
        if name := request.path_params.get("id"):
            target = f"/v1/models/{urllib.parse.quote(name)}"
            if {".", ".."} & {*name.split("/")}:
                raise HTTPException(404)
        gateway = request.app.state.gateway
        exchange = Exchange(gateway, self._path, request, send)
        await exchange.answer(target, self._ask, reads=self._method == "POST")


async def _healthz(request: Request) -> Response:
    return PlainTextResponse("ok\n")


async def _readyz(request: Request) -> Response:
    gateway: Gateway = request.app.state.gateway
    regions = {
        each.region.name: {"healthy": each.healthy is True, "breaker": each.breaker.state}
        for each in gateway.chain.standings
    }
    ready = gateway.chain.ready
    return JSONResponse({"ready": ready, "regions": regions}, 200 if ready else 503)


async def _metrics(request: Request) -> Response:
    page = request.app.state.gateway.metrics.page()
    return Response(page, media_type=prometheus_client.CONTENT_TYPE_LATEST)


async def _in_form(request: Request, error: Exception) -> Response:
    """Paths and methods that there are not, and errors of the gateway, as OpenAI tells them."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    messages = {404: "There is no such path", 405: "The path takes another method"}
    answer = failures.error(status, messages.get(status, "The gateway failed"), None)
    return Response(answer.body, status, dict(answer.headers))
