"""A user's request, as every region is asked it: with a seed, a key and a deadline."""

import dataclasses
import hashlib
import json
import secrets
import time
from collections.abc import Mapping
from typing import Any, NoReturn

from mdlm_jax.serving.api.forms import ApiError
from mdlm_jax.serving.api.guards import ID_HEADER, TIMEOUT_HEADER, request_id, seconds_left
from mdlm_jax.serving.gateway.failures import Answer, error

KEY_HEADER = "x-request-key"  # decides the version, where traffic is split
HOPS_HEADER = "x-gateway-hops"  # gateways that a request has passed
_MOST_HOPS = 4
_SEEDS = 2**53  # JavaScript's numbers hold them whole

# What goes on to a region, beside what begins with x- or openai-.
_PASSED = {"accept", "authorization", "traceparent", "tracestate", "user-agent"}
_OWN = {TIMEOUT_HEADER, KEY_HEADER, ID_HEADER, HOPS_HEADER}


class Refused(Exception):
    """A request that is not passed on."""

    def __init__(self, answer: Answer):
        super().__init__(answer.status)
        self.answer = answer


@dataclasses.dataclass(frozen=True)
class Asked:
    """One request. All its tries send the same content.

    Attributes:
      path: such as /v1/completions.
      content: its JSON, with the seed; b'' if it has none.
      headers: that go on to the regions, the authorization included.
      stream: whether events are wanted.
      canvases: whether the stream shall tell what may still be taken back, as events of their own.
      deadline: `time.monotonic()` after which it has failed.
      id: for logs, the user's or random.
    """

    path: str
    content: bytes
    headers: tuple[tuple[str, str], ...]
    stream: bool
    canvases: bool
    deadline: float
    id: str
    hops: int = 0

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    @property
    def caller(self) -> str:
        """Who asks: a hash of the authorization, '' without one."""
        for name, value in self.headers:
            if name == "authorization":
                return hashlib.sha256(value.encode()).hexdigest()
        return ""

    def as_begun(self, policy: Mapping[str, Any]) -> "Asked":
        """The request with the steps and the model that a region's policy gave it.

        Args:
          policy: what the region told of it; {} changes nothing.
        """
        if not policy:
            return self
        given = {name: policy[name] for name in ("steps", "model") if name in policy}
        fields = {**json.loads(self.content), **given, "policy": "pinned"}
        return dataclasses.replace(self, content=json.dumps(fields).encode())

    def headers_for(self, key: str | None) -> dict[str, str]:
        """Of a try that begins now, at a region whose key replaces the user's."""
        headers = dict(self.headers)
        headers[TIMEOUT_HEADER] = f"{max(self.left, 0.001):.3f}"
        headers[HOPS_HEADER] = str(self.hops + 1)
        headers["accept-encoding"] = "identity"
        if self.content:
            headers["content-type"] = "application/json"
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        return headers


def asked(
    path: str, body: bytes | None, headers: Mapping[str, str], *, begun: float, deadline_s: float
) -> Asked:
    """The request of a body, None for one that has none.

    Args:
      path: of the request.
      body: its bytes.
      headers: the user's, with lower names.
      begun: `time.monotonic()` when it came.
      deadline_s: the most seconds that it may take.

    Raises:
      Refused: it cannot be passed on.
    """
    hops = headers.get(HOPS_HEADER, "0")
    if not hops.isdecimal() or int(hops) >= _MOST_HOPS:
        refuse(508, "The request has passed too many gateways: they name each other as regions")
    passed = {
        name: value
        for name, value in headers.items()
        if name in _PASSED or (name.startswith(("x-", "openai-")) and name not in _OWN)
    }
    passed[ID_HEADER] = name = request_id(headers)
    content, fields = b"", dict[str, Any]()
    if body is not None:
        fields = _fields(body)
        if fields.get("seed") is None:
            fields["seed"] = secrets.randbelow(_SEEDS)
        user = fields.get("user")
        user = user if isinstance(user, str) and user.isascii() and user.isprintable() else ""
        passed[KEY_HEADER] = headers.get(KEY_HEADER) or user or secrets.token_hex(16)
        content = json.dumps(fields).encode()
    return Asked(
        path=path,
        content=content,
        headers=tuple(passed.items()),
        stream=fields.get("stream") is True,
        canvases=fields.get("canvases") is True,
        deadline=begun + min(_header(headers), _timeout(fields), deadline_s),
        id=name,
        hops=int(hops),
    )


def refuse(status: int, message: str, code: str | None = None) -> NoReturn:
    """Ends a request with an error in OpenAI's form."""
    raise Refused(error(status, message, code))


def _fields(body: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError):
        refuse(400, "The body is no JSON")
    if not isinstance(fields, dict):
        refuse(400, "The body is no JSON object")
    return fields


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _timeout(fields: dict[str, Any]) -> float:
    """The field of `mdlm_jax.serve`; a region refuses what is no number of seconds."""
    timeout = fields.get("timeout")
    if isinstance(timeout, int | float) and not isinstance(timeout, bool) and timeout > 0:
        return float(timeout)
    return float("inf")


def _header(headers: Mapping[str, str]) -> float:
    try:
        return seconds_left(headers)
    except ApiError as wrong:
        refuse(wrong.status, wrong.message)
