"""Drafts: files on local disk that are still arriving, one directory of them per data directory.

A draft is filled by one process at a time and followed by any number of others on this host. Whoever fills it holds the
lock of the note beside it, which says how far things are; the kernel lets go of the lock with the process, so that
another one goes on at once. A draft that nobody goes on with is swept. Knows files and locks. Must never know upstream,
storage, or packages.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
from attrs import define, field, frozen
from twisted.logger import Logger

from mypypi.errors import MyPyPiError
from mypypi.files.content import Content

_DRAFT, _NOTE = ".draft", ".note"
#: Bytes of a note: written at once, and read at once.
_NOTE_SIZE = 4096
_LONGEST_MESSAGE = 1000
#: Seconds for which a draft that nobody fills is left for whoever wants to go on with it.
ABANDONED = 15.0
#: Bytes that there must be room for: a disk is as good as full before it has not a byte left.
_PROBE = 64 * 1024


@frozen
class State:
    """
    How far a draft is, in the words of who fills it. `begun`: its bytes may be handed on as they come, `total` of them
    as far as upstream says; `validator` is upstream's for this version. It is whole and checked once it has a `digest`,
    and worth nothing once it has an `error`: see `mypypi.errors.error_from`.
    """

    begun: bool = False
    total: int | None = None
    validator: str = ""
    digest: str = ""
    error: tuple[str, str, int | None] | None = None


@define(eq=False)
class Draft:
    """
    A file that arrives, and the content that its readers see here. This process fills it where it is `filling`; else it
    follows, and `content` has a descriptor once it was opened.
    """

    path: Path
    content: Content
    filling: bool
    state: State
    _lock: int
    _note: Path = field(repr=False)

    def write(self, data: bytes, offset: int) -> None:
        """Put these bytes at this offset. Blocks; raises OSError. `Content.grow` is the caller's."""
        write_at(self.content.fd, data, offset)

    def room(self) -> int:
        """Bytes that can still be written there. Raises OSError."""
        status = os.fstatvfs(self.content.fd)
        return status.f_bavail * status.f_frsize

    def tell(self, state: State) -> None:
        """Let those who follow know. Raises OSError."""
        self.state = state
        write_at(self._lock, msgspec.json.encode(state).ljust(_NOTE_SIZE), 0)

    def look(self) -> bool:
        """See what the one who fills it has done: whether there is anything new. Raises OSError."""
        before, length = self.state, self.content.length
        self._read_state()
        if self.content.fd < 0:
            self._open(os.O_RDWR)
        there = os.fstat(self.content.fd).st_size if self.content.fd >= 0 else 0
        if there > length:
            self.content.grow(there - length)
        if self.state.begun and not self.content.begun:
            self.content.begin(self.state.total)
        return self.state != before or there > length

    def tell_failed(self, error: MyPyPiError) -> None:
        """Let those who follow know why it is worth nothing. Raises OSError."""
        self.tell(State(error=(type(error).__name__, str(error)[:_LONGEST_MESSAGE], error.retry_after)))

    def take_over(self) -> bool:
        """Fill it from now on, where nobody does any more. Raises OSError."""
        if not _locked(self._lock):
            return False
        self._read_state()
        if self.has_ended():
            return False
        if self.content.fd < 0:
            self._open(os.O_RDWR | os.O_CREAT)
        self.filling = True
        return True

    def has_ended(self) -> bool:
        """Whether who filled it has put it where it belongs, or dropped it."""
        return os.fstat(self._lock).st_nlink == 0

    def empty(self) -> None:
        """Begin anew. Raises OSError."""
        os.ftruncate(self.content.fd, 0)
        self.content.length = 0
        self.tell(State())

    def drop(self) -> None:
        """Take it out of sight. Readers that have it open may go on."""
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)

    def close(self) -> None:
        """Neither fill nor follow it any more. What is not dropped can be gone on with."""
        os.close(self._lock)
        self.content.close()

    def _read_state(self) -> None:
        with suppress(msgspec.MsgspecError):  # empty as yet, or just being written
            self.state = msgspec.json.decode(os.pread(self._lock, _NOTE_SIZE, 0), type=State)

    def _open(self, how: int) -> None:
        """Where the note is still in sight, what lies beside it belongs to it."""
        with suppress(FileNotFoundError):
            fd = os.open(self.path, how | os.O_CLOEXEC, 0o644)
            if self.has_ended():
                os.close(fd)
            else:
                self.content.fd = fd


class Drafts:
    """The drafts in one directory."""

    log = Logger()

    def __init__(self, directory: Path, limit: int | None = None, beside: Callable[[], int] | None = None) -> None:
        """At most `limit` bytes together with those `beside`, which nobody else counts: files that wait for upload."""
        self._directory = directory
        self._limit = limit
        self._beside = beside

    def open(self, name: str) -> Draft:
        """The draft of this name: to fill where nobody does, with what is there of it by now; else to follow.

        Raises OSError.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        path, note = self._directory / f"{name}{_DRAFT}", self._directory / f"{name}{_NOTE}"
        while True:
            lock = os.open(note, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            draft = Draft(path, Content(-1), False, State(), lock, note)
            try:
                if not _locked(lock):
                    draft.look()
                    return draft
                if draft.take_over():
                    draft.content.length = os.fstat(draft.content.fd).st_size
                    return draft
            except BaseException:
                draft.close()
                raise
            draft.close()  # its note was taken out of sight between the opening and the locking

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
            probe.write(bytes(_PROBE))

    def sweep(self) -> int:
        """Remove the drafts that nobody has filled for a while; how many there were. Blocks; raises OSError."""
        swept = 0
        before = time.time() - ABANDONED
        for note in self._directory.glob(f"*{_NOTE}"):
            swept += _sweep_abandoned(note, before)
        for path in self._directory.glob(f"*{_DRAFT}"):  # whose note is gone
            if not path.with_suffix(_NOTE).exists() and _changed_at(path) < before:
                path.unlink(missing_ok=True)
                swept += 1
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


def _locked(fd: int) -> bool:
    """Whether this process holds the lock of the file now."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _changed_at(path: Path) -> float:
    """In seconds since the epoch; 0 where there is no such file."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _sweep_abandoned(note: Path, before: float) -> bool:
    """Remove the draft under its lock, so that whoever opens it just now sees that it is gone (see `Drafts.open`)."""
    draft = note.with_suffix(_DRAFT)
    try:
        fd = os.open(note, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        if not _locked(fd) or not os.fstat(fd).st_nlink or max(_changed_at(note), _changed_at(draft)) >= before:
            return False
        draft.unlink(missing_ok=True)
        note.unlink(missing_ok=True)
    finally:
        os.close(fd)
    return True
