"""The pages that are held: hot in this process, and in the catalog for all.

Knows the catalog and what is hot. Must never know whether a page is fresh, nor where one comes from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import evolve

from mypypi.errors import CatalogDown
from mypypi.model import PackageFile, Page, PageId
from mypypi.pages.memory_cache import MemoryCache, MemoryEntry

if TYPE_CHECKING:
    from mypypi.interfaces import ICatalog

#: Seconds between two looks into the catalog for a page that is hot here.
LOOK_AGAIN = 1.0


class PageStore:
    """Pages as they were kept last, by this process or another one: in `memory`, else in the catalog."""

    def __init__(self, catalog: ICatalog, clock: Any, memory: MemoryCache) -> None:
        self._catalog = catalog
        self._clock = clock
        self._memory = memory

    async def held(self, page: PageId) -> Page | None:
        """The page as it is known; the catalog is asked once a second at most, and missed where it can't be."""
        hot = self._memory.get(page)
        if hot is not None and self._clock.seconds() - hot.looked_at < LOOK_AGAIN:
            return hot.page
        try:
            return await self.look(page)
        except CatalogDown:
            hot = self._memory.get(page)
            return hot.page if hot is not None else None

    async def look(self, page: PageId) -> Page | None:
        """The page as the catalog knows it now. Raises CatalogDown."""
        hot, now = self._memory.get(page), self._clock.seconds()
        looked = await self._look(page, hot)
        newer = self._memory.get(page)
        if newer is not None and newer is not hot:
            return newer.page  # taken in while we looked, of which the catalog's answer may know nothing yet
        return self._memory.put(looked, now).page if looked is not None else None

    async def keep(self, page: Page, indexed_links: tuple[str, ...], *, confirmed: bool = False) -> None:
        """In this process and, where it answers, in the catalog. A page that is `confirmed` is there already."""
        self._memory.put(page, self._clock.seconds())
        try:
            if confirmed:
                await self._catalog.touch_page(page.id, page.version, page.checked_at)
            else:
                await self._catalog.put_page(page, indexed_links)
        except CatalogDown:
            pass  # the catalog has said so itself, once

    async def withheld(self, page: PageId) -> frozenset[str]:
        """The links that are not to be advertised; none where the catalog can't tell."""
        try:
            return await self._catalog.withheld(page)
        except CatalogDown:
            return frozenset()

    async def withhold(self, page: PageId, link: str) -> None:
        """Have a link advertised no longer: the page is in doubt then."""
        if link in await self.withheld(page):
            return
        try:
            await self._catalog.withhold(page, link)
        except CatalogDown:
            return
        held = await self.held(page)
        if held is not None:
            await self.keep(_doubted(held), ())

    def listing(self, page: Page) -> dict[str, PackageFile] | None:
        """The listing of this version of the page, where it was put and is still hot."""
        hot = self._memory.get(page.id)
        return hot.listing if hot is not None and hot.page.version == page.version else None

    def put_listing(self, page: Page, listing: dict[str, PackageFile]) -> None:
        """Hold the listing as well."""
        self._memory.put_listing(page, listing)

    async def _look(self, page: PageId, hot: MemoryEntry | None) -> Page | None:
        if hot is not None:
            stamp = await self._catalog.page_stamp(page)
            if stamp is None:
                return await self._put_back(hot.page)
            if stamp[0] == hot.page.version:
                return evolve(hot.page, checked_at=stamp[1])
        return await self._catalog.get_page(page)

    async def _put_back(self, page: Page) -> Page:
        """What the catalog has lost, or could not be told: in doubt, but there for others to fall back on."""
        doubted = _doubted(page)
        if not page.missing:
            await self._catalog.put_page(doubted, ())
        return doubted


def _doubted(page: Page) -> Page:
    """The page as something to fall back on, to be taken in anew as soon as upstream answers. It has a version of its
    own, so that whoever holds the page doubts it too, and nobody takes it for what the catalog may have lost."""
    version = f"doubted-{page.version.removeprefix('doubted-')}"
    return evolve(page, checked_at=0.0, upstream_etag="", upstream_modified="", source="", version=version)
