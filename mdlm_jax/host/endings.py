"""How a running command prints and ends: robust streams, and one line for each error.

Importing it has no effect: `take_over` is only for the process of a command.
"""

import errno
import io
import logging
import os
import signal
import sys
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from absl import logging as absl_logging

# Errors of the machine that a user can fix.
_ENVIRONMENT = {
    errno.EACCES, errno.EDQUOT, errno.EEXIST, errno.EFBIG, errno.EIO, errno.EISDIR, errno.ELOOP,
    errno.ENAMETOOLONG, errno.ENOSPC, errno.ENOTDIR, errno.EPERM, errno.EPIPE, errno.EROFS,
    errno.ESTALE,
}  # fmt: skip


def take_over() -> None:
    """Sets up this process as that of a command: its streams, hooks and loggers. Once."""
    if sys.excepthook is _tell:
        return
    sys.stdout, sys.stderr = map(_enduring, (sys.stdout, sys.stderr))
    sys.excepthook = _tell
    sys.unraisablehook = _tell_of_thread
    logging.getLogger("asyncio").addFilter(_is_no_echo)
    # Orbax leaves some coroutines behind when a write has failed, which is told as an error.
    warnings.filterwarnings(
        "ignore", "coroutine 'async_serialize.*' was never awaited", RuntimeWarning
    )
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it prints pages about its errors
    absl_logging.get_absl_logger().addFilter(is_worth_telling)
    absl_logging.set_verbosity(absl_logging.WARNING)


def start_log() -> None:
    """Writes what a server logs to stderr, with the time. absl's handler, which is there, goes."""
    form = "%(asctime)s %(name)s %(message)s"
    logging.basicConfig(level=logging.WARNING, format=form, force=True)
    logging.getLogger("mdlm_jax").setLevel(logging.INFO)


def reader_left() -> bool:
    """Whether nobody reads the output any more, as behind `| head`."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return isinstance(raw, _Enduring) and raw.reader_left


def one_line(error: BaseException) -> str:
    """An error in one line. Errors of the system name the file instead of the error number."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split())


class _Enduring(io.FileIO):
    """A stream whose reader may leave; output after that is dropped.

    The command goes on, because it may have files to write. A command that only prints asks
    `reader_left`.
    """

    reader_left = False

    def write(self, data: Any) -> int | None:
        """Writes, or drops."""
        try:
            return super().write(data)
        except BrokenPipeError:
            self.reader_left = True
            return memoryview(data).nbytes


def _enduring(stream: TextIO | None) -> TextIO | None:
    """The stream, with escapes for characters that its encoding lacks; None if there is none."""
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.flush()
    raw = _Enduring(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Prints what ends a command: one line if a user can fix it, else the traceback."""
    if _was_interrupted(error):
        print("interrupted; what was saved is whole", file=sys.stderr)
        # End at once, as Ctrl-C does: threads that still compile or write would crash in an
        # interpreter that shuts down.
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    elif issubclass(kind, OSError) and error.errno in _ENVIRONMENT:
        print(f"error: {one_line(error)}; what was saved before is whole", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def _was_interrupted(error: BaseException | None) -> bool:
    """Also if a library turned it into another error, as TensorStore does during its import."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__
    return error is not None


def _tell_of_thread(unraisable: Any) -> None:
    """Prints errors of other threads, except the echo of an error that already ends the command.

    When a read or write of a checkpoint fails, Orbax gives up on the others and closes their event
    loop. TensorStore's threads finish them later, find the loop closed, and would print that into
    the middle of our line.
    """
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _is_no_echo(record: logging.LogRecord) -> bool:
    """Drops the same echo from abandoned tasks, and prints all else."""
    return "exception was never retrieved" not in record.getMessage()


def is_worth_telling(record: logging.LogRecord) -> bool:
    """Limits Orbax to warnings: it prints pages about each save and each error that it raises."""
    if "orbax" not in Path(record.pathname).parts:
        return True
    return record.levelno >= logging.WARNING and not record.exc_info
