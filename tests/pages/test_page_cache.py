"""Tests of the page cache: pages that are fresh, confirmed, stale, missing or unconfirmed."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from itertools import count
from typing import cast
from unittest import mock

from twisted.internet.defer import CancelledError, Deferred

from mypypi.ecosystems.pypi import PyPI
from mypypi.errors import CatalogDown, NotFound, UpstreamDown
from mypypi.interfaces import ICatalog
from mypypi.model import Page, PageId, Refusal
from mypypi.pages.fleet import PAGE_LEASE
from mypypi.pages.memory_cache import MemoryCache
from mypypi.pages.page_cache import CachedPage, PageCache
from mypypi.redis.leases import Leases
from mypypi.rendering.renderer import Renderer
from mypypi.rendering.tasks import perform
from mypypi.upstream.backoff import Backoff
from mypypi.upstream.breaker import Breaker
from mypypi.upstream.client import Upstream
from tests.support.fakes import MemoryCatalog
from tests.support.memory import NOW, AtOnce, MemoryTestCase, WhenTold, Wire, render_at_once, simple_page

URL = "https://index.example"
PATH = "/simple/thing/"
THING = PageId("simple", "thing")
CACHE_TIME = 300
NEGATIVE_CACHE_TIME = 60
STALE_AFTER = 3
LINK = "https/files.example/thing-1.0-py3-none-any.whl"


def page_of(*versions: str, project: str = "thing", metadata: bool = False) -> bytes:
    """Return a project's page with a wheel for each of these versions."""
    files: list[dict[str, object]] = [
        {
            "filename": f"{project}-{version}-py3-none-any.whl",
            "url": f"https://files.example/{project}-{version}-py3-none-any.whl",
            "hashes": {"sha256": "0" * 64},
        }
        | ({"core-metadata": True} if metadata else {})
        for version in versions
    ]
    return simple_page(*files, project=project)


def document(page: Page) -> dict[str, list[dict[str, object]]]:
    return cast("dict[str, list[dict[str, object]]]", json.loads(zlib.decompress(page.forms["json"].body, 31)))


def versions(answer: CachedPage) -> list[str]:
    return [str(file["filename"]).split("-")[1] for file in document(answer.page)["files"]]


class PagesTestCase(MemoryTestCase):
    """The page caches of two processes, with an in-memory wire and catalog."""

    def setUp(self) -> None:
        super().setUp()
        self.wire = Wire(self.clock)
        self.addCleanup(self.wire.hang_up)
        self.catalog = MemoryCatalog(self.clock)
        self.processes = count()
        self.pages, self.other = self.make_cache(), self.make_cache()
        uniform = mock.patch("random.uniform", lambda low, high: (low + high) / 2)
        uniform.start()
        self.addCleanup(uniform.stop)

    def make_cache(
        self, run: Callable[[bytes], Deferred[bytes]] = render_at_once, cache_time: float = CACHE_TIME
    ) -> PageCache:
        process, backoff = f"process {next(self.processes)}", Backoff(self.catalog, self.clock)
        breaker = Breaker(backoff, self.catalog, process, self.clock, 20)
        return PageCache(
            PyPI(URL),
            self.catalog,
            Upstream(self.clock, URL, agent=self.wire.agent, breaker=breaker),
            Renderer("pypi", URL, run),
            self.clock,
            Leases(self.catalog, process, self.clock, PAGE_LEASE),
            backoff,
            cache_time=cache_time,
            negative_cache_time=NEGATIVE_CACHE_TIME,
            stale_after=STALE_AFTER,
            memory=MemoryCache(100_000_000),
            threads=AtOnce(),
        )

    def upstream_has(self, *versions: str, etag: str = "", metadata: bool = False) -> None:
        self.wire.reply(PATH, 200, page_of(*versions, metadata=metadata), content_type="application/json", etag=etag)

    def upstream_answers(self, status: int) -> None:
        self.wire.reply(PATH, status)

    def upstream_hangs(self) -> None:
        self.wire.replies.clear()

    def get(self) -> CachedPage:
        """Return the page, which must be served at once."""
        return self.now(self.pages.get(THING))

    def request_page(self) -> Deferred[CachedPage]:
        """Request the page. Its result may come later."""
        return self.start(self.pages.get(THING))

    def stored_page(self) -> Page | None:
        return self.now(self.catalog.get_page(THING))

    @property
    def upstream_requests(self) -> int:
        """The number of requests that upstream got."""
        return len(self.wire.exchanges)


class FreshTest(PagesTestCase):
    """MYPYPI_CACHE_TIME bounds a page's age, and how often upstream gets requests."""

    def test_fresh_page_is_not_requested_again(self) -> None:
        """
        A fresh page is served without a request to upstream.

        From the moment it is stale, upstream is asked again.
        """
        self.upstream_has("1.0")
        self.assertEqual(
            (["1.0"], CACHE_TIME, "miss"), (versions(first := self.get()), first.ttl, first.forward_reason)
        )
        self.upstream_has("1.0", "2.0")
        self.clock.advance(CACHE_TIME * 0.8)
        self.assertEqual((["1.0"], CACHE_TIME * 0.2, ""), (versions(last := self.get()), last.ttl, last.forward_reason))
        self.assertEqual(1, self.upstream_requests)
        self.clock.advance(CACHE_TIME * 0.2)
        self.assertEqual(
            (["1.0", "2.0"], CACHE_TIME, "stale"), (versions(new := self.get()), new.ttl, new.forward_reason)
        )
        self.assertEqual(2, self.upstream_requests)

    def test_unchanged_page_is_confirmed(self) -> None:
        """A 304 makes the page fresh in all processes. It takes one conditional request."""
        self.upstream_has("1.0", etag='"1"')
        before = self.get().page
        self.clock.advance(CACHE_TIME)
        with mock.patch.object(PyPI, "render") as render:
            after = self.get()
        render.assert_not_called()
        self.assertEqual('"1"', self.wire.last.headers["if-none-match"])
        self.assertEqual((before.version, before.forms, CACHE_TIME), (after.page.version, after.page.forms, after.ttl))
        self.assertEqual((before.version, NOW + CACHE_TIME), self.now(self.catalog.page_stamp(THING)))

    def test_unchanged_page_is_recognised_without_validators(self) -> None:
        """A page with unchanged bytes is neither rendered nor stored again."""
        self.upstream_has("1.0")
        before = self.get().page
        self.clock.advance(CACHE_TIME)
        with mock.patch.object(PyPI, "render") as render:
            after = self.get()
        render.assert_not_called()
        self.assertNotIn("if-none-match", self.wire.last.headers)
        self.assertEqual((before.version, CACHE_TIME), (after.page.version, after.ttl))

    def test_page_of_another_process_is_read_from_the_catalog(self) -> None:
        """
        A page that another process fetched is read from the catalog, with the freshness left.

        This also holds after a restart.
        """
        self.upstream_has("1.0")
        self.now(self.other.get(THING))
        self.clock.advance(100)
        answer = self.get()
        self.assertEqual((["1.0"], CACHE_TIME - 100, ""), (versions(answer), answer.ttl, answer.forward_reason))
        self.assertEqual(1, self.upstream_requests)

    def test_cached_does_not_ask_upstream(self) -> None:
        """`cached` returns a page of any age, or None, without asking upstream."""
        self.assertIsNone(self.now(self.pages.cached(THING)))
        self.upstream_has("1.0")
        page = self.get().page
        self.clock.advance(10 * CACHE_TIME)
        self.assertEqual(page, self.now(self.pages.cached(THING)))
        self.assertEqual(1, self.upstream_requests)

    def test_listing_is_read_once(self) -> None:
        """
        The listing of each page version is made once: by the process that renders it, with the page.

        A process that has the page from the catalog reads it when it is needed. A page without files has an empty
        listing.
        """
        self.upstream_has("1.0")
        with mock.patch.object(PyPI, "listing", autospec=True, side_effect=PyPI.listing) as listing:
            page = self.get().page
            for pages, calls in ((self.pages, 0), (self.other, 1)):
                self.now(pages.get(THING))
                self.assertIsNotNone(self.now(pages.listing(page)).get(LINK))
                self.assertIsNotNone(self.now(pages.listing(page)).get(LINK))
                self.assertEqual(calls, listing.call_count)
        self.assertEqual(0, len(self.now(self.pages.listing(Page(PageId("root"), 0.0)))))
        self.assertEqual(0, len(self.now(self.pages.listing(Page(THING, 0.0, refusal=Refusal(404))))))


class CoalescingTest(PagesTestCase):
    """Concurrent requests for pages share the work."""

    def test_one_fetch_serves_all_clients(self) -> None:
        """One fetch serves all waiting clients, for a new page and for a stale one."""
        for _ in range(2):
            self.upstream_hangs()
            before = self.upstream_requests
            waiting = [self.request_page() for _ in range(20)]
            self.assertEqual(before + 1, self.upstream_requests)
            self.wire.last.answer(body=page_of("1.0"), content_type="application/json")
            self.assertEqual([["1.0"]] * 20, [versions(self.now(each)) for each in waiting])
            self.clock.advance(CACHE_TIME)

    def test_late_answer_of_the_catalog_is_ignored(self) -> None:
        """A page that was stored during a read of the catalog counts. The catalog's answer may be older."""
        self.upstream_has("1.0")
        late: Deferred[None] = Deferred()

        async def look(_: PageId) -> Page | None:
            await late
            return None

        with mock.patch.object(self.catalog, "get_page", look):
            slow = self.request_page()
        self.assertEqual(["1.0"], versions(self.get()))
        late.callback(None)
        self.assertEqual((["1.0"], 1), (versions(self.successResultOf(slow)), self.upstream_requests))

    def test_client_that_leaves_does_not_affect_others(self) -> None:
        """A client that leaves does not cancel the fetch for other clients (promise 4)."""
        leaving, staying = self.request_page(), self.request_page()
        leaving.cancel()
        self.failing(leaving, CancelledError)
        self.assertFalse(self.wire.last.closed)
        self.wire.last.answer(body=page_of("1.0"), content_type="application/json")
        self.assertEqual(["1.0"], versions(self.now(staying)))

    def test_fetch_continues_when_all_clients_have_left(self) -> None:
        """A fetch continues after all clients have left. The next client gets its result."""
        self.upstream_has("1.0")
        self.get()
        self.clock.advance(CACHE_TIME)
        self.upstream_hangs()
        leaving = self.request_page()
        leaving.cancel()
        self.failing(leaving, CancelledError)
        self.clock.advance(STALE_AFTER)
        self.wire.last.answer(body=page_of("1.0", "2.0"), content_type="application/json")
        self.assertEqual(["1.0", "2.0"], versions(self.get()))
        self.assertEqual(2, self.upstream_requests)

    def test_pages_do_not_wait_for_each_other(self) -> None:
        """A page that hangs does not delay other pages."""
        self.request_page()
        self.wire.reply("/simple/other/", 200, page_of("3.0", project="other"), content_type="application/json")
        self.assertEqual(["3.0"], versions(self.now(self.pages.get(PageId("simple", "other")))))


class SlowTest(PagesTestCase):
    """Upstream answers slowly."""

    def setUp(self) -> None:
        super().setUp()
        self.upstream_has("1.0", etag='"1"')
        self.get()
        self.clock.advance(CACHE_TIME)
        self.upstream_hangs()

    def test_stale_page_is_served_while_upstream_is_slow(self) -> None:
        """
        A stale page is served after a few seconds, before clients time out.

        The fetch goes on, and the next request gets its result.
        """
        waiting = self.request_page()
        self.clock.advance(STALE_AFTER - 0.1)
        self.assertNoResult(waiting)
        self.clock.advance(0.1)
        stale = self.now(waiting)
        self.assertEqual((["1.0"], ""), (versions(stale), stale.forward_reason))
        self.assertLess(stale.ttl, 0)
        self.assertFalse(self.wire.last.closed)
        self.wire.last.answer(body=page_of("2.0"), content_type="application/json")
        fresh = self.get()
        self.assertEqual((["2.0"], CACHE_TIME, ""), (versions(fresh), fresh.ttl, fresh.forward_reason))
        self.assertEqual(2, self.upstream_requests)

    def test_answer_in_time_is_awaited(self) -> None:
        """An answer within `stale_after` is awaited. No timer is left behind."""
        waiting = self.request_page()
        self.clock.advance(STALE_AFTER - 0.1)
        self.wire.last.answer(body=page_of("2.0"), content_type="application/json")
        self.assertEqual(["2.0"], versions(self.now(waiting)))
        self.clock.advance(0)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_uncached_page_waits_for_upstream(self) -> None:
        """Without a cached page, clients wait until upstream times out. The error is not a 404."""
        waiting = self.start(self.pages.get(PageId("simple", "unseen")))
        self.clock.advance(14.9)
        self.assertNoResult(waiting)
        self.clock.advance(0.1)
        self.failing(waiting, UpstreamDown)

    def test_stale_page_is_served_at_once_after_a_timeout(self) -> None:
        """After a timeout, the stale page is served at once."""
        waiting = self.request_page()
        self.clock.advance(15)
        self.now(waiting)
        self.assertEqual((["1.0"], 2), (versions(self.get()), self.upstream_requests))

    def test_other_pages_do_not_wait_for_a_slow_upstream(self) -> None:
        """
        After a slow answer, other cached pages are served at once too.

        An install reads hundreds of pages and would wait for each of them.
        """
        other = PageId("simple", "other")
        self.wire.reply("/simple/other/", 200, page_of("3.0", project="other"), content_type="application/json")
        self.now(self.pages.get(other))
        self.clock.advance(CACHE_TIME)
        self.upstream_hangs()
        waiting = self.request_page()
        self.clock.advance(STALE_AFTER)
        self.now(waiting)
        self.assertEqual(["3.0"], versions(self.now(self.pages.get(other))))
        self.assertIn("/simple/other/", self.wire.last.path)
        self.wire.last.answer(body=page_of("4.0", project="other"), content_type="application/json")
        self.assertEqual(["4.0"], versions(self.now(self.pages.get(other))))


class CatalogTest(PagesTestCase):
    """Processes share pages through the catalog, and serve them without it."""

    def test_page_of_another_process_is_seen_within_a_second(self) -> None:
        """A page from another process is seen within a second. The catalog is read at most once a second for it."""
        self.upstream_has("1.0")
        self.get()
        self.now(self.catalog.delete_page(THING))
        self.upstream_has("2.0")
        self.now(self.other.get(THING))
        with mock.patch.object(self.catalog, "page_stamp", side_effect=self.catalog.page_stamp) as stamp:
            self.clock.advance(0.9)
            self.assertEqual(["1.0"], versions(self.get()))
            self.assertEqual(0, stamp.call_count)
            self.clock.advance(0.1)
            self.assertEqual([["2.0"]] * 5, [versions(self.get()) for _ in range(5)])
            self.assertEqual(1, stamp.call_count)
        self.assertEqual(2, self.upstream_requests)

    def test_a_page_that_is_asked_for_often_stays_at_hand(self) -> None:
        """The catalog is read ahead, once each time. Without that, the page has to be asked for with `get`."""
        self.upstream_has("1.0")
        version = self.get().page.version
        with mock.patch.object(self.catalog, "page_stamp", side_effect=self.catalog.page_stamp) as stamp:
            for step in range(1, 41):
                self.clock.advance(0.1)
                self.assertAlmostEqual(CACHE_TIME - step / 10, self.pages.seconds_left(THING, version) or 0, places=3)
                self.pages.seconds_left(THING, version)
            self.assertEqual(5, stamp.call_count)
        self.clock.advance(1)
        self.assertIsNone(self.pages.seconds_left(THING, version))

    def test_a_page_at_hand_is_given_up_within_a_second(self) -> None:
        """A page that another process has replaced is seen as early as with `get`, and so is one that becomes stale."""
        self.upstream_has("1.0")
        version = self.get().page.version
        self.now(self.catalog.delete_page(THING))
        self.upstream_has("2.0")
        self.now(self.other.get(THING))
        left = []
        for _ in range(10):
            self.clock.advance(0.11)
            left.append(self.pages.seconds_left(THING, version))
        self.assertIsNone(left[-1])
        self.assertEqual(["2.0"], versions(self.get()))
        self.clock.advance(CACHE_TIME)
        self.assertIsNone(self.pages.seconds_left(THING, self.get().page.version + "x"))

    def test_a_page_at_hand_outlives_no_failure_of_the_catalog(self) -> None:
        """While the catalog fails, pages are asked for with `get`, which serves them from memory."""
        self.upstream_has("1.0")
        version = self.get().page.version
        with mock.patch.object(self.catalog, "page_stamp", side_effect=CatalogDown("down")):
            for _ in range(9):
                self.clock.advance(0.1)
                self.assertIsNotNone(self.pages.seconds_left(THING, version))
            self.clock.advance(0.2)
            self.assertIsNone(self.pages.seconds_left(THING, version))
            self.assertEqual(["1.0"], versions(self.get()))

    def test_purge_is_seen_within_a_second(self) -> None:
        """A deleted page is fetched again within a second, even if it was fresh."""
        self.upstream_has("1.0", etag='"1"')
        self.get()
        self.upstream_has("2.0", etag='"2"')
        self.now(self.catalog.delete_page(THING))
        self.clock.advance(1)
        self.assertEqual(["2.0"], versions(self.get()))
        self.assertNotIn("if-none-match", self.wire.last.headers)
        kept = self.stored_page()
        assert kept is not None
        self.assertEqual('"2"', kept.upstream_etag)

    def test_purged_page_is_served_while_upstream_fails(self) -> None:
        """
        A page that the catalog lost is served stale while upstream fails (promise 7).

        The process that has it in memory stores it again for others.
        """
        self.upstream_has("1.0", etag='"1"')
        self.get()
        self.upstream_answers(503)
        self.now(self.catalog.delete_page(THING))
        for _ in range(3):
            self.clock.advance(1)
            answer = self.get()
            self.assertEqual(["1.0"], versions(answer))
            self.assertLess(answer.ttl, 0)
        kept = self.stored_page()
        assert kept is not None
        self.assertEqual((0.0, ""), (kept.checked_at, kept.upstream_etag))

    def test_lost_page_is_stored_again(self) -> None:
        """
        A page that the catalog lost is stored again when upstream answers, even unchanged.

        Other processes get it from the catalog.
        """
        self.upstream_has("1.0", etag='"1"')
        before = self.get().page
        self.upstream_answers(503)
        self.now(self.catalog.delete_page(THING))
        self.clock.advance(1)
        self.get()
        self.clock.advance(1)
        self.upstream_has("1.0", etag='"1"')
        self.get()
        kept = self.stored_page()
        assert kept is not None
        self.assertEqual((before.version, before.forms), (kept.version, kept.forms))
        requests_before = self.upstream_requests
        for _ in range(5):
            self.clock.advance(1)
            self.assertEqual("", self.get().forward_reason)
        self.now(self.other.get(THING))
        self.assertEqual(requests_before, self.upstream_requests)

    def test_other_process_confirms_for_all(self) -> None:
        """A page that another process confirmed is fresh in this process."""
        self.upstream_has("1.0", etag='"1"')
        self.get()
        self.clock.advance(CACHE_TIME)
        self.now(self.other.get(THING))
        self.assertEqual((CACHE_TIME, 2), (self.get().ttl, self.upstream_requests))

    def test_pages_are_served_without_a_catalog(self) -> None:
        """Without a catalog, pages are fetched, served from memory while fresh, then revalidated (promise 8)."""
        self.catalog.down = "no Redis here"
        self.upstream_has("1.0", etag='"1"')
        self.assertEqual((["1.0"], "miss"), (versions(first := self.get()), first.forward_reason))
        self.clock.advance(CACHE_TIME / 2)
        self.assertEqual((["1.0"], ""), (versions(second := self.get()), second.forward_reason))
        self.clock.advance(CACHE_TIME / 2)
        self.assertEqual("stale", self.get().forward_reason)
        self.assertEqual(2, self.upstream_requests)
        self.catalog.down = None
        self.clock.advance(1)
        self.get()
        self.assertIsNotNone(self.stored_page())

    def test_catalog_may_fail_at_every_step(self) -> None:
        """Pages and 404s are served after an error in any method of the catalog."""
        for method in ICatalog.names():
            with self.subTest(method):
                self.setUp()
                with mock.patch.object(self.catalog, method, side_effect=CatalogDown("not now")):
                    self.upstream_has("1.0", etag='"1"')
                    self.assertEqual(["1.0"], versions(self.get()))
                    self.clock.advance(CACHE_TIME)
                    self.assertEqual(["1.0"], versions(self.get()))
                    self.clock.advance(CACHE_TIME)
                    self.upstream_has("2.0", etag='"2"')
                    self.assertEqual(["2.0"], versions(self.get()))
                    self.clock.advance(CACHE_TIME)
                    self.upstream_answers(503)
                    self.assertEqual(["2.0"], versions(self.get()))
                    self.now(self.pages.withhold(THING, LINK))
                    self.clock.advance(CACHE_TIME)
                    self.upstream_answers(404)
                    self.failing(self.pages.get(THING), NotFound)

    def test_hot_page_is_served_while_the_catalog_is_gone(self) -> None:
        """A page in memory is served without the catalog and without upstream."""
        self.upstream_has("1.0")
        self.get()
        self.catalog.down = "gone"
        self.wire.refuses = True
        self.clock.advance(CACHE_TIME)
        self.assertEqual(["1.0"], versions(self.get()))


class WithheldTest(PagesTestCase):
    """Links that upstream lists but does not have are withheld."""

    def setUp(self) -> None:
        super().setUp()
        self.upstream_has("1.0", etag='"1"', metadata=True)
        self.assertTrue(self.advertised(self.pages))
        self.assertTrue(self.advertised(self.other))
        self.now(self.pages.withhold(THING, f"{LINK}.metadata"))

    def advertised(self, pages: PageCache) -> bool:
        """Return whether the page offers the wheel's metadata file."""
        page = self.now(pages.get(THING)).page
        listed = self.now(pages.listing(page)).get(f"{LINK}.metadata") is not None
        self.assertEqual(listed, "core-metadata" in document(page)["files"][0])
        return listed

    def test_withheld_link_is_gone_from_the_next_answer(self) -> None:
        """The next answer lacks a withheld link, since even a fresh page is rendered again."""
        self.assertFalse(self.advertised(self.pages))

    def test_all_processes_withhold_a_link_within_a_second(self) -> None:
        """All processes withhold the link within a second. None lets a 304 confirm the page that it has in memory."""
        self.clock.advance(1)
        self.assertFalse(self.advertised(self.other))
        self.assertFalse(self.advertised(self.pages))

    def test_link_stays_withheld(self) -> None:
        """The link stays withheld after a 304 and in a new version of the page."""
        self.assertFalse(self.advertised(self.pages))
        self.clock.advance(CACHE_TIME)
        self.assertFalse(self.advertised(self.pages))
        self.assertEqual('"1"', self.wire.last.headers["if-none-match"])
        self.upstream_has("1.0", etag='"2"', metadata=True)
        self.clock.advance(CACHE_TIME)
        self.assertFalse(self.advertised(self.pages))

    def test_new_page_offers_the_link_after_a_day(self) -> None:
        """After a day, a new page offers the link again. Upstream may have the file by then."""
        self.assertFalse(self.advertised(self.pages))
        self.clock.advance(86_400)
        self.upstream_has("1.0", "2.0", etag='"2"', metadata=True)
        self.assertTrue(self.advertised(self.pages))

    def test_page_is_served_as_it_was_while_upstream_fails(self) -> None:
        """The page is served with the link while upstream fails. An unconfirmed page is better than none."""
        self.upstream_answers(503)
        self.assertTrue(self.advertised(self.pages))
        self.clock.advance(1)
        self.assertTrue(self.advertised(self.other))

    def test_withholding_twice_causes_no_request(self) -> None:
        """Withholding a link twice causes no further request. Many clients may meet the same 404."""
        self.assertFalse(self.advertised(self.pages))
        before = self.upstream_requests
        self.now(self.pages.withhold(THING, f"{LINK}.metadata"))
        self.assertFalse(self.advertised(self.pages))
        self.assertEqual(before, self.upstream_requests)


class BusyTest(PagesTestCase):
    """The processes that render pages are busy."""

    def test_stale_page_is_served_while_rendering_waits(self) -> None:
        """
        A stale page is served while its new version waits for rendering.

        Rendering counts towards `stale_after` as upstream does.
        """
        self.upstream_has("1.0")
        self.get()
        self.clock.advance(CACHE_TIME)
        busy = WhenTold()
        self.pages = self.make_cache(lambda task: busy.run(perform, task))
        self.upstream_has("2.0")
        waiting = self.request_page()
        self.clock.advance(STALE_AFTER)
        self.assertEqual(["1.0"], versions(self.now(waiting)))
        busy.finish()
        self.assertEqual(["2.0"], versions(self.get()))
