"""Runs the commands as a user does, on a text of our own with a tiny encoder."""

import atexit
import contextlib
import functools
import itertools
import json
import os
import queue
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

TEXT = (
    "the river runs past an old stone mill and market where traders sold wool salt and honey later "
    "its people built a harbour two schools and the well known bridge that still stands today"
)


def write_text(path, documents=400):
    """A file of paragraphs, the same in every run."""
    draw = random.Random(0)
    texts = (
        " ".join(draw.choices(TEXT.split(), k=draw.randint(8, 40))) + "." for _ in itertools.count()
    )
    path.write_text("\n\n".join(itertools.islice(texts, documents)))
    return path


TINY = (
    "--config=quickstart",
    "--config.data.source=text_files",
    "--config.data.documents=paragraph",
    "--config.data.files={text}",
    "--config.data.vocab_size=120",
    "--config.data.length=16",
    "--config.model.layers=1",
    "--config.model.width=16",
    "--config.model.heads=2",
    "--config.model.mlp_width=16",
    "--config.model.window=4",
    "--config.model.init_scale=0.06",
    # What the tests expect of a few steps was seen with these.
    "--config.optimizer.name=adamw",
    "--config.optimizer.matrix_learning_rate=0.0",
    "--config.optimizer.learning_rate=2e-3",
    "--config.optimizer.warmup_steps=2",
    "--config.training.batch_size=8",
    "--config.training.steps=4",
    "--config.training.save_every=2",
    "--config.training.log_every=2",
    "--config.evaluation.every=4",
    "--config.evaluation.rows=8",
    "--config.evaluation.batch_size=8",
    "--config.evaluation.sample_steps=2",
)


def command(name, arguments, **places):
    """The command line, its {places} filled in."""
    filled = [argument.format(**places) for argument in arguments]
    return [sys.executable, "-m", f"mdlm_jax.{name}", *filled]


# What is read once, when Python starts or a library is imported.
_READ_AT_START = (
    "HF_", "JAX_", "LANG", "LC_", "LD_", "MPL", "OMP_", "OPENBLAS_", "PYTHON", "TF_"
)  # fmt: skip


def _of_start(environment):
    return {k: v for k, v in environment.items() if k.startswith(_READ_AT_START)}


@functools.cache
def at_start():
    """What the servers of commands begin with: the environment of the first call (conftest.py)."""
    return _of_start(os.environ)


class _Server:
    """`command_server.py`, started in the environment of the tests."""

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("command_server.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={k: v for k, v in os.environ.items() if k not in _of_start(os.environ)}
            | at_start(),
            process_group=0,
        )
        atexit.register(self._process.communicate)  # it ends when its stdin does

    def run(self, name, arguments, environment):
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder, stream) for stream in ("printed", "told")]
            for file in files:
                file.touch()
            asked = {
                "name": name,
                "arguments": arguments,
                "environment": environment,
                "folder": str(Path.cwd()),
                "printed": str(files[0]),
                "told": str(files[1]),
            }
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
            code = int(self._process.stdout.readline())
            printed, told = (file.read_text(encoding="utf-8") for file in files)
        return subprocess.CompletedProcess([name, *arguments], code, printed, told)

    def end(self):
        """Ends it and the command that it runs, if there is one."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        atexit.unregister(self._process.communicate)


_free = queue.SimpleQueue()  # a server answers one thread at a time


@contextlib.contextmanager
def _server():
    try:
        server = _free.get_nowait()
    except queue.Empty:
        server = _Server()
    try:
        yield server
    except BaseException:  # a test that took too long: what it asked for must answer nobody else
        server.end()
        raise
    _free.put(server)


def run(name, *arguments, code=0, env=None, fork=True, **places):
    """Runs a command in a process of its own, {places} filled in, and checks its exit code.

    It is forked where it may be: `fork` is False where not all of the library can be imported.
    """
    environment = {**os.environ, **(env or {})}
    if fork and _of_start(environment) == at_start():
        filled = command(name, arguments, **places)[3:]
        with _server() as server:
            done = server.run(name, filled, environment)
    else:
        done = subprocess.run(
            command(name, arguments, **places),
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
    if code is not None:
        assert done.returncode == code, done.stdout + done.stderr
    return done
