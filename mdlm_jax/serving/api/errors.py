"""What goes wrong with a request, as errors that are told."""

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from mdlm_jax.data import json_text
from mdlm_jax.host import nearest
from mdlm_jax.serving import jobs
from mdlm_jax.serving.api import schemas
from mdlm_jax.serving.api.forms import ApiError


def unknown_model(name: str, known: Sequence[str]) -> ApiError:
    """There is no model of this name."""
    message = f"unknown model {json_text.shown(name)}{nearest.meant(name, known)}: "
    return ApiError(
        404, message + f"there are {', '.join(known)}", param="model", code="model_not_found"
    )


def of_request(error: ValueError) -> ApiError:
    """What the rooms below refuse, which mostly begins with the name of a field."""
    message = " ".join(str(error).split())
    field = message.partition(" ")[0].rstrip(":")
    return ApiError(400, message, param=field if field.isidentifier() else None)


def not_taken(error: jobs.NotTaken | ValueError) -> ApiError:
    """The engine did not take a row, or refuses a value of it."""
    if isinstance(error, ValueError):
        return of_request(error)
    if isinstance(error, jobs.Full):
        return ApiError(429, str(error), retry_after=error.retry_after)
    if isinstance(error, jobs.Stopping):
        return ApiError(503, str(error), code="stopping", retry_after=1)
    return ApiError(400, str(error))


def failed(event: jobs.Failed) -> ApiError:
    """The engine gave a row up."""
    status = {"deadline": 504, "stopped": 503, "cancelled": 499}.get(event.reason, 500)
    return ApiError(status, event.message, code=event.reason)


def install(app: FastAPI) -> None:
    """Answers all errors of the app in this form."""

    async def of_api(_: Request, error: ApiError) -> JSONResponse:
        return error.response()

    async def of_fields(_: Request, error: RequestValidationError) -> JSONResponse:
        return _of_fields(error.errors()).response()

    async def of_http(_: Request, error: HTTPException) -> JSONResponse:
        return ApiError(error.status_code, str(error.detail)).response()

    async def of_all(_: Request, error: Exception) -> JSONResponse:
        return ApiError(500, f"internal error: {type(error).__name__}").response()

    app.add_exception_handler(ApiError, of_api)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, of_fields)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, of_http)  # type: ignore[arg-type]
    app.add_exception_handler(Exception, of_all)


def _of_fields(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """The first thing that is wrong with the fields of a request."""
    unknown = [error for error in errors if error["type"] == "extra_forbidden"]
    first = (unknown or errors)[0]
    # Where a field takes several kinds of values, each that was tried tells why it is none: what
    # came furthest was meant.
    same = [error for error in errors if error["loc"][1:2] == first["loc"][1:2]]
    error = first if unknown else max(same, key=_how_far)
    name = ".".join(str(part) for part in error["loc"][1:] if _is_place(part))
    if unknown:
        name = ".".join(map(str, error["loc"][1:]))
        message = f"unknown field {json_text.shown(name)}{nearest.meant(name, _FIELDS)}"
        return ApiError(400, message, param=name, code="unknown_field")
    if not name or error["type"] == "json_invalid":
        detail = error.get("ctx", {}).get("error", "")
        message = f"the body is no JSON object with fields{f': {detail}' if detail else ''}"
        return ApiError(400, message, code="invalid_json")
    param = name.partition(".")[0]
    if error["type"] == "missing":
        return ApiError(400, f"{name} is required", param=param)
    message = error["msg"].partition(" after validation")[0]
    for words, said in _SAID.items():
        message = message.replace(words, said)
    return ApiError(400, f"{name} {message}, got {json_text.shown(error['input'])}", param=param)


_SAID = {
    "Input should be": "must be",
    "List should have": "must have",
    "String should have": "must have",
}
_FIELDS = {*schemas.Completion.model_fields, *schemas.Chat.model_fields}


def _is_place(part: str | int) -> bool:
    """Whether it is part of the request, and no name of pydantic's for a kind of value."""
    known = _FIELDS | {*schemas.Message.model_fields, *schemas.TextPart.model_fields}
    known |= {*schemas.StreamOptions.model_fields, *schemas.Alternatives.model_fields}
    return isinstance(part, int) or part in known


def _how_far(error: Mapping[str, Any]) -> tuple[bool, int]:
    return not error["type"].endswith("_type"), len(error["loc"])
