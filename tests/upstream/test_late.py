"""Tests of late requests: those that go on although upstream has not answered within the time-out."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from mypypi.errors import NotFound, UpstreamDown, UpstreamPaused
from mypypi.model import PageRequest
from mypypi.observability import metrics
from mypypi.upstream.client import Upstream
from mypypi.upstream.requester import LATE_LIMIT
from mypypi.upstream.responses import FileResponse, PageResponse
from tests.upstream.cases import FILE, JSON, TIMEOUT, BreakerTestCase, end_abandoned_requests, paths


class LateTestCase(BreakerTestCase):
    """Requests that may be late. `told` counts those that were."""

    def setUp(self) -> None:
        super().setUp()
        self.told = 0

    def tell(self) -> None:
        self.told += 1

    def slow(
        self, path: str = "/simple/a/", client: str = "", upstream: Upstream | None = None
    ) -> Deferred[PageResponse]:
        """Request a page that may be late."""
        request = PageRequest(path, JSON, "page")
        return self.start((upstream or self.upstream).page(request, client=client, late=self.tell))

    def slow_file(self) -> Deferred[FileResponse]:
        """Request a file that may be late."""
        return self.start(self.upstream.file(FILE, {}, late=self.tell))


class LateTest(LateTestCase):
    """A late request goes on, up to a limit of its own."""

    def test_late_answer_is_an_answer(self) -> None:
        """A page, a file and an audit that are answered after 18 seconds are had, each with one request."""
        page, file, audit = self.slow(), self.slow_file(), self.audit()
        exchanges = list(self.wire.exchanges)
        self.clock.advance(TIMEOUT)
        self.assertEqual(2, self.told)
        self.clock.advance(3)
        for exchange in exchanges:
            exchange.answer(body=b"{}")
        self.assertIsNotNone(self.now(page).source)
        self.assertEqual((200, 200, 3), (self.now(file).status, self.now(audit).status, self.request_count))

    def test_late_answer_of_any_status_counts(self) -> None:
        """What upstream says late is what it says."""
        page = self.slow()
        self.clock.advance(TIMEOUT + 3)
        self.wire.last.answer(404)
        self.failing(page, NotFound)

    def test_late_request_ends(self) -> None:
        """A request that is never answered fails after a minute. Its connection is closed, and its place is free."""
        self.assertEqual(60, LATE_LIMIT)
        self.upstream = self.make_upstream(concurrency=1)
        page = self.slow()
        self.clock.advance(TIMEOUT)
        self.clock.advance(LATE_LIMIT - TIMEOUT - 0.1)
        self.assertNoResult(page)
        self.clock.advance(0.1)
        self.assertIn("did not answer within 60 seconds", str(self.failing(page, UpstreamDown)))
        self.assertTrue(self.wire.last.closed)
        self.assertEqual([], self.clock.getDelayedCalls())
        self.assert_slot_is_free(self.upstream)

    def test_cancelled_late_request_ends_at_once(self) -> None:
        """A late audit whose client has left is not awaited any more."""
        audit = self.audit()
        self.clock.advance(TIMEOUT)
        audit.cancel()
        self.failing(audit, UpstreamDown)
        self.clock.advance(0)
        self.assertTrue(self.wire.last.closed)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_request_that_nobody_could_join_fails_at_the_time_out(self) -> None:
        """Without a function to be told by, a request fails at the time-out."""
        page = self.page()
        self.clock.advance(TIMEOUT)
        self.failing(page, UpstreamDown)

    def test_longer_time_out_is_the_limit(self) -> None:
        """A time-out that is longer than the limit of late requests holds for all."""
        upstream = Upstream(self.clock, self.url, timeout=90, agent=self.wire.agent)
        page = self.slow(upstream=upstream)
        self.clock.advance(89)
        self.assertNoResult(page)
        self.clock.advance(1)
        self.failing(page, UpstreamDown)
        self.assertEqual(0, self.told)


class LatePlacesTest(LateTestCase):
    """Late requests take nothing from others."""

    def setUp(self) -> None:
        super().setUp()
        self.upstream = self.make_upstream(concurrency=8)
        end_abandoned_requests()
        self.running = metrics.UPSTREAM_RUNNING._value.get()

    def count(self) -> float:
        """The number of requests that run."""
        return float(metrics.UPSTREAM_RUNNING._value.get() - self.running)

    def answer_other(self) -> None:
        """Let upstream answer a file, so that it does not count as silent."""
        answered = self.file("https://index.example/a.whl")
        self.wire.last.answer(body=b"x")
        self.now(answered).close()

    def test_late_request_gives_its_place_to_others(self) -> None:
        """When all places of pages are late, as many others are sent."""
        late = [self.slow(path, path) for path in paths(4)]
        waiting = [self.page(path, client=path) for path in paths(4, "/simple/other-")]
        self.assertEqual(4, self.request_count)
        self.clock.advance(TIMEOUT - 1)
        self.answer_other()
        self.clock.advance(1)
        self.assertEqual((4, 9, 8), (self.told, self.request_count, self.count()))
        for exchange in self.wire.exchanges:
            if not exchange.closed:
                exchange.answer(body=b"{}")
        for each in (*late, *waiting):
            self.now(each)
        self.assertEqual(0, self.count())

    def test_late_requests_are_limited(self) -> None:
        """No more requests are late than may run at once, with the same shares: others fail at the time-out."""
        for number in range(3):
            pages = [self.slow(path, path) for path in paths(4, f"/{number}/")]
            self.clock.advance(TIMEOUT - 1)
            self.answer_other()
            self.clock.advance(1)
            for each in pages:
                if number == 0:
                    self.assertNoResult(each)
                else:
                    self.failing(each, UpstreamDown)
        self.assertEqual((4, 4), (self.told, self.count()))
        self.slow_file()
        self.clock.advance(TIMEOUT)
        self.assertEqual(5, self.told)

    def test_client_leaves_late_places_to_others(self) -> None:
        """One client's requests take three quarters of the late places of a kind."""
        greedy = [self.slow(path, "greedy") for path in paths(3)]
        modest = self.slow("/modest/", "modest")
        self.clock.advance(TIMEOUT)
        self.clock.advance(2)
        self.assertEqual(4, self.told)
        for each in (*greedy, modest):
            self.assertNoResult(each)


class LateBreakerTest(LateTestCase):
    """Silence is seen at the time-out, and a late answer ends it."""

    def test_silent_origin_is_held_back_while_requests_go_on(self) -> None:
        """Three late URLs hold the origin back. The first late answer resumes it for the whole fleet."""
        late = [self.slow(path) for path in paths(3)]
        exchanges = list(self.wire.exchanges)
        self.clock.advance(TIMEOUT)
        for each in late:
            self.assertNoResult(each)
        self.assert_paused()
        self.assert_paused(self.other)
        exchanges[0].answer(body=b"{}")
        self.now(late[0])
        self.assert_request_succeeds()
        self.clock.advance(1)
        self.assert_request_succeeds(self.other)

    def test_late_trial_is_followed_by_another(self) -> None:
        """A trial that is late makes the pause longer, and another trial follows. Its late answer ends the pause."""
        self.refuse_connections()
        self.clock.advance(1)
        trial = self.slow("/simple/slow/")
        exchange = self.wire.last
        self.clock.advance(TIMEOUT)
        self.assertEqual(2, self.assert_paused().retry_after)
        self.clock.advance(2)
        other = self.send("/simple/other/")
        self.assert_paused(path="/simple/third/")
        exchange.answer(body=b"{}")
        self.now(trial)
        self.wire.last.answer(body=b"{}")
        self.now(other)
        self.assert_request_succeeds()

    def test_late_request_that_fails_counts_once(self) -> None:
        """A late URL that is never answered does not hold back others again when it is given up."""
        late = [self.slow(path) for path in paths(3)]
        self.clock.advance(TIMEOUT)
        self.assert_paused()
        self.clock.advance(2)
        self.assert_request_succeeds()
        self.clock.advance(LATE_LIMIT)
        for each in late:
            self.failing(each, UpstreamDown)
        self.assert_request_succeeds()

    def test_late_urls_do_not_count_once_others_are_answered(self) -> None:
        """URLs that hang while others are answered are no silence, however long they hang."""
        hanging = [self.slow(path, upstream=self.upstream) for path in paths(2, "/hanging/")]
        self.clock.advance(TIMEOUT)
        self.assert_request_succeeds()
        self.assertFalse(self.upstream.is_silent(4))
        self.clock.advance(1)
        third = self.slow("/hanging/third/")
        self.clock.advance(TIMEOUT)
        self.assert_request_succeeds()
        for each in (*hanging, third):
            self.assertNoResult(each)

    def test_late_request_is_not_sent_while_paused(self) -> None:
        """A request that may be late is held back as any other."""
        self.refuse_connections()
        self.failing(self.slow(), UpstreamPaused)
