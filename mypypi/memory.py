"""The catalog in this process's memory, for tests: it passes the tests that the one in Redis passes.

Knows `ICatalog` and a clock. Must never be what a deployment runs on: it is neither shared nor kept.
"""

from __future__ import annotations

from attrs import evolve
from twisted.internet.interfaces import IReactorTime
from zope.interface import implementer

from mypypi.errors import CatalogDown
from mypypi.interfaces import ICatalog
from mypypi.model import Page, PageId

_DAY = 86_400.0


@implementer(ICatalog)
class MemoryCatalog:
    """
    Keeps pages in dictionaries. `clock` tells the seconds since the epoch, by which a missing page and a withheld link
    are forgotten after a day. While `down` holds a reason, every method raises CatalogDown with it.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self.down: str | None = None
        self._clock = clock
        self._pages: dict[PageId, Page] = {}
        self._missing_until: dict[PageId, float] = {}
        self._strays: dict[str, PageId] = {}
        self._withheld: dict[PageId, dict[str, float]] = {}

    async def get_page(self, page: PageId) -> Page | None:
        """See `ICatalog.get_page`."""
        await self.check()
        return self._pages.get(page) if self._clock.seconds() < self._missing_until.get(page, float("inf")) else None

    async def page_stamp(self, page: PageId) -> tuple[str, float] | None:
        """See `ICatalog.page_stamp`."""
        kept = await self.get_page(page)
        return None if kept is None else (kept.version, kept.checked_at)

    async def put_page(self, page: Page, strays: tuple[str, ...]) -> None:
        """See `ICatalog.put_page`."""
        await self.delete_page(page.id)
        self._strays.update(dict.fromkeys(strays, page.id))
        self._pages[page.id] = evolve(page, forms=dict(page.forms))
        if page.missing:
            self._missing_until[page.id] = self._clock.seconds() + _DAY

    async def touch_page(self, page: PageId, version: str, checked_at: float) -> None:
        """See `ICatalog.touch_page`."""
        kept = await self.get_page(page)
        if kept is not None and kept.version == version:
            await self.put_page(evolve(kept, checked_at=checked_at), ())

    async def delete_page(self, page: PageId) -> None:
        """See `ICatalog.delete_page`."""
        await self.check()
        self._pages.pop(page, None)
        self._missing_until.pop(page, None)

    async def stray(self, link: str) -> PageId | None:
        """See `ICatalog.stray`."""
        await self.check()
        return self._strays.get(link)

    async def withhold(self, page: PageId, link: str) -> None:
        """See `ICatalog.withhold`."""
        await self.check()
        self._withheld.setdefault(page, {})[link] = self._clock.seconds() + _DAY

    async def withheld(self, page: PageId) -> frozenset[str]:
        """See `ICatalog.withheld`."""
        await self.check()
        now = self._clock.seconds()
        return frozenset(link for link, until in self._withheld.get(page, {}).items() if until > now)

    async def check(self) -> None:
        """See `ICatalog.check`."""
        if self.down is not None:
            raise CatalogDown(self.down)
