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
from pathlib import Path
from typing import TYPE_CHECKING

from zope.interface import implementer

from mypypi.errors import StorageDown, storage_error
from mypypi.interfaces import IStorage
from mypypi.model import Digest, StoredFile

if TYPE_CHECKING:
    from mypypi.threads import Threads


@implementer(IStorage)
class DiskStorage:
    """Keeps files below `directory`, which is made when the first one is kept."""

    def __init__(self, directory: Path, threads: Threads) -> None:
        self._directory = directory
        self._threads = threads

    async def find(self, key: str) -> StoredFile | None:
        # A directory with one entry is listed on the reactor thread: cheaper than the way to a thread and back.
        return self._look(key)

    async def commit(self, key: str, draft: Path, digest: Digest) -> StoredFile:
        try:
            await self._threads.run(self._move, self._directory / key, draft, digest)
        except OSError as error:
            raise storage_error(error, "a file could not be kept") from error
        stored = self._look(key)
        if stored is None:
            raise StorageDown("a file was kept, and is gone again")
        return stored

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
    def _move(directory: Path, draft: Path, digest: Digest) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        _sync(draft)
        name = f"{digest}.{draft.stat().st_size}"
        try:
            draft.replace(directory / name)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            _copy_across(draft, directory / name)
        _remove_kept(directory, but=name)

    @staticmethod
    def _remove(directory: Path) -> None:
        if directory.is_dir():
            _remove_kept(directory, but=None)

    def _probe(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self._directory, prefix=".probe-") as probe:
            probe.write(b"can be written")


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
