"""Shares the revalidation of a page among processes: one of them asks upstream, and the others wait for its result.

Knows leases, back-offs and stored pages. Must never know upstream, or how a page is rendered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from attrs import evolve
from twisted.internet.task import deferLater

from mypypi.coordination import Pause
from mypypi.model import Page, PageId
from mypypi.observability import metrics
from mypypi.redis_budget import renew_redis_budget
from mypypi.upstream.backoff import error_of

if TYPE_CHECKING:
    from mypypi.pages.page_store import PageStore
    from mypypi.redis.leases import Leases
    from mypypi.upstream.backoff import Backoff

#: Seconds until a page's lease expires. If the process that asks upstream is killed, clients wait this long, and they
#: time out after 15 s (pip, poetry).
PAGE_LEASE = 4.5
#: Seconds between two checks for the result of another process, and the longest wait for it.
POLL_INTERVAL = 0.1
_LONGEST_WAIT = 120.0
#: What other processes see about the lease of a page for which upstream has not answered in time.
_LATE = "late"


class Fleet:
    """
    What a process knows of the pages that are being requested. `fresh` says whether a page is fresh.

    The process that holds a page's lease asks upstream. Other processes wait for its result, a page or a failure. If
    the lease becomes free without a result, the process that takes it asks upstream.
    """

    def __init__(
        self, store: PageStore, leases: Leases, backoff: Backoff, clock: Any, fresh: Callable[[Page], bool]
    ) -> None:
        self._store = store
        self._leases = leases
        self._backoff = backoff
        self._clock = clock
        self._fresh = fresh
        self._late: set[PageId] = set()

    def is_late(self, page: PageId) -> bool:
        """Whether upstream has not answered the request for this page in time, and the request goes on."""
        return page in self._late

    def make_late(self, page: PageId) -> None:
        """Note that the request for this page goes on. Other processes learn it when the lease is renewed."""
        self._late.add(page)

    async def end(self, page: PageId) -> None:
        """Release the page's lease."""
        self._late.discard(page)
        await self._leases.release_if_held(name_of(page))

    async def result_of_other(self, page: PageId, cached: Page | None) -> Page | None:
        """
        Return the page if another process fetched it or is fetching it.

        Returns None if this process has to ask upstream. Raises CatalogDown, and the error of the other process.
        """
        if not await self._take_lease(page):
            metrics.LEASE_WAITS.labels("page").inc()
            return await self._wait_for_holder(page, cached)
        current = await self._store.read(page)
        return current if self._is_fresh_update(current, cached) else None

    async def _take_lease(self, page: PageId) -> bool:
        """Take the page's lease, or learn whether its holder's request is late. Raises CatalogDown."""
        held = await self._leases.take(name_of(page), lambda: _LATE if page in self._late else "")
        if held is not None and held.about == _LATE:
            self._late.add(page)
        else:
            self._late.discard(page)
        return held is None

    async def _wait_for_holder(self, page: PageId, cached: Page | None) -> Page | None:
        """
        Wait for the result of the lease's holder.

        Returns None if it ended without a result, so that this process has to ask upstream. Raises CatalogDown, and the
        error of the other process.
        """
        page_before, pause_before = await self._store.read(page), await self._backoff.read(name_of(page), anew=True)
        until = self._clock.seconds() + _LONGEST_WAIT
        while True:
            acquired = await self._take_lease(page)
            current = await self._store.read(page)
            if self._is_fresh_update(current, cached) or (
                current is not None and current.checked_at and _is_changed(current, page_before)
            ):
                return current
            pause = await self._backoff.read(name_of(page), anew=True)
            if pause is not None and _is_new(pause, pause_before):
                raise error_of(pause, self._clock.seconds())
            if acquired or self._clock.seconds() >= until:
                return None
            await deferLater(self._clock, POLL_INTERVAL)
            renew_redis_budget()

    def _is_fresh_update(self, current: Page | None, cached: Page | None) -> bool:
        """Whether the page was fetched or confirmed after `cached`, and is fresh."""
        return (
            current is not None and self._fresh(current) and (cached is None or current.checked_at > cached.checked_at)
        )


def name_of(page: PageId) -> str:
    """Return the name of a page's lease and of its back-off."""
    return f"page:{page}"


def _is_changed(current: Page, before: Page | None) -> bool:
    """Whether the page was fetched or confirmed since. If the clock of this host jumps meanwhile, its time is older."""
    return before is None or current.version != before.version or current.checked_at > before.checked_at


def _is_new(pause: Pause, before: Pause | None) -> bool:
    """Whether this is another pause. If the clock of this host jumps meanwhile, the same pause has an earlier end."""
    return before is None or pause.until > before.until or evolve(pause, until=before.until) != before
