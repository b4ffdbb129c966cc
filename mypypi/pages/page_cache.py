"""Serves pages from the cache, and revalidates stale ones.

Knows which pages are cached and when they are refreshed. Must never know routes, HTTP towards clients, or the content
of a page beyond the listing that its ecosystem reads from it.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from mypypi.clock import remaining
from mypypi.errors import (
    MyPyPiError,
    NotFound,
    OutOfDescriptors,
    TemporarilyUnavailable,
    UpstreamDown,
    UpstreamRefused,
    upstream_error,
)
from mypypi.model import Page, PageId, Part
from mypypi.pages.derived import DerivedForms
from mypypi.pages.guesses import GUESS_SECONDS, Guesses
from mypypi.pages.page_store import CATALOG_INTERVAL, PageStore
from mypypi.pages.revalidation import Revalidator
from mypypi.pages.source import PageSource
from mypypi.redis_budget import redis_budget
from mypypi.rendering.listing import Listing

if TYPE_CHECKING:
    from mypypi.interfaces import ICatalog, IEcosystem
    from mypypi.pages.memory_cache import MemoryCache
    from mypypi.redis.leases import Leases
    from mypypi.rendering.renderer import Renderer
    from mypypi.threads import Threads
    from mypypi.upstream.backoff import Backoff
    from mypypi.upstream.client import Upstream
    from mypypi.upstream.range_support import RangeSupport

#: Share of a page's freshness that is left when it is refreshed early: at most, and at least.
_EARLIEST_REFRESH, _LATEST_REFRESH = 0.2, 0.05
#: Seconds after which upstream is asked again for a page that lacks what a client asks for by name.
RECHECK_AFTER = 5.0
_UNASKED = "upstream could not be asked whether it has this by now: try again later"


@frozen
class CachedPage:
    """
    A page to serve, and how fresh it is.

    `ttl`: seconds of freshness left, negative for a stale page. `forward_reason`: why upstream was asked (RFC 9211,
    section 2.2), empty if upstream was not asked or has not answered.
    """

    page: Page
    ttl: float
    forward_reason: str = ""


class PageCache:
    """
    The cached pages of one ecosystem behind one upstream. Times are in seconds.

    If upstream takes longer than `stale_after`, a cached page is served stale while the request to upstream goes on.
    Clients time out after 15 s or more (pip, poetry), and a client that waits is a build that waits.
    """

    log = Logger()

    def __init__(
        self,
        ecosystem: IEcosystem,
        catalog: ICatalog,
        upstream: Upstream,
        renderer: Renderer,
        clock: Any,
        leases: Leases,
        backoff: Backoff,
        *,
        cache_time: float,
        negative_cache_time: float,
        stale_after: float,
        memory: MemoryCache,
        threads: Threads,
        ranges: RangeSupport | None = None,
    ) -> None:
        """For `ranges` see `PageSource`."""
        self._ecosystem = ecosystem
        self._upstream = upstream
        self._renderer = renderer
        self._clock = clock
        self._cache_time = cache_time
        self._negative_cache_time = negative_cache_time
        self._stale_after = stale_after
        #: The forms of these pages for one address, and their parts.
        self.derived = DerivedForms(ecosystem, renderer, memory, threads, clock)
        self._guesses = Guesses(clock)
        self._store = PageStore(catalog, clock, memory)
        self._revalidator = Revalidator(
            PageSource(ecosystem, upstream, renderer, ranges, self.derived.usual_base),
            self._store,
            leases,
            backoff,
            clock,
            lambda page: self._ttl(page) > 0,
            negative_cache_time=negative_cache_time,
        )
        # Other processes see a refresh within CATALOG_INTERVAL. With less time left, they would repeat it.
        self._early_ttl = cache_time * _EARLIEST_REFRESH if cache_time * _LATEST_REFRESH >= CATALOG_INTERVAL else 0.0
        self._salt = random.random()  # noqa: S311

    async def get(self, page: PageId, client: str = "") -> CachedPage:
        """
        Return the page, revalidated for this client if it is stale.

        If upstream fails, the stale page is returned, however old it is. Raises NotFound or UpstreamRefused if upstream
        says so; UpstreamDown or BadUpstreamResponse if upstream fails and there is no cached page to serve. Raises
        TemporarilyUnavailable for a client that asks for too many pages which do not exist.
        """
        cached = await self._store.get(page)
        if cached is not None and (ttl := self._ttl(cached)) > 0:
            if ttl < self._early_ttl:
                self._refresh_early(cached, ttl)
            self._revalidator.note_recovery(cached)
            return self._serve(cached, "")
        if cached is None or cached.missing:
            return self._serve(await self._look_for(page, cached, client), "miss")
        if self._revalidator.is_backing_off(page):
            return self._serve(cached, "")
        # An install reads hundreds of pages, many of them one after another, and would wait for each.
        is_silent = self._revalidator.is_late(page) or self._upstream.is_silent(self._stale_after)
        refresh = self._revalidator.revalidate(page, cached, client)
        if is_silent:
            refresh.addErrback(self._log_unexpected, page)
            return self._serve(cached, "")
        try:
            fresh = await self._fresh_or_stale(refresh, cached)
        except MyPyPiError:
            return self._serve(cached, "")
        return self._serve(fresh, "" if fresh is cached else "stale")

    def seconds_left(self, page: PageId, version: str) -> float | None:
        """
        Return how long this version of a page is fresh, if `get` would return it at once and had nothing else to do.

        None if it has to be asked for with `get`.
        """
        cached = self._store.at_hand(page)
        if cached is None or cached.version != version or (ttl := self._ttl(cached)) <= self._early_ttl:
            return None
        self._revalidator.note_recovery(cached)
        return ttl

    async def revalidated(self, page: PageId, client: str = "") -> Page:
        """
        Return the page as upstream had it in the last `RECHECK_AFTER` seconds, fresh or not.

        For what the cached page lacks. Raises NotFound or UpstreamRefused if upstream says so, and UpstreamDown if it
        can't be asked; BadUpstreamResponse only where there is no cached page.
        """
        cached = await self._store.get(page)
        if cached is not None and self._left_of(cached, min(RECHECK_AFTER, self._lifetime(cached))) > 0:
            return self._serve(cached, "").page
        held = cached is not None and not cached.missing
        if held and self._revalidator.is_backing_off(page):
            raise UpstreamDown(_UNASKED)
        try:
            fresh = await (
                self._revalidator.revalidate(page, cached, client) if held else self._look_for(page, cached, client)
            )
        except MyPyPiError as error:
            if held and not isinstance(error, (UpstreamRefused, OutOfDescriptors)):
                raise UpstreamDown(_UNASKED, *([error.retry_after] if error.retry_after else [])) from error
            raise
        return self._serve(fresh, "").page

    async def cached(self, page: PageId) -> Page | None:
        """Return the cached page, fresh or not, without asking upstream."""
        return await self._store.get(page)

    async def listing(self, page: Page) -> Listing:
        """Return the files that this page lists."""
        listing = self._store.listing(page)
        if listing is not None:
            return listing
        name = self._ecosystem.listing_form(page.id, page.forms)
        if name is None or name not in page.forms:
            return Listing()
        listing = await self._renderer.listing(page.id, name, page.forms[name])
        self._store.put_listing(page, listing)
        return listing

    async def withhold(self, page: PageId, link: str) -> None:
        """
        Withhold a link that upstream lists but does not have.

        The page becomes unconfirmed, so that its next request fetches and renders it again.
        """
        await self._store.withhold(page, link)

    async def offer(self, page: PageId, link: str) -> None:
        """Let a page advertise the metadata of this wheel from its next revalidation on: it is stored."""
        await self._store.offer(page, link)

    async def check(self) -> None:
        """Raise UpstreamDown with the reason, if upstream is paused or the last page failed."""
        await self._revalidator.check()

    async def _look_for(self, page: PageId, missing: Page | None, client: str) -> Page:
        """
        Ask upstream for a page that is not cached, or was missing.

        Where many such pages of a project were missing lately, the page that lists them is asked first. If it does not
        tell, a client that asked for that many has to wait. Raises NotFound and TemporarilyUnavailable then.
        """
        listed = self._ecosystem.listed_on(page)
        if listed is not None and self._guesses.are_many(listed[0]):
            exists = await self._is_listed(*listed, client)
            if exists is False:
                raise NotFound(f"upstream has no page {page}")
            if exists is None and self._guesses.are_many(listed[0], client):
                why = f"too many pages of {listed[0].project} that do not exist were asked for: try again later"
                raise TemporarilyUnavailable(why, int(GUESS_SECONDS))
        found = await self._revalidator.revalidate(page, missing, client)
        if listed is not None and found.missing:
            self._guesses.note(listed[0], client)
        return found

    async def _is_listed(self, page: PageId, part: Part, client: str) -> bool | None:
        """Whether this page, as upstream has it now, has this part; None if that is not known."""
        try:
            return await self.derived.has(await self.revalidated(page, client), part)
        except MyPyPiError:
            return None

    def _ttl(self, page: Page) -> float:
        """Return the seconds of freshness left, negative for a stale page."""
        return self._left_of(page, self._lifetime(page))

    def _lifetime(self, page: Page) -> float:
        return self._negative_cache_time if page.missing else self._cache_time

    def _left_of(self, page: Page, seconds: float) -> float:
        """Return what is left of these seconds since upstream last confirmed the page, negative if they are over."""
        until, now = page.checked_at + seconds, float(self._clock.seconds())
        return until - now if until <= now else remaining(until, now, seconds)

    def _serve(self, page: Page, why: str) -> CachedPage:
        if page.refusal is not None:
            raise upstream_error(page.refusal.status, page.refusal.reason or f"upstream has no page {page.id}")
        return CachedPage(page, self._ttl(page), why)

    def _refresh_early(self, cached: Page, ttl: float) -> None:
        """
        Refresh a page shortly before it becomes stale.

        Then no client waits for a popular page. The moment differs for each page and process: pages that were fetched
        together are refreshed one after another, and each by the first process only.
        """
        share = (hash((self._salt, cached.id)) & 0xFFFF) / 0xFFFF
        refresh_ttl = self._cache_time * (_LATEST_REFRESH + share * (_EARLIEST_REFRESH - _LATEST_REFRESH))
        if ttl > refresh_ttl or cached.missing or cached.id in self._revalidator:
            return
        kind = self._ecosystem.page_request(cached.id).kind
        if self._upstream.has_spare_capacity(kind) and not self._revalidator.is_backing_off(cached.id):
            with redis_budget():  # that of the request may be used up
                refresh = self._revalidator.revalidate(cached.id, cached, background=True)
            refresh.addErrback(self._log_unexpected, cached.id)

    def _log_unexpected(self, failure: Failure, page: PageId) -> None:
        """Log an error that is not upstream's. The next request for the page tries again."""
        if not failure.check(MyPyPiError):
            self.log.failure("page {page} could not be refreshed", failure, page=str(page))

    async def _fresh_or_stale(self, refresh: Deferred[Page], cached: Page) -> Page:
        """Return the refreshed page, or the stale one after `stale_after`. The refresh goes on."""
        timer = self._clock.callLater(self._stale_after, refresh.callback, cached)
        try:
            return await refresh
        finally:
            if timer.active():
                timer.cancel()
