"""A page's life: fresh, asked for anew, confirmed or replaced, or stale while upstream fails.

Knows what is held, and how it is refreshed. Must never know routes, HTTP towards clients, or what is in a page beyond
the listing that its ecosystem reads from it.
"""

from __future__ import annotations

import random
import zlib
from typing import TYPE_CHECKING, Any

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from mypypi.coalescing import Coalescer
from mypypi.errors import MyPyPiError, NotFound
from mypypi.model import Form, PackageFile, Page, PageId
from mypypi.pages.page_store import LOOK_AGAIN, PageStore
from mypypi.pages.rendering import Part, derive
from mypypi.pages.revalidation import PageSource, Revalidator

if TYPE_CHECKING:
    from mypypi.interfaces import ICatalog, IEcosystem
    from mypypi.pages.memory_cache import MemoryCache
    from mypypi.pages.rendering import Renderer
    from mypypi.redis.leases import Leases
    from mypypi.threads import Threads
    from mypypi.upstream.backoff import Backoff
    from mypypi.upstream.client import Upstream

#: The share of its freshness that is left of a page when it is asked for early at most, and at least.
_EARLY, _EARLY_AT_LEAST = 0.2, 0.05


@frozen
class CachedPage:
    """A page to serve. `ttl`: seconds of freshness left, negative where it is stale. `why` upstream was asked for it
    (a fwd reason of RFC 9211, section 2.2), empty where upstream was not asked or has not answered."""

    page: Page
    ttl: float
    why: str = ""


class PageCache:
    """
    The pages of one ecosystem behind one upstream. Times are seconds.

    After `stale_after` a page that we hold is answered as it is, while upstream is still being asked: clients give up
    reading after 15 s or more (pip, poetry), and one that waits is a build that waits.
    """

    log = Logger()

    def __init__(
        self,
        ecosystem: IEcosystem,
        catalog: ICatalog,
        upstream: Upstream,
        renderer: Renderer,
        threads: Threads,
        clock: Any,
        leases: Leases,
        backoff: Backoff,
        *,
        cache_time: float,
        negative_cache_time: float,
        stale_after: float,
        memory: MemoryCache,
    ) -> None:
        self._ecosystem = ecosystem
        self._upstream = upstream
        self._threads = threads
        self._clock = clock
        self._cache_time = cache_time
        self._negative_cache_time = negative_cache_time
        self._stale_after = stale_after
        self._memory = memory
        self._deriving: Coalescer[Form] = Coalescer()
        self._store = PageStore(catalog, clock, memory)
        source = PageSource(ecosystem, upstream, renderer, threads)
        self._revalidator = Revalidator(source, self._store, leases, backoff, clock, lambda page: self._ttl(page) > 0)
        # Where this is less than the time in which others see what one process took in, it would be asked for twice.
        self._early = cache_time * _EARLY if cache_time * _EARLY_AT_LEAST >= LOOK_AGAIN else 0.0
        self._salt = random.random()  # noqa: S311

    async def get(self, page: PageId) -> CachedPage:
        """
        The page, asked of upstream where it is not fresh; as it was, however old, where upstream fails.

        Raises NotFound when upstream says so; UpstreamDown or BadUpstreamResponse when there is no page to
        fall back on.
        """
        held = await self._store.held(page)
        if held is not None and (ttl := self._ttl(held)) > 0:
            if ttl < self._early:
                self._refresh_early(held, ttl)
            self._revalidator.notice(held)
            return self._answer(held, "")
        if held is None or held.missing:
            fresh = await self._revalidator.revalidate(page, held)
            return self._answer(fresh, "miss")
        if self._revalidator.is_put_off(page):
            return self._answer(held, "")
        try:
            fresh = await self._in_time(self._revalidator.revalidate(page, held), held)
        except MyPyPiError:
            return self._answer(held, "")
        return self._answer(fresh, "" if fresh is held else "stale")

    async def held(self, page: PageId) -> Page | None:
        """The page as it is known, fresh or not, without asking upstream."""
        return await self._store.held(page)

    async def listing(self, page: Page) -> dict[str, PackageFile]:
        """The files that this page lists, by link."""
        listing = self._store.listing(page)
        if listing is not None:
            return listing
        name = self._ecosystem.listing_form(page.id)
        if name is None or name not in page.forms:
            return {}
        listing = await self._threads.run(self._read_listing, page, name)
        self._store.put_listing(page, listing)
        return listing

    async def form_for(self, form: Form, base: str, part: Part | None = None) -> Form:
        """
        The form as clients at this base address get it, or a `part` of it; made once and kept in memory.

        Raises NotFound where the page has no such part.
        """
        if not form.based:
            base = ""
        if part is None and not form.based:
            return form
        name = (form.etag, base, part.name if part is not None else "")
        derived = self._memory.derived(name)
        if derived is None:
            derived = await self._deriving.run(name, lambda: self._derive(form, base, part))
            self._memory.put_derived(name, derived)
        return derived

    async def withhold(self, page: PageId, link: str) -> None:
        """Stop advertising a link that upstream lists and does not have: the page is taken in anew when next asked."""
        await self._store.withhold(page, link)

    async def check(self) -> None:
        """Raises UpstreamDown with the reason while upstream is not asked, or the last page was not to be had."""
        await self._revalidator.check()

    def _read_listing(self, page: Page, name: str) -> dict[str, PackageFile]:
        return self._ecosystem.listing(page.id, {name: zlib.decompress(page.forms[name].body, 31)})

    async def _derive(self, form: Form, base: str, part: Part | None) -> Form:
        return await self._threads.run(derive, form, base, part)

    def _ttl(self, page: Page) -> float:
        lifetime = self._negative_cache_time if page.missing else self._cache_time
        left: float = page.checked_at + lifetime - self._clock.seconds()
        return left

    def _answer(self, page: Page, why: str) -> CachedPage:
        if page.missing:
            raise NotFound(f"upstream has no {page.id}")
        return CachedPage(page, self._ttl(page), why)

    def _refresh_early(self, held: Page, ttl: float) -> None:
        """A page that is asked for is refreshed before it runs out, so that nobody waits for it. When differs for each
        page and process: what was taken in together is asked for one after another, and by the first process alone."""
        share = (hash((self._salt, held.id)) & 0xFFFF) / 0xFFFF
        when = self._cache_time * (_EARLY_AT_LEAST + share * (_EARLY - _EARLY_AT_LEAST))
        if ttl > when or held.missing or held.id in self._revalidator:
            return
        if self._upstream.has_spare_capacity and not self._revalidator.is_put_off(held.id):
            self._revalidator.revalidate(held.id, held, background=True).addErrback(self._not_refreshed, held.id)

    def _not_refreshed(self, failure: Failure, page: PageId) -> None:
        """It is tried again when it is asked for next."""
        if not failure.check(MyPyPiError):
            self.log.failure("{page} could not be refreshed", failure, page=str(page))

    async def _in_time(self, refresh: Deferred[Page], held: Page) -> Page:
        """The refreshed page, or the one that we hold where that takes long. The refresh goes on."""
        late = self._clock.callLater(self._stale_after, self._late, refresh, held)
        try:
            return await refresh
        finally:
            if late.active():
                late.cancel()

    def _late(self, refresh: Deferred[Page], held: Page) -> None:
        self._revalidator.silent()
        refresh.callback(held)
