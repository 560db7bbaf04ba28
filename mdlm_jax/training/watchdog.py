"""Ends a process that makes no progress any more, so that a launcher starts it again.

A device, a collective or a file system that hangs raises no error: the process would wait for ever
and keep its machines.
"""

import contextlib
import faulthandler
import os
import threading
from collections.abc import Iterator

EXIT_CODE = 1  # a crash, after which launchers start again

_STDERR = 2


class Watchdog:
    """Within its `with`, ends the process when no step finishes, and prints all threads' stacks.

    Seconds in which the process is suspended do not count.
    """

    def __init__(self, seconds: float, startup_seconds: float):
        """Prepares the watchdog.

        Args:
          seconds: allowed silence after a step; 0 turns the watchdog off.
          startup_seconds: allowed silence before the first `beat`, which may include a
            compilation, and within `patience`; at least `seconds` in any case.
        """
        self._seconds = seconds
        self._startup_seconds = self._allowed = max(seconds, startup_seconds)
        self._silence = 0.0
        self._where = "since the start"
        self._closed = threading.Event()

    def __enter__(self) -> "Watchdog":
        if self._seconds:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()

    def beat(self, step: int) -> None:
        """A sign of life: the devices have finished `step`."""
        self._silence, self._allowed, self._where = 0.0, self._seconds, f"since step {step}"

    @contextlib.contextmanager
    def patience(self) -> Iterator[None]:
        """Allows as much silence as at the start, for work that compiles or is long."""
        before, self._allowed, self._silence = self._allowed, self._startup_seconds, 0.0
        yield
        self._allowed, self._silence = before, 0.0

    def _watch(self) -> None:
        tick = min(self._seconds, 10.0) / 10
        while not self._closed.wait(tick):
            self._silence += tick
            if self._silence > self._allowed:
                # Threads that hang in C++ would keep sys.exit from ending the process.
                faulthandler.dump_traceback(_STDERR)
                message = f"error: no step finished for {self._allowed:g} s {self._where}"
                os.write(_STDERR, f"{message} (above: where); what was saved is whole\n".encode())
                os._exit(EXIT_CODE)
