"""Tests of what holds an origin back: failures to connect, and silence. No answer ever does."""

from __future__ import annotations

from OpenSSL import SSL
from twisted.internet import error
from twisted.python.failure import Failure
from twisted.web.client import ResponseNeverReceived

from mypypi.errors import BadUpstreamResponse, UpstreamBusy, UpstreamDown, UpstreamPaused
from tests.support.fakes import MemoryCatalog
from tests.upstream.cases import FILE, TIMEOUT, BreakerTestCase, Unreachable, cut_in_body, paths


class AnsweredTest(BreakerTestCase):
    """What upstream answers for one URL never holds back the origin, however often it is answered."""

    def test_statuses_do_not_count(self) -> None:
        """No status of an answer holds others back. Upstream can be reached, and others may be answered well."""
        for status in (500, 502, 504, 501, 403, 401, 400, 404, 418, 429, 503):
            self.fail_requests(status, *["/simple/bad/"] * 10)
        self.assert_request_succeeds()
        self.assert_request_succeeds(self.other)
        for kind in ("page", "file", "audit"):
            self.assertFalse(self.upstream.is_paused(kind))
            self.now(self.upstream.check(kind))

    def test_broken_bodies_do_not_count(self) -> None:
        """A body that is cut off or that stalls concerns its URL only."""
        for path in paths(10):
            pending = self.send(path)
            cut_in_body(self.wire.last)
            self.failing(pending, UpstreamDown)
        for path in paths(10):
            pending = self.send(path)
            self.wire.last.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{")
            self.clock.advance(TIMEOUT)
            self.failing(pending, UpstreamDown)
        self.assert_request_succeeds()

    def test_unusable_answers_do_not_count(self) -> None:
        """An answer that is not HTTP, or that has an odd status, concerns its URL only."""
        for path in paths(10):
            pending = self.send(path)
            self.wire.last.send(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
            self.failing(pending, UpstreamDown)
            pending = self.send(path)
            self.wire.last.answer(418)
            self.failing(pending, BadUpstreamResponse)
        self.assert_request_succeeds()

    def test_failing_audits_never_touch_pages(self) -> None:
        """While upstream's audit answers 500 or 429, or closes the connection, pages are requested as always."""
        for end in (500, 429, None):
            for _ in range(10):
                passed = self.audit()
                if end is None:
                    self.wire.last.cut()
                    self.wire.last.cut()
                    self.failing(passed, UpstreamDown)
                else:
                    self.wire.last.answer(end, b"", retry_after="60")
                    self.assertEqual(end, self.now(passed).status)
                self.assert_request_succeeds()

    def test_url_that_closes_the_connection_counts_once(self) -> None:
        """
        A URL whose connection is always closed counts as one failure, however often it is requested.

        Upstream may crash on this one URL, and answer all others.
        """
        for _ in range(10):
            pending = self.send("/simple/bad/")
            self.wire.last.cut()
            self.wire.last.cut()
            self.failing(pending, UpstreamDown)
        self.assert_request_succeeds()

    def test_cancelled_requests_do_not_count(self) -> None:
        """A cancelled request says nothing about upstream."""
        for _ in range(6):
            passed = self.audit()
            passed.cancel()
            self.failing(passed, UpstreamDown)
        self.wire.silent = True
        for _ in range(6):
            pending = self.page()
            pending.cancel()
            self.failing(pending, UpstreamDown)
        self.wire.silent = False
        self.assert_request_succeeds()

    def test_full_queue_does_not_count(self) -> None:
        """A request that finds the queue full says nothing about upstream."""
        self.upstream = self.make_upstream(concurrency=2)
        pending = [self.page(path) for path in paths(50)]
        self.failing(pending[-1], UpstreamBusy)
        self.assertFalse(self.upstream.is_paused("page"))

    def test_invalid_urls_do_not_count(self) -> None:
        """A URL to which no request can be sent is an upstream error, which says nothing about any origin."""
        for _ in range(6):
            for url in ("https://[files.example/a.whl", "https://index.example/\udc80"):
                self.assertIn("can't be reached", str(self.failing(self.file(url), UpstreamDown)))
        self.assert_request_succeeds()


class ConnectionFailureTest(BreakerTestCase):
    """Five failures to connect in a row hold the origin back."""

    def test_origin_is_held_back(self) -> None:
        """After five refused connections no request of any kind is sent. The error has the reason and the wait."""
        self.refuse_connections(4)
        self.assertFalse(self.upstream.is_paused("page"))
        self.refuse_connections(1)
        message = self.assert_paused()
        self.assertEqual(1, message.retry_after)
        self.assertEqual(
            "requests to upstream are paused for another 1 s, because it failed: "
            "upstream can't be reached: connection was refused by other side",
            str(message),
        )
        for kind in ("page", "file", "audit"):
            self.assertTrue(self.upstream.is_paused(kind))
            self.assertFalse(self.upstream.has_spare_capacity(kind))
            self.failing(self.upstream.check(kind), UpstreamPaused)
        self.failing(self.audit(), UpstreamPaused)

    def test_each_failure_to_connect_counts(self) -> None:
        """Refused connections, unreachable and unknown hosts, TLS errors, and time-outs of connecting count."""
        tls = SSL.Error([("SSL routines", "", "certificate verify failed")])
        for reason, words in (
            (error.ConnectionRefusedError(), "connection was refused"),
            (error.NoRouteError(), "no route to host"),
            (error.DNSLookupError("no such host"), "dns lookup failed"),
            (error.TimeoutError(), "connecting timed out"),
            (error.ConnectError(), "an error occurred while connecting"),
            (ResponseNeverReceived([Failure(tls)]), "the certificate of index.example can't be verified"),
        ):
            with self.subTest(type(reason).__name__):
                self.wire, self.catalog = Unreachable(self.clock, reason), MemoryCatalog(self.clock)
                self.upstream = self.make_upstream()
                for _ in range(5):
                    self.assertIn(words, str(self.failing(self.page("/simple/same/"), UpstreamDown)))
                self.assertIn(words, str(self.failing(self.page(), UpstreamPaused)))
                self.assertEqual(5, self.wire.attempts)

    def test_connections_closed_before_an_answer_count(self) -> None:
        """Five different URLs whose connections are closed without a byte hold the origin back."""
        for path in paths(5):
            pending = self.send(path)
            self.wire.last.cut()
            self.wire.last.cut()
            self.failing(pending, UpstreamDown)
        self.assertIn("it closed the connection", str(self.assert_paused()))

    def test_answer_resets_the_count(self) -> None:
        """Any answer between failures resets their count, since it shows that the origin can be reached."""
        for status in (200, 404, 500, 429):
            self.refuse_connections(4)
            pending = self.send()
            self.wire.last.answer(status, b"{}")
            self.settle(pending)
        self.assert_request_succeeds()
        self.now(self.upstream.check("page"))

    def test_requests_sent_before_a_pause_do_not_lengthen_it(self) -> None:
        """
        Requests that were sent before a pause do not lengthen it.

        Many requests fail together when upstream fails.
        """
        pending = [self.send(path) for path in paths(20)]
        for exchange in list(self.wire.exchanges):
            exchange.cut()
        self.assertEqual(40, self.request_count, "each is sent once more")
        for exchange in list(self.wire.exchanges):
            exchange.cut()
        for each in pending:
            self.failing(each, UpstreamDown)
        self.assertEqual(1, self.assert_paused().retry_after)
        self.clock.advance(1)
        self.assert_request_succeeds()
        self.refuse_connections(4)
        self.assert_request_succeeds()

    def test_each_origin_has_its_own_breaker(self) -> None:
        """
        Each origin has its own breaker.

        The file host may serve while the index does not, and another port or scheme is another origin.
        """
        self.refuse_connections()
        for url in (FILE, "http://index.example/a.whl", "https://index.example:8443/a.whl"):
            self.file(url)
            self.wire.last.answer(body=b"x")
        paused = self.file("https://INDEX.example:443/a.whl")
        self.assertNoResult(paused)
        self.assertEqual(3, self.request_count)

    def test_redirect_to_an_origin_that_is_held_back_is_not_followed(self) -> None:
        self.wire.refuses = True
        for _ in range(5):
            self.failing(self.file(), UpstreamDown)
        self.wire.refuses = False
        pending = self.page()
        self.wire.last.answer(302, location=FILE)
        self.failing(pending, UpstreamPaused)
        self.assertEqual(1, self.request_count)


class SilenceTest(BreakerTestCase):
    """An origin that answers nothing for the length of the time-out, while several URLs wait, is held back."""

    def test_silent_origin_is_held_back(self) -> None:
        """After three URLs waited in vain, no request is sent, not even from the queue."""
        upstream = self.make_upstream(concurrency=6)
        pending = [self.page(path, client=path, upstream=upstream) for path in paths(20)]
        self.assertEqual(3, self.request_count)
        self.clock.advance(TIMEOUT)
        for each in pending[:3]:
            self.assertIn("did not answer within 15 seconds", str(self.failing(each, UpstreamDown)))
        for each in pending[3:]:
            self.failing(each, UpstreamPaused)
        self.assertIn("did not answer within 15 seconds", str(self.assert_paused(upstream)))
        self.assertEqual(3, self.request_count)

    def test_silence_is_found_one_request_after_another(self) -> None:
        """Three URLs may wait in vain one after another, if there is no answer in between."""
        for path in paths(3):
            self.assertFalse(self.upstream.is_paused("page"))
            pending = self.send(path)
            self.clock.advance(TIMEOUT)
            self.failing(pending, UpstreamDown)
        self.assert_paused()

    def test_answer_ends_the_silence(self) -> None:
        """URLs that waited in vain before the last answer do not count any more."""
        for path in (*paths(2), "answered", *paths(2, "/later/")):
            if path == "answered":
                self.assert_request_succeeds()
            else:
                pending = self.send(path)
                self.clock.advance(TIMEOUT)
                self.failing(pending, UpstreamDown)
            self.assertFalse(self.upstream.is_paused("page"))

    def test_slow_url_does_not_count_while_others_are_answered(self) -> None:
        """Any number of URLs may hang, as long as others are answered with any status."""
        for status in (200, 404, 500, 429):
            pending = [self.send(path) for path in paths(10, "/hanging/")]
            self.clock.advance(TIMEOUT / 2)
            answered = self.send("/simple/other/")
            self.wire.last.answer(status, b"{}")
            self.settle(answered)
            self.clock.advance(TIMEOUT / 2)
            for each in pending:
                self.failing(each, UpstreamDown)
            self.assert_request_succeeds()

    def test_same_url_counts_once(self) -> None:
        """One URL that hangs does not hold others back, however often it is requested."""
        for _ in range(5):
            pending = [self.send("/hanging/") for _ in range(5)]
            self.clock.advance(TIMEOUT)
            for each in pending:
                self.failing(each, UpstreamDown)
        self.assert_request_succeeds()

    def test_urls_that_were_just_requested_do_not_count(self) -> None:
        """
        A URL that hangs is no sign of silence for URLs that were requested just before its time-out.

        Upstream had no time to answer them.
        """
        hanging = self.send("/hanging/")
        self.clock.advance(TIMEOUT - 1)
        others = {path: self.send(path) for path in paths(5)}
        self.clock.advance(1)
        self.failing(hanging, UpstreamDown)
        for exchange in self.wire.exchanges[1:]:
            exchange.answer(body=b"{}")
        for each in others.values():
            self.now(each)
        self.assert_request_succeeds()

    def test_silence_is_seen_before_the_time_out(self) -> None:
        """
        An origin counts as silent while a request waits for long, and no other one is answered.

        Cached pages are served at once then. Another request that hung before the last answer does not hide it.
        """
        self.send("/hanging/")
        self.clock.advance(5)
        self.assertTrue(self.upstream.is_silent(4))
        self.assert_request_succeeds()
        self.assertFalse(self.upstream.is_silent(4))
        self.clock.advance(1)
        self.send("/simple/b/")
        self.clock.advance(4)
        self.assertTrue(self.upstream.is_silent(4))
