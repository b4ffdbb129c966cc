"""Tests of the pauses of an origin: how they grow, how a trial ends them, and what a fleet shares."""

from __future__ import annotations

from unittest import mock

from twisted.internet.defer import CancelledError, Deferred

from mypypi.errors import NotFound, UpstreamDown, UpstreamPaused
from mypypi.upstream.breaker import origin_of
from tests.upstream.cases import TIMEOUT, BreakerTestCase, breaker_metric_is_set, paths


class PatienceTest(BreakerTestCase):
    """A request for which there is nothing else to serve waits for the end of a short pause."""

    def test_end_of_a_short_pause_is_awaited(self) -> None:
        """Patient requests wait for the pause and for the trial, and then all of them are sent."""
        self.refuse_connections()
        waiting = [self.page(path, patient=True) for path in paths(5)]
        self.clock.advance(0.9)
        self.assertEqual(0, self.request_count)
        self.clock.advance(0.1)
        self.assertEqual(1, self.request_count, "the trial is alone")
        self.wire.last.answer(body=b"{}")
        self.clock.advance(0.1)
        self.assertEqual(5, self.request_count)
        for exchange in self.wire.exchanges[1:]:
            exchange.answer(body=b"{}")
        for each in waiting:
            self.now(each)

    def test_long_pause_is_not_awaited(self) -> None:
        """A pause of more than two seconds is an error at once, for patient requests too."""
        self.refuse_connections()
        for pause in (1, 2):
            self.clock.advance(pause)
            self.refuse_connections(1)
        self.failing(self.page(patient=True), UpstreamPaused)

    def test_trial_that_takes_long_is_not_awaited(self) -> None:
        """Patient requests fail after two seconds if the trial is not answered by then."""
        self.refuse_connections()
        self.clock.advance(1)
        self.send()
        for upstream in (self.upstream, self.other):
            waiting = self.page("/simple/b/", patient=True, upstream=upstream)
            self.clock.pump([0.1] * 18)
            self.assertNoResult(waiting)
            self.clock.pump([0.1] * 2)
            self.failing(waiting, UpstreamPaused)
        self.assertEqual(1, self.request_count)


class TrialTest(BreakerTestCase):
    """After a pause, one request at a time is sent as a trial. Its answer opens the origin for all."""

    def test_pauses_grow_until_a_trial_is_answered(self) -> None:
        """
        Pauses double from one second to a minute, until upstream answers a trial.

        Then all requests are sent again.
        """
        self.refuse_connections()
        for pause in (1, 2, 4, 8, 16, 32, 60, 60):
            self.clock.advance(pause - 0.01)
            self.assert_paused()
            self.clock.advance(0.01)
            self.refuse_connections(1)
        self.clock.advance(60)
        self.assert_request_succeeds()
        self.refuse_connections(4)
        self.assert_request_succeeds()
        self.refuse_connections()
        self.clock.advance(1)
        self.assert_request_succeeds()

    def test_any_answer_to_the_trial_opens_the_origin(self) -> None:
        """An error status opens the origin, too: it can be reached, and others may be answered well."""
        for status in (404, 403, 500, 503):
            self.refuse_connections()
            self.clock.advance(1)
            self.fail_requests(status)
            self.assert_request_succeeds()
            self.clock.advance(1)
            self.assert_request_succeeds(self.other)

    def test_trial_is_alone(self) -> None:
        """
        The whole fleet sends one trial at a time.

        Other requests fail at once until it is answered, even if that takes long. Then all of them are sent.
        """
        self.refuse_connections()
        self.clock.advance(1)
        trial = self.send()
        self.assert_paused(path="/simple/b/")
        self.assert_paused(self.other)
        self.clock.advance(TIMEOUT - 1)
        self.assert_paused(path="/simple/b/")
        self.assert_paused(self.other)
        self.wire.last.answer(404)
        self.failing(trial, NotFound)
        for path in paths(5):
            self.send(path)
            self.send(path, upstream=self.other)

    def test_each_end_of_a_failed_trial_lengthens_the_pause(self) -> None:
        """The next pause is longer if the trial is refused, closed without an answer, or times out."""
        self.refuse_connections()
        self.clock.advance(1)
        self.refuse_connections(1)
        self.assertEqual(2, self.assert_paused().retry_after)
        self.clock.advance(2)
        trial = self.send()
        self.wire.last.cut()
        self.wire.last.cut()
        self.failing(trial, UpstreamDown)
        self.assertEqual(4, self.assert_paused().retry_after)
        self.clock.advance(4)
        trial = self.send()
        self.clock.advance(TIMEOUT)
        self.failing(trial, UpstreamDown)
        self.assertEqual(8, self.assert_paused().retry_after)
        self.assertEqual(8, self.assert_paused(self.other).retry_after)

    def test_hanging_trial_does_not_keep_others_out(self) -> None:
        """
        A URL that hung before does not keep others out when it happens to be the trial.

        Another URL becomes the trial in its place. What hangs later does not begin another pause.
        """
        hanging = [self.send(path) for path in paths(3, "/hanging/")]
        self.clock.advance(TIMEOUT)
        for each in hanging:
            self.failing(each, UpstreamDown)
        self.assert_paused()
        self.clock.advance(1)
        hanging = [self.send("/hanging/0/")]
        self.assert_paused(path="/hanging/1/")
        trial = self.send("/simple/a/")
        self.assert_paused(path="/simple/b/")
        self.clock.advance(TIMEOUT - 1)
        self.wire.last.answer(body=b"{}")
        self.now(trial)
        self.clock.advance(1)
        self.failing(hanging[0], UpstreamDown)
        self.assert_request_succeeds()

    def test_trial_of_a_dead_process_is_replaced(self) -> None:
        """When a process dies during its trial, another process may start one."""
        self.refuse_connections()
        self.now(self.catalog.take_lease(f"trial:{origin_of(self.url)}", "a process that dies", TIMEOUT))
        self.clock.advance(1)
        self.assert_paused()
        self.clock.advance(TIMEOUT)
        self.assert_request_succeeds()

    def test_cancelled_trial_is_replaced(self) -> None:
        """After a cancelled trial, the next request is the trial. A client that left says nothing about upstream."""
        self.refuse_connections()
        self.clock.advance(1)
        trial = self.audit()
        self.assertEqual(1, self.request_count)
        trial.cancel()
        self.failing(trial, UpstreamDown)
        self.assert_request_succeeds(self.other)

    def test_trial_is_replaced_wherever_it_was_cancelled(self) -> None:
        """
        A trial that is cancelled while the catalog is slow does not block the next one.

        It may be waiting for its lease, for the end of the pause, or for the next pause.
        """
        for step in ("take_lease", "end_pause", "put_pause"):
            with self.subTest(step):
                self.refuse_connections()
                self.clock.advance(1)
                waiting: Deferred[None] = Deferred()
                with mock.patch.object(self.catalog, step, mock.Mock(return_value=waiting)) as slow:
                    trial = self.page()
                    if step == "end_pause":
                        self.wire.last.send(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n{")
                    if step == "put_pause":
                        self.wire.last.cut()
                        self.wire.last.cut()
                    self.assertEqual(1, slow.call_count)
                    trial.cancel()
                    self.failing(trial, CancelledError)
                self.clock.advance(60)
                self.assert_request_succeeds()
                self.assert_request_succeeds()

    def test_answer_is_dropped_if_its_request_is_cancelled(self) -> None:
        """No connection stays open with an answer that a cancelled request does not read."""
        self.refuse_connections()
        self.clock.advance(1)
        waiting: Deferred[None] = Deferred()
        with mock.patch.object(self.catalog, "end_pause", mock.Mock(return_value=waiting)):
            trial = self.page()
            self.wire.last.send(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n{")
            trial.cancel()
            self.failing(trial, CancelledError)
        self.clock.advance(TIMEOUT)
        self.assertTrue(self.wire.last.closed)


class FleetTest(BreakerTestCase):
    """All processes learn of a pause within a second."""

    def test_pause_of_one_process_is_a_pause_for_all(self) -> None:
        """Another process sees the pause within a second, or at its first request."""
        self.refuse_connections()
        self.assert_paused(self.other)
        self.failing(self.make_upstream(owner="three").check("page"), UpstreamPaused)
        self.clock.advance(1)
        self.assert_request_succeeds(self.other)
        self.clock.advance(1)
        self.assert_request_succeeds()

    def test_catalog_is_read_once_a_second(self) -> None:
        """A process reads the pauses of an origin and of a kind from the catalog at most once a second."""
        with mock.patch.object(self.catalog, "pause", side_effect=self.catalog.pause) as pause:
            for _ in range(10):
                self.assert_request_succeeds()
            self.assertEqual(2, pause.call_count)
            self.clock.advance(1)
            self.assert_request_succeeds()
            self.assertEqual(4, pause.call_count)

    def test_pauses_grow_across_processes(self) -> None:
        """Pauses grow even when different processes send the trials."""
        self.refuse_connections()
        for upstream, pause in ((self.other, 1), (self.upstream, 2), (self.other, 4)):
            self.clock.advance(pause)
            self.refuse_connections(1, upstream)
        self.assertEqual(8, self.assert_paused(self.other).retry_after)
        self.clock.advance(1)
        self.assertEqual(7, self.assert_paused().retry_after)

    def test_without_a_catalog_it_works_for_one_process(self) -> None:
        """Without a catalog, each process has its own breaker."""
        self.catalog.down = "no Redis here"
        self.refuse_connections()
        self.assert_paused()
        self.assert_request_succeeds(self.other)
        self.clock.advance(1)
        self.refuse_connections(1)
        self.clock.advance(1.99)
        self.assert_paused()
        self.clock.advance(0.01)
        self.assert_request_succeeds()
        self.assert_request_succeeds()


class ReportTest(BreakerTestCase):
    """The log and the metrics show what is held back."""

    def test_log_has_one_line_per_begin_and_end_of_a_pause(self) -> None:
        """
        The log has one line when requests are paused and one when they are resumed.

        Further pauses in between add no line.
        """
        self.refuse_connections()
        self.clock.advance(1)
        self.refuse_connections(1)
        self.clock.advance(2)
        self.assert_request_succeeds()
        paused, resumed = self.log_lines()
        self.assertEqual(
            "requests to https://index.example:443 are paused for 1 s: "
            "upstream can't be reached: connection was refused by other side",
            paused,
        )
        self.assertEqual("requests to https://index.example:443 are resumed", resumed)

    def test_metric_shows_the_pause(self) -> None:
        """The metric is 1 during a pause and 0 after it, even without another request."""
        self.assertFalse(breaker_metric_is_set())
        self.refuse_connections()
        self.assertTrue(breaker_metric_is_set())
        self.assertFalse(breaker_metric_is_set(kind="page"))
        self.clock.advance(1)
        self.assertFalse(breaker_metric_is_set())

    def test_metric_of_a_kind_shows_its_pause(self) -> None:
        """The pause of a kind has its own series: 1 during the pause, 0 after it."""
        self.fail_requests(429, *paths(5), retry_after="7")
        self.assertTrue(breaker_metric_is_set(kind="page"))
        self.assertFalse(breaker_metric_is_set())
        self.clock.advance(7)
        self.assertFalse(breaker_metric_is_set(kind="page"))
