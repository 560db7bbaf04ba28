"""A look at something every so many seconds, on a thread of its own."""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator

_LOG = logging.getLogger(__name__)


@contextlib.contextmanager
def repeating(look: Callable[[], object], every: float, name: str) -> Iterator[None]:
    """Within it, `look` is called every so many seconds.

    A call that raises is logged, and the next one is made all the same: a server must not go on
    serving with a look that has silently ended.

    Args:
      look: what is called.
      every: seconds between two calls.
      name: of the thread.
    """
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(every):
            try:
                look()
            except Exception:
                _LOG.exception("%s: a look failed", name)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
