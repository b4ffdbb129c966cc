"""Drafts: files on local disk that are still arriving, one directory of them per data directory.

Each is locked by the process that fills it, so that one whose process died is known by its free lock and swept. Knows
files and locks. Must never know upstream, storage, or packages.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from attrs import frozen
from twisted.logger import Logger

from mypypi.content import Content

_SUFFIX = ".draft"


@frozen
class Draft:
    """A file that is being filled, and the content that its readers see."""

    path: Path
    content: Content

    def write(self, data: bytes, offset: int) -> None:
        """Put these bytes at this offset. Blocks; raises OSError. `Content.grow` is the caller's."""
        write_at(self.content.fd, data, offset)

    def room(self) -> int:
        """Bytes that can still be written there. Raises OSError."""
        status = os.fstatvfs(self.content.fd)
        return status.f_bavail * status.f_frsize

    def drop(self) -> None:
        """Take it out of sight. Readers that have it open may go on."""
        self.path.unlink(missing_ok=True)


class Drafts:
    """The drafts in one directory."""

    log = Logger()

    def __init__(self, directory: Path, limit: int | None = None, beside: Callable[[], int] | None = None) -> None:
        """At most `limit` bytes together with those `beside`, which nobody else counts: files that wait for upload."""
        self._directory = directory
        self._limit = limit
        self._beside = beside

    def create(self) -> Draft:
        """A new, empty draft, locked by this process. Raises OSError."""
        self._directory.mkdir(parents=True, exist_ok=True)
        while True:
            fd, name = tempfile.mkstemp(dir=self._directory, suffix=_SUFFIX)
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.fstat(fd).st_nlink:
                os.fchmod(fd, 0o644)
                return Draft(Path(name), Content(fd))
            os.close(fd)  # a sweep came between the making and the locking

    def room(self) -> int:
        """Bytes that drafts may still take there: what the disk has left, within the limit. Blocks; raises OSError."""
        self._directory.mkdir(parents=True, exist_ok=True)
        status = os.statvfs(self._directory)
        free = status.f_bavail * status.f_frsize
        if self._limit is None:
            return free
        drafts = 0
        for entry in os.scandir(self._directory):
            with suppress(FileNotFoundError):  # whole by now, and gone from here
                drafts += entry.stat().st_size
        beside = self._beside() if self._beside is not None else 0
        return min(free, self._limit - drafts - beside)

    def probe(self) -> None:
        """Write a file there that is gone at once. Blocks; raises OSError."""
        self._directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self._directory) as probe:
            probe.write(b"can be written")

    def sweep(self) -> int:
        """Remove the drafts that no living process fills; how many there were. Raises OSError."""
        swept = 0
        for path in self._directory.glob(f"*{_SUFFIX}"):
            swept += _sweep_abandoned(path)
        if swept:
            self.log.info("swept {swept} drafts that nobody was filling", swept=swept)
        return swept


def write_at(fd: int, data: bytes, offset: int) -> None:
    """Write all of this: the system may write less at a time, as where a disk fills up. Blocks; raises OSError."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written


def _sweep_abandoned(path: Path) -> bool:
    """Remove the draft under its lock, so that whoever makes it just now sees that it is gone (see `Drafts.create`)."""
    try:
        fd = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    else:
        return True
    finally:
        os.close(fd)
