import contextlib
import os
import pty
import sys

from mdlm_jax.data import progress


def read_all(terminal):
    """What was written to a terminal that is closed at the other end."""
    with contextlib.suppress(OSError):  # that end's way to say that this was all
        while part := os.read(terminal, 100_000):
            yield part.decode(errors="replace")


def test_bar_is_drawn_on_a_terminal(monkeypatch, capsys):
    main, terminal = pty.openpty()
    with os.fdopen(terminal, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "120")
        with progress.bar("reading", 7, "pages", first="opening") as advance:
            print("elsewhere")
            for _ in range(7):
                advance(1, MB=2.0)
    shown = "".join(read_all(main))
    os.close(main)
    assert capsys.readouterr().out == "elsewhere\n" and "elsewhere" not in shown
    assert shown.index("opening") < shown.index("reading")
    assert "reading" in shown and "7/7" in shown and "pages, " in shown and "MB/s" in shown


def test_nothing_is_drawn_elsewhere(capfd):
    with progress.bar("reading", None, "pages") as advance:
        advance(1, MB=2.0)
    assert capfd.readouterr() == ("", "")
