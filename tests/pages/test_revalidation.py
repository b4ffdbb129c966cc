"""A page is asked of upstream once for a fleet: two processes over one catalog, with time in the test's hands."""

from __future__ import annotations

from typing import cast

from twisted.internet.defer import Deferred
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher

from mypypi.errors import BadUpstreamResponse, NotFound, UpstreamDown
from mypypi.model import PageId
from mypypi.observability import metrics
from mypypi.pages.page_cache import CachedPage
from mypypi.pages.revalidation import PAGE_LEASE
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
#: Seconds within which a process sees what another one came to.
SOON = 0.1


def lease_waits() -> float:
    """How often a page's lease was waited for, in all tests so far."""
    return float(metrics.LEASE_WAITS.labels("page")._value.get())


class FleetTestCase(PagesTestCase):
    """`pages` asks upstream, which lets it wait, and so does `other`, to which its lease is in the way."""

    def both_ask(self, page: PageId = THING) -> tuple[Deferred[CachedPage], Deferred[CachedPage]]:
        self.upstream_hangs()
        before, waits = self.asked, lease_waits()
        first, second = self.start(self.pages.get(page)), self.start(self.other.get(page))
        self.assertEqual((before + 1, waits + 1), (self.asked, lease_waits()))
        return first, second

    def upstream_says(self, *versions: str) -> None:
        self.wire.last.answer(body=page_of(*versions), content_type="application/json")

    def assert_nothing_left(self) -> None:
        """No lease is held, and nothing ticks."""
        self.assertIsNone(self.now(self.catalog.take_lease(LEASE, "somebody else", 1)))
        self.now(self.catalog.release_lease(LEASE, "somebody else"))
        self.clock.advance(0)
        self.assertEqual([], self.clock.getDelayedCalls())


class OnceTest(FleetTestCase):
    """One revalidation per page per fleet."""

    def test_cold_page_is_asked_for_once(self) -> None:
        """The process that waits has it as soon as the other one has."""
        first, second = self.both_ask()
        self.clock.pump([1] * 8)
        self.upstream_says("1.0")
        self.assertEqual(["1.0"], versions(self.now(first)))
        self.clock.advance(SOON)
        answer = self.now(second)
        self.assertEqual((["1.0"], "miss", 1), (versions(answer), answer.forward_reason, self.asked))
        self.assert_nothing_left()

    def test_stale_page_is_asked_for_once(self) -> None:
        """New or confirmed."""
        for said in ("1.0", "2.0"):
            self.upstream_has("1.0")
            self.get()
            self.now(self.other.get(THING))
            self.clock.advance(CACHE_TIME)
            first, second = self.both_ask()
            self.upstream_says(said)
            self.clock.advance(SOON)
            for waiting in (first, second):
                answer = self.now(waiting)
                self.assertEqual(([said], "stale"), (versions(answer), answer.forward_reason))
                self.assertGreater(answer.ttl, CACHE_TIME - 1)
            self.clock.advance(CACHE_TIME)

    def test_page_that_is_never_fresh_is_waited_for_all_the_same(self) -> None:
        """What comes while somebody waits is new to them."""
        self.pages, self.other = self.make(cache_time=0), self.make(cache_time=0)
        first, second = self.both_ask()
        self.upstream_says("1.0")
        self.clock.advance(SOON)
        self.assertEqual([["1.0"]] * 2, [versions(self.now(each)) for each in (first, second)])
        self.assertEqual(1, self.asked)

    def test_page_that_another_process_has_just_refreshed_is_not_asked_for(self) -> None:
        """Hot pages look at the catalog once a second: the lease makes them look once more."""
        self.upstream_has("1.0")
        self.get()
        self.clock.advance(CACHE_TIME - 0.5)
        self.now(self.other.cached(THING))
        self.now(self.catalog.touch_page(THING, self.get().page.version, self.clock.seconds()))
        before = self.asked
        self.clock.advance(0.5)
        self.assertEqual((["1.0"], before), (versions(self.now(self.other.get(THING))), self.asked))

    def test_that_there_is_no_page_is_found_out_once(self) -> None:
        first, second = self.both_ask()
        self.wire.last.answer(404)
        self.failing(first, NotFound)
        self.clock.advance(SOON)
        self.failing(second, NotFound)
        self.assertEqual(1, self.asked)
        self.clock.advance(NEGATIVE_CACHE_TIME / 2)
        self.failing(self.other.get(THING), NotFound)
        self.assertEqual(1, self.asked)

    def test_clients_that_wait_with_a_page_to_fall_back_on_wait_for_no_more_than_ever(self) -> None:
        """Whichever process they asked."""
        self.upstream_has("1.0")
        self.get()
        self.clock.advance(CACHE_TIME)
        waiting = self.both_ask()
        self.clock.advance(STALE_AFTER - 0.1)
        for each in waiting:
            self.assertNoResult(each)
        self.clock.advance(0.1)
        for each in waiting:
            self.assertEqual(["1.0"], versions(self.now(each)))
        self.assertEqual(2, self.asked)

    def test_each_asks_for_itself_without_a_catalog(self) -> None:
        """As many requests as there are processes, and each page is served."""
        self.catalog.down = "no Redis here"
        self.upstream_has("1.0")
        for pages in (self.pages, self.other):
            self.assertEqual(["1.0"], versions(self.now(pages.get(THING))))
        self.assertEqual(2, self.asked)

    def test_who_waits_asks_for_itself_when_the_catalog_goes_away(self) -> None:
        first, second = self.both_ask()
        self.catalog.down = "cable pulled"
        self.clock.advance(SOON)
        self.assertEqual(2, self.asked)
        for exchange in self.wire.exchanges:
            exchange.answer(body=page_of("1.0"), content_type="application/json")
        self.assertEqual([["1.0"]] * 2, [versions(self.now(each)) for each in (first, second)])


class HolderTest(FleetTestCase):
    """What becomes of those who wait when the process that asks does not succeed."""

    def test_process_that_dies_is_followed_by_another(self) -> None:
        """Within the lease's expiry, and with one request."""
        self.now(self.catalog.take_lease(LEASE, "a process that dies", PAGE_LEASE))
        waiting = [self.start(pages.get(THING)) for pages in (self.pages, self.other)]
        self.clock.pump([SOON] * round((PAGE_LEASE - 1) / SOON))
        self.assertEqual(0, self.asked)
        self.clock.pump([SOON] * 20)
        self.assertEqual(1, self.asked)
        self.upstream_says("1.0")
        self.clock.advance(SOON)
        self.assertEqual([["1.0"]] * 2, [versions(self.now(each)) for each in waiting])

    def test_process_that_lets_go_without_an_outcome_is_followed_at_once(self) -> None:
        _, second = self.both_ask()
        self.now(self.catalog.release_lease(LEASE, "process 0"))
        self.clock.advance(SOON)
        self.assertEqual(2, self.asked)
        self.upstream_says("1.0")
        self.assertEqual(["1.0"], versions(self.now(second)))

    def test_failure_for_a_cold_page_is_everybodys(self) -> None:
        """As what it was, down or broken: not every process of the fleet asks a failing upstream in turn."""
        for status, kind in ((500, UpstreamDown), (418, BadUpstreamResponse)):
            before = self.asked
            first, second = self.both_ask()
            self.wire.last.answer(status)
            told = self.failing(first, kind)
            self.clock.advance(SOON)
            self.assertEqual(str(told), str(self.failing(second, kind)))
            self.assertEqual(before + 1, self.asked)
            self.assert_nothing_left()

    def test_who_asks_for_a_cold_page_after_a_failure_tries_anew(self) -> None:
        """There is nothing that they could be given in its place."""
        self.upstream_answers(500)
        self.failing(self.pages.get(THING), UpstreamDown)
        self.upstream_has("1.0")
        self.assertEqual(["1.0"], versions(self.now(self.other.get(THING))))

    def test_failure_for_a_page_that_is_here_pauses_all(self) -> None:
        """The other process answers at once with what it has, and does not ask."""
        self.upstream_has("1.0")
        self.get()
        self.now(self.other.get(THING))
        self.clock.advance(CACHE_TIME)
        self.upstream_answers(500)
        self.get()
        before = self.asked
        self.assertEqual((["1.0"], before), (versions(self.now(self.other.get(THING))), self.asked))
        self.clock.advance(1)
        self.upstream_has("2.0")
        self.assertEqual(["2.0"], versions(self.now(self.other.get(THING))))

    def test_pauses_grow_whoever_asks(self) -> None:
        """Two processes in turn: each pause is longer than the one before it."""
        self.upstream_has("1.0")
        self.get()
        self.now(self.other.get(THING))
        self.clock.advance(CACHE_TIME)
        self.upstream_answers(500)
        for pages, pause in ((self.pages, 1), (self.other, 2), (self.pages, 4), (self.other, 8)):
            before = self.asked
            self.now(pages.get(THING))
            self.assertEqual(before + 1, self.asked)
            self.clock.advance(pause - 0.01)
            self.now(self.pages.get(THING))
            self.now(self.other.get(THING))
            self.assertEqual(before + 1, self.asked)
            self.clock.advance(0.01)

    def test_trouble_is_over_when_another_process_has_the_page(self) -> None:
        """Also for the health of one that met it and did not ask since."""
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


class EarlyTest(FleetTestCase):
    """A page that is asked for is refreshed before it runs out."""

    def setUp(self) -> None:
        super().setUp()
        self.upstream_has("1.0")
        self.get()

    def near_the_end(self) -> None:
        """So near that every process asks for it early."""
        self.clock.advance(CACHE_TIME * 0.96)

    def test_popular_page_never_waits_for_upstream(self) -> None:
        """It is answered at once as it is, still fresh; what upstream says later is there for the next one."""
        self.near_the_end()
        self.upstream_hangs()
        for _ in range(3):
            answer = self.get()
            self.assertEqual((["1.0"], ""), (versions(answer), answer.forward_reason))
            self.assertGreater(answer.ttl, 0)
        self.assertEqual(2, self.asked)
        self.upstream_says("2.0")
        self.assertEqual((["2.0"], CACHE_TIME), (versions(new := self.get()), new.ttl))

    def test_page_that_nobody_asks_for_is_not_refreshed(self) -> None:
        self.near_the_end()
        self.clock.advance(CACHE_TIME * 10)
        self.assertEqual(1, self.asked)

    def test_page_with_much_of_its_freshness_left_is_not_asked_for(self) -> None:
        self.clock.advance(CACHE_TIME * 0.79)
        self.get()
        self.assertEqual(1, self.asked)

    def test_pages_that_came_together_are_refreshed_one_after_another(self) -> None:
        """Each page has a time of its own, and each process: an install's pages are no burst five minutes later."""
        pages = [PageId("simple", f"thing{number}") for number in range(40)]
        for page in pages:
            self.wire.reply(f"/simple/{page.project}/", 200, page_of("1.0"), content_type="application/json")
            self.now(self.pages.get(page))
        self.clock.advance(CACHE_TIME * 0.8)
        bursts = []
        for _ in range(45):
            before = self.asked
            self.clock.advance(1)
            for page in pages:
                self.now(self.pages.get(page))
            bursts.append(self.asked - before)
        self.assertEqual(40, sum(bursts))
        self.assertLess(max(bursts), 10)

    def test_fleet_refreshes_early_once(self) -> None:
        """The other processes see within a second that it was done."""
        self.now(self.other.get(THING))
        self.near_the_end()
        self.upstream_has("2.0")
        self.get()
        self.clock.advance(0.5)
        self.now(self.other.get(THING))
        self.clock.advance(0.5)
        self.assertEqual((["2.0"], 2), (versions(self.now(self.other.get(THING))), self.asked))

    def test_missing_page_is_not_asked_for_early(self) -> None:
        """Nobody waits for it who would not have waited before."""
        self.upstream_answers(404)
        missing = PageId("simple", "missing")
        self.wire.reply("/simple/missing/", 404)
        self.failing(self.pages.get(missing), NotFound)
        self.clock.advance(NEGATIVE_CACHE_TIME * 0.99)
        before = self.asked
        self.failing(self.pages.get(missing), NotFound)
        self.assertEqual(before, self.asked)

    def test_early_refresh_that_fails_is_paused_like_any_other(self) -> None:
        """Clients notice nothing of it."""
        self.near_the_end()
        self.upstream_answers(500)
        for _ in range(5):
            self.assertEqual(["1.0"], versions(self.get()))
        self.assertEqual(2, self.asked)
        self.assertEqual([], self.flushLoggedErrors())

    def test_early_refresh_takes_no_place_from_those_who_wait(self) -> None:
        """While half of the places are taken, it is put off, quietly, until there is room again."""
        events: list[LogEvent] = []
        observer = cast("ILogObserver", events.append)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        self.near_the_end()
        self.upstream_hangs()
        waiting = [self.start(self.pages.get(PageId("simple", f"cold{number}"))) for number in range(32)]
        self.assertEqual(33, self.asked)
        self.assertEqual(["1.0"], versions(self.get()))
        self.assertEqual(33, self.asked)
        self.wire.last.answer(404)
        self.failing(waiting[-1], NotFound)
        self.get()
        self.assertEqual(34, self.asked)
        self.assertEqual([], events)

    def test_freshness_of_some_seconds_is_not_cut(self) -> None:
        """Others could not see in time that a page was refreshed."""
        for pages in (brief := self.make(cache_time=10), self.make(cache_time=10)):
            self.assertEqual(0, pages._early_ttl)
        self.clock.advance(9.9)
        self.now(brief.get(THING))
        self.assertEqual(1, self.asked)
