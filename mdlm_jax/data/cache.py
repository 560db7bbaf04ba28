"""Where prepared data is kept: a folder of this machine, one that several mount, or a bucket.

A folder appears whole or not at all, even if a process dies at any moment. Processes of one machine
wait for each other at a lock, which the system releases when they end. Machines wait for each other
at a claim (`claims`), because a lock may not work between machines.
"""

import contextlib
import errno
import fcntl
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mdlm_jax.data import claims
from mdlm_jax.data.prepared import CARD, fingerprint, parse_card, read_card
from mdlm_jax.data.stores import Store, is_url, open_store
from mdlm_jax.host import paths

_INCOMPLETE = ".incomplete"
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Cache(NamedTuple):
    """Prepared data by name.

    Attributes:
      folder: where it is read, on this machine or shared by several.
      bucket: where it is kept for all machines; each copies what it needs into `folder`. None if
        there is only the folder.
    """

    folder: Path
    bucket: Store | None

    def obtain(self, name: str, make: Callable[[Path], None]) -> Path:
        """The folder `name`. If it does not exist, one process of all makes it.

        Args:
          name: follows from everything that the contents depend on.
          make: fills an empty folder beside it.

        Raises:
          ValueError: the bucket's contents are damaged.
          OSError: the disk is full, or the bucket cannot be used; unfinished files are removed.
        """
        path = self.folder / name
        if self._is_here(name):
            return path
        self.folder.mkdir(parents=True, exist_ok=True)
        with _one_process(self.folder) as holder:
            if not self._is_shared(name):
                store = self.bucket or open_store(self.folder)
                claim = claims.one_at_a_time(
                    store, f"{name}.claim", holder=holder, done=lambda: self._is_shared(name)
                )
                with claim as is_ours:
                    if is_ours:
                        self._prepare(name, make, holder)
            if not self._is_here(name):
                self._fetch(name, holder)
        return path

    def names(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Names and cards of all prepared data: first of the folder, then of the bucket."""
        for file in sorted(self.folder.glob(f"*/{CARD}")):
            if file.parent.suffix != _INCOMPLETE:
                yield file.parent.name, read_card(file.parent)
        if self.bucket:
            for file in self.bucket.find(f"*/{CARD}"):
                name = file.split("/")[0]
                if card := self._shared_card(name):  # It may have been removed since.
                    yield name, card

    def _shared_card(self, name: str) -> dict[str, Any] | None:
        contents = self.bucket.read(f"{name}/{CARD}")
        place = f"{self.bucket.url}/{name}/{CARD}"
        return None if contents is None else parse_card(contents, place)

    def _is_shared(self, name: str) -> bool:
        if self.bucket:
            return self._shared_card(name) is not None
        return (self.folder / name).is_dir()

    def _is_here(self, name: str) -> bool:
        path = self.folder / name
        if not path.is_dir() or not self.bucket:
            return path.is_dir()
        card = self._shared_card(name)
        return card is not None and card["fingerprint"] == read_card(path)["fingerprint"]

    def _prepare(self, name: str, make: Callable[[Path], None], holder: str) -> None:
        path = self.folder / name
        if not path.is_dir():
            with _appearing(path, holder) as incomplete:
                make(incomplete)
        if self.bucket:
            self.bucket.upload(path, name, last=CARD)

    def _fetch(self, name: str, holder: str) -> None:
        """Copies a folder from the bucket, in place of another folder of the same name."""
        card = self._shared_card(name)
        path = self.folder / name
        with _appearing(path, holder) as incomplete:
            self.bucket.download(name, incomplete)
            found = fingerprint(incomplete)
            if card is None or found != card["fingerprint"]:
                raise ValueError(
                    f"{self.bucket.url}/{name} is damaged: its files have fingerprint "
                    f"{found[:12]}, not the one in its {CARD}; remove it, and prepare it "
                    "again"
                )
            if path.is_dir():  # A process that has it open can still read it.
                path.rename(incomplete.with_name(f"replaced.{incomplete.name}"))
        for replaced in self.folder.glob(f"replaced.*.{holder}{_INCOMPLETE}"):
            shutil.rmtree(replaced)


def open_cache(place: str | Path | None) -> Cache:
    """The cache at a folder or a bucket's ('gs://bucket/prepared').

    Args:
      place: where it is; $MDLM_JAX_CACHE unless given, and `~/.cache/mdlm_jax` without that.

    Raises:
      ModuleNotFoundError, ValueError: as `open_store`.
    """
    place = place or paths.cache()
    return Cache(paths.cache_folder(place), open_store(place) if is_url(place) else None)


@contextlib.contextmanager
def _one_process(folder: Path) -> Iterator[str]:
    """Lets one process of a machine in. Yields its name among all machines.

    Of two processes with the same name the earlier one is dead.
    """
    with (folder / "lock").open("a+") as file:
        try:
            _flock(file, folder)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            yield f"{claims.host()}-{uuid.uuid4().hex[:8]}"  # Only the claim protects.
            return
        file.seek(0)
        own = file.read()
        if not own:  # Machines may share a name, as containers do, and have other folders.
            own = uuid.uuid4().hex[:8]
            file.write(own)
            file.flush()
        yield f"{claims.host()}-{own}"  # The system releases the lock when the process ends.


def _flock(file: Any, folder: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"waiting for another process that prepares data in {folder}", file=sys.stderr)
        fcntl.flock(file, fcntl.LOCK_EX)


@contextlib.contextmanager
def _appearing(path: Path, holder: str) -> Iterator[Path]:
    """An empty folder that becomes `path` if the block succeeds, and is removed if not.

    It removes the remains of killed processes: of this machine, which has one at a time, and of the
    same work, whose claim is held here.
    """
    incomplete = path.with_name(f"{path.name}.{holder}{_INCOMPLETE}")
    for pattern in (f"*.{holder}{_INCOMPLETE}", f"{path.name}*{_INCOMPLETE}"):
        for left in path.parent.glob(pattern):
            shutil.rmtree(left, ignore_errors=True)
    try:
        incomplete.mkdir()
        yield incomplete
        incomplete.rename(path)
    except OSError as error:
        if error.errno in _FULL:
            raise OSError(
                error.errno, f"no room for the prepared data, {error.strerror}", str(path.parent)
            ) from None
        # This machine was thought dead, and another has done its work meanwhile.
        if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST) or not path.is_dir():
            raise
    finally:
        shutil.rmtree(incomplete, ignore_errors=True)
