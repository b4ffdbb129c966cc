"""An upstream that fails is left alone for a while, by all processes; and what fails fast is tried again."""

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


def is_shown_open(host: str = "index.example") -> bool:
    return bool(metrics.BREAKER_OPEN.labels(host)._value.get())


class BreakerTestCase(MemoryTestCase):
    """Upstream as two processes of a fleet see it, over one wire and one catalog."""

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
        self.upstream, self.other = self.made("one"), self.made("two")

    def made(self, owner: str, concurrency: int = 64) -> Upstream:
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

    def fails(self, status: int = 500, times: int = 1, upstream: Upstream | None = None, **headers: str) -> None:
        """So many pages are asked for one after another, and to each upstream says this."""
        for _ in range(times):
            before = self.asked
            asked = self.page(upstream)
            self.assertEqual(before + 1, self.asked, "upstream is asked")
            self.wire.last.answer(status, b"", **headers)
            self.failing(asked, MyPyPiError)

    def works(self, upstream: Upstream | None = None) -> None:
        before = self.asked
        asked = self.page(upstream)
        self.assertEqual(before + 1, self.asked, "upstream is asked")
        self.wire.last.answer(body=b"{}")
        self.now(asked)

    def refusal(self, upstream: Upstream | None = None) -> UpstreamPaused:
        """The error of a request that did not go out."""
        before = self.asked
        error = self.failing(self.page(upstream), UpstreamPaused)
        self.assertEqual(before, self.asked, "upstream is left alone")
        assert isinstance(error, UpstreamPaused)
        return error

    @property
    def asked(self) -> int:
        return len(self.wire.exchanges)

    def lines(self) -> list[str]:
        return [eventAsText(event, includeTimestamp=False, includeSystem=False) for event in self.events]


class RepeatedFailureTest(BreakerTestCase):
    """Five failures in a row open the breaker."""

    def test_each_kind_of_failure_counts(self) -> None:
        """Refused, cut, timed out, 5xx, too many requests: after five of them no request goes out."""
        self.wire.refuses = True
        self.assertIn("refused", str(self.failing(self.page(), UpstreamDown)))
        self.wire.refuses = False
        asked = self.page()
        self.wire.last.cut()
        self.failing(asked, UpstreamDown)
        asked = self.page()
        self.clock.advance(TIMEOUT)
        self.failing(asked, UpstreamDown)
        self.fails(502)
        self.assertFalse(self.upstream.paused)
        self.fails(429)
        error = self.refusal()
        self.assertEqual(1, error.retry_after)
        self.assertIn("requests to upstream are paused for another 1 s", str(error))
        self.assertIn("upstream answered 429", str(error))
        self.failing(self.upstream.check(), UpstreamPaused)

    def test_what_is_an_answer_does_not_count(self) -> None:
        """404 least of all."""
        for status in (404, 410, 401, 403, 400, 418, 404, 404):
            self.fails(status)
        self.works()

    def test_answer_between_begins_the_count_anew(self) -> None:
        for _ in range(3):
            self.fails(times=4)
            self.fails(404)
        self.works()
        self.now(self.upstream.check())

    def test_pauses_grow_until_a_trial_is_answered(self) -> None:
        """One second, then twice as long, up to a minute; then all go out again."""
        self.fails(times=5)
        for pause in (1, 2, 4, 8, 16, 32, 60, 60):
            self.clock.advance(pause - 0.01)
            self.refusal()
            self.clock.advance(0.01)
            self.fails()
        self.clock.advance(60)
        self.works()
        self.fails(times=4)
        self.works()
        self.fails(times=5)
        self.clock.advance(1)
        self.works()

    def test_trial_is_alone(self) -> None:
        """In the whole fleet: others fail at once until its answer has come, also when it takes long."""
        self.fails(times=5)
        self.clock.advance(1)
        trial = self.page()
        self.assertEqual(6, self.asked)
        self.refusal()
        self.refusal(self.other)
        self.clock.advance(TIMEOUT - 1)
        self.refusal()
        self.refusal(self.other)
        self.wire.last.answer(404)
        self.failing(trial, NotFound)
        self.works()
        self.works(self.other)

    def test_trial_of_a_process_that_dies_is_anothers(self) -> None:
        self.fails(times=5)
        self.now(self.catalog.take_lease(f"trial:{origin_of(URL)}", "a process that dies", TIMEOUT))
        self.clock.advance(1)
        self.refusal()
        self.clock.advance(TIMEOUT)
        self.works()

    def test_trial_that_nobody_waits_for_any_more_is_anothers(self) -> None:
        """It says nothing of upstream that a client has left."""
        self.fails(times=5)
        self.clock.advance(1)
        trial = self.start(self.upstream.pass_on("POST", "/audit", {}, b"{}"))
        self.assertEqual(6, self.asked)
        trial.cancel()
        self.failing(trial, UpstreamDown)
        self.works()

    def test_clients_that_leave_are_no_failures(self) -> None:
        for _ in range(6):
            passed = self.start(self.upstream.pass_on("POST", "/audit", {}, b"{}"))
            passed.cancel()
            self.failing(passed, UpstreamDown)
        self.works()

    def test_what_went_out_before_the_pause_does_not_lengthen_it(self) -> None:
        """Many requests fail together when upstream goes down."""
        asked = [self.page(path=f"/{number}") for number in range(20)]
        for exchange in list(self.wire.exchanges):
            exchange.answer(500)
        for each in asked:
            self.failing(each, UpstreamDown)
        self.assertEqual(1, self.refusal().retry_after)
        self.clock.advance(1)
        self.works()
        self.fails(times=4)
        self.works()

    def test_requests_that_wait_for_their_turn_do_not_go_out_either(self) -> None:
        """But for those whose turn came while the failures were not enough yet."""
        upstream = self.made("one", concurrency=5)
        running = [self.page(upstream, f"/{number}") for number in range(5)]
        waiting = [self.page(upstream, f"/{number}") for number in range(5, 50)]
        self.clock.advance(TIMEOUT)
        for each in running:
            self.failing(each, UpstreamDown)
        for each in waiting[4:]:
            self.failing(each, UpstreamPaused)
        self.assertEqual(5 + 4, self.asked)

    def test_origins_fail_each_for_itself(self) -> None:
        """The host of the files may serve while the index does not; ports and schemes are others."""
        self.fails(times=5)
        for url in (FILE, "http://index.example/a.whl", "https://index.example:8443/a.whl"):
            self.file(url)
            self.wire.last.answer(body=b"x")
        self.failing(self.file("https://INDEX.example:443/a.whl"), UpstreamPaused)
        self.assertEqual(8, self.asked)

    def test_redirect_to_a_host_that_fails_is_not_followed(self) -> None:
        for _ in range(5):
            self.file()
            self.wire.last.answer(500)
        asked = self.page()
        self.wire.last.answer(302, location=FILE)
        self.failing(asked, UpstreamPaused)
        self.assertEqual(6, self.asked)

    def test_address_that_is_none_is_told_as_such(self) -> None:
        self.failing(self.file("https://[files.example/a.whl"), UpstreamDown)

    def test_log_has_a_line_when_it_begins_and_one_when_it_ends(self) -> None:
        """However many pauses there were."""
        self.fails(times=5)
        self.clock.advance(1)
        self.fails()
        self.clock.advance(2)
        self.works()
        self.assertEqual(
            [
                "requests to https://index.example:443 are paused for 1 s: upstream answered 500",
                "requests to https://index.example:443 are resumed",
            ],
            self.lines(),
        )

    def test_metric_shows_it(self) -> None:
        """And falls by itself, where nobody asks any more."""
        self.assertFalse(is_shown_open())
        self.fails(times=5)
        self.assertTrue(is_shown_open())
        self.clock.advance(1)
        self.assertFalse(is_shown_open())


class FleetTest(BreakerTestCase):
    """What one process has found, all know within a second."""

    def test_open_breaker_is_open_for_all(self) -> None:
        """The other process sees it with its first request, or a second after its last look."""
        self.fails(times=5)
        self.refusal(self.other)
        self.failing(self.made("three").check(), UpstreamPaused)
        self.clock.advance(1)
        self.works(self.other)
        self.clock.advance(1)
        self.works()

    def test_catalog_is_asked_once_a_second(self) -> None:
        with mock.patch.object(self.catalog, "pause", side_effect=self.catalog.pause) as pause:
            for _ in range(10):
                self.works()
            self.assertEqual(1, pause.call_count)
            self.clock.advance(1)
            self.works()
            self.assertEqual(2, pause.call_count)

    def test_pauses_grow_whoever_tries(self) -> None:
        self.fails(times=5)
        for upstream, pause in ((self.other, 1), (self.upstream, 2), (self.other, 4)):
            self.clock.advance(pause)
            self.fails(upstream=upstream)
        self.assertEqual(8, self.refusal(self.other).retry_after)
        self.clock.advance(1)
        self.assertEqual(7, self.refusal().retry_after)

    def test_without_a_catalog_it_works_for_one_process(self) -> None:
        self.catalog.down = "no Redis here"
        self.fails(times=5)
        self.refusal()
        self.works(self.other)
        self.clock.advance(1)
        self.fails()
        self.clock.advance(1.99)
        self.refusal()
        self.clock.advance(0.01)
        self.works()
        self.works()


class RetryAfterTest(BreakerTestCase):
    """Upstream says when to come back, and is not asked before by anybody."""

    def test_it_is_honoured_by_all(self) -> None:
        """For 429 and 503, after one such answer."""
        for status in (429, 503):
            self.fails(status, retry_after="7")
            self.clock.advance(1)
            self.assertEqual(6, self.refusal().retry_after)
            self.assertEqual(6, self.refusal(self.other).retry_after)
            self.clock.advance(5.9)
            self.refusal()
            self.clock.advance(0.1)
            self.works()

    def test_it_is_bounded(self) -> None:
        """No header takes us away for longer than a minute."""
        self.fails(429, retry_after="86400")
        self.assertEqual(60, self.refusal().retry_after)
        self.clock.advance(60)
        self.works()

    def test_longer_one_counts(self) -> None:
        """Of what upstream says to requests that went out together."""
        asked = [self.page(path=f"/{number}") for number in range(3)]
        for exchange, seconds in zip(list(self.wire.exchanges), (5, 20, 10), strict=True):
            exchange.answer(503, retry_after=str(seconds))
        for each in asked:
            self.failing(each, UpstreamDown)
        self.assertEqual(20, self.refusal().retry_after)

    def test_other_statuses_have_none(self) -> None:
        """A 500 that has such a header, or a 301, asks for nothing."""
        self.fails(500, retry_after="7")
        self.fails(404, retry_after="7")
        self.works()


class TriesTest(BreakerTestCase):
    """What fails fast is tried again, up to twice."""

    retries = RETRIES

    def pause(self) -> None:
        """As long as any pause between two tries."""
        self.clock.advance(RETRIES[-1])

    def test_page_and_file_are_tried_again(self) -> None:
        """Refused, closed before an answer, or an intermediary that has nobody behind it."""
        for status in (0, 502, 503, 504):
            for ask in (self.page, self.file):
                before = self.asked
                asked = ask()
                for _ in range(2):
                    self.wire.last.answer(status) if status else self.wire.last.cut()
                    self.assertNoResult(asked)
                    self.pause()
                self.wire.last.answer(body=b"{}")
                self.now(asked)
                self.assertEqual(before + 3, self.asked)

    def test_refused_connection_is_tried_again(self) -> None:
        self.wire.refuses = True
        asked = self.page()
        self.pause()
        self.assertNoResult(asked)
        self.wire.refuses = False
        self.pause()
        self.wire.last.answer(body=b"{}")
        self.now(asked)

    def test_third_failure_is_told(self) -> None:
        """As what it is; and to the breaker it is one."""
        for _ in range(4):
            before = self.asked
            asked = self.page()
            for _ in range(3):
                self.wire.last.cut()
                self.pause()
            self.assertIn("closed the connection", str(self.failing(asked, UpstreamDown)))
            self.assertEqual(before + 3, self.asked)
        self.assertFalse(self.upstream.paused)

    def test_what_is_no_passing_trouble_is_not_tried_again(self) -> None:
        """Other statuses, an answer that says when to come back, and what is no HTTP."""
        for status, headers in ((500, {}), (429, {}), (404, {}), (403, {}), (400, {}), (503, {"retry_after": "1"})):
            self.clock.advance(10)
            asked = self.page()
            self.wire.last.answer(status, b"", **headers)
            self.failing(asked, MyPyPiError)
        self.clock.advance(10)
        asked = self.page()
        self.wire.last.send(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
        self.failing(asked, UpstreamDown)
        self.assertEqual(7, self.asked)

    def test_what_took_long_is_not_tried_again(self) -> None:
        """It would take long again: a timeout, and a 504 or a closed connection after a second."""
        asked = self.page()
        self.clock.advance(TIMEOUT)
        self.failing(asked, UpstreamDown)
        for status in (0, 504):
            asked = self.page()
            self.clock.advance(1)
            self.wire.last.answer(status) if status else self.wire.last.cut()
            self.failing(asked, UpstreamDown)
        self.assertEqual(3, self.asked)

    def test_what_is_passed_through_is_not_tried_again(self) -> None:
        """It may not be harmless twice; and its client can see for itself what upstream said."""
        passed: Deferred[PassedResponse] = self.start(self.upstream.pass_on("POST", "/audit", {}, b"{}"))
        self.wire.last.answer(502)
        self.assertEqual(502, self.now(passed).status)
        passed = self.start(self.upstream.pass_on("POST", "/audit", {}, b"{}"))
        self.wire.last.cut()
        self.failing(passed, UpstreamDown)
        self.assertEqual(2, self.asked)

    def test_pauses_differ(self) -> None:
        """So that those who failed together do not come back together."""
        with mock.patch("random.uniform", return_value=1.5) as uniform:
            asked = self.page()
            self.wire.last.answer(502)
            self.clock.advance(RETRIES[0] * 1.49)
            self.assertEqual(1, self.asked)
            self.clock.advance(RETRIES[0] * 0.01)
            self.assertEqual(2, self.asked)
        self.wire.last.answer(body=b"{}")
        self.now(asked)
        self.assertEqual(mock.call(0.5, 1.5), uniform.call_args)

    def test_who_leaves_is_not_tried_for(self) -> None:
        asked = self.page()
        self.wire.last.answer(502)
        asked.cancel()
        self.failing(asked, CancelledError)
        self.pause()
        self.assertEqual(1, self.asked)


class CrowdTest(BreakerTestCase):
    """No more requests wait for upstream than will be answered soon."""

    def setUp(self) -> None:
        super().setUp()
        self.upstream = self.made("one", concurrency=2)
        self.before = self.running(), self.waiting()

    def test_one_too_many_is_answered_at_once(self) -> None:
        """With a status and a time to come back; when one has ended, there is room for another."""
        refused = metrics.UPSTREAM_REFUSED._value.get()
        asked = [self.page(path=f"/{number}") for number in range(2 + 32)]
        self.assertEqual((2.0, 32.0), self.counts())
        error = self.failing(self.page(path="/more"), UpstreamBusy)
        self.assertEqual((503, 5), (error.status, error.retry_after))
        self.assertEqual(refused + 1, metrics.UPSTREAM_REFUSED._value.get())
        self.wire.last.answer(body=b"{}")
        self.now(asked[1])
        self.assertNoResult(self.page(path="/more"))
        self.assertEqual((3, (2.0, 32.0)), (self.asked, self.counts()))
        for each in asked[2:]:
            each.cancel()

    def test_crowd_is_no_failure_of_upstreams(self) -> None:
        for number in range(50):
            self.page(path=f"/{number}")
        self.assertFalse(self.upstream.paused)

    def test_patient_one_leaves_half_of_the_places(self) -> None:
        """What nobody waits for goes out while there is room to spare, and does not wait in the queue."""
        self.assertTrue(self.upstream.has_spare_capacity)
        self.start(self.upstream.page("/1", JSON, background=True))
        self.assertEqual(1, self.asked)
        self.assertFalse(self.upstream.has_spare_capacity)
        self.failing(self.upstream.page("/2", JSON, background=True), UpstreamBusy)
        self.page(path="/3")
        self.assertEqual(2, self.asked)

    def counts(self) -> tuple[float, float]:
        """How many run and wait, of this test's."""
        return self.running() - self.before[0], self.waiting() - self.before[1]

    def running(self) -> float:
        return float(metrics.UPSTREAM_RUNNING._value.get())

    def waiting(self) -> float:
        return float(metrics.UPSTREAM_WAITING._value.get())


class CountTest(BreakerTestCase):
    """What is asked of upstream is counted by kind and outcome."""

    def count(self, kind: str, outcome: str) -> float:
        return float(metrics.UPSTREAM_REQUESTS.labels(kind, outcome)._value.get())

    def test_requests_and_bytes_are_counted(self) -> None:
        before = {kind: self.count(*kind) for kind in (("page", "2xx"), ("page", "4xx"), ("page", "none"))}
        received = metrics.UPSTREAM_BYTES.labels("page")._value.get()
        self.works()
        self.fails(404)
        asked = self.page()
        self.wire.last.cut()
        self.failing(asked, UpstreamDown)
        self.assertEqual(dict.fromkeys(before, 1.0), {kind: self.count(*kind) - had for kind, had in before.items()})
        self.assertEqual(2.0, metrics.UPSTREAM_BYTES.labels("page")._value.get() - received)

    def test_broken_answer_is_an_answer(self) -> None:
        asked = self.page()
        self.wire.last.answer(418)
        self.failing(asked, BadUpstreamResponse)
        self.works()
