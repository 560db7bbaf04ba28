"""Counts what is compiled where nothing should be."""

import threading

import jax

_OF_PROGRAMS = "/jax/core/compile/backend_compile_duration"


class Counter:
    """Programs that a thread compiled, or read from a cache of compiled ones.

    Attributes:
      count: so far.
    """

    def __init__(self, thread: threading.Thread):
        self.count = 0
        self._thread = thread.ident
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def close(self) -> None:
        """Counts no more."""
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event == _OF_PROGRAMS and threading.get_ident() == self._thread:
            self.count += 1
