"""Why a try failed, and what the user is told when no try is left: OpenAI's form of an error."""

import dataclasses
import json
from collections.abc import Sequence

from mdlm_jax.serving.api.forms import ApiError

ABSENT = "absent"  # the region does not have the model
BROKEN = "broken"  # the connection was reset or ended too early
BUSY = "busy"  # 429, or 503 with Retry-After
CONNECT = "connect"  # no connection
DEADLINE = "deadline"  # the request's own
GARBAGE = "garbage"  # what no region may send
KEY = "key"  # the region refuses the key of regions.toml
STATUS = "status"  # 5xx, or an error within a stream
TIMEOUT = "timeout"  # of the try
VERSION = "version"  # of another version than the text that was begun

IDLE = (ABSENT, CONNECT)  # for which a region did nothing


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a user gets: a region's words, or an error of the gateway."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = (("content-type", "application/json"),)


class Failure(Exception):
    """A try that gave no answer; another region may.

    Attributes:
      kind: one of this module's.
      region: its name.
      retry_after: seconds for which the region wants not to be asked; None if it told none.
      answer: what the region said; None if nothing that can be passed on.
      status: that the region answered with; 0 if it did not.
    """

    def __init__(
        self,
        kind: str,
        region: str,
        message: str,
        *,
        status: int = 0,
        retry_after: float | None = None,
        answer: Answer | None = None,
    ):
        super().__init__(f"{region}: {message}")
        self.kind, self.region, self.status = kind, region, status
        self.retry_after, self.answer = retry_after, answer

    @property
    def blames(self) -> bool:
        """Whether it speaks against the region. A deadline is the user's, a version nobody's."""
        return self.kind not in (ABSENT, BUSY, DEADLINE, VERSION)

    @property
    def excludes(self) -> bool:
        """Whether the region would say the same to this request again."""
        return self.kind in (ABSENT, KEY, VERSION)


class Unanswered(Exception):
    """No try is left.

    Attributes:
      failures: of all tries, in their order.
      reason: why there is none: a clause.
      retry_after: seconds after which it may be different.
    """

    def __init__(self, failures: Sequence[Failure], reason: str, retry_after: float = 1.0):
        super().__init__(reason)
        self.failures, self.reason, self.retry_after = failures, reason, retry_after

    @property
    def answer(self) -> Answer:
        """For the user: what all regions say alike, or 429, 502, 503 or 504."""
        kinds = {failure.kind for failure in self.failures}
        said = [failure.answer for failure in self.failures if failure.answer]
        if kinds == {ABSENT} and said:
            return said[0]
        if DEADLINE in kinds:
            return deadline_passed()
        told = "; ".join(str(failure) for failure in self.failures)
        message = f"No region could answer ({self.reason})" + (f": {told}" if told else "")
        waits = [f.retry_after for f in self.failures if f.retry_after is not None]
        wait = min(waits, default=self.retry_after)
        if kinds == {BUSY} and all(failure.status == 429 for failure in self.failures):
            return error(429, message, "regions_full", wait)
        if not kinds or BUSY in kinds:
            return error(503, message, "no_region", wait)
        if kinds == {TIMEOUT}:
            return error(504, message, "region_timeout")
        return error(502, message, "region_failed")


def error(status: int, message: str, code: str | None, retry_after: float | None = None) -> Answer:
    """An error in OpenAI's form."""
    made = ApiError(status, message, code=code, retry_after=retry_after)
    headers = {"content-type": "application/json", **made.headers()}
    pairs = tuple((name.lower(), value) for name, value in headers.items())
    return Answer(status, json.dumps(made.body()).encode(), pairs)


def deadline_passed() -> Answer:
    """The error of a request whose time is over."""
    return error(504, "The deadline of the request has passed", DEADLINE)
