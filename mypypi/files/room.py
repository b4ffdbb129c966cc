"""The disk space for drafts. All processes of this host that share a data directory take it from one account.

Each process has a file with what its drafts have taken, and holds the lock of that file. If the process dies, the
kernel releases the lock, and the space counts as given back. Knows bytes, files and locks. Must never know what a draft
holds.
"""

from __future__ import annotations

import fcntl
import os
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from attrs import define

from mypypi.errors import FileTooLarge, StorageFull

#: A draft of unknown length takes this many bytes at a time.
STEP = 16 * 1024 * 1024
#: A little: bytes of a draft that takes its room out of what the other processes had left within the last second. It
#: does not look at them again. A process takes this share of it that way, and at most so many bytes.
_LITTLE, _LITTLE_SECONDS = 1024 * 1024, 1.0
_LITTLE_SHARE, _MOST_LITTLE = 1 / 16, 4 * 1024 * 1024
#: Bytes of the disk that drafts never take: the file system needs some for itself.
SPARE = 1024 * 1024
_ACCOUNT, _LOCK = ".room", "lock"


@define
class _Sums:
    """
    The sums of one process's drafts, in bytes.

    `taken` is what they have taken, and `used` the part of it that is on the disk already. `refused` is the size of the
    largest draft that found no room, 0 after a draft of that size has found room.
    """

    taken: int = 0
    used: int = 0
    refused: int = 0

    _FORMAT = struct.Struct("<3q")
    SIZE = _FORMAT.size

    @classmethod
    def read(cls, fd: int) -> _Sums:
        """Read the sums of a process from its file. A file that was just created has none."""
        data = os.pread(fd, cls.SIZE, 0)
        return cls(*cls._FORMAT.unpack(data)) if len(data) == cls.SIZE else cls()

    def write(self, fd: int) -> None:
        os.pwrite(fd, self._FORMAT.pack(self.taken, self.used, self.refused), 0)


class Room:
    """
    The space for the drafts in one data directory. Its methods may be called in any thread.

    `directory` has the files of the processes, and is on the disk of the drafts. Drafts may take `limit` bytes in all;
    None means no limit but the disk's. The bytes that `beside` returns count as well: those of files that wait for
    their upload.
    """

    def __init__(self, directory: Path, limit: int | None = None, beside: Callable[[], int] | None = None) -> None:
        self._directory = directory
        self._limit = limit
        self._beside = beside
        self._sums = _Sums()
        #: Bytes that small drafts may take without a look at the other processes, until this time.
        self._little, self._little_until = 0, 0.0
        self._account = -1
        self._path = directory / f"{uuid.uuid4().hex}{_ACCOUNT}"
        #: Held while other processes are waited for, in threads only.
        self._turn = threading.Lock()
        #: Held while the sums change. The reactor's thread may wait for it.
        self._changing = threading.Lock()

    def share(self) -> Share:
        """Return an empty share, for one draft."""
        return Share(self)

    @property
    def is_short(self) -> bool:
        """Whether a draft of this process was refused, and none as large has found room since."""
        return self._sums.refused > 0

    def check(self) -> None:
        """
        Raise StorageFull while there is no room for a draft that was refused. Blocks; raises OSError.

        It may have been refused in any process of this host.
        """
        with self._locked():
            others = list(self._others())
            refused = max(each.refused for each in (self._sums, *others))
            if refused:
                self._require(refused, f"no room for a file of {refused} bytes", others)
                self._change(refused=0)

    def close(self) -> None:
        """Give back everything. The process ends."""
        with self._changing:
            self._close_account()

    def take(self, share: Share, size: int) -> None:
        """Change the size of a share; see `Share.ask`."""
        if self._limit is not None and size > self._limit:
            raise FileTooLarge(f"a file of {size} bytes is larger than MYPYPI_DRAFTS_MAX_BYTES, {self._limit}")
        with self._locked():
            size = max(size, share.used)
            wanted = size - share.size
            if wanted > 0:
                try:
                    self._require(wanted, f"no room for a draft of {size} bytes", list(self._others()))
                except StorageFull:
                    self._change(opened=True, refused=max(self._sums.refused, size))
                    raise
            self._change(opened=True, taken=wanted, refused=0 if size >= self._sums.refused else None)
            share.size = size

    def take_little(self, share: Share, size: int) -> bool:
        """Make a share larger if that takes little of what was just found free. Returns whether it did."""
        wanted = size - share.size
        if not 0 <= wanted <= min(_LITTLE, self._little) or time.monotonic() > self._little_until:
            return False
        try:
            free = self._free_bytes()
        except OSError:  # the directory was removed
            return False
        if wanted + _MOST_LITTLE > free:  # another program has filled the disk meanwhile
            return False
        self._little -= wanted
        self._change(taken=wanted)
        share.size = size
        return True

    def note_used(self, share: Share, used: int) -> None:
        """Record how many bytes of a share are on the disk."""
        self._change(used=used - share.used)
        share.used = used

    def give_back(self, share: Share) -> None:
        """Give back a whole share."""
        self._change(taken=-share.size, used=-share.used)
        share.size = share.used = 0

    def _change(self, taken: int = 0, used: int = 0, refused: int | None = None, *, opened: bool = False) -> None:
        """
        Add to the sums, and show them to the other processes.

        This process's file exists only while there is something in it. `opened` opens it; then this raises OSError.
        """
        with self._changing:
            if opened:
                self._open_account()
            self._sums.taken += taken
            self._sums.used += used
            if refused is not None:
                self._sums.refused = refused
            if not (self._sums.taken or self._sums.refused):
                self._close_account()
            elif self._account >= 0:
                with suppress(OSError):  # the others see these sums with the next change
                    self._sums.write(self._account)

    def _require(self, wanted: int, what: str, others: list[_Sums]) -> None:
        """Raise StorageFull if this many bytes are more than all processes have left."""
        sums = (self._sums, *others)
        free = self._free_bytes()
        promised = SPARE + sum(each.taken - each.used for each in sums)
        if wanted > free - promised:
            raise StorageFull(f"{what}: the disk has {free} bytes free, and {promised} of them are reserved")
        taken = sum(each.taken for each in sums) + (self._beside() if self._beside is not None else 0)
        if self._limit is not None and wanted > self._limit - taken:
            raise StorageFull(f"{what}: {taken} of MYPYPI_DRAFTS_MAX_BYTES, {self._limit}, are taken")
        left = free - promised if self._limit is None else min(free - promised, self._limit - taken)
        self._little = min(int((left - wanted) * _LITTLE_SHARE), _MOST_LITTLE)
        self._little_until = time.monotonic() + _LITTLE_SECONDS

    def _free_bytes(self) -> int:
        status = os.statvfs(self._directory)
        return status.f_bavail * status.f_frsize

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other threads and processes out. Raises OSError."""
        with self._turn:
            self._directory.mkdir(parents=True, exist_ok=True)
            lock = os.open(self._directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
            finally:
                os.close(lock)

    def _open_account(self) -> None:
        """Open this process's file, unless it is open. Its directory may have been deleted. Raises OSError."""
        if self._account >= 0 and os.fstat(self._account).st_nlink:
            return
        self._close_account()
        account = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(account, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._sums.write(account)
        except OSError:
            os.close(account)
            raise
        self._account = account

    def _close_account(self) -> None:
        if self._account >= 0:
            with suppress(OSError):  # the others delete it once it is not locked any more
                self._path.unlink()
            os.close(self._account)
            self._account = -1

    def _others(self) -> Iterator[_Sums]:
        """Yield the sums of the other processes. The files of those that have died are deleted."""
        for path in self._directory.glob(f"*{_ACCOUNT}"):
            if path == self._path:
                continue
            with suppress(FileNotFoundError):  # its process has just ended
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
                except BlockingIOError:
                    yield _Sums.read(fd)
                finally:
                    os.close(fd)


@define(eq=False)
class Share:
    """The part of a room that one draft has taken: `size` bytes, `used` of them on the disk already."""

    room: Room
    size: int = 0
    used: int = 0

    def ask(self, size: int) -> None:
        """
        Make the share this large, but not smaller than what is used of it. Blocks.

        Raises StorageFull or FileTooLarge, and the share stays as it was; raises OSError.
        """
        if size != self.size:
            self.room.take(self, size)

    def ask_for_little(self, size: int) -> bool:
        """Make the share this large if that is little. Returns whether it did. Does not block."""
        return self.room.take_little(self, size)

    def ask_for_writing(self, end: int) -> None:
        """Make the share large enough for the bytes up to `end`. It grows in steps. Blocks; raises as `ask`."""
        if end <= self.size:
            return
        try:
            self.ask(end + STEP)
        except StorageFull:
            self.ask(end)

    def note_used(self, used: int) -> None:
        """Record that this many bytes of the share are on the disk."""
        self.room.note_used(self, used)

    def give_back(self) -> None:
        """Give back everything."""
        if self.size or self.used:
            self.room.give_back(self)
