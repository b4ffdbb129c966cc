"""Lets the transfer of a file give way to other requests while no client waits for the file.

A client may wait in this process, or in another one of this host, which follows the draft. Knows a draft, its readers,
and the demand for a request. Must never know upstream, or how a file is transferred.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred

from mypypi.upstream.limiter import Demand

if TYPE_CHECKING:
    from mypypi.files.drafts import Draft

#: Seconds until a transfer that gave way asks for a place again. It does so at once when a client comes.
ASIDE = 5.0
#: Seconds between two looks whether a client of another process waits.
_LOOK = 1.0


class Standby:
    """
    Whether any client waits for one file. If none does, the transfer gives way when another request needs its place.

    `interrupt` is called then. The transfer stops, and calls `rest` before it asks for a place again.
    """

    def __init__(self, draft: Draft, clock: Any) -> None:
        self.demand = Demand(self._give_way)
        self.interrupt: Callable[[], object] = lambda: None
        #: Whether the transfer was asked to give way, and has not rested since.
        self.gives_way = False
        self._waiting: list[Deferred[None]] = []
        self._draft = draft
        self._clock = clock
        self._look: Any = None
        self._rest: Any = None

    @property
    def is_wanted(self) -> bool:
        """Whether any client waits for the file."""
        return not self.demand.idle

    def stored(self) -> Deferred[None]:
        """Return a Deferred that fires once the file is stored, or fails with the reason why it is not."""
        stored: Deferred[None] = Deferred(self._leave)
        self._waiting.append(stored)
        self.review()
        return stored

    def _leave(self, stored: Deferred[None]) -> None:
        self._waiting.remove(stored)
        self.review()

    def settle(self, trouble: Exception | None) -> None:
        """Fire what `stored` has returned, after the fetch."""
        for each in self._waiting:
            if not each.called:
                each.callback(None) if trouble is None else each.errback(trouble)

    def begin(self) -> None:
        """Watch whether a client waits, until `end`."""
        self._draft.content.readers_changed = self.review
        self.review()

    def end(self) -> None:
        """Stop watching."""
        self._draft.content.readers_changed = lambda: None
        self._stop_looking()

    def review(self) -> None:
        """Look whether a client waits. If this process follows the draft, tell the one that fills it."""
        self._stop_looking()
        draft, fd = self._draft, self._draft.content.fd
        is_wanted = draft.content.has_readers or not all(each.called for each in self._waiting)
        if not draft.filling:
            if fd >= 0:
                _show(fd, is_wanted=is_wanted)
        elif not is_wanted:
            is_wanted = _is_followed(fd)
            self._look = self._clock.callLater(_LOOK, self.review)
        self.demand.set_idle(not is_wanted)
        if is_wanted and self._rest is not None and self._rest.active():
            self._rest.reset(0)

    def rest(self) -> Deferred[None]:
        """Return a Deferred that fires when the transfer may ask for a place again, after it gave way."""
        self.gives_way = False
        rested: Deferred[None] = Deferred(lambda _: self._rest.cancel())
        self._rest = self._clock.callLater(ASIDE if self.demand.idle else 0, rested.callback, None)
        return rested

    def _give_way(self) -> None:
        self.gives_way = True
        self.interrupt()

    def _stop_looking(self) -> None:
        if self._look is not None and self._look.active():
            self._look.cancel()


def _show(fd: int, *, is_wanted: bool) -> None:
    """
    Let the process that fills a draft know whether a client of this process waits for it.

    A shared lock of the draft says so. The kernel releases it if this process dies.
    """
    with suppress(BlockingIOError):  # the other process is just looking: the next review says it
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB if is_wanted else fcntl.LOCK_UN)


def _is_followed(fd: int) -> bool:
    """Whether a client of another process of this host waits for the draft."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False
