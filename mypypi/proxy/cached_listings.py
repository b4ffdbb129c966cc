"""Finds links on the cached pages of one index, however old these are.

Knows which pages may list a link: by its name, and by the catalog. Must never know upstream, or what a file is for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from mypypi.errors import CatalogDown
from mypypi.model import PackageFile, Page, PageId

if TYPE_CHECKING:
    from mypypi.interfaces import ICatalog, IEcosystem
    from mypypi.pages.page_cache import PageCache
    from mypypi.rendering.listing import Listing

T = TypeVar("T")


class CachedListings:
    """The listings of all cached pages."""

    def __init__(self, ecosystem: IEcosystem, pages: PageCache, catalog: ICatalog) -> None:
        self._ecosystem = ecosystem
        self._pages = pages
        self._catalog = catalog

    async def find(self, link: str) -> tuple[Page, PackageFile] | None:
        """Return the page that lists this link, and its file. The catalog is asked only if no name tells the page."""
        for page in self._ecosystem.pages_for(link):
            found = await self.look(page, lambda listing: listing.get(link))
            if found is not None:
                return found
        indexed = await self._indexed(link)
        return None if indexed is None else await self.look(indexed, lambda listing: listing.get(link))

    async def look(self, page: PageId, look: Callable[[Listing], T | None]) -> tuple[Page, T] | None:
        """Return what `look` finds on this page, and the page. None if it is not cached, or `look` finds nothing."""
        cached = await self._pages.cached(page)
        if cached is None or cached.missing:
            return None
        found = look(await self._pages.listing(cached))
        return (cached, found) if found else None

    async def confirmed_at(self, link: str) -> float:
        """Return when upstream last confirmed the page that lists this link; 0 if no cached page does."""
        found = await self.find(link)
        return 0.0 if found is None else found[0].checked_at

    async def pages_for(self, link: str) -> list[PageId]:
        """Return the pages that may list this link."""
        indexed = await self._indexed(link)
        return [*self._ecosystem.pages_for(link), *([indexed] if indexed is not None else [])]

    async def _indexed(self, link: str) -> PageId | None:
        try:
            return await self._catalog.page_listing(link)
        except CatalogDown:
            return None
