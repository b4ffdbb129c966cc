"""Pages that are held in memory: bounded, and the least used goes first."""

from __future__ import annotations

from mypypi.model import Form, PackageFile, Page, PageId
from mypypi.pages.memory_cache import MemoryCache

KILOBYTE = 1024


def page(name: str, version: str = "1", size: int = KILOBYTE) -> Page:
    return Page(
        PageId("simple", name), 0.0, {"json": Form("application/json", "e", size, bytes(size))}, version=version
    )


def listing(count: int) -> dict[str, PackageFile]:
    urls = [f"https://files.example/{number}.whl" for number in range(count)]
    return {url: PackageFile(url, url) for url in urls}


class TestMemoryCache:
    """Recency, weight, and listings."""

    def test_page_is_held_with_the_time_it_was_looked_at(self) -> None:
        """What was put is what is had."""
        hot = MemoryCache(100 * KILOBYTE)
        hot.put(page("a"), 7.0)
        held = hot.get(PageId("simple", "a"))
        assert held is not None
        assert (page("a"), 7.0, None) == (held.page, held.read_at, held.listing)
        assert hot.get(PageId("simple", "b")) is None

    def test_least_recently_used_page_goes_first(self) -> None:
        """A page that was asked for again outlives one that was put later."""
        hot = MemoryCache(10 * KILOBYTE)
        for name in "abc":
            hot.put(page(name), 0.0)
        hot.get(PageId("simple", "a"))
        hot.put(page("d"), 0.0)
        assert [name for name in "abcd" if hot.get(PageId("simple", name)) is not None] == ["a", "c", "d"]
        assert hot.weight <= 10 * KILOBYTE

    def test_newest_page_stays_however_large(self) -> None:
        """A page larger than the limit is held alone: it was asked for just now."""
        hot = MemoryCache(10 * KILOBYTE)
        hot.put(page("small"), 0.0)
        hot.put(page("large", size=50 * KILOBYTE), 0.0)
        assert hot.get(PageId("simple", "large")) is not None
        assert hot.get(PageId("simple", "small")) is None

    def test_weight_is_that_of_what_is_held(self) -> None:
        """Replacing and dropping give back what they took: after all have gone, nothing weighs."""
        hot = MemoryCache(100 * KILOBYTE)
        hot.put(page("a"), 0.0)
        hot.put_listing(page("a"), listing(5))
        hot.put(page("a", "2", 3 * KILOBYTE), 0.0)
        hot.put(page("b"), 0.0)
        hot.drop(PageId("simple", "a"))
        hot.drop(PageId("simple", "a"))
        hot.drop(PageId("simple", "b"))
        assert hot.weight == 0

    def test_listing_stays_while_its_version_does(self) -> None:
        """A page that upstream confirmed keeps the listing that somebody read."""
        hot = MemoryCache(100 * KILOBYTE)
        hot.put(page("a"), 0.0)
        hot.put_listing(page("a"), listing(2))
        assert hot.put(page("a"), 9.0).listing == listing(2)
        assert hot.put(page("a", "2"), 9.0).listing is None

    def test_listing_of_another_version_is_not_taken(self) -> None:
        """What was read from a page that was replaced meanwhile says nothing of the new one."""
        hot = MemoryCache(100 * KILOBYTE)
        hot.put(page("a", "2"), 0.0)
        hot.put_listing(page("a", "1"), listing(2))
        hot.put_listing(page("b"), listing(2))
        held = hot.get(PageId("simple", "a"))
        assert held is not None
        assert held.listing is None

    def test_listing_counts(self) -> None:
        """A long listing pushes others out as a large page does."""
        hot = MemoryCache(20 * KILOBYTE)
        hot.put(page("a"), 0.0)
        hot.put(page("b"), 0.0)
        hot.put_listing(page("b"), listing(100))
        assert hot.get(PageId("simple", "a")) is None
        assert hot.get(PageId("simple", "b")) is not None
