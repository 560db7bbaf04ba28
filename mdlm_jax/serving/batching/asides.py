"""Work beside the rows: little pieces on the device's thread that hardly delay a request.

While no row is held or waits, pieces are done one after the other. A row that comes meanwhile waits
for one piece at the most. While there are rows, a piece is done between two rounds if pieces have
had less than `SHARE` of the time, or `LONGEST` seconds have passed since the last one. So they take
little, and are never starved.
"""

import collections
import dataclasses
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

SHARE = 0.02  # of the time while there are rows
LONGEST = 60.0  # seconds from one piece to the next, if there are any


@dataclasses.dataclass(eq=False)
class Aside:
    """A piece of work.

    Attributes:
      name: of the deployment.
      work: `params -> result`, on the host.
      future: gets the result.
    """

    name: str
    work: Callable[[Any], Any]
    future: Future


class Asides:
    """Pieces in the order of their coming. The engine's lock guards all but `run`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        """None yet.

        Args:
          clock: in seconds.
        """
        self._clock = clock
        self._pieces: collections.deque[Aside] = collections.deque()
        self._not_before = -float("inf")  # while there are rows

    def __len__(self) -> int:
        return len(self._pieces)

    def put(self, piece: Aside) -> None:
        """Adds a piece."""
        self._pieces.append(piece)

    def take(self, *, busy: bool) -> Aside | None:
        """Removes the first piece if it is its turn.

        Args:
          busy: whether there are rows.
        """
        if not self._pieces or (busy and self._clock() < self._not_before):
            return None
        return self._pieces.popleft()

    def run(self, piece: Aside, params: Any) -> None:
        """Does a piece, whose future gets what it returns or raises."""
        if not piece.future.set_running_or_notify_cancel():
            return
        begun = self._clock()
        try:
            piece.future.set_result(piece.work(params))
        except Exception as error:  # of whoever asked for it, who is told
            piece.future.set_exception(error)
        del piece, params  # which the traceback of an error would hold
        ended = self._clock()
        self._not_before = ended + min((ended - begun) * (1 / SHARE - 1), LONGEST)

    def cancel(self) -> None:
        """Gives all pieces up."""
        for piece in self._pieces:
            piece.future.cancel()
        self._pieces.clear()
