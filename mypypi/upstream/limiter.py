"""Limits concurrent requests; further requests wait in a bounded queue.

Background requests do not wait, and only run while there is spare capacity. Knows numbers. Must never know what a slot
is used for.
"""

from __future__ import annotations

from twisted.internet.defer import DeferredSemaphore

from mypypi.errors import UpstreamBusy
from mypypi.observability import metrics

#: Requests that may wait, per slot. If each request takes a second, the last one waits about as many seconds.
_WAITING_PER_SLOT = 16


class ConcurrencyLimiter:
    """Runs at most `limit` requests at once. With `metered`, they are counted in the metrics."""

    def __init__(self, limit: int, *, metered: bool = True) -> None:
        self._slots = DeferredSemaphore(limit)
        self._metered = metered

    @property
    def has_spare_capacity(self) -> bool:
        """Whether more than half of the slots are free. Only then may background requests take one."""
        return self._slots.tokens > self._slots.limit // 2

    async def acquire(self, *, background: bool = False) -> None:
        """
        Wait for a slot, which the caller has to release.

        Raises UpstreamBusy if too many requests wait, or if a `background` request finds no spare capacity.
        """
        if len(self._slots.waiting) >= _WAITING_PER_SLOT * self._slots.limit or (
            background and not self.has_spare_capacity
        ):
            if self._metered and not background:
                metrics.UPSTREAM_REFUSED.inc()
            raise UpstreamBusy("too many requests wait for upstream: try again later")
        self._count(waiting=1)
        try:
            await self._slots.acquire()
        finally:
            self._count(waiting=-1)
        self._count(running=1)

    def release(self) -> None:
        """Free the slot for the next request that waits."""
        self._count(running=-1)
        self._slots.release()

    def _count(self, *, waiting: int = 0, running: int = 0) -> None:
        if self._metered:
            metrics.UPSTREAM_WAITING.inc(waiting)
            metrics.UPSTREAM_RUNNING.inc(running)
