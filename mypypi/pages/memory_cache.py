"""Pages in this process's memory, with their listings and the forms made from them; least recently used go first.

Knows sizes and recency. Must never know whether a page is fresh, nor where one comes from.
"""

from __future__ import annotations

from collections import OrderedDict

from attrs import define
from cachetools import LRUCache

from mypypi.model import Form, PackageFile, Page, PageId
from mypypi.observability import metrics

#: What a page takes beside its forms, and a listing for each of its files, in bytes; rounded up.
_PAGE_BYTES = 2048
_FILE_BYTES = 700
#: What a form made for one address takes beside its body.
_FORM_BYTES = 1024

#: What a form is made from and for: the etag of the page's form, the base address, the part; see `PageCache.form_for`.
DerivedName = tuple[str, str, str]


@define
class MemoryEntry:
    """A page held here: when (seconds) the catalog was last asked about it, and its listing once somebody needed it."""

    page: Page
    looked_at: float
    listing: dict[str, PackageFile] | None = None

    @property
    def weight(self) -> int:
        """About how many bytes of memory it takes."""
        forms = sum(len(form.body) for form in self.page.forms.values())
        return _PAGE_BYTES + forms + _FILE_BYTES * len(self.listing or ())


class MemoryCache:
    """
    Pages of at most `pages_limit` bytes together; the newest one is kept however large it is.

    Forms that were made from a page for one address, or cut out of it, take up to `derived_limit` bytes.
    """

    def __init__(self, pages_limit: int, derived_limit: int = 0) -> None:
        self.weight = 0
        self._limit = pages_limit
        self._derived: LRUCache[DerivedName, Form] = LRUCache(derived_limit, _form_bytes)
        self._pages: OrderedDict[PageId, MemoryEntry] = OrderedDict()

    def get(self, page: PageId) -> MemoryEntry | None:
        """The hot page, now the most recently used."""
        hot = self._pages.get(page)
        if hot is not None:
            self._pages.move_to_end(page)
        return hot

    def put(self, page: Page, now: float) -> MemoryEntry:
        """Hold this page; where this version of it is held already, its listing stays."""
        hot = self._pages.pop(page.id, None)
        if hot is not None:
            self._weigh(-hot.weight)
        listing = hot.listing if hot is not None and hot.page.version == page.version else None
        hot = self._pages[page.id] = MemoryEntry(page, now, listing)
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

    def derived(self, name: DerivedName) -> Form | None:
        """The form of this name, now the most recently used."""
        return self._derived.get(name)

    def put_derived(self, name: DerivedName, form: Form) -> None:
        """Hold a form; one that is larger than the limit is not held."""
        if _form_bytes(form) < self._derived.maxsize:
            before = self._derived.currsize
            self._derived[name] = form
            metrics.HOT_PAGES_BYTES.inc(self._derived.currsize - before)

    def _weigh(self, more: int) -> None:
        self.weight += more
        metrics.HOT_PAGES_BYTES.inc(more)

    def _shed(self) -> None:
        while self.weight > self._limit and len(self._pages) > 1:
            self.drop(next(iter(self._pages)))


def _form_bytes(form: Form) -> int:
    return len(form.body) + _FORM_BYTES
