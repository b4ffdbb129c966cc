"""Tests of the circuit breaker, of retries, and of the limit of concurrent requests."""

from __future__ import annotations

from typing import cast
from unittest import mock

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import ILogObserver, LogEvent, eventAsText, globalLogPublisher

from mypypi.errors import BadUpstreamResponse, MyPyPiError, NotFound, UpstreamBusy, UpstreamDown, UpstreamPaused
from mypypi.observability import metrics
from mypypi.upstream.backoff import Backoff
from mypypi.upstream.breaker import Breaker, origin_of
from mypypi.upstream.client import Upstream
from mypypi.upstream.requester import RETRIES
from mypypi.upstream.responses import FileResponse, PageResponse, PassedResponse
from tests.support.fakes import MemoryCatalog
from tests.support.memory import MemoryTestCase, Wire

URL = "https://index.example"
JSON = "application/json"
FILE = "https://files.example/a.whl"
TIMEOUT = 15


def breaker_metric_is_set(host: str = "index.example") -> bool:
    return bool(metrics.BREAKER_OPEN.labels(host)._value.get())


class BreakerTestCase(MemoryTestCase):
    """Two processes of a fleet, with one wire to upstream and one catalog."""

    retries: tuple[float, ...] = ()

    def setUp(self) -> None:
        super().setUp()
        self.wire = Wire(self.clock)
        self.addCleanup(self.wire.hang_up)
        self.catalog = MemoryCatalog(self.clock)
        uniform = mock.patch("random.uniform", lambda low, high: (low + high) / 2)
        uniform.start()
        self.addCleanup(uniform.stop)
        self.events: list[LogEvent] = []
        observer = cast("ILogObserver", self.events.append)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        self.upstream, self.other = self.make_upstream("one"), self.make_upstream("two")

    def make_upstream(self, owner: str, concurrency: int = 64) -> Upstream:
        breaker = Breaker(Backoff(self.catalog, self.clock), self.catalog, owner, self.clock, TIMEOUT)
        return Upstream(
            self.clock,
            URL,
            concurrency=concurrency,
            timeout=TIMEOUT,
            agent=self.wire.agent,
            breaker=breaker,
            retries=self.retries,
        )

    def page(self, upstream: Upstream | None = None, path: str = "/simple/a/") -> Deferred[PageResponse]:
        return self.start((upstream or self.upstream).page(path, JSON))

    def file(self, url: str = FILE) -> Deferred[FileResponse]:
        return self.start(self.upstream.file(url, {}))

    def fail_requests(
        self, status: int = 500, times: int = 1, upstream: Upstream | None = None, **headers: str
    ) -> None:
        """Request pages one after another; upstream answers each with this status."""
        for _ in range(times):
            before = self.request_count
            pending = self.page(upstream)
            self.assertEqual(before + 1, self.request_count, "the request is sent")
            self.wire.last.answer(status, b"", **headers)
            self.failing(pending, MyPyPiError)

    def assert_request_succeeds(self, upstream: Upstream | None = None) -> None:
        before = self.request_count
        pending = self.page(upstream)
        self.assertEqual(before + 1, self.request_count, "the request is sent")
        self.wire.last.answer(body=b"{}")
        self.now(pending)

    def assert_paused(self, upstream: Upstream | None = None) -> UpstreamPaused:
        """Request a page, and return the error of the request, which is not sent."""
        before = self.request_count
        error = self.failing(self.page(upstream), UpstreamPaused)
        self.assertEqual(before, self.request_count, "no request is sent")
        assert isinstance(error, UpstreamPaused)
        return error

    @property
    def request_count(self) -> int:
        return len(self.wire.exchanges)

    def log_lines(self) -> list[str]:
        return [eventAsText(event, includeTimestamp=False, includeSystem=False) for event in self.events]


class RepeatedFailureTest(BreakerTestCase):
    """Five failures in a row open the breaker."""

    def test_each_kind_of_failure_counts(self) -> None:
        """
        Refused and lost connections, timeouts, 5xx and 429 all count as failures.

        After five of them no request is sent.
        """
        self.wire.refuses = True
        self.assertIn("refused", str(self.failing(self.page(), UpstreamDown)))
        self.wire.refuses = False
        pending = self.page()
        self.wire.last.cut()
        self.failing(pending, UpstreamDown)
        pending = self.page()
        self.clock.advance(TIMEOUT)
        self.failing(pending, UpstreamDown)
        self.fail_requests(502)
        self.assertFalse(self.upstream.paused)
        self.fail_requests(429)
        error = self.assert_paused()
        self.assertEqual(1, error.retry_after)
        self.assertIn("requests to upstream are paused for another 1 s", str(error))
        self.assertIn("upstream answered 429", str(error))
        self.failing(self.upstream.check(), UpstreamPaused)

    def test_client_errors_do_not_count(self) -> None:
        """A 4xx other than 429 does not count as a failure."""
        for status in (404, 410, 401, 403, 400, 418, 404, 404):
            self.fail_requests(status)
        self.assert_request_succeeds()

    def test_answer_resets_the_count(self) -> None:
        """An answer between failures resets their count."""
        for _ in range(3):
            self.fail_requests(times=4)
            self.fail_requests(404)
        self.assert_request_succeeds()
        self.now(self.upstream.check())

    def test_pauses_grow_until_a_trial_is_answered(self) -> None:
        """
        Pauses double from one second to a minute, until upstream answers a trial.

        Then all requests are sent again.
        """
        self.fail_requests(times=5)
        for pause in (1, 2, 4, 8, 16, 32, 60, 60):
            self.clock.advance(pause - 0.01)
            self.assert_paused()
            self.clock.advance(0.01)
            self.fail_requests()
        self.clock.advance(60)
        self.assert_request_succeeds()
        self.fail_requests(times=4)
        self.assert_request_succeeds()
        self.fail_requests(times=5)
        self.clock.advance(1)
        self.assert_request_succeeds()

    def test_trial_is_alone(self) -> None:
        """
        The whole fleet sends one trial at a time.

        Other requests fail at once until it is answered, even if that takes long.
        """
        self.fail_requests(times=5)
        self.clock.advance(1)
        trial = self.page()
        self.assertEqual(6, self.request_count)
        self.assert_paused()
        self.assert_paused(self.other)
        self.clock.advance(TIMEOUT - 1)
        self.assert_paused()
        self.assert_paused(self.other)
        self.wire.last.answer(404)
        self.failing(trial, NotFound)
        self.assert_request_succeeds()
        self.assert_request_succeeds(self.other)

    def test_trial_of_a_dead_process_is_replaced(self) -> None:
        """When a process dies during its trial, another process may start one."""
        self.fail_requests(times=5)
        self.now(self.catalog.take_lease(f"trial:{origin_of(URL)}", "a process that dies", TIMEOUT))
        self.clock.advance(1)
        self.assert_paused()
        self.clock.advance(TIMEOUT)
        self.assert_request_succeeds()

    def test_cancelled_trial_is_replaced(self) -> None:
        """After a cancelled trial, the next request is the trial. A client that left says nothing about upstream."""
        self.fail_requests(times=5)
        self.clock.advance(1)
        trial = self.start(self.upstream.pass_on("POST", "/audit", {}, b"{}"))
        self.assertEqual(6, self.request_count)
        trial.cancel()
        self.failing(trial, UpstreamDown)
        self.assert_request_succeeds()

    def test_cancelled_requests_are_not_failures(self) -> None:
        """A cancelled request does not count as a failure."""
        for _ in range(6):
            passed = self.start(self.upstream.pass_on("POST", "/audit", {}, b"{}"))
            passed.cancel()
            self.failing(passed, UpstreamDown)
        self.assert_request_succeeds()

    def test_requests_sent_before_a_pause_do_not_lengthen_it(self) -> None:
        """
        Requests that were sent before a pause do not lengthen it.

        Many requests fail together when upstream fails.
        """
        pending = [self.page(path=f"/{number}") for number in range(20)]
        for exchange in list(self.wire.exchanges):
            exchange.answer(500)
        for each in pending:
            self.failing(each, UpstreamDown)
        self.assertEqual(1, self.assert_paused().retry_after)
        self.clock.advance(1)
        self.assert_request_succeeds()
        self.fail_requests(times=4)
        self.assert_request_succeeds()

    def test_requests_that_wait_for_a_slot_are_not_sent(self) -> None:
        """
        Requests that wait for a slot when the breaker opens are not sent.

        Those that got a slot before the fifth failure are sent.
        """
        upstream = self.make_upstream("one", concurrency=5)
        running = [self.page(upstream, f"/{number}") for number in range(5)]
        waiting = [self.page(upstream, f"/{number}") for number in range(5, 50)]
        self.clock.advance(TIMEOUT)
        for each in running:
            self.failing(each, UpstreamDown)
        for each in waiting[4:]:
            self.failing(each, UpstreamPaused)
        self.assertEqual(5 + 4, self.request_count)

    def test_each_origin_has_its_own_breaker(self) -> None:
        """
        Each origin has its own breaker.

        The file host may serve while the index does not, and another port or scheme is another origin.
        """
        self.fail_requests(times=5)
        for url in (FILE, "http://index.example/a.whl", "https://index.example:8443/a.whl"):
            self.file(url)
            self.wire.last.answer(body=b"x")
        self.failing(self.file("https://INDEX.example:443/a.whl"), UpstreamPaused)
        self.assertEqual(8, self.request_count)

    def test_redirect_to_a_host_that_fails_is_not_followed(self) -> None:
        for _ in range(5):
            self.file()
            self.wire.last.answer(500)
        pending = self.page()
        self.wire.last.answer(302, location=FILE)
        self.failing(pending, UpstreamPaused)
        self.assertEqual(6, self.request_count)

    def test_invalid_url_is_an_upstream_error(self) -> None:
        self.failing(self.file("https://[files.example/a.whl"), UpstreamDown)

    def test_log_has_one_line_per_begin_and_end_of_a_pause(self) -> None:
        """
        The log has one line when requests are paused and one when they are resumed.

        Further pauses in between add no line.
        """
        self.fail_requests(times=5)
        self.clock.advance(1)
        self.fail_requests()
        self.clock.advance(2)
        self.assert_request_succeeds()
        self.assertEqual(
            [
                "requests to https://index.example:443 are paused for 1 s: upstream answered 500",
                "requests to https://index.example:443 are resumed",
            ],
            self.log_lines(),
        )

    def test_metric_shows_the_pause(self) -> None:
        """The metric is 1 during a pause and 0 after it, even without another request."""
        self.assertFalse(breaker_metric_is_set())
        self.fail_requests(times=5)
        self.assertTrue(breaker_metric_is_set())
        self.clock.advance(1)
        self.assertFalse(breaker_metric_is_set())


class FleetTest(BreakerTestCase):
    """All processes learn of a pause within a second."""

    def test_open_breaker_is_open_for_all(self) -> None:
        """Another process sees the pause within a second, or at its first request."""
        self.fail_requests(times=5)
        self.assert_paused(self.other)
        self.failing(self.make_upstream("three").check(), UpstreamPaused)
        self.clock.advance(1)
        self.assert_request_succeeds(self.other)
        self.clock.advance(1)
        self.assert_request_succeeds()

    def test_catalog_is_read_once_a_second(self) -> None:
        """A process reads the pause from the catalog at most once a second."""
        with mock.patch.object(self.catalog, "pause", side_effect=self.catalog.pause) as pause:
            for _ in range(10):
                self.assert_request_succeeds()
            self.assertEqual(1, pause.call_count)
            self.clock.advance(1)
            self.assert_request_succeeds()
            self.assertEqual(2, pause.call_count)

    def test_pauses_grow_across_processes(self) -> None:
        """Pauses grow even when different processes send the trials."""
        self.fail_requests(times=5)
        for upstream, pause in ((self.other, 1), (self.upstream, 2), (self.other, 4)):
            self.clock.advance(pause)
            self.fail_requests(upstream=upstream)
        self.assertEqual(8, self.assert_paused(self.other).retry_after)
        self.clock.advance(1)
        self.assertEqual(7, self.assert_paused().retry_after)

    def test_without_a_catalog_it_works_for_one_process(self) -> None:
        """Without a catalog, each process has its own breaker."""
        self.catalog.down = "no Redis here"
        self.fail_requests(times=5)
        self.assert_paused()
        self.assert_request_succeeds(self.other)
        self.clock.advance(1)
        self.fail_requests()
        self.clock.advance(1.99)
        self.assert_paused()
        self.clock.advance(0.01)
        self.assert_request_succeeds()
        self.assert_request_succeeds()


class RetryAfterTest(BreakerTestCase):
    """Upstream's Retry-After pauses the requests of all processes."""

    def test_retry_after_pauses_all_processes(self) -> None:
        """One 429 or 503 with Retry-After pauses every process."""
        for status in (429, 503):
            self.fail_requests(status, retry_after="7")
            self.clock.advance(1)
            self.assertEqual(6, self.assert_paused().retry_after)
            self.assertEqual(6, self.assert_paused(self.other).retry_after)
            self.clock.advance(5.9)
            self.assert_paused()
            self.clock.advance(0.1)
            self.assert_request_succeeds()

    def test_retry_after_is_bounded(self) -> None:
        """No Retry-After pauses requests for longer than a minute."""
        self.fail_requests(429, retry_after="86400")
        self.assertEqual(60, self.assert_paused().retry_after)
        self.clock.advance(60)
        self.assert_request_succeeds()

    def test_longest_retry_after_counts(self) -> None:
        """The longest Retry-After of concurrent answers counts."""
        pending = [self.page(path=f"/{number}") for number in range(3)]
        for exchange, seconds in zip(list(self.wire.exchanges), (5, 20, 10), strict=True):
            exchange.answer(503, retry_after=str(seconds))
        for each in pending:
            self.failing(each, UpstreamDown)
        self.assertEqual(20, self.assert_paused().retry_after)

    def test_retry_after_of_other_statuses_is_ignored(self) -> None:
        """Retry-After is ignored in a 500 and in a 404."""
        self.fail_requests(500, retry_after="7")
        self.fail_requests(404, retry_after="7")
        self.assert_request_succeeds()


class RetryTest(BreakerTestCase):
    """Requests that fail fast are retried up to twice."""

    retries = RETRIES

    def wait_for_retry(self) -> None:
        """Wait for the longest delay before a retry."""
        self.clock.advance(RETRIES[-1])

    def test_page_and_file_are_retried(self) -> None:
        """
        A lost connection and 502, 503 and 504 are retried.

        An intermediary sends these statuses when its backend is down.
        """
        for status in (0, 502, 503, 504):
            for ask in (self.page, self.file):
                before = self.request_count
                pending = ask()
                for _ in range(2):
                    self.wire.last.answer(status) if status else self.wire.last.cut()
                    self.assertNoResult(pending)
                    self.wait_for_retry()
                self.wire.last.answer(body=b"{}")
                self.now(pending)
                self.assertEqual(before + 3, self.request_count)

    def test_refused_connection_is_retried(self) -> None:
        """A refused connection is retried."""
        self.wire.refuses = True
        pending = self.page()
        self.wait_for_retry()
        self.assertNoResult(pending)
        self.wire.refuses = False
        self.wait_for_retry()
        self.wire.last.answer(body=b"{}")
        self.now(pending)

    def test_third_failure_is_raised(self) -> None:
        """The error says how the third attempt failed. The breaker counts all three attempts as one failure."""
        for _ in range(4):
            before = self.request_count
            pending = self.page()
            for _ in range(3):
                self.wire.last.cut()
                self.wait_for_retry()
            self.assertIn("closed the connection", str(self.failing(pending, UpstreamDown)))
            self.assertEqual(before + 3, self.request_count)
        self.assertFalse(self.upstream.paused)

    def test_lasting_failures_are_not_retried(self) -> None:
        """Other statuses, an answer with Retry-After, and an answer that is not HTTP are not retried."""
        for status, headers in ((500, {}), (429, {}), (404, {}), (403, {}), (400, {}), (503, {"retry_after": "1"})):
            self.clock.advance(10)
            pending = self.page()
            self.wire.last.answer(status, b"", **headers)
            self.failing(pending, MyPyPiError)
        self.clock.advance(10)
        pending = self.page()
        self.wire.last.send(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
        self.failing(pending, UpstreamDown)
        self.assertEqual(7, self.request_count)

    def test_slow_failures_are_not_retried(self) -> None:
        """
        A slow failure is not retried, since it would be slow again.

        It is a timeout, or a 504 or a lost connection after a second.
        """
        pending = self.page()
        self.clock.advance(TIMEOUT)
        self.failing(pending, UpstreamDown)
        for status in (0, 504):
            pending = self.page()
            self.clock.advance(1)
            self.wire.last.answer(status) if status else self.wire.last.cut()
            self.failing(pending, UpstreamDown)
        self.assertEqual(3, self.request_count)

    def test_passed_through_requests_are_not_retried(self) -> None:
        """
        A passed-through request is not retried.

        It may do harm twice, and the client sees upstream's status itself.
        """
        passed: Deferred[PassedResponse] = self.start(self.upstream.pass_on("POST", "/audit", {}, b"{}"))
        self.wire.last.answer(502)
        self.assertEqual(502, self.now(passed).status)
        passed = self.start(self.upstream.pass_on("POST", "/audit", {}, b"{}"))
        self.wire.last.cut()
        self.failing(passed, UpstreamDown)
        self.assertEqual(2, self.request_count)

    def test_retry_delays_are_random(self) -> None:
        """Delays before retries are random, so that requests that failed together are not retried together."""
        with mock.patch("random.uniform", return_value=1.5) as uniform:
            pending = self.page()
            self.wire.last.answer(502)
            self.clock.advance(RETRIES[0] * 1.49)
            self.assertEqual(1, self.request_count)
            self.clock.advance(RETRIES[0] * 0.01)
            self.assertEqual(2, self.request_count)
        self.wire.last.answer(body=b"{}")
        self.now(pending)
        self.assertEqual(mock.call(0.5, 1.5), uniform.call_args)

    def test_cancelled_request_is_not_retried(self) -> None:
        """A cancelled request is not retried."""
        pending = self.page()
        self.wire.last.answer(502)
        pending.cancel()
        self.failing(pending, CancelledError)
        self.wait_for_retry()
        self.assertEqual(1, self.request_count)


class QueueLimitTest(BreakerTestCase):
    """The number of requests that wait for upstream is limited."""

    def setUp(self) -> None:
        super().setUp()
        self.upstream = self.make_upstream("one", concurrency=2)
        self.before = self.running(), self.waiting()

    def test_request_beyond_the_limit_fails_at_once(self) -> None:
        """
        A request beyond the queue's limit fails at once with 503 and Retry-After.

        When a request ends, another may wait.
        """
        refused = metrics.UPSTREAM_REFUSED._value.get()
        pending = [self.page(path=f"/{number}") for number in range(2 + 32)]
        self.assertEqual((2.0, 32.0), self.counts())
        error = self.failing(self.page(path="/more"), UpstreamBusy)
        self.assertEqual((503, 5), (error.status, error.retry_after))
        self.assertEqual(refused + 1, metrics.UPSTREAM_REFUSED._value.get())
        self.wire.last.answer(body=b"{}")
        self.now(pending[1])
        self.assertNoResult(self.page(path="/more"))
        self.assertEqual((3, (2.0, 32.0)), (self.request_count, self.counts()))
        for each in pending[2:]:
            each.cancel()

    def test_full_queue_is_not_a_failure(self) -> None:
        """A full queue does not count as a failure of upstream."""
        for number in range(50):
            self.page(path=f"/{number}")
        self.assertFalse(self.upstream.paused)

    def test_background_requests_leave_half_of_the_slots(self) -> None:
        """Background requests leave half of the slots free. They do not wait in the queue."""
        self.assertTrue(self.upstream.has_spare_capacity)
        self.start(self.upstream.page("/1", JSON, background=True))
        self.assertEqual(1, self.request_count)
        self.assertFalse(self.upstream.has_spare_capacity)
        self.failing(self.upstream.page("/2", JSON, background=True), UpstreamBusy)
        self.page(path="/3")
        self.assertEqual(2, self.request_count)

    def counts(self) -> tuple[float, float]:
        """Return how many requests of this test run and how many wait."""
        return self.running() - self.before[0], self.waiting() - self.before[1]

    def running(self) -> float:
        return float(metrics.UPSTREAM_RUNNING._value.get())

    def waiting(self) -> float:
        return float(metrics.UPSTREAM_WAITING._value.get())


class MetricsTest(BreakerTestCase):
    """Requests to upstream are counted by kind and outcome."""

    def count(self, kind: str, outcome: str) -> float:
        return float(metrics.UPSTREAM_REQUESTS.labels(kind, outcome)._value.get())

    def test_requests_and_bytes_are_counted(self) -> None:
        """The metrics count requests by outcome, and the bytes of pages."""
        before = {kind: self.count(*kind) for kind in (("page", "2xx"), ("page", "4xx"), ("page", "none"))}
        received = metrics.UPSTREAM_BYTES.labels("page")._value.get()
        self.assert_request_succeeds()
        self.fail_requests(404)
        pending = self.page()
        self.wire.last.cut()
        self.failing(pending, UpstreamDown)
        self.assertEqual(dict.fromkeys(before, 1.0), {kind: self.count(*kind) - had for kind, had in before.items()})
        self.assertEqual(2.0, metrics.UPSTREAM_BYTES.labels("page")._value.get() - received)

    def test_unusable_answer_is_not_a_failure(self) -> None:
        """An unusable answer does not pause requests."""
        pending = self.page()
        self.wire.last.answer(418)
        self.failing(pending, BadUpstreamResponse)
        self.assert_request_succeeds()
