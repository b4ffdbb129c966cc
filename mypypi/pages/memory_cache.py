"""The pages that this process holds in memory, the least recently asked for going first.

Knows sizes and recency. Must never know whether a page is fresh, nor where one comes from.
"""

from __future__ import annotations

from collections import OrderedDict

from attrs import define

from mypypi.model import PackageFile, Page, PageId
from mypypi.observability import metrics

#: What a page takes beside its forms, and a listing for each of its files, in bytes; rounded up.
_PAGE_BYTES = 2048
_FILE_BYTES = 700


@define
class Hot:
    """A page held here: when (seconds) the catalog was last asked about it, and its listing once somebody needed it."""

    page: Page
    looked_at: float
    listing: dict[str, PackageFile] | None = None

    @property
    def weight(self) -> int:
        """About how many bytes of memory it takes."""
        forms = sum(len(form.body) for form in self.page.forms.values())
        return _PAGE_BYTES + forms + _FILE_BYTES * len(self.listing or ())


class HotPages:
    """Hot pages of at most `limit` bytes together; the newest one is kept however large it is."""

    def __init__(self, limit: int) -> None:
        self.weight = 0
        self._limit = limit
        self._pages: OrderedDict[PageId, Hot] = OrderedDict()

    def get(self, page: PageId) -> Hot | None:
        """The hot page, now the most recently used."""
        hot = self._pages.get(page)
        if hot is not None:
            self._pages.move_to_end(page)
        return hot

    def put(self, page: Page, now: float) -> Hot:
        """Hold this page; where this version of it is held already, its listing stays."""
        hot = self._pages.pop(page.id, None)
        if hot is not None:
            self._weigh(-hot.weight)
        listing = hot.listing if hot is not None and hot.page.version == page.version else None
        hot = self._pages[page.id] = Hot(page, now, listing)
        self._weigh(hot.weight)
        self._shed()
        return hot

    def put_listing(self, page: Page, listing: dict[str, PackageFile]) -> None:
        """Hold this page's listing as well, if that version of it is still held."""
        hot = self._pages.get(page.id)
        if hot is not None and hot.page.version == page.version:
            self._weigh(-hot.weight)
            hot.listing = listing
            self._weigh(hot.weight)
            self._shed()

    def drop(self, page: PageId) -> None:
        """Let go of a page."""
        hot = self._pages.pop(page, None)
        if hot is not None:
            self._weigh(-hot.weight)

    def _weigh(self, more: int) -> None:
        self.weight += more
        metrics.HOT_PAGES_BYTES.inc(more)

    def _shed(self) -> None:
        while self.weight > self._limit and len(self._pages) > 1:
            self.drop(next(iter(self._pages)))
