"""Files and folders as users name them: any characters, buckets, pipes and devices.

A file is written whole or not at all. A pipe or a device is only written to: it is never read,
replaced, renamed onto or truncated.
"""

import contextlib
import errno
import glob
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote

from etils import epath

_LONGEST_NAME = 200  # leaves room in a name of 255 bytes for the mark of an incomplete file


class _Literal(type(epath.Path("/"))):
    """A path whose glob expands only the pattern and not the folder's name, as in pathlib."""

    def glob(self, pattern: str) -> Iterator[epath.Path]:
        """Files within the folder."""
        found = epath.Path(glob.escape(str(self))).glob(pattern)
        return (self._new(str(each)) for each in found)


def literal(path: str | os.PathLike) -> epath.Path:
    """The path with `[`, `*` and `?` as plain characters, also in paths made from it.

    epath globs the whole path, and Orbax globs in the folders that it gets.
    """
    path = epath.Path(path)
    return _Literal(path) if is_local(path) else path


def plain(name: str | os.PathLike) -> str:
    """The name with `~` and `file://` written out; other URLs stay as they are."""
    shown = str(name)
    if shown[:7].lower() == "file://":
        shown = shown[7:].removeprefix("localhost")
        # File managers write a space as %20. A file of exactly this name comes first.
        shown = shown if Path(shown).exists() else unquote(shown)
    if not shown.startswith("~"):
        return shown
    try:
        return str(Path(shown).expanduser())
    except RuntimeError:  # no such user: it is a plain name
        return shown


def cache() -> str:
    """The place of files that can be made again: $MDLM_JAX_CACHE, else `~/.cache/mdlm_jax`."""
    return plain(os.environ.get("MDLM_JAX_CACHE") or "~/.cache/mdlm_jax")


def cache_folder(place: str | os.PathLike | None = None) -> Path:
    """The folder of this machine for a cache, by default for `cache()`.

    Copies of data in a bucket are kept in `$XDG_CACHE_HOME/mdlm_jax`, else in `~/.cache/mdlm_jax`.
    """
    place = cache() if place is None else plain(place)
    if is_local(place):
        return Path(place)
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mdlm_jax"


def is_local(path: str | os.PathLike) -> bool:
    """Whether the path is on this machine rather than in a bucket."""
    return "://" not in str(path)


def is_stream(path: str | os.PathLike) -> bool:
    """Whether it is neither file nor folder, or is what this process prints to.

    Examples: `/dev/stdout`, `/dev/null`, a named pipe, and what a shell makes of `>(gzip > x.gz)`.
    """
    if not is_local(path):
        return False
    try:
        status = Path(path).stat()
    except OSError:
        return False
    plain = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
    return not plain or _own_stream(status) is not None


def check_output(path: str | os.PathLike, name: str = "", kinds: tuple[str, ...] = ()) -> None:
    """Checks, before anything is computed, that a file can be written.

    Args:
      path: path of the file.
      name: the flag or setting that gave it, for the message.
      kinds: accepted endings of the name, except for streams; by default any.

    Raises:
      ValueError: its folder does not exist, the path is a folder, it may not be written, or its
        name has another ending.
    """
    if not is_local(path):
        return
    shown = f"{name}={path}" if name else str(path)
    place = Path(path).absolute()
    if is_stream(path):
        if not os.access(path, os.W_OK):
            raise ValueError(f"{shown}: it may not be written")
        return
    if place.is_dir():
        raise ValueError(f"{shown}: a folder is there, it must be a file")
    if kinds and place.suffix.lower() not in kinds:
        raise ValueError(f"{shown}: what is written there is {' or '.join(kinds)}: name it so")
    if not place.parent.is_dir():
        raise ValueError(f"{shown}: there is no folder {place.parent}")
    if not os.access(place if place.exists() else place.parent, os.W_OK):
        raise ValueError(f"{shown}: it may not be written")


def write(path: str | os.PathLike, content: str | bytes) -> None:
    """Writes a file whole or not at all, in UTF-8. A link to a file stays a link.

    Raises:
      OSError: it cannot be written; the former content is untouched.
    """
    made = content if isinstance(content, bytes) else content.encode(errors="backslashreplace")
    if not is_local(path):  # buckets write whole objects
        epath.Path(path).write_bytes(made)
        return
    if is_stream(path):
        with appending(path) as file:
            file.write(made)
        return
    place = Path(os.path.realpath(path))
    if place.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    incomplete = place.with_name(f"{place.name[:_LONGEST_NAME]}.{os.getpid()}.tmp")
    try:
        incomplete.write_bytes(made)
        if place.exists():
            shutil.copymode(place, incomplete)
        incomplete.replace(place)
    except BaseException:
        incomplete.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def appending(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A local file to append to, or a stream. A missing file is made.

    If it is what this process prints to, lines go between the printed ones, also in a file.
    """
    own = None
    if is_stream(path):
        own = _own_stream(Path(path).stat())
    if own is None:
        with Path(path).open("ab") as file:
            yield file
        return
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    with os.fdopen(os.dup(own), "wb") as file:
        yield file


def settle(file: BinaryIO) -> None:
    """After it, no crash can lose what was written; a stream has received it."""
    file.flush()
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        os.fsync(file.fileno())


def _own_stream(status: os.stat_result) -> int | None:
    """The descriptor by which this process prints to it."""
    for descriptor, stream in ((1, sys.stdout), (2, sys.stderr)):
        if stream is None:  # started without it, so the descriptor may be another file's
            continue
        with contextlib.suppress(OSError):
            if os.path.samestat(status, os.fstat(descriptor)):
                return descriptor
    return None
