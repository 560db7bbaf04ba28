"""Text that people wrote, from a file to strings. Every reader uses it.

A file is named by a path, also with `~` and `file://`, or by a URL that fsspec reads. A byte order
mark decides its encoding (UTF-8, UTF-16, UTF-32); without one it is UTF-8. Every line ending
becomes a new line. An error is one line that names the file, the line and the byte.
"""

import codecs
import gzip
import io
import itertools
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
from etils import epath

from mdlm_jax.host.paths import plain

TEXT = (".txt", ".text", ".md")
JSONL = (".jsonl", ".ndjson", ".jsonlines", ".json")  # an object a line
PARQUET = (".parquet", ".pq")
ARROW = (".arrow",)
_PACKED = (".gz", ".gzip")

_BLOCK = 2**20  # bytes that are decoded at a time

# The longer first: UTF-32's begins with one of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}

Name = str | os.PathLike[str]


class File(NamedTuple):
    """A file: its file system, its path there, and its name in messages."""

    system: Any
    path: str
    name: str

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine."""
        return "file" in self.system.protocol

    def exists(self) -> bool:
        """Whether it exists."""
        return self.system.exists(self.path)


class _Paths:
    """A bucket that epath knows, which does not need fsspec."""

    protocol = ()

    def open(self, path: str, mode: str) -> Any:
        return epath.Path(path).open(mode)

    def exists(self, path: str) -> bool:
        return epath.Path(path).exists()


def path(name: Name) -> epath.Path:
    """The same as a path."""
    return epath.Path(plain(name))


def locate(name: Name) -> File:
    """The file of a name, which need not exist.

    Raises:
      ImportError: the package that reads this file system is not installed.
      ValueError: there is no such file system.
    """
    given = plain(name)
    if "://" not in given:  # fsspec takes '::' and more in a name for its own
        system = fsspec.filesystem("file")
        return File(system, str(Path(given).absolute()), given)
    if isinstance(name, epath.Path):
        return File(_Paths(), given, given)
    system, within = fsspec.core.url_to_fs(given)
    return File(system, within, given)


def kind(name: Name) -> str:
    """'text', 'jsonl', 'parquet' or 'arrow' by the suffix in any case; '' for any other.

    Text and JSON lines may be compressed.
    """
    ending = str(name).lower()
    for found, ends in (("parquet", PARQUET), ("arrow", ARROW)):
        if ending.endswith(ends):
            return found
    for packed in _PACKED:
        ending = ending.removesuffix(packed)
    return next((k for k, ends in (("text", TEXT), ("jsonl", JSONL)) if ending.endswith(ends)), "")


def text(name: Name | File) -> str:
    """All of a file's text.

    Raises:
      ValueError: it is empty or no text; the file, the line and the byte are named.
      OSError: it cannot be read.
    """
    return "".join(pieces(name))


def pieces(name: Name | File) -> Iterator[str]:
    """A file's text in pieces of about a million characters, read as they are asked for.

    Raises:
      ValueError, OSError: as `text`.
    """
    return _texts(_file(name))


def lines(name: Name | File) -> Iterator[str]:
    """The lines of a file with their new line, read as they are asked for.

    Raises:
      ValueError, OSError: as `text`.
    """
    begun: list[str] = []
    for each in _texts(_file(name)):
        first, *others = each.split("\n")
        begun.append(first)
        for other in others:
            yield "".join(begun) + "\n"
            begun = [other]
    if last := "".join(begun):
        yield last


def numbered(name: Name | File) -> Iterator[tuple[str, str]]:
    """The lines that are not blank, without their new line, each with its name in messages."""
    file = _file(name)
    for number, line in enumerate(lines(file), 1):
        if line.strip():
            yield f"{file.name}, line {number}", line.removesuffix("\n")


def decoded(raw: bytes, place: str) -> str:
    """The text of bytes that do not come from a file.

    Raises:
      ValueError: they are not UTF-8; the message begins with `place`.
    """
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        wrong = f"byte {error.start} (0x{raw[error.start]:02x})"
        raise ValueError(f"{place} is not UTF-8: {wrong}") from None


def opened(file: File) -> Any:
    """The file, open for reading its bytes.

    Raises:
      OSError: it cannot be read.
    """
    # fsspec does not open pipes.
    return Path(file.path).open("rb") if file.is_local else file.system.open(file.path, "rb")


def _file(name: Name | File) -> File:
    return name if isinstance(name, File) else locate(name)


def _texts(file: File) -> Iterator[str]:
    """The decoded text in pieces, with plain new lines and without a byte order mark."""
    blocks = _blocks(file)
    first = next(blocks, b"")
    mark, encoding = next(
        ((mark, name) for mark, name in _MARKS.items() if first.startswith(mark)), (b"", "utf-8")
    )
    if not mark and _is_wide(first):
        raise ValueError(
            f"{file.name}, line 1 is not UTF-8: byte {first.index(0)} is 0, as in UTF-16 and "
            "UTF-32, which must begin with a byte order mark"
        )
    decoder = codecs.getincrementaldecoder(encoding)()
    endings = io.IncrementalNewlineDecoder(None, translate=True)
    offset, line, is_empty = len(mark), 1, True
    for block in itertools.chain([first[offset:]], blocks, [b""]):
        try:
            piece = endings.decode(decoder.decode(block, not block), not block)
        except UnicodeDecodeError as error:
            good = endings.decode(error.object[: error.start].decode(encoding), True)
            place = f"{file.name}, line {line + good.count(chr(10))}"
            byte = offset + len(block) - len(error.object) + error.start
            raise ValueError(
                f"{place} is not {encoding[:6].upper()}: byte {byte} "
                f"(0x{error.object[error.start]:02x})"
            ) from None
        offset += len(block)
        line += piece.count("\n")
        is_empty = is_empty and not piece
        yield piece
    if is_empty:
        raise ValueError(f"{file.name} is empty")


def _is_wide(first: bytes) -> bool:
    """Whether the first characters are ASCII, in two or four bytes each."""
    zeros = [byte == 0 for byte in first[:4]]
    return zeros in ([False, True] * 2, [True, False] * 2, [False, True, True, True]) or (
        zeros == [True, True, True, False]
    )


def _blocks(file: File) -> Iterator[bytes]:
    """The decompressed bytes of a file; the first block holds a byte order mark, if any."""
    with opened(file) as raw:
        if not file.path.lower().endswith(_PACKED):
            yield from _read(raw)
            return
        try:
            with gzip.open(raw) as unpacked:
                yield from _read(unpacked)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{file.name} is broken gzip: {str(error).rstrip('.')}") from None


def _read(raw: Any) -> Iterator[bytes]:
    first = b""
    while len(first) < 4 and (block := raw.read(_BLOCK)):  # a pipe gives what it has
        first += block
    yield first
    while block := raw.read(_BLOCK):
        yield block
