"""Tests of requests that are sent again: after a failure that was fast, and after a closed connection."""

from __future__ import annotations

from unittest import mock

from twisted.internet.defer import CancelledError

from mypypi.errors import MyPyPiError, UpstreamDown
from mypypi.upstream.requester import LATE_LIMIT, RETRIES
from tests.upstream.cases import TIMEOUT, BreakerTestCase


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
        for number in range(4):
            before = self.request_count
            pending = self.page(f"/simple/{number}/")
            for _ in range(3):
                self.wire.last.cut()
                self.wait_for_retry()
            self.assertIn("closed the connection", str(self.failing(pending, UpstreamDown)))
            self.assertEqual(before + 3, self.request_count)
        self.assertFalse(self.upstream.is_paused("page"))

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

        It is a timeout, or a 504 after a second. A connection that is lost after a second is only replaced once.
        """
        pending = self.page()
        self.clock.advance(TIMEOUT)
        self.failing(pending, UpstreamDown)
        pending = self.page()
        self.clock.advance(1)
        self.wire.last.answer(504)
        self.failing(pending, UpstreamDown)
        self.assertEqual(2, self.request_count)
        pending = self.page()
        for _ in range(2):
            self.clock.advance(1)
            self.wire.last.cut()
        self.failing(pending, UpstreamDown)
        self.assertEqual(4, self.request_count)

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


class ResendTest(BreakerTestCase):
    """A request whose connection is closed before a byte of the answer is sent once more, whatever its method."""

    def test_request_is_sent_once_more(self) -> None:
        """A page, a file and an audit are sent again at once, with the same content."""
        for ask in (self.page, self.file, self.audit):
            before = self.request_count
            pending = ask()
            first = self.wire.last
            first.cut()
            self.assertEqual(before + 2, self.request_count)
            self.assertEqual(first.value(), self.wire.last.value())
            self.wire.last.answer(body=b"{}")
            self.now(pending)

    def test_orderly_close_is_the_same(self) -> None:
        """It makes no difference whether upstream closes the connection in order or breaks it."""
        pending = self.audit()
        self.wire.last.end()
        self.wire.last.answer(body=b"{}")
        self.assertEqual(200, self.now(pending).status)

    def test_request_is_not_sent_a_third_time(self) -> None:
        """If the second connection is closed as well, the request has failed."""
        for ask in (self.page, self.audit):
            before = self.request_count
            pending = ask()
            for _ in range(2):
                self.wire.last.cut()
            self.assertIn("closed the connection", str(self.failing(pending, UpstreamDown)))
            self.assertEqual(before + 2, self.request_count)

    def test_request_is_not_sent_again_after_a_byte_of_the_answer(self) -> None:
        """A connection that is closed within the answer is a failure."""
        for ask in (self.page, self.audit):
            for part in (b"H", b"HTTP/1.1 200 OK\r\nContent-Le", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"):
                before = self.request_count
                pending = ask()
                self.wire.last.send(part)
                self.wire.last.cut()
                self.failing(pending, UpstreamDown)
                self.assertEqual(before + 1, self.request_count)

    def test_cancelled_request_is_not_sent_again(self) -> None:
        """A request is not sent again for a client that left."""
        pending = self.audit()
        pending.cancel()
        self.failing(pending, UpstreamDown)
        self.assertEqual(1, self.request_count)

    def test_time_out_is_no_closed_connection(self) -> None:
        """A request that timed out is not sent again."""
        pending = self.audit()
        self.clock.advance(TIMEOUT)
        self.assertNoResult(pending)
        self.clock.advance(LATE_LIMIT - TIMEOUT)
        self.failing(pending, UpstreamDown)
        self.assertEqual(1, self.request_count)

    def test_answer_of_a_passed_on_request_is_not_a_failure(self) -> None:
        """
        A passed-on request that is answered is not sent again, even with a retry for pages.

        The client sees upstream's status itself.
        """
        self.retries = RETRIES
        self.upstream = self.make_upstream()
        pending = self.audit()
        self.wire.last.answer(502)
        self.assertEqual(502, self.now(pending).status)
        pending = self.start(self.upstream.pass_on("search", "GET", "/-/v1/search?text=a", {}, b""))
        self.wire.last.answer(503)
        self.assertEqual(503, self.now(pending).status)
        self.assertEqual(2, self.request_count)
