"""Stores package files in a directory tree that can be read without Redis.

Each key is a directory with one file. The file's name is the digest that was checked before it was stored, and its
size: ``https/files.example/a/b/flask-3.1.whl/sha256-9fd….101817``. So a listing shows both, and a file that was cut
short is not taken for a complete one. If upstream's bytes behind a URL change, old and new file are side by side only
for a moment. Files appear by a rename, so a process that is killed leaves no partial file. Knows keys and digests. Must
never know packages, pages, or requests.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from cachetools import LRUCache
from zope.interface import implementer

from mypypi.coalescing import Coalescer
from mypypi.digests import ALGORITHMS, Digest, new_hasher
from mypypi.errors import NotFound, StorageDown, storage_error
from mypypi.interfaces import IStorage
from mypypi.model import Link, StoredFile

if TYPE_CHECKING:
    from mypypi.threads import Threads

#: Bytes to read from a file at once.
_BLOCK = 1024 * 1024
#: Entries of a key's directory that are looked at on the reactor thread, which takes less than a millisecond. There is
#: one, but directories of longer keys may be beside it.
_FEW = 100
#: Directories of more entries that are remembered.
_MOST_LARGE = 1000
#: Nanoseconds after which a change of a directory gets another time: file systems count in ticks of up to 2 s.
_TIMESTAMPS_DIFFER = 2_500_000_000


class _TooMany(Exception):
    """A directory has too many entries for the reactor thread."""


@implementer(IStorage)
class DiskStorage:
    """Stores files below `directory`, which is created with the first file."""

    upload_window = 0.0
    reaches_others = True

    def __init__(self, directory: Path, threads: Threads) -> None:
        self._directory = directory
        self._threads = threads
        self._listing: Coalescer[StoredFile | None] = Coalescer()
        #: Large directories without a stored file, by key, with the time of their last change in nanoseconds.
        self._without_file: LRUCache[str, int] = LRUCache(_MOST_LARGE)

    async def find(self, key: str, *, recheck: bool = False) -> StoredFile | None:
        # Runs on the reactor thread: listing a directory with one entry costs less than a switch to another thread.
        try:
            return self._find(key, _FEW)
        except _TooMany:
            return await self._listing.run(key, lambda: self._list_large(key))

    async def commit(self, key: str, draft: Path, digest: Digest) -> StoredFile:
        try:
            size = await self._threads.run(self._move, self._directory / key, draft, digest)
        except OSError as error:
            raise storage_error(error, "a file could not be stored") from error
        return StoredFile(key, size, digest, self._directory / key / _name(digest, size))

    async def digest_of(self, stored: StoredFile, algorithm: str) -> Digest | None:
        try:
            return None if stored.path is None else await self._threads.run(_hash, stored.path, algorithm)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise storage_error(error, "a stored file can't be read") from error

    async def link(self, stored: StoredFile) -> Link:
        raise StorageDown("a file on this host's disk has no link")

    async def note_read(self, stored: StoredFile, since: float, error: NotFound | StorageDown | None) -> bool:
        return True  # no file on this disk is read by a link

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
        """Delete exactly this file. Another one that has replaced it under the same key stays."""
        assert stored.path is not None
        try:
            await self._threads.run(self._unlink, stored.path)
        except OSError as error:
            raise storage_error(error, "a file could not be deleted") from error

    def keys(self) -> list[str]:
        """Return the keys of all stored files. Blocks; raises OSError."""
        return [
            str(Path(directory).relative_to(self._directory))
            for directory, _, names in os.walk(self._directory)
            if any(_parse_name(name) is not None for name in names)
        ]

    def weight(self) -> int:
        """Return the size of all stored files, in bytes. Blocks. Files deleted meanwhile are not counted."""
        weight = 0
        for directory, _, names in os.walk(self._directory):
            for name in names:
                with suppress(FileNotFoundError):
                    weight += os.stat(os.path.join(directory, name)).st_size  # noqa: PTH116, PTH118 - many, often
        return weight

    async def _list_large(self, key: str) -> StoredFile | None:
        """Find a file in a directory of many entries, which is listed again only after it has changed."""
        changed = await self._threads.run(self._changed_at, key)
        if changed is not None and self._without_file.get(key) == changed:
            return None
        found = await self._threads.run(self._find, key)
        if found is None and changed is not None:
            self._without_file[key] = changed
        return found

    def _changed_at(self, key: str) -> int | None:
        """Return when the directory changed last, in nanoseconds; None if it may change again at the same time."""
        with suppress(OSError):
            changed = (self._directory / key).stat().st_mtime_ns
            return changed if changed < time.time_ns() - _TIMESTAMPS_DIFFER else None
        return None

    def _find(self, key: str, most: int | None = None) -> StoredFile | None:
        """Return the file of this key. Raises StorageDown, and _TooMany after `most` other entries."""
        try:
            with os.scandir(self._directory / key) as entries:
                for number, entry in enumerate(entries):
                    if number == most:
                        raise _TooMany
                    parsed = _parse_name(entry.name)
                    if parsed is None:
                        continue
                    status = entry.stat()
                    digest, size = parsed
                    # A directory with such a name belongs to a longer key of an earlier version.
                    if stat.S_ISREG(status.st_mode) and status.st_size == size:
                        return StoredFile(key, size, digest, Path(entry.path))
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            raise storage_error(error, "the file storage can't be read") from error
        return None

    @staticmethod
    def _move(directory: Path, draft: Path, digest: Digest) -> int:
        size = _sync(draft)
        name = _name(digest, size)
        try:
            is_new = _rename_into(directory, draft, name)
        except FileNotFoundError:  # another process has just removed the empty directory
            is_new = _rename_into(directory, draft, name)
        if not is_new:
            _remove_files(directory, keep=name)
        return size

    def _remove(self, directory: Path) -> None:
        if directory.is_dir():
            _remove_files(directory, keep=None)
            self._prune(directory)

    def _unlink(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._prune(path.parent)

    def _prune(self, directory: Path) -> None:
        """Remove this directory and its parents, as far as they are empty."""
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


def _hash(path: Path, algorithm: str) -> Digest:
    """Hash a file. Blocks; raises OSError."""
    hasher = new_hasher(algorithm)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            hasher.update(block)
    return Digest(algorithm, hasher.hexdigest())


def _name(digest: Digest, size: int) -> str:
    return f"{digest}.{size}"


def _parse_name(name: str) -> tuple[Digest, int] | None:
    """Parse a stored file's name into digest and size; None for other names."""
    if not name.startswith(ALGORITHMS):  # most names in a large directory
        return None
    digest, _, size = name.partition(".")
    try:
        return Digest.parse(digest), int(size)
    except ValueError:
        return None


def _remove_files(directory: Path, *, keep: str | None) -> None:
    for name in os.listdir(directory):
        if name != keep and _parse_name(name) is not None and (directory / name).is_file():
            (directory / name).unlink(missing_ok=True)


def _sync(path: Path) -> int:
    """
    Write a file's bytes to the disk, before it is renamed into place. Returns its size.

    Otherwise a power cut could leave a file of zeros there.
    """
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        return os.fstat(fd).st_size
    finally:
        os.close(fd)


def _rename_into(directory: Path, draft: Path, name: str) -> bool:
    """Move a draft into this directory, by this name. Returns whether the directory was created for it."""
    is_new = _make(directory)
    try:
        draft.replace(directory / name)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copy_across(draft, directory / name)
    return is_new


def _make(directory: Path) -> bool:
    """Create a directory and its parents. Returns False if it was there. Raises OSError."""
    try:
        directory.mkdir()
    except FileNotFoundError:
        directory.parent.mkdir(parents=True, exist_ok=True)
        return _make(directory)  # another process may be quicker
    except FileExistsError:
        if not directory.is_dir():
            raise
        return False
    return True


def _copy_across(draft: Path, target: Path) -> None:
    """Move a draft to another file system. Copies it beside the target, and renames the copy."""
    fd, name = tempfile.mkstemp(dir=target.parent, prefix=".arriving-")
    os.close(fd)
    try:
        shutil.copy(draft, name)  # copies the mode too, so that stored files have the same mode on every set-up
        _sync(Path(name))
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise
    draft.unlink()
