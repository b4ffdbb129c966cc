"""Tests of what pages leave behind: the index of their links, and names that upstream does not have."""

from __future__ import annotations

from unittest import mock

from mypypi.errors import NotFound
from mypypi.model import Page, PageId, Refusal
from mypypi.pages.memory_cache import MemoryCache
from tests.pages.test_page_cache import CACHE_TIME, PATH, THING, PagesTestCase
from tests.support.memory import NOW, simple_page


class IndexTest(PagesTestCase):
    """The catalog's index has the links of the page as it is now."""

    def upstream_lists(self, *names: str, etag: str = "") -> None:
        """Upstream's page lists files that are named after no project."""
        files: list[dict[str, object]] = [
            {"filename": name, "url": f"https://files.example/{name}", "hashes": {}} for name in names
        ]
        self.wire.reply(PATH, 200, simple_page(*files), content_type="application/json", etag=etag)

    def refresh(self) -> None:
        self.clock.advance(CACHE_TIME)
        self.get()

    def indexed(self, *names: str) -> list[bool]:
        found = [self.now(self.catalog.page_listing(f"https/files.example/{name}")) for name in names]
        return [page == THING for page in found]

    def test_a_changing_page_leaves_no_links(self) -> None:
        """A page with other names at each change is found by those that it lists now."""
        for number in range(5):
            self.upstream_lists(f"odd-{number}", "kept")
            self.refresh()
        self.assertEqual([False, False, False, False, True], self.indexed(*(f"odd-{number}" for number in range(5))))
        self.assertEqual([True], self.indexed("kept"))

    def test_a_page_that_is_confirmed_keeps_its_links(self) -> None:
        """Upstream may answer 304 or send the same page, the page may be withheld from, and Redis may lose it."""
        self.upstream_lists("odd", "odder", etag='"1"')
        self.refresh()
        self.refresh()
        self.wire.reply(PATH, 304)
        self.refresh()
        self.assertEqual([True, True], self.indexed("odd", "odder"))
        self.upstream_lists("odd", "odder", etag='"2"')
        self.now(self.pages.withhold(THING, "https/files.example/odder"))
        self.assertEqual([True, True], self.indexed("odd", "odder"))
        self.get()
        self.assertEqual([True], self.indexed("odd"))
        self.now(self.catalog.delete_page(THING))
        self.refresh()
        self.assertEqual([True], self.indexed("odd"))

    def test_a_page_that_is_gone_has_no_links(self) -> None:
        """Upstream does not have the page any more, so its links are no links."""
        self.upstream_lists("odd")
        self.refresh()
        self.upstream_answers(404)
        self.clock.advance(CACHE_TIME)
        self.failing(self.pages.get(THING), NotFound)
        self.assertEqual([False], self.indexed("odd"))


class MissingTest(PagesTestCase):
    """Names that upstream does not have do not displace pages that it has."""

    def test_number_of_missing_pages_in_memory_is_bounded(self) -> None:
        """Of missing pages the latest are kept, and every page that exists, although it was used before them."""
        memory = MemoryCache(100_000_000)
        memory.put(Page(THING, NOW), NOW)
        with mock.patch("mypypi.pages.memory_cache._MOST_MISSING", 10):
            for number in range(50):
                memory.put(Page(PageId("simple", f"no{number}"), NOW, refusal=Refusal(404)), NOW)
        kept = [number for number in range(50) if memory.get(PageId("simple", f"no{number}")) is not None]
        self.assertEqual(list(range(40, 50)), kept)
        self.assertIsNotNone(memory.get(THING))

    def test_page_that_appears_does_not_count(self) -> None:
        """A page that was missing and exists now, or was dropped, is not one of them."""
        memory = MemoryCache(100_000_000)
        with mock.patch("mypypi.pages.memory_cache._MOST_MISSING", 2):
            for name in ("a", "b", "c", "d"):
                memory.put(Page(PageId("simple", name), NOW, refusal=Refusal(404)), NOW)
                memory.put(Page(PageId("simple", name), NOW), NOW)
            memory.put(Page(PageId("simple", "e"), NOW, refusal=Refusal(404)), NOW)
            memory.drop(PageId("simple", "e"))
        self.assertTrue(all(memory.get(PageId("simple", name)) is not None for name in ("a", "b", "c", "d")))
        self.assertEqual({}, memory._missing)
