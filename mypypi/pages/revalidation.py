"""Revalidates pages, with one request to upstream per fleet.

After a failure, a cached page is not requested again until its back-off ends. Knows upstream, the renderer, leases and
the back-off. Must never know which client requests a page, or how long a page counts as fresh: a function passed in
decides that.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from attrs import evolve, frozen
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger

from mypypi.coalescing import Coalescer
from mypypi.errors import (
    BadUpstreamResponse,
    CatalogDown,
    MyPyPiError,
    NotFound,
    UpstreamBusy,
    UpstreamDown,
    UpstreamPaused,
    UpstreamUnreachable,
)
from mypypi.model import Page, PageId, Pause
from mypypi.observability import metrics

if TYPE_CHECKING:
    from mypypi.interfaces import IEcosystem
    from mypypi.pages.page_store import PageStore
    from mypypi.pages.rendering import Renderer
    from mypypi.redis.leases import Leases
    from mypypi.threads import Threads
    from mypypi.upstream.backoff import Backoff
    from mypypi.upstream.client import Upstream

#: Seconds until a page's lease expires. If the process that asks upstream is killed, clients wait this long, and they
#: time out after 15 s (pip, poetry).
PAGE_LEASE = 4.5
#: Seconds between two checks for the result of another process, and the longest wait for it.
_POLL_INTERVAL = 0.1
_LONGEST_WAIT = 120.0
#: Seconds for which all cached pages are served stale after upstream was slow for one of them. An install reads
#: hundreds of pages, many of them one after another, and would wait for each.
_STALE_PERIOD = 2.0


@frozen
class PageSource:
    """The upstream of an index, and the means to render its pages."""

    ecosystem: IEcosystem
    upstream: Upstream
    renderer: Renderer
    threads: Threads


class Revalidator:
    """
    Fetches pages from upstream into the `store`. `fresh` says whether a page is fresh.

    The process that holds a page's lease asks upstream. Other processes wait for its result, a page or a failure. If
    the lease becomes free without a result, the process that takes it asks upstream.
    """

    log = Logger()

    def __init__(
        self,
        source: PageSource,
        store: PageStore,
        leases: Leases,
        backoff: Backoff,
        clock: Any,
        fresh: Callable[[Page], bool],
    ) -> None:
        self._source = source
        self._store = store
        self._leases = leases
        self._backoff = backoff
        self._clock = clock
        self._fresh = fresh
        self._running: Coalescer[Page] = Coalescer()
        self._failing = ""
        self._failed_at = 0.0
        self._serve_stale_until = 0.0

    def __contains__(self, page: PageId) -> bool:
        return page in self._running

    def revalidate(self, page: PageId, cached: Page | None, *, background: bool = False) -> Deferred[Page]:
        """
        Fetch or confirm the page.

        Callers that ask meanwhile share the result. `cached` is the page that is cached, if any. With `background`,
        upstream is not asked while it is busy. Fails with UpstreamDown or BadUpstreamResponse. For a page that upstream
        does not have, the result is a missing page.
        """
        return self._running.run(page, lambda: self._revalidate(page, cached, background=background))

    def is_backing_off(self, page: PageId) -> bool:
        """Whether to serve a cached page without asking upstream. Only what this process knows counts."""
        slow = self._clock.seconds() < self._serve_stale_until
        return slow or self._backoff.remaining(_name(page)) > 0 or self._source.upstream.paused

    def note_recovery(self, cached: Page) -> None:
        """Clear the last failure, if a page was fetched since."""
        if self._failing and cached.checked_at > self._failed_at:
            self._record_success()

    def note_slow_upstream(self) -> None:
        """Serve cached pages without asking upstream for `_STALE_PERIOD` seconds."""
        self._serve_stale_until = self._clock.seconds() + _STALE_PERIOD

    async def check(self) -> None:
        """Raise UpstreamDown with the reason, if upstream is paused or the last page failed."""
        await self._source.upstream.check()
        if self._failing:
            raise UpstreamDown(self._failing)

    async def _revalidate(self, page: PageId, cached: Page | None, *, background: bool) -> Page:
        lease = _name(page)
        try:
            try:
                result = await self._from_other_process(page, cached, lease)
            except CatalogDown:
                result = None  # without Redis, each process asks upstream for itself
            if result is not None:
                self._record_success()
                return result
            return await self._fetch_and_store(page, cached, background=background)
        finally:
            await self._leases.release_if_held(lease)

    async def _from_other_process(self, page: PageId, cached: Page | None, lease: str) -> Page | None:
        """
        Return the page if another process fetched it or is fetching it.

        Returns None if this process has to ask upstream. Raises CatalogDown, and the error of the other process.
        """
        if await self._leases.take(lease) is not None:
            metrics.LEASE_WAITS.labels("page").inc()
            return await self._wait_for_holder(page, cached, lease)
        current = await self._store.read(page)
        if self._is_fresh_update(current, cached):
            return current
        if cached is not None and not cached.missing:
            pause = await self._backoff.read(lease)
            if pause is not None and self._backoff.remaining(lease):
                raise self._error_of(pause)
        return None

    async def _wait_for_holder(self, page: PageId, cached: Page | None, lease: str) -> Page | None:
        """
        Wait for the result of the lease's holder.

        Returns None if it ended without a result, so that this process has to ask upstream. Raises CatalogDown, and the
        error of the other process.
        """
        page_before, pause_before = await self._store.read(page), await self._backoff.read(lease, anew=True)
        until = self._clock.seconds() + _LONGEST_WAIT
        while True:
            acquired = await self._leases.take(lease) is None
            current = await self._store.read(page)
            if self._is_fresh_update(current, cached) or (
                current is not None and current.checked_at and _is_changed(current, page_before)
            ):
                return current
            pause = await self._backoff.read(lease, anew=True)
            if pause is not None and pause != pause_before:
                raise self._error_of(pause)
            if acquired or self._clock.seconds() >= until:
                return None
            await deferLater(self._clock, _POLL_INTERVAL)

    def _is_fresh_update(self, current: Page | None, cached: Page | None) -> bool:
        """Whether the page was fetched or confirmed after `cached`, and is fresh."""
        return (
            current is not None and self._fresh(current) and (cached is None or current.checked_at > cached.checked_at)
        )

    def _error_of(self, pause: Pause) -> MyPyPiError:
        """Return the error that made another process back off."""
        if pause.broken:
            return BadUpstreamResponse(pause.why)
        return UpstreamDown(pause.why, max(1, math.ceil(pause.until - self._clock.seconds())))

    async def _fetch_and_store(self, page: PageId, cached: Page | None, *, background: bool) -> Page:
        try:
            fresh, indexed_links = await self._fetch(page, cached, background=background)
        except NotFound:
            fresh, indexed_links = Page(page, self._clock.seconds(), missing=True, version="missing"), ()
        except (UpstreamPaused, UpstreamBusy):
            raise  # upstream was not asked, so there is no reason for a back-off
        except MyPyPiError as error:
            await self._record_failure(page, error)
            raise
        self._record_success()
        await self._backoff.end(_name(page))
        # An unconfirmed page is stored in full even if it turns out to be the same: the catalog may have lost it.
        confirmed = cached is not None and cached.checked_at > 0 and cached.version == fresh.version
        await self._store.put(fresh, indexed_links, confirmed=confirmed)
        return fresh

    async def _fetch(self, page: PageId, cached: Page | None, *, background: bool) -> tuple[Page, tuple[str, ...]]:
        """
        Request the page from upstream; render it if it changed.

        Returns the cached page, confirmed, or a new one, with the links that the catalog has to index.
        """
        source = self._source
        request = source.ecosystem.page_request(page)
        etag, modified = (cached.upstream_etag, cached.upstream_modified) if cached is not None else ("", "")
        response = await source.upstream.page(request.path, request.accept, etag, modified, background=background)
        now = self._clock.seconds()
        if response.source is None:
            assert cached is not None
            return evolve(cached, checked_at=now), ()
        digest = await source.threads.run(_digest, response.source.body)
        if cached is not None and cached.source == digest:
            return evolve(cached, checked_at=now), ()
        withheld = await self._store.withheld(page)
        rendered = await source.renderer.render(page, response.source, withheld)
        version = f"{digest[:32]}-{int(now * 1000):x}" if withheld else digest[:32]
        fresh = Page(
            page,
            now,
            rendered.forms,
            upstream_etag=response.etag,
            upstream_modified=response.modified,
            source=digest,
            version=version,
            modified=response.modified or rendered.modified,
        )
        return fresh, rendered.indexed_links

    async def _record_failure(self, page: PageId, error: MyPyPiError) -> None:
        """Begin a back-off for this page, which all processes share."""
        if not self._failing:
            self.log.warn("upstream fails, serving cached pages: page {page}: {why}", page=str(page), why=error)
        self._failing, self._failed_at = str(error), self._clock.seconds()
        if isinstance(error, UpstreamUnreachable):
            self.note_slow_upstream()
        await self._backoff.begin(_name(page), str(error), broken=isinstance(error, BadUpstreamResponse))

    def _record_success(self) -> None:
        self._serve_stale_until = 0.0
        if self._failing:
            self._failing = ""
            self.log.info("upstream answers again")


def _name(page: PageId) -> str:
    """The name of a page's lease and of its back-off."""
    return f"page:{page}"


def _is_changed(current: Page, before: Page | None) -> bool:
    return before is None or (current.version, current.checked_at) != (before.version, before.checked_at)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
