"""Package files in a directory tree that reads without Redis.

A key is a directory; the file in it is named by the digest that was checked before it was put there, and its size:
``https/files.example/a/b/flask-3.1.whl/sha256-9fd….101817``. So both are known by looking, and a file that has lost
its end is not taken for whole. Other bytes behind the same URL lie beside it only for an instant, and a process that is
killed leaves nothing half-done: a file appears by a rename. Knows keys and digests. Must never know packages, pages, or
a request.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from zope.interface import implementer

from mypypi.errors import StorageDown, storage_error
from mypypi.interfaces import IStorage
from mypypi.model import Digest, Link, StoredFile

if TYPE_CHECKING:
    from mypypi.threads import Threads


@implementer(IStorage)
class DiskStorage:
    """Keeps files below `directory`, which is made when the first one is kept."""

    passes_on = 0.0

    def __init__(self, directory: Path, threads: Threads) -> None:
        self._directory = directory
        self._threads = threads

    async def find(self, key: str, *, again: bool = False) -> StoredFile | None:
        # A directory with one entry is listed on the reactor thread: cheaper than the way to a thread and back.
        return self._look(key)

    async def commit(self, key: str, draft: Path, digest: Digest) -> StoredFile:
        try:
            size = await self._threads.run(self._move, self._directory / key, draft, digest)
        except OSError as error:
            raise storage_error(error, "a file could not be kept") from error
        return StoredFile(key, size, digest, self._directory / key / _name(digest, size))

    async def link(self, stored: StoredFile) -> Link:
        raise StorageDown("a file on this host's disk has no link")

    async def forget(self, key: str) -> None:
        pass  # what is here is here

    async def delete(self, key: str) -> None:
        try:
            await self._threads.run(self._remove, self._directory / key)
        except OSError as error:
            raise storage_error(error, "a file could not be deleted") from error

    async def check(self) -> None:
        try:
            await self._threads.run(self._probe)
        except OSError as error:
            raise storage_error(error, "the file storage can't be written") from error

    async def discard(self, stored: StoredFile) -> None:
        """Delete this very file, and not one with other bytes that has come in its place."""
        assert stored.path is not None
        try:
            await self._threads.run(self._unlink, stored.path)
        except OSError as error:
            raise storage_error(error, "a file could not be deleted") from error

    def keys(self) -> list[str]:
        """The keys of all files that are kept. Blocks; raises OSError."""
        return [
            str(Path(directory).relative_to(self._directory))
            for directory, _, names in os.walk(self._directory)
            if any(_kept(name) is not None for name in names)
        ]

    def weight(self) -> int:
        """The bytes of all files that are kept. Blocks. What goes away meanwhile is not counted."""
        weight = 0
        for directory, _, names in os.walk(self._directory):
            for name in names:
                with suppress(FileNotFoundError):
                    weight += os.stat(os.path.join(directory, name)).st_size  # noqa: PTH116, PTH118 - many, often
        return weight

    def _look(self, key: str) -> StoredFile | None:
        directory = self._directory / key
        try:
            for name in os.listdir(directory):
                kept = _kept(name)
                if kept is None:
                    continue
                path = directory / name
                status = path.stat()
                digest, size = kept
                if stat.S_ISREG(status.st_mode) and status.st_size == size:  # and not the directory of a key below
                    return StoredFile(key, size, digest, path)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            raise storage_error(error, "the file storage can't be read") from error
        return None

    @staticmethod
    def _move(directory: Path, draft: Path, digest: Digest) -> int:
        _sync(draft)
        size = draft.stat().st_size
        name = _name(digest, size)
        try:
            _rename_into(directory, draft, name)
        except FileNotFoundError:  # the directory was empty, and removed as such just now
            _rename_into(directory, draft, name)
        _remove_kept(directory, but=name)
        return size

    def _remove(self, directory: Path) -> None:
        if directory.is_dir():
            _remove_kept(directory, but=None)
            self._prune(directory)

    def _unlink(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._prune(path.parent)

    def _prune(self, directory: Path) -> None:
        """Remove directories that are empty now."""
        for empty in (directory, *directory.parents):
            if empty == self._directory:
                return
            try:
                empty.rmdir()
            except OSError:
                return

    def _probe(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self._directory, prefix=".probe-") as probe:
            probe.write(b"can be written")


def _name(digest: Digest, size: int) -> str:
    return f"{digest}.{size}"


def _kept(name: str) -> tuple[Digest, int] | None:
    """The digest and the size that the name of a stored file gives; None for what is no stored file."""
    digest, _, size = name.partition(".")
    try:
        return Digest.parse(digest), int(size)
    except ValueError:
        return None


def _remove_kept(directory: Path, *, but: str | None) -> None:
    for name in os.listdir(directory):
        if name != but and _kept(name) is not None and (directory / name).is_file():
            (directory / name).unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """What is renamed into place must be on the disk first, or a power cut leaves a file of zeros there."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _rename_into(directory: Path, draft: Path, name: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    try:
        draft.replace(directory / name)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copy_across(draft, directory / name)


def _copy_across(draft: Path, target: Path) -> None:
    """Drafts and storage lie on different file systems: copy beside the target, then rename."""
    fd, name = tempfile.mkstemp(dir=target.parent, prefix=".arriving-")
    os.close(fd)
    try:
        shutil.copy(draft, name)  # with the draft's mode: who may read stored files is the same everywhere
        _sync(Path(name))
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise
    draft.unlink()
