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
from mypypi.rendering.parts import PartIndex

#: Bytes of memory for a page beside its forms and its listing; rounded up.
_PAGE_BYTES = 2048
#: Bytes of memory for a derived form beside its body, or for an index.
_FORM_BYTES = 1024

#: Identifies a derived form: the etag of the page's form, the base address, the part; see `Wanted.name`.
DerivedName = tuple[str, str, str]
#: Pages that upstream lacks or refuses: how many are cached. Clients can make up any number of names.
_MOST_MISSING = 10_000
#: Stands for a part in the name of an index. Those of parts have a space.
_INDEX = "index"


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
    page for one address, or is a part of a page. Within that limit, there are indexes of parts as well.
    """

    def __init__(self, pages_limit: int, derived_limit: int = 0) -> None:
        self.weight = 0
        self._limit = pages_limit
        self._derived: LRUCache[DerivedName, Form | PartIndex] = LRUCache(derived_limit, _bytes_of)
        self._pages: OrderedDict[PageId, MemoryEntry] = OrderedDict()
        #: Those of them that are missing pages, the oldest first.
        self._missing: OrderedDict[PageId, None] = OrderedDict()

    def get(self, page: PageId) -> MemoryEntry | None:
        """Return the page's entry, now the most recently used."""
        entry = self._pages.get(page)
        if entry is not None:
            self._pages.move_to_end(page)
        return entry

    def put(self, page: Page, now: float) -> MemoryEntry:
        """Cache this page. If the same version is cached already, its listing is kept."""
        self._count_missing(page)
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
        self._missing.pop(page, None)
        entry = self._pages.pop(page, None)
        if entry is not None:
            self._add_weight(-entry.weight)

    def derived(self, name: DerivedName) -> Form | None:
        """Return the derived form, now the most recently used."""
        found = self._derived.get(name)
        return found if isinstance(found, Form) else None

    def put_derived(self, name: DerivedName, form: Form) -> None:
        """Cache a derived form, unless it is larger than the limit."""
        self._put(name, form)

    def part_index(self, etag: str) -> PartIndex | None:
        """Return the index of parts that was cached under this etag, now the most recently used."""
        found = self._derived.get((etag, "", _INDEX))
        return found if isinstance(found, PartIndex) else None

    def put_part_index(self, etag: str, index: PartIndex) -> None:
        """Cache an index of parts, unless it is larger than the limit of derived forms."""
        self._put((etag, "", _INDEX), index)

    def _put(self, name: DerivedName, value: Form | PartIndex) -> None:
        if _bytes_of(value) < self._derived.maxsize:
            before = self._derived.currsize
            self._derived[name] = value
            metrics.HOT_PAGES_BYTES.inc(self._derived.currsize - before)

    def _count_missing(self, page: Page) -> None:
        """Note whether this page is missing, and drop the oldest of too many such pages."""
        self._missing.pop(page.id, None)
        if page.missing:
            self._missing[page.id] = None
            if len(self._missing) > _MOST_MISSING:
                self.drop(next(iter(self._missing)))

    def _add_weight(self, change: int) -> None:
        self.weight += change
        metrics.HOT_PAGES_BYTES.inc(change)

    def _evict(self) -> None:
        while self.weight > self._limit and len(self._pages) > 1:
            self.drop(next(iter(self._pages)))


def _bytes_of(value: Form | PartIndex) -> int:
    return (len(value.body) if isinstance(value, Form) else value.size) + _FORM_BYTES
