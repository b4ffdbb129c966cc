"""Reads and writes pages in memory and in the catalog.

Knows the catalog and the memory cache. Must never know whether a page is fresh, or where a page comes from.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

from attrs import evolve
from twisted.internet.defer import Deferred

from mypypi.errors import CatalogDown
from mypypi.model import Page, PageId
from mypypi.pages.memory_cache import MemoryCache, MemoryEntry
from mypypi.redis_budget import redis_budget

if TYPE_CHECKING:
    from mypypi.interfaces import ICatalog
    from mypypi.rendering.listing import Listing

#: Seconds between two reads of the catalog for a page that is in memory.
CATALOG_INTERVAL = 1.0
#: Seconds after which it is read ahead for a page that is asked for often.
EARLY_READ = 0.75


class PageStore:
    """Pages as last stored by any process: in `memory`, else in the catalog."""

    def __init__(self, catalog: ICatalog, clock: Any, memory: MemoryCache) -> None:
        self._catalog = catalog
        self._clock = clock
        self._memory = memory
        self._reading: set[PageId] = set()

    def at_hand(self, page: PageId) -> Page | None:
        """
        Return the page if it is in memory, and the catalog was read within the last second.

        The catalog is read again shortly before that is over, so that a page that is asked for often stays at hand.
        """
        entry = self._memory.get(page)
        age = CATALOG_INTERVAL if entry is None else self._clock.seconds() - entry.read_at
        if entry is None or age >= CATALOG_INTERVAL:
            return None
        if age >= EARLY_READ and page not in self._reading:
            self._reading.add(page)
            with redis_budget():
                reading = Deferred.fromCoroutine(self.read(page))
            reading.addBoth(self._end_reading, page)
            reading.addErrback(lambda failure: failure.trap(CatalogDown))
        return entry.page

    def _end_reading(self, result: object, page: PageId) -> object:
        self._reading.discard(page)
        return result

    async def get(self, page: PageId) -> Page | None:
        """
        Return the page from memory or from the catalog.

        The catalog is read at most once a second for each page. While it can't be reached, the page in memory counts.
        """
        entry = self._memory.get(page)
        if entry is not None and self._clock.seconds() - entry.read_at < CATALOG_INTERVAL:
            return entry.page
        try:
            return await self.read(page)
        except CatalogDown:
            entry = self._memory.get(page)
            return entry.page if entry is not None else None

    async def read(self, page: PageId) -> Page | None:
        """Return the page as the catalog has it now. Raises CatalogDown."""
        entry, now = self._memory.get(page), self._clock.seconds()
        current = await self._read(page, entry)
        newer = self._memory.get(page)
        if newer is not None and newer is not entry:
            return newer.page  # this process stored it during the read, so the catalog's answer may be older
        return self._memory.put(current, now).page if current is not None else None

    async def put(
        self,
        page: Page,
        indexed_links: tuple[str, ...] | None,
        listing: Listing | None = None,
        *,
        confirmed: bool = False,
    ) -> None:
        """
        Store a page in memory, with its listing if given, and in the catalog.

        `indexed_links` are those of `ICatalog.put_page`. A catalog that can't be reached is skipped. A `confirmed` page
        is in the catalog already: only the time of its last check is written there.
        """
        self._memory.put(page, self._clock.seconds())
        if listing is not None:
            self.put_listing(page, listing)
        try:
            if confirmed:
                await self._catalog.touch_page(page.id, page.version, page.checked_at)
            else:
                await self._catalog.put_page(page, indexed_links)
        except CatalogDown:
            pass  # the catalog logs this itself, once

    async def withheld(self, page: PageId) -> frozenset[str]:
        """Return the withheld links; none if the catalog can't be reached."""
        return await _if_reached(self._catalog.withheld(page))

    async def offered(self, page: PageId) -> frozenset[str]:
        """Return the wheels of this page whose metadata is stored; none if the catalog can't be reached."""
        return await _if_reached(self._catalog.offered(page))

    async def offer(self, page: PageId, link: str) -> None:
        """Let the page advertise the metadata of this wheel. The page is rendered again at its next revalidation."""
        try:
            await self._catalog.offer(page, link)
        except CatalogDown:
            return
        cached = await self.get(page)
        if cached is not None and cached.source:
            await self.put(_without_source(cached), None)

    async def withhold(self, page: PageId, link: str) -> None:
        """Withhold a link from a page. The page becomes unconfirmed."""
        if link in await self.withheld(page):
            return
        try:
            await self._catalog.withhold(page, link)
        except CatalogDown:
            return
        cached = await self.get(page)
        if cached is not None:
            await self.put(_unconfirmed(cached), None)

    def listing(self, page: Page) -> Listing | None:
        """Return the listing of this page version, if in memory."""
        entry = self._memory.get(page.id)
        return entry.listing if entry is not None and entry.page.version == page.version else None

    def put_listing(self, page: Page, listing: Listing) -> None:
        """Keep the page's listing in memory."""
        self._memory.put_listing(page, listing)

    async def _read(self, page: PageId, entry: MemoryEntry | None) -> Page | None:
        if entry is not None:
            stamp = await self._catalog.page_stamp(page)
            if stamp is None:
                return await self._restore(entry.page)
            if stamp[0] == entry.page.version:
                return evolve(entry.page, checked_at=stamp[1])
        return await self._catalog.get_page(page)

    async def _restore(self, page: Page) -> Page:
        """
        Store a page that the catalog lacks again, as unconfirmed.

        The catalog has lost the page, or could not be reached when the page was stored. Other processes can serve the
        unconfirmed page if upstream fails.
        """
        unconfirmed = _unconfirmed(page)
        if not page.missing:
            await self._catalog.put_page(unconfirmed, None)
        return unconfirmed


async def _if_reached(reading: Awaitable[frozenset[str]]) -> frozenset[str]:
    """Return what is read from the catalog; nothing if it can't be reached."""
    try:
        return await reading
    except CatalogDown:
        return frozenset()


def _unconfirmed(page: Page) -> Page:
    """
    Return the page as unconfirmed.

    An unconfirmed page must be revalidated before it counts as fresh. Its version differs from the original one. So
    other processes that have the page treat it as unconfirmed too, and no process mistakes it for the version that the
    catalog may have lost.
    """
    version = f"unconfirmed-{page.version.removeprefix('unconfirmed-')}"
    return evolve(_without_source(page), checked_at=0.0, version=version)


def _without_source(page: Page) -> Page:
    """Return the page without what tells whether upstream's has changed, so that it is rendered again."""
    return evolve(page, upstream_etag="", upstream_modified="", source="", version=f"again-{page.version}")
