"""Tests of the memory cache: its limit, and eviction of the least recently used page."""

from __future__ import annotations

from mypypi.model import Form, PackageFile, Page, PageId
from mypypi.pages.memory_cache import MemoryCache
from mypypi.rendering.listing import Listing

KILOBYTE = 1024


def page(name: str, version: str = "1", size: int = KILOBYTE) -> Page:
    return Page(
        PageId("simple", name), 0.0, {"json": Form("application/json", "e", size, bytes(size))}, version=version
    )


def listing(count: int) -> Listing:
    urls = [f"https://files.example/{number}.whl" for number in range(count)]
    return Listing.of(PackageFile(url, url) for url in urls)


class TestMemoryCache:
    """The memory cache's order, weight and listings."""

    def test_page_is_cached_with_the_time_of_its_check(self) -> None:
        """A cached page comes back with the time of its last check."""
        cache = MemoryCache(100 * KILOBYTE)
        cache.put(page("a"), 7.0)
        entry = cache.get(PageId("simple", "a"))
        assert entry is not None
        assert (page("a"), 7.0, None) == (entry.page, entry.read_at, entry.listing)
        assert cache.get(PageId("simple", "b")) is None

    def test_least_recently_used_page_is_evicted_first(self) -> None:
        """A page that was read again outlives a page that was stored later."""
        cache = MemoryCache(10 * KILOBYTE)
        for name in "abc":
            cache.put(page(name), 0.0)
        cache.get(PageId("simple", "a"))
        cache.put(page("d"), 0.0)
        assert [name for name in "abcd" if cache.get(PageId("simple", name)) is not None] == ["a", "c", "d"]
        assert cache.weight <= 10 * KILOBYTE

    def test_newest_page_stays_however_large(self) -> None:
        """The newest page is kept even if it is larger than the limit."""
        cache = MemoryCache(10 * KILOBYTE)
        cache.put(page("small"), 0.0)
        cache.put(page("large", size=50 * KILOBYTE), 0.0)
        assert cache.get(PageId("simple", "large")) is not None
        assert cache.get(PageId("simple", "small")) is None

    def test_weight_counts_cached_pages(self) -> None:
        """The weight is 0 after all pages were replaced and dropped."""
        cache = MemoryCache(100 * KILOBYTE)
        cache.put(page("a"), 0.0)
        cache.put_listing(page("a"), listing(5))
        cache.put(page("a", "2", 3 * KILOBYTE), 0.0)
        cache.put(page("b"), 0.0)
        cache.drop(PageId("simple", "a"))
        cache.drop(PageId("simple", "a"))
        cache.drop(PageId("simple", "b"))
        assert cache.weight == 0

    def test_listing_is_kept_with_its_version(self) -> None:
        """A confirmed page keeps its listing. A new version does not."""
        cache = MemoryCache(100 * KILOBYTE)
        cache.put(page("a"), 0.0)
        cache.put_listing(page("a"), listing(2))
        assert cache.put(page("a"), 9.0).listing == listing(2)
        assert cache.put(page("a", "2"), 9.0).listing is None

    def test_listing_of_another_version_is_not_stored(self) -> None:
        """A listing of a replaced page is not stored. It may differ from the listing of the new page."""
        cache = MemoryCache(100 * KILOBYTE)
        cache.put(page("a", "2"), 0.0)
        cache.put_listing(page("a", "1"), listing(2))
        cache.put_listing(page("b"), listing(2))
        entry = cache.get(PageId("simple", "a"))
        assert entry is not None
        assert entry.listing is None

    def test_listing_counts_towards_the_weight(self) -> None:
        """A long listing evicts other pages as a large page does."""
        cache = MemoryCache(20 * KILOBYTE)
        cache.put(page("a"), 0.0)
        cache.put(page("b"), 0.0)
        cache.put_listing(page("b"), listing(200))
        assert cache.get(PageId("simple", "a")) is None
        assert cache.get(PageId("simple", "b")) is not None
