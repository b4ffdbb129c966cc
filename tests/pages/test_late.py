"""Tests of pages whose upstream answers later than clients wait."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from mypypi.errors import NotFound, UpstreamDown, UpstreamTimedOut
from mypypi.model import PageId
from mypypi.pages.fleet import PAGE_LEASE
from mypypi.pages.page_cache import CachedPage
from mypypi.upstream.requester import LATE_LIMIT
from tests.pages.test_page_cache import CACHE_TIME, STALE_AFTER, THING, page_of, versions
from tests.pages.test_revalidation import SOON, FleetTestCase

#: Seconds for which a client waits for upstream: the default time-out.
TIMEOUT = 15


class LateTestCase(FleetTestCase):
    """Upstream answers, but later than clients wait."""

    def wait(self, seconds: float) -> None:
        """Let time pass as it does, so that leases are renewed."""
        for _ in range(round(seconds / 0.5)):
            self.clock.advance(0.5)

    def assert_let_go(self, waiting: Deferred[CachedPage]) -> None:
        """Assert that the client got a 503 with Retry-After."""
        error = self.failing(waiting, UpstreamTimedOut)
        self.assertEqual((503, 5), (error.status, error.retry_after))
        self.assertIn("has not answered within 15 seconds", str(error))

    def wait_and_let_go(self) -> None:
        first = self.request_page()
        self.wait(TIMEOUT)
        self.assert_let_go(first)


class LateTest(LateTestCase):
    """A client waits for the time-out, and the request goes on."""

    def test_page_is_had_by_the_next_try(self) -> None:
        """A page that takes 18 seconds is requested once. The first client gets a 503, and the next one the page."""
        first = self.request_page()
        self.wait(TIMEOUT - 0.5)
        self.assertNoResult(first)
        self.wait(0.5)
        self.assert_let_go(first)
        second = self.request_page()
        self.wait(3)
        self.assertNoResult(second)
        self.answer_request("1.0")
        self.assertEqual((["1.0"], "miss"), (versions(answer := self.now(second)), answer.forward_reason))
        self.assertEqual((["1.0"], 1), (versions(self.get()), self.upstream_requests))
        self.assert_nothing_left()

    def test_page_that_nobody_waits_for_any_more_is_stored(self) -> None:
        """Without another client, the late answer is stored all the same."""
        first = self.request_page()
        self.wait(TIMEOUT)
        self.assert_let_go(first)
        self.wait(30)
        self.answer_request("1.0")
        self.clock.advance(0)
        self.assertEqual((["1.0"], 1), (versions(self.get()), self.upstream_requests))
        self.assert_nothing_left()

    def test_each_client_waits_as_long(self) -> None:
        """A client that joins a late request waits for the length of the time-out, too."""
        first = self.request_page()
        self.wait(10)
        second = self.request_page()
        self.wait(5)
        self.assert_let_go(first)
        third = self.request_page()
        self.wait(9.5)
        self.assertNoResult(second)
        self.wait(0.5)
        self.assert_let_go(second)
        self.wait(4.5)
        self.assertNoResult(third)
        self.wait(0.5)
        self.assert_let_go(third)
        self.assertEqual(1, self.upstream_requests)

    def test_client_waits_for_a_page_that_has_begun(self) -> None:
        """A page whose head came in time is awaited, though its body takes longer than the time-out."""
        first = self.request_page()
        body = page_of("1.0")
        self.wire.last.answer(body=body[:5], content_type="application/json", content_length=str(len(body)))
        for byte in body[5:8]:
            self.wait(9)
            self.wire.last.send(bytes([byte]))
        self.assertNoResult(first)
        self.wire.last.send(body[8:])
        self.assertEqual(["1.0"], versions(self.now(first)))

    def test_late_refusal_is_remembered(self) -> None:
        """A late 404 is upstream's answer as any other."""
        first = self.request_page()
        self.wait(TIMEOUT)
        self.assert_let_go(first)
        self.wire.last.answer(404)
        self.failing(self.pages.get(THING), NotFound)
        self.assertEqual(1, self.upstream_requests)

    def test_request_is_given_up_in_the_end(self) -> None:
        """After a minute the request fails. Then the page has a back-off, as after any failure."""
        self.wait_and_let_go()
        self.wait(LATE_LIMIT - TIMEOUT - 5)
        waiting = self.request_page()
        self.wait(5)
        self.assertIn("within 60 seconds", str(self.failing(waiting, UpstreamDown)))
        self.assertTrue(self.wire.last.closed)
        self.assertEqual(1, self.upstream_requests)
        self.failing(self.pages.check(), UpstreamDown)
        self.assert_nothing_left()
        again = self.request_page()
        self.wait(1)
        self.assertEqual(2, self.upstream_requests)
        self.answer_request("1.0")
        self.now(again)

    def test_slow_page_is_no_failure(self) -> None:
        """While a late request goes on, upstream does not count as failing."""
        self.wait_and_let_go()
        self.now(self.pages.check())
        self.answer_request("1.0")

    def test_client_that_leaves_is_forgotten(self) -> None:
        """A client that leaves ends neither the request nor the wait of others."""
        first, second = self.request_page(), self.request_page()
        first.addErrback(lambda _: None)
        first.cancel()
        self.wait(TIMEOUT - 1)
        self.answer_request("1.0")
        self.assertEqual(["1.0"], versions(self.now(second)))
        self.assert_nothing_left()


class StaleTest(LateTestCase):
    """A stale page is served while its request is late."""

    def setUp(self) -> None:
        super().setUp()
        self.upstream_has("1.0")
        self.get()
        self.clock.advance(CACHE_TIME)
        self.upstream_hangs()

    def test_stale_page_is_served_at_once(self) -> None:
        """Once the request is late, no client waits for it, even if upstream answers other pages."""
        first = self.request_page()
        slow = self.wire.last
        self.wait(STALE_AFTER)
        self.assertEqual(["1.0"], versions(self.now(first)))
        self.wait(TIMEOUT - STALE_AFTER)
        other = self.start(self.pages.get(PageId("simple", "other")))
        self.wire.last.answer(404)
        self.failing(other, NotFound)
        for _ in range(3):
            self.assertEqual((["1.0"], ""), (versions(answer := self.get()), answer.forward_reason))
        self.assertEqual(3, self.upstream_requests)
        slow.answer(body=page_of("2.0"), content_type="application/json")
        self.assertEqual(["2.0"], versions(self.get()))
        self.assert_nothing_left()

    def test_stale_page_has_no_backoff_meanwhile(self) -> None:
        """The late answer refreshes the page, and nothing is requested twice."""
        first = self.request_page()
        self.wait(STALE_AFTER)
        self.now(first)
        self.wait(LATE_LIMIT - STALE_AFTER - 1)
        self.assertEqual(["1.0"], versions(self.get()))
        self.answer_request("2.0")
        self.assertEqual((["2.0"], 2), (versions(self.get()), self.upstream_requests))


class FleetTest(LateTestCase):
    """All processes of a fleet share a late request."""

    def test_other_process_lets_its_clients_go_too(self) -> None:
        """
        A client of another process waits for the length of the time-out, and gets the page at its next try.

        The lease of the process that asks is held as long as its request goes on.
        """
        first, second = self.request_in_both()
        self.wait(TIMEOUT)
        self.assert_let_go(first)
        self.wait(PAGE_LEASE)
        self.assert_let_go(second)
        again = self.start(self.other.get(THING))
        self.wait(10)
        self.assertNoResult(again)
        self.answer_request("1.0")
        self.clock.advance(SOON)
        self.assertEqual((["1.0"], 1), (versions(self.now(again)), self.upstream_requests))
        self.assert_nothing_left()

    def test_other_process_waits_for_a_page_that_has_begun(self) -> None:
        """A client of another process waits for a page whose head came in time, though its body takes longer."""
        first, second = self.request_in_both()
        body = page_of("1.0")
        self.wire.last.answer(body=body[:5], content_type="application/json", content_length=str(len(body)))
        for byte in body[5:8]:
            self.wait(9)
            self.wire.last.send(bytes([byte]))
        self.assertNoResult(second)
        self.wire.last.send(body[8:])
        self.clock.advance(SOON)
        self.assertEqual([["1.0"]] * 2, [versions(self.now(each)) for each in (first, second)])

    def test_failure_of_a_late_request_is_shared(self) -> None:
        """When the request is given up, all processes have the page's back-off. Only one asks again."""
        self.request_in_both()
        self.wait(LATE_LIMIT + 0.5)
        waiting = [self.start(pages.get(THING)) for pages in (self.pages, self.other)]
        self.wait(1)
        self.assertEqual(2, self.upstream_requests)
        self.answer_request("1.0")
        self.clock.advance(SOON)
        self.assertEqual([["1.0"]] * 2, [versions(self.now(each)) for each in waiting])

    def test_process_that_takes_over_a_late_request_begins_anew(self) -> None:
        """When the process with a late request dies, another asks upstream, whose clients wait for its own time-out."""
        self.now(self.catalog.take_lease(f"page:{THING}", "a process that dies", PAGE_LEASE, "late"))
        waiting = self.start(self.other.get(THING))
        self.wait(PAGE_LEASE + 0.5)
        self.assertEqual(1, self.upstream_requests)
        self.wait(TIMEOUT - PAGE_LEASE)
        self.assertNoResult(waiting)
        self.answer_request("1.0")
        self.assertEqual(["1.0"], versions(self.now(waiting)))
