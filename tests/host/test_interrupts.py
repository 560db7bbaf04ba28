"""Ctrl-C is kept while nobody can take it, and never lost."""

import signal
import subprocess
import sys
import threading

import pytest

from mdlm_jax.host.interrupts import held_back


@pytest.fixture(autouse=True)
def _python_handles_it():
    """As in a terminal: what runs in the background ignores the signal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_control_c_comes_behind_what_holds_it_back():
    done = []
    with pytest.raises(KeyboardInterrupt), held_back():
        signal.raise_signal(signal.SIGINT)
        done.append(True)
    assert done
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_within_keeps_its_kind():
    with pytest.raises(ImportError), held_back():
        raise ImportError
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_who_handles_the_signal_keeps_it():
    came = []
    before = signal.signal(signal.SIGINT, lambda *_: came.append(True))
    try:
        with held_back():
            signal.raise_signal(signal.SIGINT)
            assert came
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_imports_undisturbed():
    done = []

    def work():
        with held_back():
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done


OF_A_LIBRARY = """
import mdlm_jax.host.endings
mdlm_jax.host.endings.take_over()
try:
    raise KeyboardInterrupt
except KeyboardInterrupt as interrupt:
    raise ImportError("initialization failed") from interrupt
"""


def test_what_a_library_makes_of_it_is_told_as_what_it_is():
    run = subprocess.run([sys.executable, "-c", OF_A_LIBRARY], capture_output=True, text=True)
    assert run.returncode == -signal.SIGINT
    assert run.stderr == "interrupted; what was saved is whole\n"
