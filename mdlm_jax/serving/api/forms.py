"""An error in the form of OpenAI's API: `{"error": {"message", "type", "param", "code"}}`."""

import math
from typing import Any

from fastapi.responses import JSONResponse

_TYPES = {401: "authentication_error", 429: "rate_limit_error", 504: "timeout_error"}
_CODES = {401: "invalid_api_key", 429: "queue_full", 504: "deadline"}


class ApiError(Exception):
    """What a client is told instead of an answer.

    Attributes:
      status: of HTTP.
      message: one line.
      param: the field of the request that is wrong.
      code: a word for programs.
      retry_after: seconds after which the same request may be taken.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param = status, message, param
        self.code = code or _CODES.get(status)
        self.retry_after = retry_after

    def body(self) -> dict[str, Any]:
        """The JSON of the answer, also of an event in a stream."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        error = {
            "message": self.message,
            "type": _TYPES.get(self.status, kind),
            "param": self.param,
            "code": self.code,
        }
        return {"error": error}

    def headers(self) -> dict[str, str]:
        """Those of the answer."""
        if self.retry_after is None:
            return {}
        return {"Retry-After": str(max(math.ceil(self.retry_after), 1))}

    def response(self) -> JSONResponse:
        """The answer."""
        return JSONResponse(self.body(), self.status, self.headers())
