"""What a command prints and how it ends, whoever reads."""

import os
import subprocess
import sys

SETS_OUT = "from mdlm_jax import endings; endings.take_over(); import os, sys, rich.console\n"


def command(code, *, env=None, **streams):
    return subprocess.Popen(
        [sys.executable, "-c", SETS_OUT + code],
        stderr=subprocess.PIPE,
        env={**os.environ, **(env or {})},
        **streams,
    )


FILLS = """
for line in range(3):
    print("é" * 70_000, flush=True)
rich.console.Console().print("and goes on")
print("left" if endings.reader_left() else "there", file=sys.stderr)
"""


def test_a_reader_that_leaves_is_noticed_and_ends_nothing():
    reader, writer = os.pipe()
    os.close(reader)
    process = command(FILLS, stdout=writer)
    os.close(writer)
    _, told = process.communicate()
    assert (process.returncode, told) == (0, b"left\n")


def test_an_ascii_terminal_shows_escapes_and_a_refusal_is_one_line(tmp_path):
    process = command(
        "print('é'); rich.console.Console().print('早'); "
        f"import pathlib; pathlib.Path({str(tmp_path)!r}).write_text('')",
        stdout=subprocess.PIPE,
        env={"PYTHONIOENCODING": "ascii"},
    )
    shown, line = process.communicate()
    assert (process.returncode, shown) == (1, b"\\xe9\n\\u65e9\n")
    told = f"error: {tmp_path}: Is a directory; what was saved before is whole\n"
    assert line.decode() == told


LEFT = """
from mdlm_jax.host import endings
endings.take_over()
async def async_serialize_a_part(): pass
async def ours(): pass
for left in (async_serialize_a_part, ours):
    left()
"""


def test_coroutines_that_orbax_leaves_are_no_news_and_others_are():
    told = subprocess.run([sys.executable, "-c", LEFT], capture_output=True, text=True).stderr
    assert "coroutine 'ours' was never awaited" in told and "async_serialize" not in told
