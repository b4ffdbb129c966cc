"""Keeps pages in memory, and evicts the least recently used.

A page is kept with its listing, and forms derived from pages have a limit of their own. Knows sizes and recency. Must
never know whether a page is fresh, or where a page comes from.
"""

from __future__ import annotations

from collections import OrderedDict

from attrs import define
from cachetools import LRUCache

from mypypi.model import Form, Page, PageId
from mypypi.observability import metrics
from mypypi.rendering.listing import Listing

#: Bytes of memory for a page beside its forms and its listing; rounded up.
_PAGE_BYTES = 2048
#: Bytes of memory for a derived form beside its body.
_FORM_BYTES = 1024

#: Identifies a derived form: the etag of the page's form, the base address, the part; see `PageCache.form_for`.
DerivedName = tuple[str, str, str]


@define
class MemoryEntry:
    """
    A page in memory.

    `read_at`: when the catalog was last asked about it (seconds). `listing`: its listing, once it was needed.
    """

    page: Page
    read_at: float
    listing: Listing | None = None

    @property
    def weight(self) -> int:
        """The approximate number of bytes in memory."""
        forms = sum(len(form.body) for form in self.page.forms.values())
        return _PAGE_BYTES + forms + (self.listing.size if self.listing is not None else 0)


class MemoryCache:
    """
    Caches up to `pages_limit` bytes of pages.

    The newest page is kept however large it is. Derived forms take up to `derived_limit` bytes. Each was made from a
    page for one address, or is a part of a page.
    """

    def __init__(self, pages_limit: int, derived_limit: int = 0) -> None:
        self.weight = 0
        self._limit = pages_limit
        self._derived: LRUCache[DerivedName, Form] = LRUCache(derived_limit, _form_bytes)
        self._pages: OrderedDict[PageId, MemoryEntry] = OrderedDict()

    def get(self, page: PageId) -> MemoryEntry | None:
        """Return the page's entry, now the most recently used."""
        entry = self._pages.get(page)
        if entry is not None:
            self._pages.move_to_end(page)
        return entry

    def put(self, page: Page, now: float) -> MemoryEntry:
        """Cache this page. If the same version is cached already, its listing is kept."""
        entry = self._pages.pop(page.id, None)
        if entry is not None:
            self._add_weight(-entry.weight)
        listing = entry.listing if entry is not None and entry.page.version == page.version else None
        entry = self._pages[page.id] = MemoryEntry(page, now, listing)
        self._add_weight(entry.weight)
        self._evict()
        return entry

    def put_listing(self, page: Page, listing: Listing) -> None:
        """Cache this page's listing, if its version is still cached."""
        entry = self._pages.get(page.id)
        if entry is not None and entry.page.version == page.version:
            self._add_weight(-entry.weight)
            entry.listing = listing
            self._add_weight(entry.weight)
            self._evict()

    def drop(self, page: PageId) -> None:
        """Remove a page, if it is cached."""
        entry = self._pages.pop(page, None)
        if entry is not None:
            self._add_weight(-entry.weight)

    def derived(self, name: DerivedName) -> Form | None:
        """Return the derived form, now the most recently used."""
        return self._derived.get(name)

    def put_derived(self, name: DerivedName, form: Form) -> None:
        """Cache a derived form, unless it is larger than the limit."""
        if _form_bytes(form) < self._derived.maxsize:
            before = self._derived.currsize
            self._derived[name] = form
            metrics.HOT_PAGES_BYTES.inc(self._derived.currsize - before)

    def _add_weight(self, change: int) -> None:
        self.weight += change
        metrics.HOT_PAGES_BYTES.inc(change)

    def _evict(self) -> None:
        while self.weight > self._limit and len(self._pages) > 1:
            self.drop(next(iter(self._pages)))


def _form_bytes(form: Form) -> int:
    return len(form.body) + _FORM_BYTES
