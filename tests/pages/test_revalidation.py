"""Tests of revalidation: two processes that share a catalog request a page once."""

from __future__ import annotations

from typing import cast

from twisted.internet.defer import Deferred
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher

from mypypi.errors import BadUpstreamResponse, NotFound, UpstreamDown
from mypypi.model import PageId
from mypypi.observability import metrics
from mypypi.pages.fleet import PAGE_LEASE
from mypypi.pages.page_cache import CachedPage
from tests.pages.test_page_cache import (
    CACHE_TIME,
    NEGATIVE_CACHE_TIME,
    STALE_AFTER,
    THING,
    PagesTestCase,
    page_of,
    versions,
)

LEASE = f"page:{THING}"
#: Seconds within which a process sees the result of another one.
SOON = 0.1


def lease_waits() -> float:
    """Return how often a process waited for a page's lease, in all tests so far."""
    return float(metrics.LEASE_WAITS.labels("page")._value.get())


class FleetTestCase(PagesTestCase):
    """Two processes request the same page: `pages` holds its lease, and `other` waits for it."""

    def request_in_both(self, page: PageId = THING) -> tuple[Deferred[CachedPage], Deferred[CachedPage]]:
        self.upstream_hangs()
        before, waits = self.upstream_requests, lease_waits()
        first, second = self.start(self.pages.get(page)), self.start(self.other.get(page))
        self.assertEqual((before + 1, waits + 1), (self.upstream_requests, lease_waits()))
        return first, second

    def answer_request(self, *versions: str) -> None:
        self.wire.last.answer(body=page_of(*versions), content_type="application/json")

    def assert_nothing_left(self) -> None:
        """Assert that no lease is held and no timer is left."""
        self.assertIsNone(self.now(self.catalog.take_lease(LEASE, "another process", 1)))
        self.now(self.catalog.release_lease(LEASE, "another process"))
        self.clock.advance(0)
        self.assertEqual([], self.clock.getDelayedCalls())


class SingleRequestTest(FleetTestCase):
    """The fleet sends one request per revalidation of a page."""

    def test_cold_page_is_requested_once(self) -> None:
        """A new page is requested once. The waiting process has it as soon as the other one stored it."""
        first, second = self.request_in_both()
        self.clock.pump([1] * 8)
        self.answer_request("1.0")
        self.assertEqual(["1.0"], versions(self.now(first)))
        self.clock.advance(SOON)
        answer = self.now(second)
        self.assertEqual((["1.0"], "miss", 1), (versions(answer), answer.forward_reason, self.upstream_requests))
        self.assert_nothing_left()

    def test_stale_page_is_requested_once(self) -> None:
        """A stale page is requested once, whether it changed or not."""
        for version in ("1.0", "2.0"):
            self.upstream_has("1.0")
            self.get()
            self.now(self.other.get(THING))
            self.clock.advance(CACHE_TIME)
            first, second = self.request_in_both()
            self.answer_request(version)
            self.clock.advance(SOON)
            for waiting in (first, second):
                answer = self.now(waiting)
                self.assertEqual(([version], "stale"), (versions(answer), answer.forward_reason))
                self.assertGreater(answer.ttl, CACHE_TIME - 1)
            self.clock.advance(CACHE_TIME)

    def test_page_that_is_never_fresh_is_shared_too(self) -> None:
        """With a cache time of 0, a waiting process uses the other's page. The page is newer than its request."""
        self.pages, self.other = self.make_cache(cache_time=0), self.make_cache(cache_time=0)
        first, second = self.request_in_both()
        self.answer_request("1.0")
        self.clock.advance(SOON)
        self.assertEqual([["1.0"]] * 2, [versions(self.now(each)) for each in (first, second)])
        self.assertEqual(1, self.upstream_requests)

    def test_page_that_was_just_refreshed_is_not_requested(self) -> None:
        """
        A process that takes the lease reads the catalog again.

        A page in memory may be up to a second older than the catalog's.
        """
        self.upstream_has("1.0")
        self.get()
        self.clock.advance(CACHE_TIME - 0.5)
        self.now(self.other.cached(THING))
        self.now(self.catalog.touch_page(THING, self.get().page.version, self.clock.seconds()))
        before = self.upstream_requests
        self.clock.advance(0.5)
        self.assertEqual((["1.0"], before), (versions(self.now(self.other.get(THING))), self.upstream_requests))

    def test_missing_page_is_requested_once(self) -> None:
        """A missing page is requested once."""
        first, second = self.request_in_both()
        self.wire.last.answer(404)
        self.failing(first, NotFound)
        self.clock.advance(SOON)
        self.failing(second, NotFound)
        self.assertEqual(1, self.upstream_requests)
        self.clock.advance(NEGATIVE_CACHE_TIME / 2)
        self.failing(self.other.get(THING), NotFound)
        self.assertEqual(1, self.upstream_requests)

    def test_stale_page_is_served_by_all_processes(self) -> None:
        """All processes serve the stale page after `stale_after`."""
        self.upstream_has("1.0")
        self.get()
        self.clock.advance(CACHE_TIME)
        waiting = self.request_in_both()
        self.clock.advance(STALE_AFTER - 0.1)
        for each in waiting:
            self.assertNoResult(each)
        self.clock.advance(0.1)
        for each in waiting:
            self.assertEqual(["1.0"], versions(self.now(each)))
        self.assertEqual(2, self.upstream_requests)

    def test_each_process_asks_upstream_without_a_catalog(self) -> None:
        """Without a catalog each process requests the page, and serves it."""
        self.catalog.down = "no Redis here"
        self.upstream_has("1.0")
        for pages in (self.pages, self.other):
            self.assertEqual(["1.0"], versions(self.now(pages.get(THING))))
        self.assertEqual(2, self.upstream_requests)

    def test_waiting_process_asks_upstream_when_the_catalog_fails(self) -> None:
        """A waiting process requests the page itself when the catalog fails."""
        first, second = self.request_in_both()
        self.catalog.down = "cable pulled"
        self.clock.advance(SOON)
        self.assertEqual(2, self.upstream_requests)
        for exchange in self.wire.exchanges:
            exchange.answer(body=page_of("1.0"), content_type="application/json")
        self.assertEqual([["1.0"]] * 2, [versions(self.now(each)) for each in (first, second)])


class FailingHolderTest(FleetTestCase):
    """The process that holds the lease fails."""

    def test_dead_holder_is_replaced(self) -> None:
        """When the holder dies, one other process takes over. It does so when the lease expires."""
        self.now(self.catalog.take_lease(LEASE, "a process that dies", PAGE_LEASE))
        waiting = [self.start(pages.get(THING)) for pages in (self.pages, self.other)]
        self.clock.pump([SOON] * round((PAGE_LEASE - 1) / SOON))
        self.assertEqual(0, self.upstream_requests)
        self.clock.pump([SOON] * 20)
        self.assertEqual(1, self.upstream_requests)
        self.answer_request("1.0")
        self.clock.advance(SOON)
        self.assertEqual([["1.0"]] * 2, [versions(self.now(each)) for each in waiting])

    def test_released_lease_is_taken_at_once(self) -> None:
        """A lease that is released without a result is taken at once."""
        _, second = self.request_in_both()
        self.now(self.catalog.release_lease(LEASE, "process 0"))
        self.clock.advance(SOON)
        self.assertEqual(2, self.upstream_requests)
        self.answer_request("1.0")
        self.assertEqual(["1.0"], versions(self.now(second)))

    def test_failure_for_a_cold_page_is_shared(self) -> None:
        """All waiting processes get the same error. They do not ask the failing upstream one after another."""
        for status, kind in ((500, UpstreamDown), (418, BadUpstreamResponse)):
            before = self.upstream_requests
            first, second = self.request_in_both()
            self.wire.last.answer(status)
            error = self.failing(first, kind)
            self.clock.advance(SOON)
            self.assertEqual(str(error), str(self.failing(second, kind)))
            self.assertEqual(before + 1, self.upstream_requests)
            self.assert_nothing_left()
            self.clock.advance(10)

    def test_cold_page_is_requested_again_after_a_failure(self) -> None:
        """A request after a failure asks upstream again when the back-off ends, if no page is cached."""
        self.upstream_answers(500)
        self.failing(self.pages.get(THING), UpstreamDown)
        self.upstream_has("1.0")
        waiting = self.start(self.other.get(THING))
        self.clock.advance(1)
        self.assertEqual(["1.0"], versions(self.now(waiting)))

    def test_failure_for_a_cached_page_pauses_all_processes(self) -> None:
        """After a failure, other processes serve the cached page without asking upstream."""
        self.upstream_has("1.0")
        self.get()
        self.now(self.other.get(THING))
        self.clock.advance(CACHE_TIME)
        self.upstream_answers(500)
        self.get()
        before = self.upstream_requests
        self.assertEqual((["1.0"], before), (versions(self.now(self.other.get(THING))), self.upstream_requests))
        self.clock.advance(1)
        self.upstream_has("2.0")
        self.assertEqual(["2.0"], versions(self.now(self.other.get(THING))))

    def test_pauses_grow_across_processes(self) -> None:
        """Pauses grow even if different processes ask upstream."""
        self.upstream_has("1.0")
        self.get()
        self.now(self.other.get(THING))
        self.clock.advance(CACHE_TIME)
        self.upstream_answers(500)
        for pages, pause in ((self.pages, 1), (self.other, 2), (self.pages, 4), (self.other, 8)):
            before = self.upstream_requests
            self.now(pages.get(THING))
            self.assertEqual(before + 1, self.upstream_requests)
            self.clock.advance(pause - 0.01)
            self.now(self.pages.get(THING))
            self.now(self.other.get(THING))
            self.assertEqual(before + 1, self.upstream_requests)
            self.clock.advance(0.01)

    def test_page_of_another_process_ends_the_failure(self) -> None:
        """The health check recovers when another process has fetched the page."""
        self.upstream_has("1.0")
        self.get()
        self.clock.advance(CACHE_TIME)
        self.upstream_answers(500)
        self.get()
        self.failing(self.pages.check(), UpstreamDown)
        self.clock.advance(1)
        self.upstream_has("2.0")
        self.now(self.other.get(THING))
        self.get()
        self.now(self.pages.check())


class EarlyRefreshTest(FleetTestCase):
    """A requested page is refreshed before it becomes stale."""

    def setUp(self) -> None:
        super().setUp()
        self.upstream_has("1.0")
        self.get()

    def near_the_end(self) -> None:
        """Advance to a time at which every process refreshes the page early."""
        self.clock.advance(CACHE_TIME * 0.96)

    def test_popular_page_never_waits_for_upstream(self) -> None:
        """A fresh page is served at once while it is refreshed. The next request gets the new page."""
        self.near_the_end()
        self.upstream_hangs()
        for _ in range(3):
            answer = self.get()
            self.assertEqual((["1.0"], ""), (versions(answer), answer.forward_reason))
            self.assertGreater(answer.ttl, 0)
        self.assertEqual(2, self.upstream_requests)
        self.answer_request("2.0")
        self.assertEqual((["2.0"], CACHE_TIME), (versions(new := self.get()), new.ttl))

    def test_page_without_requests_is_not_refreshed(self) -> None:
        """A page without requests is not refreshed."""
        self.near_the_end()
        self.clock.advance(CACHE_TIME * 10)
        self.assertEqual(1, self.upstream_requests)

    def test_page_with_much_of_its_freshness_left_is_not_refreshed(self) -> None:
        """A page is not refreshed while more than a fifth of its freshness is left."""
        self.clock.advance(CACHE_TIME * 0.79)
        self.get()
        self.assertEqual(1, self.upstream_requests)

    def test_pages_fetched_together_are_refreshed_one_by_one(self) -> None:
        """
        Pages that were fetched together are refreshed at different times.

        So the pages of an install are no burst five minutes later.
        """
        pages = [PageId("simple", f"thing{number}") for number in range(40)]
        for page in pages:
            body = page_of("1.0", project=page.project)
            self.wire.reply(f"/simple/{page.project}/", 200, body, content_type="application/json")
            self.now(self.pages.get(page))
        self.clock.advance(CACHE_TIME * 0.8)
        bursts = []
        for _ in range(45):
            before = self.upstream_requests
            self.clock.advance(1)
            for page in pages:
                self.now(self.pages.get(page))
            bursts.append(self.upstream_requests - before)
        self.assertEqual(40, sum(bursts))
        self.assertLess(max(bursts), 10)

    def test_fleet_refreshes_early_once(self) -> None:
        """One process refreshes the page. Others see the result within a second."""
        self.now(self.other.get(THING))
        self.near_the_end()
        self.upstream_has("2.0")
        self.get()
        self.clock.advance(0.5)
        self.now(self.other.get(THING))
        self.clock.advance(0.5)
        self.assertEqual((["2.0"], 2), (versions(self.now(self.other.get(THING))), self.upstream_requests))

    def test_missing_page_is_not_refreshed_early(self) -> None:
        """A missing page is not refreshed early. Clients wait for it as long as at the first request."""
        self.upstream_answers(404)
        missing = PageId("simple", "missing")
        self.wire.reply("/simple/missing/", 404)
        self.failing(self.pages.get(missing), NotFound)
        self.clock.advance(NEGATIVE_CACHE_TIME * 0.99)
        before = self.upstream_requests
        self.failing(self.pages.get(missing), NotFound)
        self.assertEqual(before, self.upstream_requests)

    def test_early_refresh_that_fails_starts_a_backoff(self) -> None:
        """An early refresh that fails starts a back-off. Clients still get the page."""
        self.near_the_end()
        self.upstream_answers(500)
        for _ in range(5):
            self.assertEqual(["1.0"], versions(self.get()))
        self.assertEqual(2, self.upstream_requests)
        self.assertEqual([], self.flushLoggedErrors())

    def test_early_refresh_leaves_slots_to_clients(self) -> None:
        """An early refresh is put off while half of the places for pages are taken. It is not logged."""
        events: list[LogEvent] = []
        observer = cast("ILogObserver", events.append)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        self.near_the_end()
        self.upstream_hangs()
        waiting = [self.start(self.pages.get(PageId("simple", f"cold{number}"))) for number in range(16)]
        self.assertEqual(17, self.upstream_requests)
        self.assertEqual(["1.0"], versions(self.get()))
        self.assertEqual(17, self.upstream_requests)
        self.wire.last.answer(404)
        self.failing(waiting[-1], NotFound)
        self.get()
        self.assertEqual(18, self.upstream_requests)
        self.assertEqual([], events)

    def test_short_cache_time_has_no_early_refresh(self) -> None:
        """A cache time of a few seconds has no early refresh. Other processes would see the refresh too late."""
        for pages in (brief := self.make_cache(cache_time=10), self.make_cache(cache_time=10)):
            self.assertEqual(0, pages._early_ttl)
        self.clock.advance(9.9)
        self.now(brief.get(THING))
        self.assertEqual(1, self.upstream_requests)
