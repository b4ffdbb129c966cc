"""Tests of a kind of requests that is held back, since upstream answers 429 or 503 to several of them."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

from twisted.internet.defer import Deferred

from mypypi.errors import UpstreamDown, UpstreamPaused
from mypypi.upstream.backoff import Backoff
from mypypi.upstream.client import Upstream
from mypypi.upstream.responses import PageResponse
from tests.support.fakes import MemoryCatalog
from tests.support.memory import NOW, MemoryTestCase
from tests.upstream.cases import FILE, BreakerTestCase, breaker_metric_is_set, paths


class RefusedKindTest(BreakerTestCase):
    """
    A kind is held back after 429 or 503 for five different URLs within 10 s.

    Other kinds are not.
    """

    def test_kind_is_held_back(self) -> None:
        """After five URLs, no request of the kind is sent. The error has the reason and the wait."""
        self.fail_requests(503, *paths(4))
        self.assertFalse(self.upstream.is_paused("page"))
        self.fail_requests(429, "/simple/4/")
        message = self.assert_paused()
        self.assertEqual(1, message.retry_after)
        self.assertEqual(
            "requests to upstream are paused for another 1 s, because it failed: "
            "upstream answered 429 to several page requests",
            str(message),
        )
        self.assertTrue(self.upstream.is_paused("page"))
        self.assertFalse(self.upstream.has_spare_capacity("page"))
        self.failing(self.upstream.check("page"), UpstreamPaused)
        self.assert_paused(self.other)

    def test_other_kinds_go_on(self) -> None:
        """While pages are held back, files and audits of the same origin are requested as always, and vice versa."""
        self.fail_requests(429, *paths(5), retry_after="60")
        self.assert_paused()
        self.file("https://index.example/a.whl")
        self.assertEqual("/a.whl", self.wire.last.path)
        self.audit()
        self.assertEqual("/audit", self.wire.last.path)
        self.assert_request_succeeds(kind="keys")
        self.now(self.upstream.check("file"))
        for path in paths(5):
            self.audit(path)
            self.wire.last.answer(429, b"", retry_after="60")
        self.failing(self.audit(), UpstreamPaused)
        self.assert_request_succeeds(kind="keys")

    def test_check_of_all_tells_of_every_origin_and_kind(self) -> None:
        """While files of another host are held back, the check of pages passes, and that of all gives the reason."""
        self.now(self.upstream.check_all())
        for number in range(5):
            pending = self.file(f"https://files.example/{number}.whl")
            self.wire.last.answer(429, b"", retry_after="30")
            self.settle(pending)
        self.now(self.upstream.check("page"))
        error = self.failing(self.upstream.check_all(), UpstreamPaused)
        self.assertIn("upstream answered 429 to several file requests", str(error))
        self.clock.advance(30)
        self.now(self.upstream.check_all())

    def test_other_origins_go_on(self) -> None:
        """Files of one host are held back, and those of another are not."""
        for path in paths(5):
            self.file(f"{FILE}{path}")
            self.wire.last.answer(429, b"", retry_after="7")
        waiting = self.file()
        self.assertEqual(5, self.request_count)
        self.file("https://other.example/a.whl")
        self.assertEqual("https://other.example/a.whl", self.wire.last.url)
        self.assertNoResult(waiting)

    def test_same_url_counts_once(self) -> None:
        """One URL that is answered 429 or 503 holds no other back, however often it is requested."""
        for status in (429, 503):
            self.fail_requests(status, *["/simple/bad/"] * 20, retry_after="60")
        self.fail_requests(429, *paths(3))
        self.assert_request_succeeds()

    def test_success_in_between_resets_the_count(self) -> None:
        """An answer that is neither 429 nor a server error shows that the kind is served."""
        for status in (200, 304, 404, 403):
            self.fail_requests(429, *paths(4))
            pending = self.page("/simple/good/", etag='"1"')
            self.wire.last.answer(status, b"" if status == 304 else b"{}")
            self.settle(pending)
            self.fail_requests(429, *paths(4))
            self.assertFalse(self.upstream.is_paused("page"))

    def test_server_error_in_between_is_no_success(self) -> None:
        """A 500 neither counts nor resets the count: an upstream that is overloaded may answer both."""
        self.fail_requests(503, *paths(4))
        self.fail_requests(500, "/simple/broken/")
        self.assert_request_succeeds(kind="keys")
        self.fail_requests(503, "/simple/4/")
        self.assert_paused()

    def test_refusals_count_for_ten_seconds(self) -> None:
        """A refusal that is older than ten seconds does not count."""
        self.fail_requests(429, "/simple/old/")
        self.clock.advance(10.1)
        self.fail_requests(429, *paths(4))
        self.assertFalse(self.upstream.is_paused("page"))
        self.clock.advance(9.9)
        self.fail_requests(429, "/simple/new/")
        self.assert_paused()

    def test_pauses_grow_until_a_success(self) -> None:
        """Without a Retry-After, pauses double from one second to a minute, until a request succeeds."""
        for pause in (1, 2, 4, 8, 16, 32, 60, 60):
            self.fail_requests(429, *paths(5))
            self.assertEqual(pause, self.assert_paused().retry_after)
            self.assertEqual(pause, self.assert_paused(self.other).retry_after)
            self.clock.advance(pause)
        self.assert_request_succeeds()
        self.fail_requests(429, *paths(5))
        self.assertEqual(1, self.assert_paused().retry_after)

    def test_all_requests_are_sent_after_the_pause(self) -> None:
        """After the pause of a kind, it takes five refusals to hold it back again."""
        self.fail_requests(429, *paths(5))
        self.clock.advance(1)
        for path in paths(5):
            self.send(path)
            self.send(path, upstream=self.other)

    def test_pause_ends_in_time_without_a_catalog(self) -> None:
        """Without a catalog, each process holds its own requests back."""
        self.catalog.down = "no Redis here"
        self.fail_requests(429, *paths(5), retry_after="7")
        self.assertEqual(7, self.assert_paused().retry_after)
        self.assert_request_succeeds(self.other)
        self.clock.advance(7)
        self.assert_request_succeeds()

    def test_log_has_a_line_for_the_pause(self) -> None:
        self.fail_requests(429, *paths(5), retry_after="7")
        self.assert_paused()
        line = (
            "page requests to https://index.example:443 are paused for 7 s: "
            "upstream answered 429 to several page requests"
        )
        self.assertEqual([line], self.log_lines())


class RetryAfterTest(BreakerTestCase):
    """Upstream's Retry-After is the length of the pause of a kind."""

    def test_retry_after_holds_all_processes_back(self) -> None:
        """Every process waits for as long as Retry-After says, and no longer."""
        for status in (429, 503):
            self.fail_requests(status, *paths(5), retry_after="7")
            self.clock.advance(1)
            self.assertEqual(6, self.assert_paused().retry_after)
            self.assertEqual(6, self.assert_paused(self.other).retry_after)
            self.clock.advance(5.9)
            self.assert_paused()
            self.clock.advance(0.1)
            self.assert_request_succeeds()

    def test_retry_after_is_bounded(self) -> None:
        """No Retry-After holds requests back for longer than a minute, whether it is in seconds or a date."""
        date = datetime.fromtimestamp(NOW, timezone.utc) + timedelta(days=1)
        for value in ("86400", "9" * 4000, format_datetime(date, usegmt=True)):
            self.fail_requests(429, *paths(5), retry_after=value)
            self.assertEqual(60, self.assert_paused().retry_after)
            self.clock.advance(60)
            self.assert_request_succeeds()

    def test_retry_after_may_be_a_date(self) -> None:
        """A date is counted from now (RFC 9110, section 10.2.3)."""
        date = datetime.fromtimestamp(NOW, timezone.utc) + timedelta(seconds=40)
        self.fail_requests(503, *paths(5), retry_after=format_datetime(date, usegmt=True))
        self.assertEqual(40, self.assert_paused().retry_after)

    def test_longest_retry_after_counts(self) -> None:
        """The longest Retry-After counts, among the five URLs and of requests that were sent before the pause."""
        pending = [self.send(path) for path in paths(7)]
        exchanges = list(self.wire.exchanges)
        for exchange, seconds in zip(exchanges, (5, 20, 10, 5, 5), strict=False):
            exchange.answer(503, retry_after=str(seconds))
        self.assertEqual(20, self.assert_paused().retry_after)
        exchanges[5].answer(503, retry_after="10")
        exchanges[6].answer(503, retry_after="30")
        self.assertEqual(30, self.assert_paused().retry_after)
        self.assertEqual(30, self.assert_paused(self.make_upstream(owner="three")).retry_after)
        for each in pending:
            self.settle(each)

    def test_success_of_an_earlier_request_does_not_end_the_pause(self) -> None:
        """A request that was sent before the pause and succeeds during it does not end the pause."""
        earlier = self.send("/simple/earlier/")
        exchange = self.wire.last
        self.fail_requests(429, *paths(5), retry_after="30")
        exchange.answer(body=b"{}")
        self.now(earlier)
        self.assertEqual(30, self.assert_paused().retry_after)

    def test_retry_after_of_one_url_is_for_its_caller(self) -> None:
        """One 429 or 503 with Retry-After holds nobody back. Its error says how long to wait for this URL."""
        for status in (429, 503):
            pending = self.send()
            self.wire.last.answer(status, b"", retry_after="30")
            failure = self.failureResultOf(pending).value
            self.assertEqual((30, 30), (failure.retry_after, failure.told))
            self.assert_request_succeeds()

    def test_retry_after_of_other_statuses_is_ignored(self) -> None:
        """Retry-After of a 500 and a 404 does not count for the kind."""
        self.fail_requests(500, *paths(10), retry_after="7")
        self.fail_requests(404, *paths(10), retry_after="7")
        self.assert_request_succeeds()


class KindTrialTest(BreakerTestCase):
    """Upstream may refuse the five URLs alone. So during the pause, one request is sent now and then."""

    def setUp(self) -> None:
        super().setUp()
        self.fail_requests(429, *paths(5), retry_after="60")
        self.assertEqual(60, self.assert_paused().retry_after)
        self.asked = self.request_count

    def pages(self, count: int, upstream: Upstream | None = None) -> list[Deferred[PageResponse]]:
        """Request other pages, for which there is nothing else to serve."""
        return [self.page(path, patient=True, upstream=upstream) for path in paths(count, "/good/")]

    @property
    def trials(self) -> int:
        """The requests that were sent during the pause."""
        return self.request_count - self.asked

    def test_success_of_a_trial_ends_the_pause(self) -> None:
        """After a quarter of a second one request is sent. It succeeds, and all others of the fleet follow at once."""
        waiting = [*self.pages(5), *self.pages(5, self.other)]
        self.clock.pump([0.1] * 2)
        self.assertEqual(0, self.trials)
        self.clock.pump([0.1] * 2)
        self.assertEqual(1, self.trials)
        self.wire.last.answer(body=b"{}")
        self.clock.pump([0.1] * 2)
        self.assertEqual(5, self.trials)
        self.clock.pump([0.1] * 9)
        self.assertEqual(10, self.trials)
        for exchange in self.wire.exchanges[self.asked + 1 :]:
            exchange.answer(body=b"{}")
        for each in waiting:
            self.now(each)
        self.assertEqual("page requests to https://index.example:443 are resumed", self.log_lines()[1])
        self.assertFalse(breaker_metric_is_set(kind="page"))

    def test_refused_trials_get_rarer(self) -> None:
        """A fleet sends thirteen trials in a minute to an upstream that refuses all. Clients get the true wait."""
        for second in range(59):
            for upstream in (self.upstream, self.other):
                waiting = self.page(f"/good/{second}/", patient=True, upstream=upstream)
                for _ in range(5):
                    before = self.trials
                    self.clock.advance(0.1)
                    if self.trials > before:
                        self.wire.last.answer(429, b"")
                waiting.addErrback(lambda failure: failure.trap(UpstreamDown))
        self.assertTrue(11 <= self.trials <= 14, self.trials)
        self.assertIn(self.assert_paused().retry_after, (1, 2))
        self.clock.advance(1.1)
        self.assert_request_succeeds()

    def test_trial_that_tells_nothing_is_followed_by_another(self) -> None:
        """A 500 neither ends the pause nor delays the next trial: several broken pages do not lengthen it."""
        for number in range(20):
            waiting = self.page(f"/broken/{number}/", patient=True)
            self.clock.pump([0.1] * 3)
            self.assertEqual(number + 1, self.trials)
            self.wire.last.answer(500, b"")
            self.failing(waiting, UpstreamDown)
        self.assert_paused()
        waiting = self.page("/good/", patient=True, upstream=self.other)
        self.clock.pump([0.1] * 3)
        self.wire.last.answer(body=b"{}")
        self.now(waiting)

    def test_hanging_trial_is_followed_by_another(self) -> None:
        """A trial that hangs keeps nobody out: the next one follows, and succeeds."""
        hanging, good = self.pages(2)
        self.clock.pump([0.1] * 14)
        self.assertEqual(2, self.trials)
        self.wire.last.answer(body=b"{}")
        self.now(good)
        self.assertNoResult(hanging)
        self.assert_request_succeeds()

    def test_a_request_that_need_not_wait_is_no_trial(self) -> None:
        """Where a cached page can be served, no request is sent during the pause."""
        for _ in range(30):
            self.clock.advance(1)
            self.assert_paused()
        self.assertEqual(0, self.trials)

    def test_trials_need_no_catalog(self) -> None:
        """Without a catalog, each process has its own trials."""
        self.catalog.down = "no Redis here"
        (waiting,) = self.pages(1)
        self.clock.pump([0.1] * 6)
        self.assertEqual(1, self.trials)
        self.wire.last.answer(body=b"{}")
        self.now(waiting)
        self.assert_request_succeeds()


class BackoffTest(MemoryTestCase):
    """Pauses of one name, such as a page or a kind."""

    def test_thousands_of_failures_are_counted(self) -> None:
        """A URL may fail for days. Its pauses stay at about a minute."""
        backoff = Backoff(MemoryCatalog(self.clock), self.clock)
        for number in range(1, 3001):
            pause = self.now(backoff.begin("page:bad", "upstream answered 500"))
            self.assertEqual(number, pause.failures)
        self.assertTrue(45 <= backoff.remaining("page:bad") <= 75)
