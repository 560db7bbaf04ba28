"""Ctrl-C at moments when it cannot be handled: it is kept until it can."""

import contextlib
import itertools
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path


def starts_command() -> bool:
    """Whether the package is imported to run `python -m mdlm_jax.something`, or `mdlm something`.

    Only then is the process ours to change.
    """
    first = (getattr(sys, "argv", []) or [""])[0]
    if Path(first).stem == "mdlm":  # the console script
        return True
    named = (
        option == "-m" and name.partition(".")[0] == "mdlm_jax"
        for option, name in itertools.pairwise(sys.orig_argv)
    )
    return first == "-m" and any(named)  # until the module is found


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Around the import of jax: Ctrl-C waits and is raised as KeyboardInterrupt afterwards.

    During the import, its C++ would abort Python ("terminate called"), and NumPy would report a
    broken installation. Another handler of the signal stays in place, and threads other than the
    main one never get it.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield
        return
    came = []
    signal.signal(signal.SIGINT, lambda *_: came.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if came:
            raise KeyboardInterrupt("while jax was imported")
