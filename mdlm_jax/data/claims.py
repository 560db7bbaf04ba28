"""Work that one machine does for all: it claims it, the others wait until it is done.

A claim spares work and no more: what is made must appear whole, so that two who make it at once
(the first was thought dead, and was not) do no harm.
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

# Who holds a claim says so every so many seconds; who has been silent for so many is dead.
BEAT_SECONDS = 5.0
SILENT_SECONDS = 60.0
POLL_SECONDS = 1.0


@contextlib.contextmanager
def one_at_a_time(
    store: Store, name: str, *, holder: str, done: Callable[[], bool]
) -> Iterator[bool]:
    """Yields True to the one machine that is to do some work, False to the others, after it.

    Who waits and hears nothing of the claim's holder for a minute takes the claim over. Clocks of
    different machines are never compared.

    Args:
      store: that all machines see.
      name: of the claim, a file in it.
      holder: who claims it, a word. A claim that this one holds already is of a process that was
        killed, for it holds one at a time.
      done: whether the work is done.
    """
    heard, since, told = None, 0.0, False
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
        if not told:
            print(f"waiting for {other}, which prepares data in {store.url}", file=sys.stderr)
            told = True
        time.sleep(POLL_SECONDS)
    yield False


@contextlib.contextmanager
def _kept_alive(store: Store, name: str, mine: str) -> Iterator[None]:
    """Says every few seconds that the holder is alive, and gives the claim up at the end."""
    ended = threading.Event()

    def is_mine() -> bool:
        return (store.read(name) or b"").startswith(mine.encode())

    def beat() -> None:
        count = 0
        while not ended.wait(BEAT_SECONDS):
            count += 1
            # A beat that fails is told by its silence, not here: the work does not depend on it.
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
        # What is left behind falls silent; it must not hide what the work itself raised.
        with contextlib.suppress(OSError):
            if is_mine():
                store.remove(name)


def host() -> str:
    """What this machine is called, in a form that names of files may hold."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in socket.gethostname())
