"""Work that one machine does for all: one machine claims it, and the others wait.

A claim only saves work. The result must appear whole, so that two machines that make it at once do
no harm (if the first was thought dead and was not).
"""

import contextlib
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from mdlm_jax.data.stores import Store

# Seconds between signs of life of a claim's holder, and seconds of silence after which it is dead.
BEAT_SECONDS = 5.0
SILENT_SECONDS = 60.0
POLL_SECONDS = 1.0


@contextlib.contextmanager
def one_at_a_time(
    store: Store, name: str, *, holder: str, done: Callable[[], bool]
) -> Iterator[bool]:
    """Yields True to the one machine that does the work, and False to the others afterwards.

    A machine that waits, and sees no sign of the claim's holder for a minute, takes the claim over.
    Clocks of different machines are never compared.

    Args:
      store: a store that all machines see.
      name: the name of the claim, a file in it.
      holder: the name of this claimant. If it holds the claim already, that was by a process that
        was killed, because it holds one at a time.
      done: whether the work is done.
    """
    heard, since, said = None, 0.0, False
    while not done():
        mine = f"{holder} {uuid.uuid4().hex}"
        if store.create(name, f"{mine} 0".encode()):
            with _kept_alive(store, name, mine):
                yield not done()  # It may be done since it was asked.
            return
        now = store.read(name)
        if now is None:  # just given up
            continue
        if now != heard:
            heard, since = now, time.monotonic()
        other = now.decode("utf-8", "replace").partition(" ")[0]
        silent = time.monotonic() - since > SILENT_SECONDS
        if silent or other == holder:
            if silent:
                print(f"{other} has gone silent: its work is done here", file=sys.stderr)
            if store.read(name) == now:
                store.remove(name)
            continue
        if not said:
            print(f"waiting for {other}, which prepares data in {store.url}", file=sys.stderr)
            said = True
        time.sleep(POLL_SECONDS)
    yield False


@contextlib.contextmanager
def _kept_alive(store: Store, name: str, mine: str) -> Iterator[None]:
    """Signals every few seconds that the holder is alive, and releases the claim at the end."""
    ended = threading.Event()

    def is_mine() -> bool:
        return (store.read(name) or b"").startswith(mine.encode())

    def beat() -> None:
        count = 0
        while not ended.wait(BEAT_SECONDS):
            count += 1
            # A failed beat shows by its silence; the work does not depend on it.
            with contextlib.suppress(OSError):
                if is_mine():
                    store.write(name, f"{mine} {count}".encode())

    thread = threading.Thread(target=beat, name=f"claim of {Path(name).name}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        # A claim left behind falls silent. It must not hide an error of the work itself.
        with contextlib.suppress(OSError):
            if is_mine():
                store.remove(name)


def host() -> str:
    """The name of this machine, in a form that file names may hold."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in socket.gethostname())
