"""The app: endpoints of OpenAI's API, the page, and what watches over a server."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Annotated, Any, ClassVar

from fastapi import Body, FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route
from starlette.types import ASGIApp

import mdlm_jax
from mdlm_jax.serving.api import alternatives, errors, guards, schemas, shapes
from mdlm_jax.serving.api.admission import admit
from mdlm_jax.serving.api.answering import Front, answer, choose, deadline, wanted
from mdlm_jax.serving.api.flights import Gone
from mdlm_jax.serving.api.limits import Limits
from mdlm_jax.serving.offering import offers, plans
from mdlm_jax.serving.offering.texts import Row
from mdlm_jax.serving.watching.steering import Steering


def make_app(
    engine: Any,
    catalog: offers.Catalog,
    *,
    limits: Limits = Limits(),  # noqa: B008
    keys: Sequence[bytes] = (),
    cors: Sequence[str] = (),
    mounts: Mapping[str, ASGIApp] | None = None,
    steering: Steering | None = None,
    tell: Callable[[guards.Told], None] = guards.log,
) -> FastAPI:
    """The app of a server. Whoever runs it drains the engine.

    Args:
      engine: that runs the deployments of the catalog.
      catalog: the models.
      limits: of a request.
      keys: of which a request to the API must send one; () for an open server.
      cors: origins of other pages that may ask it; "*" for all.
      mounts: further apps, objects, by their exact path, such as "/metrics".
      steering: of a policy that may give requests fewer steps, or another model; it must be told
        what became of each request, too.
      tell: is called with what became of each request.
    """

    app = FastAPI(title="mdlm_jax", docs_url=None, redoc_url=None)
    front = Front(engine, catalog, limits, steering)
    errors.install(app)
    _add_api(app, front)
    _add_health(app, engine)
    for path, mounted in (mounts or {}).items():
        app.router.routes.append(Route(path, mounted))
    _add_page(app)
    app.add_middleware(guards.Bodies, most=limits.body)
    if keys:
        app.add_middleware(guards.Keys, keys=keys)
    app.add_middleware(guards.Requests, tell=tell)
    if cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=[*cors],
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # clients of OpenAI's API send some of their own
            expose_headers=["X-Request-Id", "Retry-After"],
        )
    return app


def _add_api(app: FastAPI, front: Front) -> None:
    @app.get("/v1/models")
    async def models() -> JSONResponse:
        listed = [shapes.of_model(each) for each in front.catalog.listed()]
        return JSONResponse({"object": "list", "data": listed})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> JSONResponse:
        listed = {each.name: each for each in front.catalog.listed()}
        if name not in listed:
            raise errors.unknown_model(name, [*listed])
        return JSONResponse(shapes.of_model(listed[name]))

    @app.post("/v1/completions")
    async def completions(
        request: Request, asked: Annotated[schemas.Completion, Body()]
    ) -> Response:
        if asked.best_of not in (None, asked.n or 1):
            raise errors.ApiError(
                400, f"best_of is {asked.best_of}: it must be n, all answers are told",
                param="best_of",
            )  # fmt: skip
        offer = choose(front, asked, request)
        common = wanted(front, asked, len(asked.prompts), request)._replace(
            suffix=asked.suffix, echo=bool(asked.echo), max_tokens=asked.max_tokens
        )

        def plan(offer: offers.Offer) -> list[Row]:
            return plans.completions(offer, asked.prompts, common)

        with _refusing():
            admitted = admit(front, request, asked, offer, plan)
        logprobs = asked.logprobs is not None
        return await answer(front, request, asked, shapes.COMPLETION, admitted, logprobs=logprobs)

    @app.post("/v1/chat/completions")
    async def chat(request: Request, asked: Annotated[schemas.Chat, Body()]) -> Response:
        if None not in (asked.max_tokens, asked.max_completion_tokens):
            raise errors.ApiError(
                400, "max_tokens is the former name of max_completion_tokens: give one of them",
                param="max_tokens",
            )  # fmt: skip
        offer = choose(front, asked, request)
        common = wanted(front, asked, 1, request)._replace(
            max_tokens=asked.max_completion_tokens or asked.max_tokens
        )
        talk = [message.plain() for message in asked.messages]
        with _refusing():
            admitted = admit(
                front, request, asked, offer, lambda offer: plans.answers(offer, talk, common)
            )
        logprobs = bool(asked.logprobs)
        return await answer(front, request, asked, shapes.CHAT, admitted, logprobs=logprobs)

    @app.post("/v1/alternatives")
    async def other_tokens(
        request: Request, asked: Annotated[schemas.Alternatives, Body()]
    ) -> Response:
        offer = choose(front, asked, request)
        options = {} if asked.length is None else {"length": asked.length}
        common = plans.Wanted(
            seed=0,
            options=options,
            max_tokens=asked.max_tokens,
            label=asked.label,
            suffix=asked.suffix,
            deadline=deadline(front, asked.timeout, request),
        )
        with _refusing():
            place = plans.place(offer, asked.prompt, asked.written, asked.position, common)
        try:
            found = await alternatives.look(front.engine, offer, request, place, asked.top)
        except Gone:
            return Response(status_code=499)
        return JSONResponse(found)


@contextlib.contextmanager
def _refusing():
    """What the planning refuses is an error of the request."""
    try:
        yield
    except ValueError as error:
        raise errors.of_request(error) from None


def _add_health(app: FastAPI, engine: Any) -> None:
    @app.get("/healthz")
    async def healthz() -> JSONResponse:
        return JSONResponse({"status": "alive", "version": mdlm_jax.__version__})

    @app.get("/readyz")
    async def readyz() -> JSONResponse:
        if engine.ready:
            return JSONResponse({"status": "ready"})
        error = errors.ApiError(503, f"not ready: {engine.reason}", code="not_ready")
        return error.response()


def _add_page(app: FastAPI) -> None:
    folder = str(resources.files("mdlm_jax.serving") / "page")
    app.mount("/page", _Page(directory=folder))

    @app.get("/")
    async def page() -> Response:
        return FileResponse(f"{folder}/index.html", headers=_Page.HEADERS)


class _Page(StaticFiles):
    """The files of the page, which runs and loads nothing from elsewhere."""

    HEADERS: ClassVar = {
        "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'",
        "Cache-Control": "no-cache",
        "X-Content-Type-Options": "nosniff",
    }

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """Of a file."""
        response = super().file_response(*args, **kwargs)
        response.headers.update(self.HEADERS)
        return response
