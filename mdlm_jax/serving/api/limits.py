"""What a server takes of one request."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Limits:
    """The most of a request.

    Attributes:
      body: bytes.
      rows: answers, of all its prompts.
      timeout: seconds until it is given up; a request may take less.
    """

    body: int = 1 << 20
    rows: int = 64
    timeout: float = 120.0
