"""Tests of the upstream client, over an in-memory wire that speaks real HTTP."""

from __future__ import annotations

import os
import time
from base64 import b64encode
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from unittest import mock

from twisted.internet.defer import CancelledError

from mypypi.errors import BadUpstreamResponse, MyPyPiError, NotFound, UpstreamDown, UpstreamRefused
from mypypi.model import SourceDocument
from mypypi.observability import metrics
from mypypi.upstream.client import LARGEST_PAGE
from mypypi.upstream.requester import Credentials
from mypypi.upstream.responses import PageResponse
from tests.support.memory import NOW, Exchange, gzipped, response
from tests.upstream.cases import JSON, UpstreamTestCase, cut_in_body

URL = UpstreamTestCase.url
SECRET = "Basic " + b64encode(b"jane:p\xc3\xa4ss").decode()


class PageTest(UpstreamTestCase):
    """Pages are requested below upstream's URL, and are complete or an error."""

    def test_page_is_requested_below_the_url(self) -> None:
        """A page request has its path, Accept and User-Agent. It has no condition and no credentials."""
        self.page("/simple/a%2Bb/")
        self.assertEqual("https://index.example/root/simple/a%2Bb/", self.wire.last.url)
        headers = self.wire.last.headers
        self.assertEqual(JSON, headers["accept"])
        self.assertRegex(headers["user-agent"], r"^mypypi/\d")
        self.assertEqual(set(), {"if-none-match", "if-modified-since", "authorization", "cookie"} & set(headers))

    def test_page_comes_with_its_type_and_validators(self) -> None:
        """The response has upstream's body, type, URL and validators."""
        pending = self.page()
        self.wire.last.answer(body=b"{}", content_type=JSON, etag='"1"', last_modified="then")
        source = SourceDocument(b"{}", JSON, "https://index.example/root/simple/a/")
        self.assertEqual(PageResponse(source, '"1"', "then"), self.now(pending))

    def test_body_stays_as_upstream_sent_it(self) -> None:
        """
        Pages are requested with gzip, and their body keeps its encoding, whatever it is.

        A worker process decodes it, so that a body that is made to hurt does not hurt others. The encoding is named.
        """
        for encoding, body in (
            ("gzip", gzipped(b"{}")),
            ("gzip", gzipped(b"{}")[:-9]),
            ("gzip", b"no gzip at all"),
            ("br", b"\x0b\x02"),
            ("", b"{}"),
        ):
            pending = self.page()
            self.assertEqual("gzip", self.wire.last.headers["accept-encoding"])
            self.wire.last.answer(body=body, content_encoding=encoding.upper())
            source = _source(self.now(pending))
            self.assertEqual((body, encoding), (source.body, source.encoding))

    def test_identity_is_no_encoding(self) -> None:
        """A page whose encoding is named identity has none."""
        pending = self.page()
        self.wire.last.answer(body=b"{}", content_encoding="identity")
        self.assertEqual("", _source(self.now(pending)).encoding)

    def test_page_is_confirmed_by_its_validators(self) -> None:
        """A conditional request sends both validators. A 304 means that they still hold."""
        pending = self.page(etag='W/"1"', modified="then")
        headers = self.wire.last.headers
        self.assertEqual(('W/"1"', "then"), (headers["if-none-match"], headers["if-modified-since"]))
        self.wire.last.answer(304)
        self.assertEqual(PageResponse(None, 'W/"1"', "then"), self.now(pending))

    def test_unrequested_304_and_206_are_refused(self) -> None:
        """A 304 without a validator and a partial page are errors."""
        for status in (304, 206):
            pending = self.page()
            self.wire.last.answer(status, b"" if status == 304 else b"{}", content_range="bytes 0-1/9")
            self.failing(pending, BadUpstreamResponse)

    def test_truncated_page_is_an_error(self) -> None:
        """A body shorter than its Content-Length is an upstream failure."""
        pending = self.page()
        self.wire.last.send(response(200, b"{}", content_length="9"))
        self.wire.last.cut()
        self.failing(pending, UpstreamDown)

    def test_page_without_length_is_complete_if_its_format_is(self) -> None:
        """
        Without a Content-Length, a page is complete if it ends with a closing brace or tag.

        HTTP has no other sign of it.
        """
        for end in (b'{"files": []}\n', b"<!DOCTYPE html><html>\n</HTML>\n"):
            pending = self.page()
            self.wire.last.answer(body=end, content_length="")
            self.assertNoResult(pending)
            self.wire.last.end()
            self.assertEqual(end, _source(self.now(pending)).body)

    def test_truncated_page_without_length_is_an_error(self) -> None:
        """A truncated page without a Content-Length is an error. Half a list of files would hide the other half."""
        for part in (b'{"files": [{"url": "a.whl"', b"<!DOCTYPE html><html><a href", b""):
            pending = self.page()
            self.wire.last.answer(body=part, content_length="")
            self.wire.last.end()
            self.failing(pending, UpstreamDown)

    def test_chunked_page_without_its_last_chunk_is_an_error(self) -> None:
        """A chunked page without its last chunk is an error, even if its bytes look complete."""
        pending = self.page()
        self.wire.last.answer(body=b"2\r\n{}\r\n", content_length="", transfer_encoding="chunked")
        self.wire.last.end()
        self.failing(pending, UpstreamDown)

    def test_compressed_page_without_length_ends_with_its_encoding(self) -> None:
        """Without a Content-Length, the decoder finds the end of a compressed page."""
        body = gzipped(b"{}")
        pending = self.page()
        self.wire.last.answer(body=body, content_length="", content_encoding="gzip")
        self.wire.last.end()
        self.assertEqual(body, _source(self.now(pending)).body)

    def test_page_larger_than_the_limit_is_an_error(self) -> None:
        """A page of more than 128 MB, in its encoding, is refused, and its connection is closed."""
        self.assertEqual(128 * 1024 * 1024, LARGEST_PAGE)
        with mock.patch("mypypi.upstream.client.LARGEST_PAGE", 1000):
            for encoding in ("", "gzip"):
                pending = self.page()
                self.wire.last.send(response(200, b"x" * 1001, content_length="9999", content_encoding=encoding))
                self.assertIn("more than 1000 bytes", str(self.failing(pending, BadUpstreamResponse)))
                self.assertTrue(self.wire.last.closed)
            pending = self.page()
            self.wire.last.answer(body=b"x" * 1000)
            self.assertEqual(1000, len(_source(self.now(pending)).body))

    def test_header_of_any_bytes_is_read(self) -> None:
        """A validator that is not UTF-8 is sent back unchanged. Headers are bytes (RFC 9110, section 5.5)."""
        pending = self.page()
        self.wire.last.send(b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\nETag: "\xe4"\r\n\r\n{}')
        etag = self.now(pending).etag
        self.page(etag=etag)
        self.assertEqual('"\xe4"', self.wire.last.headers["if-none-match"])


class CredentialsTest(UpstreamTestCase):
    """Credentials are sent to upstream's origin and to no other."""

    def setUp(self) -> None:
        super().setUp()
        self.upstream = self.make_upstream(credentials=Credentials("jane", "päss"))

    def authorization(self, url: str) -> str | None:
        self.file(url)
        self.assertEqual(url, self.wire.last.url)
        return self.wire.last.headers.get("authorization")

    def test_upstream_gets_credentials(self) -> None:
        """Credentials are sent for pages and files of upstream's origin. Its URL may include the default port."""
        self.page()
        self.assertEqual(SECRET, self.wire.last.headers["authorization"])
        self.assertEqual(SECRET, self.authorization("https://index.example/files/a.whl"))
        self.file("https://index.example:443/files/a.whl")
        self.assertEqual(SECRET, self.wire.last.headers["authorization"])
        self.assertTrue(self.upstream.needs_credentials("https://INDEX.example/a.whl"))

    def test_no_other_origin_gets_credentials(self) -> None:
        """No credentials are sent to another host, port or scheme. A host with a similar name is another host."""
        for url in (
            "https://files.example/a.whl",
            "https://index.example:8443/a.whl",
            "http://index.example/a.whl",
            "http://index.example:443/a.whl",
            "https://index.example.evil.example/a.whl",
            "https://sub.index.example/a.whl",
        ):
            self.assertIsNone(self.authorization(url), url)
            self.assertFalse(self.upstream.needs_credentials(url))

    def test_redirect_to_another_origin_drops_credentials(self) -> None:
        """
        A redirect to another origin is followed without credentials, also to another port.

        They are not sent after a redirect back either: another origin does not decide what is requested with them.
        """
        for elsewhere in ("https://files.example/a/", "https://index.example:8443/a/"):
            pending = self.page()
            self.wire.last.answer(302, location=elsewhere)
            self.assertEqual(elsewhere, self.wire.last.url)
            self.assertNotIn("authorization", self.wire.last.headers)
            self.wire.last.answer(302, location="https://index.example/b/")
            self.assertEqual("https://index.example/b/", self.wire.last.url)
            self.assertNotIn("authorization", self.wire.last.headers)
            self.wire.last.answer(body=b"{}")
            self.assertEqual("https://index.example/b/", _source(self.now(pending)).url)

    def test_redirect_within_upstream_keeps_credentials(self) -> None:
        """A redirect within upstream's origin is followed with credentials."""
        self.page()
        self.wire.last.answer(301, location="../b/")
        self.assertEqual("https://index.example/root/simple/b/", self.wire.last.url)
        self.assertEqual(SECRET, self.wire.last.headers["authorization"])

    def test_without_credentials_none_are_needed(self) -> None:
        """Without credentials, a client can be redirected to upstream."""
        self.assertFalse(self.make_upstream().needs_credentials(URL))

    def test_credentials_are_not_shown(self) -> None:
        """The user name is neither in the repr nor in an error message."""
        self.assertNotIn("jane", repr(Credentials("jane", "päss")))
        pending = self.page()
        self.wire.last.answer(401, www_authenticate="Basic")
        self.assertNotIn("jane", str(self.failing(pending, UpstreamRefused)))


class RedirectTest(UpstreamTestCase):
    """Redirects are followed if their target is allowed."""

    def test_each_kind_is_followed(self) -> None:
        """The page has the URL after all redirects, since its links are relative to it."""
        for status in (301, 302, 303, 307, 308):
            pending = self.page()
            self.wire.last.answer(status, b"moved", location="//other.example/simple/a/")
            self.wire.last.answer(body=b"{}")
            self.assertEqual("https://other.example/simple/a/", _source(self.now(pending)).url)

    def test_redirect_keeps_the_request_headers(self) -> None:
        """A redirected request keeps its Range and its identity encoding."""
        self.file(Range="bytes=5-")
        self.wire.last.answer(302, location="/b.whl")
        self.assertEqual("bytes=5-", self.wire.last.headers["range"])
        self.assertEqual("identity", self.wire.last.headers["accept-encoding"])

    def test_redirect_loop_is_an_error(self) -> None:
        """After five redirects the request fails, and its slot is free again."""
        self.upstream = self.make_upstream(concurrency=1)
        pending = self.page()
        for _ in range(6):
            self.wire.last.answer(302, location="/again/")
        self.assertIn("redirects more than 5 times", str(self.failing(pending, BadUpstreamResponse)))
        self.assertEqual(6, self.request_count)
        self.assert_slot_is_free(self.upstream)

    def test_redirect_to_a_forbidden_target_is_refused(self) -> None:
        """A redirect to http, another protocol or an invalid address is not followed."""
        for location in (
            "http://index.example/a/",
            "ftp://index.example/a/",
            "file:///etc/passwd",
            "https://[index.example/a/",
            "https://index.example:99999999/a/",
            "",
        ):
            pending = self.page()
            before = self.request_count
            self.wire.last.answer(302, location=location)
            self.failing(pending, MyPyPiError)
            self.assertEqual(before, self.request_count, location)

    def test_invalid_location_is_an_upstream_error(self) -> None:
        """A Location that is not UTF-8 is an upstream error."""
        self.upstream = self.make_upstream(credentials=Credentials("jane", "secret"))
        pending = self.page()
        self.wire.last.send(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: https://\xff\xfe/\r\n\r\n")
        if self.request_count > 1:
            self.wire.last.answer(404)
        self.failing(pending, MyPyPiError)

    def test_redirect_from_plain_to_tls_is_followed(self) -> None:
        """A redirect from http to https is followed, since it is more secure."""
        self.upstream = self.make_upstream("http://index.example")
        self.page()
        self.wire.last.answer(301, location="https://index.example/simple/a/")
        self.assertEqual("https://index.example/simple/a/", self.wire.last.url)

    def test_long_body_of_a_redirect_is_not_read_to_its_end(self) -> None:
        """A long body of a redirect closes the connection. It costs neither memory nor time."""
        self.page()
        first = self.wire.last
        first.send(response(302, b"", location="/b/", content_length="999999999"))
        self.assertFalse(first.closed)
        first.send(b"x" * 70_000)
        self.clock.advance(0)
        self.assertTrue(first.closed)

    def test_stalled_error_body_closes_the_connection(self) -> None:
        """An error page that stalls closes its connection after the timeout."""
        pending = self.page()
        self.wire.last.send(response(404, b"not", content_length="999"))
        self.failing(pending, NotFound)
        self.clock.advance(15)
        self.assertTrue(self.wire.last.closed)


class StatusTest(UpstreamTestCase):
    """Upstream's statuses become errors."""

    def error(self, status: int, **headers: str) -> MyPyPiError:
        pending = self.page()
        self.wire.last.answer(status, b"some words", **headers)
        error = self.failing(pending, MyPyPiError)
        assert isinstance(error, MyPyPiError)
        return error

    def retry_after(self, value: str) -> int | None:
        return self.error(503, retry_after=value).retry_after

    def test_each_status_has_its_meaning(self) -> None:
        """Only 404 means that a page does not exist. A failing upstream never means that."""
        meanings = {
            NotFound: (404,),
            UpstreamRefused: (401, 402, 403, 407, 410, 451),
            UpstreamDown: (429, 500, 502, 503, 504, 599),
            BadUpstreamResponse: (204, 400, 405, 418),
        }
        for kind, statuses in meanings.items():
            for status in statuses:
                self.assertIs(kind, type(self.error(status)), status)

    def test_retry_after_in_seconds_is_passed_on(self) -> None:
        """Retry-After may be a number of seconds (RFC 9110, section 10.2.3)."""
        self.assertEqual(7, self.error(429, retry_after="7").retry_after)
        self.assertEqual(30, self.retry_after(" 30 "))

    def test_retry_after_as_a_date_is_counted_from_now(self) -> None:
        """Retry-After may be a date in each HTTP format (RFC 9110, section 5.6.7), in any time zone."""
        then = datetime.fromtimestamp(NOW, timezone.utc) + timedelta(seconds=40)
        with mock.patch.dict(os.environ, TZ="Asia/Tokyo"):
            time.tzset()
            self.addCleanup(time.tzset)
            for form in (
                format_datetime(then, usegmt=True),
                then.strftime("%A, %d-%b-%y %H:%M:%S GMT"),
                then.strftime("%a %b %e %H:%M:%S %Y"),
            ):
                self.assertEqual(40, self.retry_after(form), form)

    def test_retry_after_stays_within_bounds(self) -> None:
        """Retry-After is bounded to 1 to 60 seconds. An invalid value counts as five seconds."""
        past = format_datetime(datetime.fromtimestamp(NOW - 99, timezone.utc), usegmt=True)
        for value in ("0", past, "Thu, 01 Jan 1970 00:00:00 GMT"):
            self.assertEqual(1, self.retry_after(value), value)
        future = format_datetime(datetime.fromtimestamp(NOW + 9_999, timezone.utc), usegmt=True)
        for value in ("61", "9" * 30, "9" * 5_000, future):
            self.assertEqual(60, self.retry_after(value), value[:40])
        for value in ("", "soon", "-3", "1.5", "\N{SUPERSCRIPT TWO}", "Thu, 99 Jan 2026 00:00:00 GMT"):
            self.assertEqual(5, self.retry_after(value), value)

    def test_refused_connection_is_upstream_down(self) -> None:
        """The error of a refused connection has the reason and no address."""
        self.wire.refuses = True
        error = self.failing(self.page(), UpstreamDown)
        self.assertIn("refused", str(error))
        self.assertNotIn("index.example", str(error))

    def test_connection_lost_before_the_head_is_upstream_down(self) -> None:
        """A connection that closes before or within the response head is an upstream failure."""
        for words in (b"", b"HTTP/1.1 200 OK\r\nContent-Le"):
            pending = self.page()
            self.wire.last.send(words)
            self.wire.last.cut()
            self.assertIn("closed the connection", str(self.failing(pending, UpstreamDown)))

    def test_answer_that_is_not_http_is_upstream_down(self) -> None:
        """An answer that is not HTTP is an upstream failure. Another kind of server may listen on the port."""
        pending = self.page()
        self.wire.last.send(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
        self.failing(pending, UpstreamDown)


class TimeTest(UpstreamTestCase):
    """A silent upstream times out."""

    def test_missing_head_times_out(self) -> None:
        """The request fails after 15 seconds without a response head, and its connection is closed."""
        pending = self.page()
        self.clock.advance(14.9)
        self.assertNoResult(pending)
        self.clock.advance(0.1)
        self.assertIn("15 seconds", str(self.failing(pending, UpstreamDown)))
        self.assertTrue(self.wire.last.closed)

    def test_connecting_times_out(self) -> None:
        """The timeout also covers the time to connect."""
        self.wire.silent = True
        pending = self.page()
        self.clock.advance(15)
        self.failing(pending, UpstreamDown)

    def test_stalled_page_times_out(self) -> None:
        """A body times out after 15 seconds without a byte. Without a minimum rate, a slow one does not."""
        self.upstream = self.make_upstream(min_rate=0)
        pending = self.page()
        self.wire.last.send(response(200, b"{", content_length="5"))
        for _ in range(3):
            self.clock.advance(14)
            self.wire.last.send(b" ")
        self.clock.advance(14.9)
        self.assertNoResult(pending)
        self.clock.advance(0.1)
        self.assertIn("stopped in the middle", str(self.failing(pending, UpstreamDown)))
        self.assertTrue(self.wire.last.closed)

    def test_connection_that_does_not_close_is_aborted(self) -> None:
        """
        A connection that does not close in order is aborted.

        With TLS an orderly close waits for upstream's answer.
        """
        pending = self.page()
        self.wire.last.send(response(200, b"{", content_length="5"))
        self.wire.last.polite = False
        self.clock.advance(15)
        self.failing(pending, UpstreamDown)
        self.assertTrue(self.wire.last.closed)

    def test_no_timer_is_left(self) -> None:
        """Every timer ends with its request."""
        pending = self.page()
        self.wire.last.answer(body=b"{}")
        self.now(pending)
        self.clock.advance(0)
        self.assertEqual([], self.clock.getDelayedCalls())


class ConcurrencyTest(UpstreamTestCase):
    """The number of concurrent requests is limited, bodies included. Each request frees its slot, however it ends."""

    def setUp(self) -> None:
        super().setUp()
        self.upstream = self.make_upstream(concurrency=1)

    def test_request_waits_for_a_slot(self) -> None:
        """The second request is sent when the first page's body is complete."""
        first = self.page("/1")
        self.page("/2")
        self.wire.last.send(response(200, b"{", content_length="2"))
        self.assertEqual(["/root/1"], self.wire.paths)
        self.wire.last.send(b"}")
        self.now(first)
        self.assertEqual(["/root/1", "/root/2"], self.wire.paths)

    def test_file_keeps_its_slot_until_it_is_closed(self) -> None:
        """A file keeps its slot until it is closed. Closing it twice frees only one slot."""
        pending = self.file(f"{self.url}/a.whl")
        self.wire.last.send(response(200, b"", content_length="9"))
        body = self.now(pending)
        self.page("/2")
        self.page("/3")
        self.assertEqual(1, self.request_count)
        body.close()
        body.close()
        self.assertEqual(2, self.request_count)

    def test_slot_is_free_after_each_error(self) -> None:
        """Each error frees the slot, with and without an answer."""

        def silent_in_body(exchange: Exchange) -> None:
            exchange.send(response(200, b"x", content_length="9"))
            self.clock.advance(15)

        def silent_in_reason(exchange: Exchange) -> None:
            exchange.send(response(403, b"x", content_length="9"))
            self.clock.advance(15)

        def cut_twice(exchange: Exchange) -> None:
            exchange.cut()
            self.wire.last.cut()

        ends: dict[str, Callable[[Exchange], object]] = {
            "not found": lambda it: it.answer(404),
            "refused": lambda it: it.answer(403, b"no"),
            "silent in the reason of a refusal": silent_in_reason,
            "down": lambda it: it.answer(500),
            "not modified": lambda it: it.answer(304),
            "redirected to nowhere": lambda it: it.answer(302, location="ftp://x/"),
            "redirected to no address": lambda it: it.answer(302, location="https://[x/"),
            "cut": cut_twice,
            "cut in the body": cut_in_body,
            "silent": lambda _: self.clock.advance(15),
            "silent in the body": silent_in_body,
        }
        for name, end in ends.items():
            with self.subTest(name):
                upstream = self.make_upstream(concurrency=1)
                pending = self.page(upstream=upstream)
                end(self.wire.last)
                self.clock.advance(0)
                self.failing(pending, MyPyPiError)
                self.assert_slot_is_free(upstream)

    def test_slot_is_free_after_a_cancelled_request(self) -> None:
        """A cancelled request frees its slot, whether it waits for a slot, the head or the body."""
        pending = self.page()
        waiting = self.page("/2")
        waiting.cancel()
        self.failing(waiting, CancelledError)
        pending.cancel()
        self.failing(pending, UpstreamDown)
        self.assertTrue(self.wire.last.closed)
        self.assert_slot_is_free(self.upstream)

        upstream = self.make_upstream(concurrency=1)
        pending = self.page(upstream=upstream)
        self.wire.last.send(response(200, b"{", content_length="9"))
        pending.cancel()
        self.failing(pending, CancelledError)
        self.assertTrue(self.wire.last.closed)
        self.assert_slot_is_free(upstream)


class MetricsTest(UpstreamTestCase):
    """Requests to upstream are counted by kind and outcome."""

    def count(self, kind: str, outcome: str) -> float:
        return float(metrics.UPSTREAM_REQUESTS.labels(kind, outcome)._value.get())

    def test_requests_and_bytes_are_counted(self) -> None:
        """The metrics count requests by outcome, and the bytes of pages."""
        before = {kind: self.count(*kind) for kind in (("page", "2xx"), ("page", "4xx"), ("page", "none"))}
        received = metrics.UPSTREAM_BYTES.labels("page")._value.get()
        pending = self.page()
        self.wire.last.answer(body=b"{}")
        self.now(pending)
        pending = self.page()
        self.wire.last.answer(404)
        self.failing(pending, NotFound)
        pending = self.page()
        self.wire.last.cut()
        self.wire.last.cut()
        self.failing(pending, UpstreamDown)
        self.assertEqual(dict.fromkeys(before, 1.0), {kind: self.count(*kind) - had for kind, had in before.items()})
        self.assertEqual(2.0, metrics.UPSTREAM_BYTES.labels("page")._value.get() - received)


def _source(answer: PageResponse) -> SourceDocument:
    assert answer.source is not None
    return answer.source
