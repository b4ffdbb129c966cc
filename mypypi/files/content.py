"""The bytes of a file, for many readers at once, whether it is whole or still arriving.

Knows a file descriptor, how much of it may be read by now, and who wants to hear when that changes. Must never know
where the bytes come from or to whom they go.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from twisted.internet.defer import Deferred

from mypypi.model import Digest

#: The last bytes of a file that is not checked yet stay here until its digest agrees.
HELD_BACK = 4096


class Content:
    """
    Bytes on disk behind the descriptor `fd`, of which the first `length` are there. It is -1 until there is a file.

    It has `begun` when its first bytes may be handed on as they come; `total` is the number of bytes of the whole file,
    None while nobody knows. It ends in one of two ways: `whole`, its digest checked and every byte readable, or with an
    `error`. It has a watcher for each reader.
    """

    def __init__(self, fd: int, *, length: int = 0, total: int | None = None, whole: bool = False) -> None:
        self.fd = fd
        self.length = length
        self.total = total
        self.whole = whole
        self.begun = whole
        self.error: Exception | None = None
        self.digest: Digest | None = None
        self._watchers: list[Callable[[], None]] = []
        self._users = 1

    @classmethod
    def stored(cls, path: Path, size: int) -> Content:
        """The whole content of a stored file. Raises OSError."""
        return cls(os.open(path, os.O_RDONLY | os.O_CLOEXEC), length=size, total=size, whole=True)

    @property
    def readable(self) -> int:
        """How many bytes from the start may be handed on by now."""
        if self.whole:
            return self.length
        limit = self.length if self.total is None else min(self.length, self.total)
        return max(0, limit - HELD_BACK)

    @property
    def ended(self) -> bool:
        """Whether nothing more will change."""
        return self.whole or self.error is not None

    def begin(self, total: int | None) -> None:
        """Bytes are on their way, so many in all as far as upstream says."""
        self.begun = True
        self.total = total
        self.changed()

    def grow(self, count: int) -> None:
        """So many more bytes are on disk."""
        self.length += count
        self.changed()

    def finish(self, digest: Digest) -> None:
        """Every byte is there and the digest has been checked."""
        self.digest = digest
        self.total = self.length
        self.begun = self.whole = True
        self.changed()

    def fail(self, error: Exception) -> None:
        """No further byte will come, and those that are there are worth nothing."""
        if not self.ended:
            self.error = error
            self.changed()

    def watch(self, watcher: Callable[[], None]) -> None:
        """Call this whenever something changed, until `unwatch`."""
        self._watchers.append(watcher)

    def unwatch(self, watcher: Callable[[], None]) -> None:
        """Stop calling it; nothing happens where it is not called."""
        if watcher in self._watchers:
            self._watchers.remove(watcher)

    def changed(self) -> None:
        """Tell every watcher to look again."""
        for watcher in tuple(self._watchers):
            watcher()

    def when(self, happened: Callable[[], bool]) -> Deferred[None]:
        """Fires once this is true, at once where it is. A Deferred of the caller's own: cancelling it stops no one."""
        waiting: Deferred[None] = Deferred(lambda _: self.unwatch(look))

        def look() -> None:
            if not waiting.called and happened():
                self.unwatch(look)
                waiting.callback(None)

        self.watch(look)
        look()
        return waiting

    def open(self) -> Content:
        """One more user of the descriptor; each calls `close` once."""
        self._users += 1
        return self

    def close(self) -> None:
        """One user less; the last one closes the descriptor."""
        self._users -= 1
        if self._users == 0 and self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
