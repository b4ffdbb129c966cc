"""Drafts: files on local disk that are still being fetched. Each data directory has one directory of drafts.

One process at a time fills a draft; any number of other processes on this host follow it. Beside the draft is a note
with its state. The process that fills the draft holds the lock of the note. If that process dies, the kernel releases
the lock, and another process can continue at once. A draft that no process continues is swept. Knows files and locks.
Must never know upstream, storage, or packages.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import msgspec
from attrs import define, field, frozen
from twisted.logger import Logger

from mypypi.clock import MOST_SKEW
from mypypi.errors import MyPyPiError
from mypypi.files.content import Content
from mypypi.files.room import Room, Share

_DRAFT, _NOTE = ".draft", ".note"
#: The size of a note, in bytes. A note is written by one call and read by one call.
_NOTE_SIZE = 4096
#: The longest error message in a note, in characters.
_LONGEST_MESSAGE = 1000
#: A draft is swept after this many seconds without a process that fills it. Until then, any process may continue it.
ABANDONED_SECONDS = 15.0
#: Bytes that a probe writes. A disk with less room than this counts as full.
_PROBE = 64 * 1024


@frozen
class State:
    """
    The state of a draft, written by the process that fills it.

    Once it has `begun`, readers may get bytes as they arrive. `total` is the size that upstream announces, `validator`
    upstream's validator for this version of the file. While it is `late`, upstream has not answered in time. A draft
    with a `digest` is complete and checked. A draft with an `error` (the arguments of `mypypi.errors.error_from`) must
    not be used.
    """

    begun: bool = False
    total: int | None = None
    validator: str = ""
    late: bool = False
    digest: str = ""
    error: tuple[str, str, int | None, int] | None = None


@define(eq=False)
class Draft:
    """
    A file that is being fetched, with the content for this process's readers.

    With `filling`, this process fills it. Otherwise this process follows it, and `content` has a descriptor once the
    file exists.
    """

    path: Path
    content: Content
    filling: bool
    state: State
    _lock: int
    _note: Path = field(repr=False)
    #: The disk space that this process has taken for the draft.
    share: Share = field(repr=False)

    def write(self, data: bytes, offset: int) -> None:
        """
        Write bytes at this offset, and take room for them. The caller calls `Content.grow`.

        Blocks; raises StorageFull and OSError.
        """
        end = offset + len(data)
        self.share.ask_for_writing(end)
        write_at(self.content.fd, data, offset)
        self.share.note_used(max(end, self.share.used))

    def reserve(self, size: int) -> None:
        """Take room for a draft of this size in bytes. Blocks; raises StorageFull and OSError."""
        self.share.note_used(os.fstat(self.content.fd).st_size)
        self.share.ask(size)

    def reserve_little(self, size: int) -> bool:
        """Take room for a small draft that is empty, if there is plenty. Returns whether it did. Does not block."""
        return not self.content.length and self.share.ask_for_little(size)

    def write_note(self, state: State) -> None:
        """Write the note, for the processes that follow. Raises OSError."""
        self.state = state
        write_at(self._lock, msgspec.json.encode(state).ljust(_NOTE_SIZE), 0)

    def refresh(self) -> bool:
        """
        Update state and content with the progress of the process that fills the draft.

        Returns whether anything has changed. Raises OSError.
        """
        before, length = self.state, self.content.length
        self._read_state()
        if self.content.fd < 0:
            self._open(os.O_RDWR)
        there = os.fstat(self.content.fd).st_size if self.content.fd >= 0 else 0
        if there > length:
            self.content.grow(there - length)
        self.content.set_late(self.state.late)
        if self.state.begun and not self.content.begun:
            self.content.begin(self.state.total)
        return self.state != before or there > length

    def write_failure(self, error: MyPyPiError) -> None:
        """Write to the note why the draft has failed, for the processes that follow. Raises OSError."""
        self.write_note(
            State(error=(type(error).__name__, str(error)[:_LONGEST_MESSAGE], error.retry_after, error.status))
        )

    def take_over(self) -> bool:
        """
        Start to fill the draft, if no other process does.

        A draft that has ended is not filled again. Returns whether this process fills it now. Raises OSError.
        """
        return _locked(self._lock) and self.fill()

    def fill(self) -> bool:
        """Start to fill the draft, whose lock this process has. See `take_over`."""
        self._read_state()
        if self.has_ended():
            return False
        if self.content.fd < 0:
            self._open(os.O_RDWR | os.O_CREAT)
        self.filling = True
        return True

    def has_ended(self) -> bool:
        """Whether the draft is gone: it was stored, has failed, or was swept."""
        return os.fstat(self._lock).st_nlink == 0

    def empty(self) -> None:
        """Remove all bytes and reset the state, to start again. Raises OSError."""
        os.ftruncate(self.content.fd, 0)
        self.share.note_used(0)
        self.content.length, self.content.total, self.content.begun = 0, None, False
        self.write_note(State())

    def drop(self) -> None:
        """Delete the draft and its note. Readers that have it open can read on."""
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)

    def close(self) -> None:
        """Stop filling or following the draft. Unless it was dropped, another process can continue it."""
        self.share.give_back()
        os.close(self._lock)
        self.content.close()

    def _read_state(self) -> None:
        with suppress(msgspec.MsgspecError):  # the note is still empty, or is being written
            self.state = msgspec.json.decode(os.pread(self._lock, _NOTE_SIZE, 0), type=State)

    def _open(self, how: int) -> None:
        """Open the file, unless the draft has ended. Then a file of this name belongs to a newer draft."""
        with suppress(FileNotFoundError):
            fd = os.open(self.path, how | os.O_CLOEXEC, 0o640)
            if self.has_ended():
                os.close(fd)
            else:
                self.content.fd = fd


class Drafts:
    """The drafts in one directory."""

    log = Logger()

    def __init__(self, directory: Path, room: Room) -> None:
        """Drafts in `directory` take their disk space from `room`."""
        self._directory = directory
        self.room = room

    def open(self, name: str) -> Draft:
        """
        Open or create the draft of this name.

        If no process fills it, this process does, and continues with the bytes that are there. Otherwise this process
        follows it. Raises OSError.
        """
        path, note = self._directory / f"{name}{_DRAFT}", self._directory / f"{name}{_NOTE}"
        while True:
            lock = self._open_note(note)
            draft = Draft(path, Content(-1), False, State(), lock, note, self.room.share())
            try:
                if not _locked(lock):
                    draft.refresh()
                    return draft
                if draft.fill():
                    draft.content.length = os.fstat(draft.content.fd).st_size
                    return draft
            except BaseException:
                draft.close()
                raise
            draft.close()  # the note was deleted after it was opened and before it was locked

    def _open_note(self, note: Path) -> int:
        """Open or create a note, and return its descriptor. Raises OSError."""
        how = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        try:
            return os.open(note, how, 0o640)
        except FileNotFoundError:
            self._directory.mkdir(parents=True, exist_ok=True)
        return os.open(note, how, 0o640)

    def probe(self) -> None:
        """
        Check that drafts can be written, with a temporary file, and that there is room for them.

        Blocks; raises OSError, and StorageFull while there is no room for a draft that was refused.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self._directory) as probe:
            probe.write(bytes(_PROBE))
        self.room.check()

    def sweep(self) -> int:
        """Delete abandoned drafts, and return their number. Blocks; raises OSError."""
        swept = 0
        before = time.time() - ABANDONED_SECONDS
        for note in self._directory.glob(f"*{_NOTE}"):
            swept += _sweep_abandoned(note, before)
        for path in self._directory.glob(f"*{_DRAFT}"):  # drafts without a note
            if not path.with_suffix(_NOTE).exists() and _changed_at(path) < before:
                path.unlink(missing_ok=True)
                swept += 1
        if swept:
            self.log.info("swept {swept} drafts that no process was filling", swept=swept)
        return swept


def write_at(fd: int, data: bytes, offset: int) -> None:
    """
    Write all these bytes. Blocks; raises OSError.

    One call of the system may write fewer bytes, for instance when the disk becomes full.
    """
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written


def _locked(fd: int) -> bool:
    """Try to lock the file, and return whether this process has the lock now."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _changed_at(path: Path) -> float:
    """
    Return the time of a file's last change. In seconds since the epoch; 0 if there is no such file.

    A time that lies in the future, since the clock was ahead then, is set to now. Otherwise it would seem new for as
    long as the clock was ahead.
    """
    now = time.time()
    try:
        changed_at = path.stat().st_mtime
        if changed_at <= now + MOST_SKEW:
            return changed_at
        os.utime(path, (now, now))
    except FileNotFoundError:
        return 0.0
    return now


def _sweep_abandoned(note: Path, before: float) -> bool:
    """
    Delete a draft under its lock, if it has not changed since `before`.

    Returns whether it was deleted. The lock lets a process that is just opening the draft see that it is gone (see
    `Drafts.open`).
    """
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
