"""Revalidates pages, with one request to upstream per fleet.

After a failure, a cached page is not requested again until its back-off ends. Knows upstream, the renderer, leases and
the back-off. Must never know which client requests a page, or how long a page counts as fresh: a function passed in
decides that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from mypypi.coalescing import Coalescer
from mypypi.errors import (
    BadUpstreamResponse,
    CatalogDown,
    MyPyPiError,
    NotFound,
    TemporarilyUnavailable,
    UpstreamBusy,
    UpstreamDown,
    UpstreamPaused,
    UpstreamRefused,
    UpstreamTimedOut,
    UpstreamUnreachable,
)
from mypypi.model import Page, PageId, Refusal
from mypypi.pages.fleet import POLL_INTERVAL, Fleet, name_of
from mypypi.upstream.backoff import error_of
from mypypi.upstream.refusals import RULES

if TYPE_CHECKING:
    from mypypi.pages.page_store import PageStore
    from mypypi.pages.source import PageSource
    from mypypi.redis.leases import Leases
    from mypypi.rendering.listing import Listing
    from mypypi.upstream.backoff import Backoff

#: The back-off of a page that can't be rendered lasts so many times as long as rendering it took, so that such pages do
#: not take the processor from others.
_RENDER_BACKOFF = 10


class Revalidator:
    """
    Fetches pages from upstream into the `store`. `fresh` says whether a page is fresh.

    One process of the `Fleet` asks upstream for a page. If that takes longer than upstream's time-out, the clients that
    wait get an error, and the request goes on.
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
        *,
        negative_cache_time: float,
    ) -> None:
        self._source = source
        self._store = store
        self._fleet = Fleet(store, leases, backoff, clock, fresh)
        self._backoff = backoff
        self._clock = clock
        self._running: Coalescer[Page] = Coalescer()
        #: Why the last page failed, in words for the health.
        self._failing = ""
        self._failed_at = 0.0
        self._negative_cache_time = negative_cache_time

    def __contains__(self, page: PageId) -> bool:
        return page in self._running

    def revalidate(
        self, page: PageId, cached: Page | None, client: str = "", *, background: bool = False
    ) -> Deferred[Page]:
        """
        Fetch or confirm the page, for this client.

        Callers that ask meanwhile share the result. `cached` is the page that is cached, if any. With `background`,
        upstream is not asked while it is busy. Fails with UpstreamDown, UpstreamRefused or BadUpstreamResponse; with
        UpstreamTimedOut, the request goes on. For a page that upstream does not have or refuses, the result is a page
        with a refusal.
        """
        waiting = self._running.run(page, lambda: self._revalidate(page, cached, client, background=background))
        if not waiting.called:
            self._limit_wait(page, waiting)
        return waiting

    def is_late(self, page: PageId) -> bool:
        """Whether this page is being requested, and upstream has not answered within its time-out."""
        return self._fleet.is_late(page)

    def is_backing_off(self, page: PageId) -> bool:
        """Whether to serve a cached page without asking upstream. Only what this process knows counts."""
        kind = self._source.ecosystem.page_request(page).kind
        return self._backoff.remaining(name_of(page)) > 0 or self._source.upstream.is_paused(kind)

    def note_recovery(self, cached: Page) -> None:
        """Clear the last failure, if a page was fetched since."""
        if self._failing and cached.checked_at > self._failed_at:
            self._record_success()

    async def check(self) -> None:
        """Raise UpstreamDown with the reason, if upstream is paused or the last page failed."""
        await self._source.upstream.check("page")
        if self._failing:
            raise UpstreamDown(self._failing)

    def _limit_wait(self, page: PageId, waiting: Deferred[Page]) -> None:
        """End this wait once it has taken as long as upstream's time-out, and the request is late."""
        seconds = self._source.upstream.timeout
        timer: Any = None

        def look() -> None:
            nonlocal timer
            if self.is_late(page):
                waiting.errback(UpstreamTimedOut(f"upstream has not answered within {seconds:g} seconds: try again"))
            else:
                timer = self._clock.callLater(POLL_INTERVAL, look)

        def stop(result: Page | Failure) -> Page | Failure:
            if timer.active():
                timer.cancel()
            return result

        timer = self._clock.callLater(seconds, look)
        waiting.addBoth(stop)

    async def _revalidate(self, page: PageId, cached: Page | None, client: str, *, background: bool) -> Page:
        try:
            try:
                result = await self._fleet.result_of_other(page, cached)
            except CatalogDown:
                result = None  # without Redis, each process asks upstream for itself
            if result is not None:
                self._record_success()
                return result
            pause = await self._backoff.wait_out(name_of(page), patient=not _can_serve(cached))
            if pause is not None:
                raise error_of(pause, self._clock.seconds())
            return await self._fetch_and_store(page, cached, client, background=background)
        finally:
            await self._fleet.end(page)

    async def _fetch_and_store(self, page: PageId, cached: Page | None, client: str, *, background: bool) -> Page:
        try:
            fresh, indexed_links, listing = await self._fetch(page, cached, client, background=background)
        except NotFound:
            fresh, indexed_links, listing = self._refused(page, Refusal(NotFound.status)), (), None
        except UpstreamRefused as error:
            if not RULES[error.upstream_status].replaces:
                await self._record_failure(page, error, self._negative_cache_time)
                raise
            fresh, indexed_links, listing = self._refused(page, Refusal(error.status, str(error))), (), None
        except (UpstreamPaused, UpstreamBusy):
            raise  # upstream was not asked, so there is no reason for a back-off
        except UpstreamDown as error:
            await self._record_failure(page, error, error.told)
            raise
        except TemporarilyUnavailable:
            raise  # it could not be rendered now, which is not upstream's failure
        except BadUpstreamResponse as error:
            await self._record_failure(page, error, at_least=error.took * _RENDER_BACKOFF)
            raise
        except MyPyPiError as error:
            await self._record_failure(page, error)
            raise
        self._record_success()
        if self._backoff.last_known(name_of(page)) is not None:
            self.log.info("page {page} is available again", page=str(page))
        await self._backoff.end(name_of(page))
        # An unconfirmed page is stored in full even if it turns out to be the same: the catalog may have lost it.
        confirmed = cached is not None and cached.checked_at > 0 and cached.version == fresh.version
        await self._store.put(fresh, indexed_links, listing, confirmed=confirmed)
        return fresh

    def _refused(self, page: PageId, refusal: Refusal) -> Page:
        version = "missing" if refusal.status == NotFound.status else f"refused-{refusal.status}"
        return Page(page, self._clock.seconds(), refusal=refusal, version=version)

    async def _fetch(
        self, page: PageId, cached: Page | None, client: str, *, background: bool
    ) -> tuple[Page, tuple[str, ...] | None, Listing | None]:
        """
        Request the page from upstream; render it if it changed.

        Returns the cached page, confirmed, or a new one with the links that the catalog has to index, and its listing.
        """
        source = self._source
        request = source.ecosystem.page_request(page)
        etag, modified = source.validators(cached)
        response = await source.upstream.page(
            request,
            etag,
            modified,
            client=client,
            background=background,
            patient=not _can_serve(cached),
            late=lambda: self._fleet.make_late(page),
        )
        now = self._clock.seconds()
        if response.source is None:
            assert cached is not None
            return evolve(cached, checked_at=now), None, None
        try:
            withheld = await self._store.withheld(page)
            rendered, extracts = await source.render(page, response.source, withheld, self._store.offered, cached)
        except BadUpstreamResponse as error:
            error.took = self._clock.seconds() - now
            raise
        finally:
            response.release()
        if cached is not None and not rendered.forms:
            return evolve(cached, checked_at=now), None, None
        if rendered.is_doubtful and cached is not None and await self._lists_files(cached):
            raise BadUpstreamResponse(
                f"upstream's page {page} lists nothing any more, and nothing in it says that it is such a page"
            )
        for note in rendered.notes:
            self.log.warn("page {page} of upstream: {note}", page=str(page), note=note)
        digest = rendered.source
        version = digest[:32] + ("-m" if extracts else "")
        if withheld or rendered.extracts:
            version += f"-{int(now * 1000):x}"
        fresh = Page(
            page,
            now,
            rendered.forms,
            upstream_etag=response.etag,
            upstream_modified=response.modified,
            source=digest,
            version=version,
            modified=response.modified or rendered.modified,
            extracts=extracts,
        )
        return fresh, rendered.indexed_links, rendered.listing

    async def _lists_files(self, cached: Page) -> bool:
        """Whether the cached page lists anything."""
        if cached.missing:
            return False
        name = self._source.ecosystem.listing_form(cached.id, cached.forms)
        if name is None or name not in cached.forms:
            return True
        return len(await self._source.renderer.listing(cached.id, name, cached.forms[name])) > 0

    async def _record_failure(
        self, page: PageId, error: MyPyPiError, seconds: float | None = None, at_least: float = 0.0
    ) -> None:
        """Begin a back-off for this page, which all processes share. See `Backoff.begin` for its length."""
        first = self._backoff.last_known(name_of(page)) is None
        unreachable = isinstance(error, UpstreamUnreachable)
        if (unreachable and not self._failing) or (first and not unreachable):
            self.log.warn("upstream fails, serving cached pages: page {page}: {why}", page=str(page), why=error)
        self._failing, self._failed_at = _public_reason(error), self._clock.seconds()
        await self._backoff.begin(name_of(page), str(error), seconds=seconds, at_least=at_least, status=error.status)

    def _record_success(self) -> None:
        if self._failing:
            self._failing = ""
            self.log.info("upstream answers again")


def _public_reason(error: MyPyPiError) -> str:
    """
    Return why a page failed, for the health, which any client may read.

    It names no page, and repeats no text of upstream's: the log has both.
    """
    if isinstance(error, UpstreamDown):
        return str(error)
    if isinstance(error, UpstreamRefused):
        return f"{RULES[error.upstream_status].words}: the log says for which page"
    return "a page of upstream's could not be used: the log says which one, and why"


def _can_serve(cached: Page | None) -> bool:
    """Whether there is a cached page to serve if upstream fails."""
    return cached is not None and not cached.missing
