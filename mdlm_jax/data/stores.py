"""Folders and buckets that several machines see, with the few operations that sharing needs."""

import contextlib
import fnmatch
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import fsspec

from mdlm_jax.data import progress
from mdlm_jax.host import paths


def is_url(place: str | Path) -> bool:
    """Whether a place is in a bucket rather than on this machine."""
    return "://" in paths.plain(place)


class Store(NamedTuple):
    """A place of files, with names relative to it ('a/b.npy').

    Attributes:
      url: of the place, for messages.
      system: its fsspec file system.
      root: its path there.
      is_local: whether it is a folder of this machine, or one that is mounted.
    """

    url: str
    system: Any
    root: str
    is_local: bool

    def read(self, name: str) -> bytes | None:
        """The contents of a file, or None."""
        with _telling(f"read {self.url}/{name}"):
            try:
                return self.system.cat_file(f"{self.root}/{name}")
            except FileNotFoundError:
                return None

    def write(self, name: str, contents: bytes) -> None:
        """Writes a file, in place of a former one."""
        with _telling(f"write {self.url}/{name}"):
            self.system.pipe_file(f"{self.root}/{name}", contents)

    def create(self, name: str, contents: bytes) -> bool:
        """Writes a file if there is none. Of several that try at once, one gets True."""
        path = f"{self.root}/{name}"
        with _telling(f"write {self.url}/{name}"):
            try:
                if self.is_local:  # fsspec's own way is not atomic there
                    with Path(path).open("xb") as file:
                        file.write(contents)
                else:
                    self.system.pipe_file(path, contents, mode="create")
            except FileExistsError:
                return False
        return True

    def remove(self, name: str) -> None:
        """Removes a file, if it is there."""
        with _telling(f"remove {self.url}/{name}"), contextlib.suppress(FileNotFoundError):
            self.system.rm_file(f"{self.root}/{name}")

    def remove_all(self) -> None:
        """Removes everything here, and the place itself."""
        with _telling(f"remove {self.url}"), contextlib.suppress(FileNotFoundError):
            self.system.invalidate_cache()
            self.system.rm(self.root, recursive=True)

    def find(self, pattern: str) -> list[str]:
        """Names that match a pattern ('*/data.json'), sorted; a '*' does not reach across a '/'."""
        with _telling(f"list {self.url}"):
            self.system.invalidate_cache()
            found = self.system.find(self.root, maxdepth=pattern.count("/") + 1)
        names = (path[len(self.root) + 1 :] for path in found)
        return sorted(
            name
            for name in names
            if name.count("/") == pattern.count("/") and fnmatch.fnmatchcase(name, pattern)
        )

    def put(self, source: Path, name: str) -> None:
        """Copies a file of this machine; it appears whole."""
        with _telling(f"write {self.url}/{name}"):
            self.system.put_file(str(source), f"{self.root}/{name}")

    def get(self, name: str, target: Path) -> None:
        """Copies a file to this machine."""
        with _telling(f"read {self.url}/{name}"):
            self.system.get_file(f"{self.root}/{name}", str(target))

    def upload(self, folder: Path, name: str, *, last: str) -> None:
        """Copies the files of a folder, `last` when all others are there."""
        files = sorted(folder.iterdir(), key=lambda path: (path.name == last, path.name))
        with progress.bar(f"copying to {self.url}", len(files), "files") as advance:
            for path in files:
                self.put(path, f"{name}/{path.name}")
                advance(1, MB=path.stat().st_size / 1e6)

    def download(self, name: str, folder: Path) -> None:
        """Copies the files of a folder `name` into a folder of this machine."""
        files = self.find(f"{name}/*")
        with progress.bar(f"copying from {self.url}", len(files), "files") as advance:
            for file in files:
                target = folder / os.path.basename(file)  # noqa: PTH119, it is no path of here
                self.get(file, target)
                advance(1, MB=target.stat().st_size / 1e6)


def open_store(place: str | Path) -> Store:
    """The store of an existing folder or a bucket ('gs://bucket/prepared').

    Raises:
      ModuleNotFoundError: the package that reads this kind of bucket is not installed.
      ValueError: there is no such kind.
    """
    url = str(place).rstrip("/")
    if not is_url(url):
        return Store(url, fsspec.filesystem("file"), url, True)
    try:
        system, root = fsspec.core.url_to_fs(url)
    except ImportError as error:
        wanted = "pip install 'mdlm_jax[gcs]'" if url.startswith("gs://") else str(error)
        raise ModuleNotFoundError(f"to use {url}: {wanted}") from None
    except ValueError as error:
        raise ValueError(f"cannot use {url}: {error}") from None
    return Store(url, system, root.rstrip("/"), False)


@contextlib.contextmanager
def _telling(what: str) -> Iterator[None]:
    """Turns errors of a bucket's client into one line that says what failed."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:  # the system's message names the file
            raise
        raise OSError(f"cannot {what}: {_first_line(error)}") from error
    except Exception as error:  # Clients have no common error class: HTTP, credentials, sockets.
        raise OSError(f"cannot {what}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message[:200]}" if message else type(error).__name__
