"""The budget of retries: what is tried again stays a share of what is asked.

Without it, regions that fail get several times the load at the worst moment. The idea is that of
Finagle's `RetryBudget`.
"""

import time
from collections.abc import Callable


class Budget:
    """A bucket of tokens. A request adds `share`, time adds `per_second`, a retry takes 1.

    Args:
      share: retries a request.
      burst: the most tokens, with which it begins.
      per_second: so that a quiet gateway can retry too.
      clock: seconds, never backwards.
    """

    def __init__(
        self,
        share: float,
        burst: float,
        per_second: float,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._share, self._burst, self._per_second = share, burst, per_second
        self._clock, self._filled = clock, clock()
        self._tokens = float(burst)

    @property
    def tokens(self) -> float:
        """What is left now."""
        now = self._clock()
        self._add((now - self._filled) * self._per_second)
        self._filled = now
        return self._tokens

    def requested(self) -> None:
        """Counts a request of a user."""
        self._add(self._share)

    def withdraw(self, *, spare: float = 0.0) -> bool:
        """Takes a token for a retry; False if there is none.

        Args:
          spare: the share of the burst that must be left, for what matters more.
        """
        if self.tokens < 1 + spare * self._burst:
            return False
        self._tokens -= 1
        return True

    def _add(self, tokens: float) -> None:
        self._tokens = min(self._burst, self._tokens + tokens)
