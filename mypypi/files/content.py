"""The bytes of a file, stored or still being fetched, for many readers.

Knows a file descriptor, how many of its bytes may be read, and the watchers to call when that changes. Must never know
the source of the bytes, nor the clients that receive them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from twisted.internet.defer import Deferred

from mypypi.digests import Digest

#: Bytes at the end of an unchecked file that readers get only after its digest has been checked.
HELD_BACK = 4096
#: Bytes of the largest file that is held back as a whole, so that a wrong one ends in an error in place of a response
#: that breaks off. A longer file, or one of unknown length, is sent as soon as it is known to be longer.
HELD_WHOLE = 64 * 1024


class Content:
    """
    The bytes of one file on disk, complete or growing.

    `fd` is the file's descriptor, -1 until there is a file. The first `length` bytes are on disk; `total` is the size
    of the complete file, None while it is unknown. Once it has `begun`, readers may get bytes before the file is
    complete. It ends in one of two ways: it is `whole`, with its digest checked, or it has an `error`. It is `late` if
    upstream has not answered the request for it within the time-out. Each reader registers a watcher.
    """

    def __init__(self, fd: int, *, length: int = 0, total: int | None = None, whole: bool = False) -> None:
        self.fd = fd
        self.length = length
        self.total = total
        self.whole = whole
        self.begun = whole
        self.late = False
        self.error: Exception | None = None
        self.digest: Digest | None = None
        #: Is called when the first reader comes, and when the last one leaves.
        self.readers_changed: Callable[[], None] = lambda: None
        self._watchers: list[Callable[[], None]] = []
        self._users = 1

    @classmethod
    def stored(cls, path: Path, size: int) -> Content:
        """Open a stored file as whole content. Raises OSError."""
        return cls(os.open(path, os.O_RDONLY | os.O_CLOEXEC), length=size, total=size, whole=True)

    @property
    def readable(self) -> int:
        """The number of bytes, from the start, that readers may get now."""
        if self.whole:
            return self.length
        limit = self.length if self.total is None else min(self.length, self.total)
        return max(0, limit - HELD_BACK) if self.may_be_read else 0

    @property
    def has_readers(self) -> bool:
        """Whether the descriptor has another user than its owner: the draft, while that is open."""
        return self._users > 1

    @property
    def may_be_read(self) -> bool:
        """Whether readers may get bytes: the content is whole, or is too long to be held back until then."""
        is_long = (self.length if self.total is None else self.total) > HELD_WHOLE
        return self.whole or (self.begun and is_long)

    @property
    def ended(self) -> bool:
        """Whether the content is whole or has failed. Then it does not change any more."""
        return self.whole or self.error is not None

    def begin(self, total: int | None) -> None:
        """Let readers get bytes as they arrive. `total` is the size that upstream announces, or None."""
        self.begun = True
        self.total = total
        self.changed()

    def set_late(self, late: bool) -> None:  # noqa: FBT001 - it is the value
        """Record whether upstream is late with its answer."""
        if self.late != late:
            self.late = late
            self.changed()

    def grow(self, count: int) -> None:
        """Record that this many more bytes are on disk."""
        self.length += count
        self.changed()

    def finish(self, digest: Digest) -> None:
        """Mark the content as whole. Every byte is on disk, and its digest has been checked."""
        self.digest = digest
        self.total = self.length
        self.begun = self.whole = True
        self.changed()

    def fail(self, error: Exception) -> None:
        """End the content with an error, unless it has ended. Readers must not use its bytes any more."""
        if not self.ended:
            self.error = error
            self.changed()

    def watch(self, watcher: Callable[[], None]) -> None:
        """Call this function after every change, until `unwatch`."""
        self._watchers.append(watcher)

    def unwatch(self, watcher: Callable[[], None]) -> None:
        """Stop calling this function. Does nothing if it is not registered."""
        if watcher in self._watchers:
            self._watchers.remove(watcher)

    def changed(self) -> None:
        """Call every watcher."""
        for watcher in tuple(self._watchers):
            watcher()

    def wait_until(self, happened: Callable[[], bool]) -> Deferred[None]:
        """
        Return a Deferred that fires once `happened` returns true.

        If that is already so, it has fired. Each caller has its own Deferred: cancelling it does not affect the others.
        """
        waiting: Deferred[None] = Deferred(lambda _: self.unwatch(look))

        def look() -> None:
            if not waiting.called and happened():
                self.unwatch(look)
                waiting.callback(None)

        self.watch(look)
        look()
        return waiting

    def open(self) -> Content:
        """Add a user of the descriptor. Each user must call `close` once."""
        self._users += 1
        if self._users == 2:  # noqa: PLR2004 - the owner, and a reader
            self.readers_changed()
        return self

    def close(self) -> None:
        """Remove a user of the descriptor. The last one closes it."""
        self._users -= 1
        if self._users == 1:
            self.readers_changed()
        if self._users == 0 and self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
