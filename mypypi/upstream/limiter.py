"""Turns: so many at once, others in a queue that has an end, and what can wait only while there is room to spare.

Knows numbers. Must never know what is done in a turn.
"""

from __future__ import annotations

from twisted.internet.defer import DeferredSemaphore

from mypypi.errors import UpstreamBusy
from mypypi.observability import metrics

#: How many may wait, for each that may run: at a second for each request, so many seconds of waiting.
_WAITING = 16


class ConcurrencyLimiter:
    """At most `limit` requests to upstream at once. Those of a `metered` one are counted."""

    def __init__(self, limit: int, *, metered: bool = True) -> None:
        self._places = DeferredSemaphore(limit)
        self._metered = metered

    @property
    def has_spare_capacity(self) -> bool:
        """Whether more than half of the places are free, so that what nobody waits for may take one."""
        return self._places.tokens > self._places.limit // 2

    async def acquire(self, *, background: bool = False) -> None:
        """
        Wait for a turn, which is to be ended. One who is `background` gets none where there is no room to spare.

        Raises UpstreamBusy where too many wait.
        """
        if len(self._places.waiting) >= _WAITING * self._places.limit or (background and not self.has_spare_capacity):
            if self._metered and not background:
                metrics.UPSTREAM_REFUSED.inc()
            raise UpstreamBusy("too many requests wait for upstream: try again")
        self._count(waiting=1)
        try:
            await self._places.acquire()
        finally:
            self._count(waiting=-1)
        self._count(running=1)

    def release(self) -> None:
        """It is the next one's turn."""
        self._count(running=-1)
        self._places.release()

    def _count(self, *, waiting: int = 0, running: int = 0) -> None:
        if self._metered:
            metrics.UPSTREAM_WAITING.inc(waiting)
            metrics.UPSTREAM_RUNNING.inc(running)
