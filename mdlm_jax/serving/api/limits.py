"""What a server takes of one request."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Limits:
    """The most of a request, and of the end of a server.

    Attributes:
      body: bytes.
      rows: answers, of all its prompts.
      timeout: seconds until it is given up; a request may take less.
      drain: seconds for rows that are still written when the server ends.
    """

    body: int = 1 << 20
    rows: int = 64
    timeout: float = 120.0
    drain: float = 30.0
