"""Recent latencies, and the quantile after which a request is asked a second time."""

import collections
import math


class Latencies:
    """The last latencies of one kind of request at one region.

    Args:
      most: how many are kept.
      least: with fewer no quantile is told.
    """

    def __init__(self, most: int = 256, least: int = 20):
        self._kept: collections.deque[float] = collections.deque(maxlen=most)
        self._least = least

    def add(self, seconds: float) -> None:
        """Keeps a latency, and forgets the oldest."""
        self._kept.append(seconds)

    def quantile(self, share: float) -> float | None:
        """Seconds that `share` of the latencies did not exceed; None if too few are known."""
        if len(self._kept) < self._least:
            return None
        rank = math.ceil(share * len(self._kept)) - 1
        return sorted(self._kept)[max(rank, 0)]
