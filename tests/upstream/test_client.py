"""How upstream is asked, and what each of its answers means: over an in-memory wire that speaks real HTTP."""

from __future__ import annotations

import os
import time
from base64 import b64encode
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from unittest import mock

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone

from mypypi.errors import BadUpstreamResponse, MyPyPiError, NotFound, UpstreamDown, UpstreamRefused
from mypypi.model import SourceDocument
from mypypi.upstream.bodies import BodyCollector
from mypypi.upstream.client import Upstream
from mypypi.upstream.requester import Credentials
from mypypi.upstream.responses import FileResponse, PageResponse
from tests.support.memory import NOW, Exchange, MemoryTestCase, Wire, gzipped, response

URL = "https://index.example/root"
JSON = "application/vnd.pypi.simple.v1+json"
SECRET = "Basic " + b64encode(b"jane:p\xc3\xa4ss").decode()


class UpstreamTestCase(MemoryTestCase):
    """An upstream behind a wire, with a clock that stands still."""

    def setUp(self) -> None:
        super().setUp()
        self.wire = Wire(self.clock)
        self.addCleanup(self.wire.hang_up)
        self.upstream = self.made()

    def made(self, url: str = URL, credentials: Credentials | None = None, concurrency: int = 64) -> Upstream:
        return Upstream(
            self.clock,
            url,
            credentials=credentials,
            concurrency=concurrency,
            timeout=15,
            agent=self.wire.agent,
        )

    def page(self, path: str = "/simple/a/", etag: str = "", modified: str = "") -> Deferred[PageResponse]:
        return self.start(self.upstream.page(path, JSON, etag, modified))

    def file(self, url: str = "https://files.example/a.whl", **headers: str) -> Deferred[FileResponse]:
        return self.start(self.upstream.file(url, headers))

    def assert_a_slot_is_free(self, upstream: Upstream) -> None:
        """Another request goes out, which none does when the one slot was not given back."""
        before = len(self.wire.exchanges)
        self.start(upstream.page("/probe", JSON))
        self.assertEqual(before + 1, len(self.wire.exchanges))


class PageTest(UpstreamTestCase):
    """A page is asked for below upstream's URL, and comes whole or not at all."""

    def test_page_is_asked_for_below_the_url(self) -> None:
        """Path, Accept and the name of who asks go out as they should; nothing conditional, nothing secret."""
        self.page("/simple/a%2Bb/")
        self.assertEqual("https://index.example/root/simple/a%2Bb/", self.wire.last.url)
        headers = self.wire.last.headers
        self.assertEqual(JSON, headers["accept"])
        self.assertRegex(headers["user-agent"], r"^mypypi/\d")
        self.assertEqual(set(), {"if-none-match", "if-modified-since", "authorization", "cookie"} & set(headers))

    def test_page_comes_with_its_type_and_validators(self) -> None:
        """The answer is what upstream sent, and where it came from."""
        asked = self.page()
        self.wire.last.answer(body=b"{}", content_type=JSON, etag='"1"', last_modified="then")
        source = SourceDocument(b"{}", JSON, "https://index.example/root/simple/a/")
        self.assertEqual(PageResponse(source, '"1"', "then"), self.now(asked))

    def test_page_may_come_compressed(self) -> None:
        """Gzip is asked for, and undone."""
        asked = self.page()
        self.assertIn("gzip", self.wire.last.headers["accept-encoding"])
        self.wire.last.answer(body=gzipped(b"{}"), content_encoding="gzip")
        self.assertEqual(b"{}", _source(self.now(asked)).body)

    def test_damaged_or_truncated_gzip_is_no_page(self) -> None:
        """Though its length is that which was announced: somebody between cut or garbled it."""
        data = gzipped(b'{"files": []}')
        for body in (data[:-9], data[:-1], b"", data[:-6] + b"\x00" * 6, b"{}"):
            asked = self.page()
            self.wire.last.answer(body=body, content_encoding="gzip")
            self.failing(asked, BadUpstreamResponse)

    def test_encoding_that_nobody_asked_for_is_refused(self) -> None:
        """A page in brotli is no page."""
        asked = self.page()
        self.wire.last.answer(body=b"\x0b\x02", content_encoding="br")
        self.failing(asked, BadUpstreamResponse)

    def test_page_is_confirmed_by_its_validators(self) -> None:
        """Both go out; 304 means that they still hold."""
        asked = self.page(etag='W/"1"', modified="then")
        headers = self.wire.last.headers
        self.assertEqual(('W/"1"', "then"), (headers["if-none-match"], headers["if-modified-since"]))
        self.wire.last.answer(304)
        self.assertEqual(PageResponse(None, 'W/"1"', "then"), self.now(asked))

    def test_answer_to_another_question_is_refused(self) -> None:
        """Not modified without a validator, or a part of a page: neither is a page to keep."""
        for status in (304, 206):
            asked = self.page()
            self.wire.last.answer(status, b"" if status == 304 else b"{}", content_range="bytes 0-1/9")
            self.failing(asked, BadUpstreamResponse)

    def test_page_that_is_cut_is_no_page(self) -> None:
        """Fewer bytes than announced are an upstream that failed, not a short page."""
        asked = self.page()
        self.wire.last.send(response(200, b"{}", content_length="9"))
        self.wire.last.cut()
        self.failing(asked, UpstreamDown)

    def test_page_without_length_is_whole_when_it_ends_as_its_format_does(self) -> None:
        """HTTP can't tell, so the format has to: a closing brace or tag."""
        for end in (b'{"files": []}\n', b"<!DOCTYPE html><html>\n</HTML>\n"):
            asked = self.page()
            self.wire.last.answer(body=end, content_length="")
            self.assertNoResult(asked)
            self.wire.last.end()
            self.assertEqual(end, _source(self.now(asked)).body)

    def test_page_without_length_that_is_cut_is_no_page(self) -> None:
        """Half a list of files would hide the other half."""
        for part in (b'{"files": [{"url": "a.whl"', b"<!DOCTYPE html><html><a href", b""):
            asked = self.page()
            self.wire.last.answer(body=part, content_length="")
            self.wire.last.end()
            self.failing(asked, UpstreamDown)

    def test_chunked_page_without_its_last_chunk_is_no_page(self) -> None:
        """However well its bytes may look."""
        asked = self.page()
        self.wire.last.answer(body=b"2\r\n{}\r\n", content_length="", transfer_encoding="chunked")
        self.wire.last.end()
        self.failing(asked, UpstreamDown)

    def test_page_without_end_is_given_up(self) -> None:
        """What grows beyond any page is dropped, connection and all."""
        collector = BodyCollector(self.clock, 15, 10, gzipped=False)
        asked = self.file()
        self.wire.last.send(response(200, b"x" * 11, content_length="1000"))
        self.now(asked).deliver(collector)
        self.failing(collector.done, BadUpstreamResponse)
        self.assertTrue(self.wire.last.closed)

    def test_header_of_any_bytes_is_read(self) -> None:
        """Headers are bytes (RFC 9110, section 5.5); a validator that is not UTF-8 goes back as it came."""
        asked = self.page()
        self.wire.last.send(b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\nETag: "\xe4"\r\n\r\n{}')
        etag = self.now(asked).etag
        self.page(etag=etag)
        self.assertEqual('"\xe4"', self.wire.last.headers["if-none-match"])


class CredentialsTest(UpstreamTestCase):
    """Credentials reach the upstream host, and never another."""

    def setUp(self) -> None:
        super().setUp()
        self.upstream = self.made(credentials=Credentials("jane", "päss"))

    def authorization(self, url: str) -> str | None:
        self.file(url)
        self.assertEqual(url, self.wire.last.url)
        return self.wire.last.headers.get("authorization")

    def test_upstream_gets_them(self) -> None:
        """For pages, for files on the same host, however its default port is written."""
        self.page()
        self.assertEqual(SECRET, self.wire.last.headers["authorization"])
        self.assertEqual(SECRET, self.authorization("https://index.example/files/a.whl"))
        self.file("https://index.example:443/files/a.whl")
        self.assertEqual(SECRET, self.wire.last.headers["authorization"])
        self.assertTrue(self.upstream.needs_credentials("https://INDEX.example/a.whl"))

    def test_no_other_origin_gets_them(self) -> None:
        """Another host, another port, another scheme, a host whose name only looks alike."""
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

    def test_redirect_to_another_origin_leaves_them_behind(self) -> None:
        """Also where the same host answers on another port; and coming back they are sent again."""
        for elsewhere in ("https://files.example/a/", "https://index.example:8443/a/"):
            asked = self.page()
            self.wire.last.answer(302, location=elsewhere)
            self.assertEqual(elsewhere, self.wire.last.url)
            self.assertNotIn("authorization", self.wire.last.headers)
            self.wire.last.answer(302, location="https://index.example/b/")
            self.assertEqual(SECRET, self.wire.last.headers["authorization"])
            self.wire.last.answer(body=b"{}")
            self.assertEqual("https://index.example/b/", _source(self.now(asked)).url)

    def test_redirect_within_upstream_keeps_them(self) -> None:
        """A relative redirect is upstream's own."""
        self.page()
        self.wire.last.answer(301, location="../b/")
        self.assertEqual("https://index.example/root/simple/b/", self.wire.last.url)
        self.assertEqual(SECRET, self.wire.last.headers["authorization"])

    def test_without_credentials_none_are_needed(self) -> None:
        """A client can go to upstream itself."""
        self.assertFalse(self.made().needs_credentials(URL))

    def test_they_are_not_shown(self) -> None:
        """Neither by their own name nor in the reason of a refusal."""
        self.assertNotIn("jane", repr(Credentials("jane", "päss")))
        asked = self.page()
        self.wire.last.answer(401, www_authenticate="Basic")
        self.assertNotIn("jane", str(self.failing(asked, UpstreamRefused)))


class RedirectTest(UpstreamTestCase):
    """Redirects are followed, as far as they lead somewhere."""

    def test_each_kind_is_followed(self) -> None:
        """The page says where it came from in the end, which is what its links are relative to."""
        for status in (301, 302, 303, 307, 308):
            asked = self.page()
            self.wire.last.answer(status, b"moved", location="//other.example/simple/a/")
            self.wire.last.answer(body=b"{}")
            self.assertEqual("https://other.example/simple/a/", _source(self.now(asked)).url)

    def test_what_was_asked_is_asked_again(self) -> None:
        """A redirected Range is still a Range, and still without a compression."""
        self.file(Range="bytes=5-")
        self.wire.last.answer(302, location="/b.whl")
        self.assertEqual("bytes=5-", self.wire.last.headers["range"])
        self.assertEqual("identity", self.wire.last.headers["accept-encoding"])

    def test_circle_is_left(self) -> None:
        """After five redirects we stop, and the place among the running requests is free again."""
        self.upstream = self.made(concurrency=1)
        asked = self.page()
        for _ in range(6):
            self.wire.last.answer(302, location="/again/")
        self.assertIn("circles", str(self.failing(asked, BadUpstreamResponse)))
        self.assertEqual(6, len(self.wire.exchanges))
        self.assert_a_slot_is_free(self.upstream)

    def test_redirect_to_where_nobody_goes_is_refused(self) -> None:
        """Without TLS after TLS, to another protocol, to no host, to what is no address at all: no step is taken."""
        for location in (
            "http://index.example/a/",
            "ftp://index.example/a/",
            "file:///etc/passwd",
            "https://[index.example/a/",
            "https://index.example:99999999/a/",
            "",
        ):
            asked = self.page()
            before = len(self.wire.exchanges)
            self.wire.last.answer(302, location=location)
            self.failing(asked, MyPyPiError)
            self.assertEqual(before, len(self.wire.exchanges), location)

    def test_location_of_any_bytes_is_no_accident(self) -> None:
        """What can't be understood is upstream's mistake, told as such."""
        self.upstream = self.made(credentials=Credentials("jane", "secret"))
        asked = self.page()
        self.wire.last.send(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: https://\xff\xfe/\r\n\r\n")
        if len(self.wire.exchanges) > 1:
            self.wire.last.answer(404)
        self.failing(asked, MyPyPiError)

    def test_redirect_from_plain_to_tls_is_followed(self) -> None:
        """More security is fine."""
        self.upstream = self.made("http://index.example")
        self.page()
        self.wire.last.answer(301, location="https://index.example/simple/a/")
        self.assertEqual("https://index.example/simple/a/", self.wire.last.url)

    def test_long_body_of_a_redirect_is_not_read_to_its_end(self) -> None:
        """What nobody wants may cost a connection, not memory or time."""
        self.page()
        first = self.wire.last
        first.send(response(302, b"", location="/b/", content_length="999999999"))
        self.assertFalse(first.closed)
        first.send(b"x" * 70_000)
        self.clock.advance(0)
        self.assertTrue(first.closed)

    def test_unwanted_body_that_stalls_costs_its_connection(self) -> None:
        """An error page that never ends does not keep a connection for ever."""
        asked = self.page()
        self.wire.last.send(response(404, b"not", content_length="999"))
        self.failing(asked, NotFound)
        self.clock.advance(15)
        self.assertTrue(self.wire.last.closed)


class StatusTest(UpstreamTestCase):
    """What upstream's statuses mean for us."""

    def error(self, status: int, **headers: str) -> MyPyPiError:
        asked = self.page()
        self.wire.last.answer(status, b"some words", **headers)
        error = self.failing(asked, MyPyPiError)
        assert isinstance(error, MyPyPiError)
        return error

    def retry_after(self, value: str) -> int | None:
        return self.error(503, retry_after=value).retry_after

    def test_each_status_has_its_meaning(self) -> None:
        """Only 404 and 410 mean that there is no such thing; an upstream that fails is never taken for that."""
        meanings = {
            NotFound: (404, 410),
            UpstreamRefused: (401, 403, 407),
            UpstreamDown: (429, 500, 502, 503, 504, 599),
            BadUpstreamResponse: (204, 400, 405, 418, 451),
        }
        for kind, statuses in meanings.items():
            for status in statuses:
                self.assertIs(kind, type(self.error(status)), status)

    def test_retry_after_in_seconds_is_passed_on(self) -> None:
        """RFC 9110, section 10.2.3: a number of seconds."""
        self.assertEqual(7, self.error(429, retry_after="7").retry_after)
        self.assertEqual(30, self.retry_after(" 30 "))

    def test_retry_after_as_a_date_is_counted_from_now(self) -> None:
        """Each of the forms that a date may have (RFC 9110, section 5.6.7), wherever this host is."""
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
        """At least a second, at most a minute; five seconds where it says nothing that can be understood."""
        past = format_datetime(datetime.fromtimestamp(NOW - 99, timezone.utc), usegmt=True)
        for value in ("0", past, "Thu, 01 Jan 1970 00:00:00 GMT"):
            self.assertEqual(1, self.retry_after(value), value)
        future = format_datetime(datetime.fromtimestamp(NOW + 9_999, timezone.utc), usegmt=True)
        for value in ("61", "9" * 30, "9" * 5_000, future):
            self.assertEqual(60, self.retry_after(value), value[:40])
        for value in ("", "soon", "-3", "1.5", "\N{SUPERSCRIPT TWO}", "Thu, 99 Jan 2026 00:00:00 GMT"):
            self.assertEqual(5, self.retry_after(value), value)

    def test_connection_that_is_not_made_is_upstream_down(self) -> None:
        """Refused; with a reason, and without an address."""
        self.wire.refuses = True
        error = self.failing(self.page(), UpstreamDown)
        self.assertIn("refused", str(error))
        self.assertNotIn("index.example", str(error))

    def test_connection_that_is_lost_before_the_head_is_upstream_down(self) -> None:
        """Closed without a word, or in the middle of the head."""
        for words in (b"", b"HTTP/1.1 200 OK\r\nContent-Le"):
            asked = self.page()
            self.wire.last.send(words)
            self.wire.last.cut()
            self.assertIn("closed the connection", str(self.failing(asked, UpstreamDown)))

    def test_what_is_not_http_is_upstream_down(self) -> None:
        """A server of another kind behind the port."""
        asked = self.page()
        self.wire.last.send(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
        self.failing(asked, UpstreamDown)


class TimeTest(UpstreamTestCase):
    """No silence of upstream's is waited for longer than the limit."""

    def test_head_that_does_not_come_is_given_up(self) -> None:
        """After 15 seconds, with the connection."""
        asked = self.page()
        self.clock.advance(14.9)
        self.assertNoResult(asked)
        self.clock.advance(0.1)
        self.assertIn("15 seconds", str(self.failing(asked, UpstreamDown)))
        self.assertTrue(self.wire.last.closed)

    def test_connection_that_does_not_come_about_is_given_up(self) -> None:
        """The limit counts from the request, not from the connection."""
        self.wire.silent = True
        asked = self.page()
        self.clock.advance(15)
        self.failing(asked, UpstreamDown)

    def test_silence_in_a_page_is_given_up(self) -> None:
        """The limit holds for each silence: a slow page that goes on is waited for."""
        asked = self.page()
        self.wire.last.send(response(200, b"{", content_length="5"))
        for _ in range(3):
            self.clock.advance(14)
            self.wire.last.send(b" ")
        self.clock.advance(14.9)
        self.assertNoResult(asked)
        self.clock.advance(0.1)
        self.assertIn("stopped in the middle", str(self.failing(asked, UpstreamDown)))
        self.assertTrue(self.wire.last.closed)

    def test_upstream_that_does_not_even_answer_our_goodbye_is_given_up(self) -> None:
        """Over TLS an orderly end waits for the other side: from a host that has gone silent it never comes."""
        asked = self.page()
        self.wire.last.send(response(200, b"{", content_length="5"))
        self.wire.last.polite = False
        self.clock.advance(15)
        self.failing(asked, UpstreamDown)
        self.assertTrue(self.wire.last.closed)

    def test_nothing_is_left_ticking(self) -> None:
        """Every timer ends with its request."""
        asked = self.page()
        self.wire.last.answer(body=b"{}")
        self.now(asked)
        self.clock.advance(0)
        self.assertEqual([], self.clock.getDelayedCalls())


class ConcurrencyTest(UpstreamTestCase):
    """So many requests at once, bodies included; each gives its place back, however it ends."""

    def setUp(self) -> None:
        super().setUp()
        self.upstream = self.made(concurrency=1)

    def test_request_waits_for_its_turn(self) -> None:
        """The second goes out when the first one's page has come, its body included."""
        first = self.page("/1")
        self.page("/2")
        self.wire.last.send(response(200, b"{", content_length="2"))
        self.assertEqual(["/root/1"], self.wire.paths)
        self.wire.last.send(b"}")
        self.now(first)
        self.assertEqual(["/root/1", "/root/2"], self.wire.paths)

    def test_file_keeps_its_place_until_it_is_closed(self) -> None:
        """Closing twice gives back one place, not two."""
        asked = self.file()
        self.wire.last.send(response(200, b"", content_length="9"))
        body = self.now(asked)
        self.page("/2")
        self.page("/3")
        self.assertEqual(1, len(self.wire.exchanges))
        body.close()
        body.close()
        self.assertEqual(2, len(self.wire.exchanges))

    def test_place_is_free_after_each_kind_of_end(self) -> None:
        """Errors of every sort, with and without an answer."""

        def cut_in_the_body(exchange: Exchange) -> None:
            exchange.send(response(200, b"x", content_length="9"))
            exchange.cut()

        def silent_in_the_body(exchange: Exchange) -> None:
            exchange.send(response(200, b"x", content_length="9"))
            self.clock.advance(15)

        ends: dict[str, Callable[[Exchange], object]] = {
            "not found": lambda it: it.answer(404),
            "down": lambda it: it.answer(500),
            "not modified": lambda it: it.answer(304),
            "encoded": lambda it: it.answer(body=b"x", content_encoding="br"),
            "redirected to nowhere": lambda it: it.answer(302, location="ftp://x/"),
            "redirected to no address": lambda it: it.answer(302, location="https://[x/"),
            "cut": Exchange.cut,
            "cut in the body": cut_in_the_body,
            "silent": lambda _: self.clock.advance(15),
            "silent in the body": silent_in_the_body,
        }
        for name, end in ends.items():
            with self.subTest(name):
                upstream = self.made(concurrency=1)
                asked = self.start(upstream.page("/simple/a/", JSON))
                end(self.wire.last)
                self.clock.advance(0)
                self.failing(asked, MyPyPiError)
                self.assert_a_slot_is_free(upstream)

    def test_place_is_free_when_nobody_wants_the_answer_any_more(self) -> None:
        """Given up while waiting for a turn, for the head, and in the body."""
        asked = self.page()
        waiting = self.page("/2")
        waiting.cancel()
        self.failing(waiting, CancelledError)
        asked.cancel()
        self.failing(asked, UpstreamDown)
        self.assertTrue(self.wire.last.closed)
        self.assert_a_slot_is_free(self.upstream)

        upstream = self.made(concurrency=1)
        asked = self.start(upstream.page("/simple/a/", JSON))
        self.wire.last.send(response(200, b"{", content_length="9"))
        asked.cancel()
        self.failing(asked, CancelledError)
        self.assertTrue(self.wire.last.closed)
        self.assert_a_slot_is_free(upstream)


class FileTest(UpstreamTestCase):
    """A file's answer comes before its body, and its bytes as they are."""

    def received(self, body: FileResponse) -> _Received:
        receiver = _Received()
        body.deliver(receiver)
        return receiver

    def test_identity_is_what_is_asked_for(self) -> None:
        """Whatever treq would like: of an encoded file, neither length nor digest would hold."""
        self.file()
        self.assertEqual("identity", self.wire.last.headers["accept-encoding"])

    def test_answer_tells_status_length_and_headers(self) -> None:
        """A part comes as a part."""
        asked = self.file(Range="bytes=2-")
        self.wire.last.send(response(206, b"", content_length="3", content_range="bytes 2-4/5", etag='"1"'))
        body = self.now(asked)
        self.assertEqual((206, 3, '"1"', ""), (body.status, body.length, body.header("etag"), body.header("x-none")))

    def test_part_that_nobody_asked_for_is_refused(self) -> None:
        """It would pass for the whole file."""
        for status in (206, 304):
            asked = self.file()
            self.wire.last.answer(status, content_range="bytes 2-4/5")
            self.failing(asked, BadUpstreamResponse)

    def test_answer_whose_body_nobody_takes_costs_its_connection(self) -> None:
        """Closed without a look at its body, it does not keep a connection that waits for a receiver."""
        asked = self.file()
        self.wire.last.send(response(200, b"some", content_length="999999"))
        self.now(asked).close()
        self.clock.advance(0)
        self.assertTrue(self.wire.last.closed)

    def test_length_may_be_unknown(self) -> None:
        """Then it is None, and the end is seen when it comes."""
        asked = self.file()
        self.wire.last.answer(body=b"bytes", content_length="")
        body = self.now(asked)
        received = self.received(body)
        self.wire.last.end()
        self.assertIsNone(body.length)
        self.assertEqual(b"bytes", received.data)

    def test_encoding_that_came_all_the_same_is_told_and_not_undone(self) -> None:
        """The bytes are those that the length speaks of."""
        data = gzipped(b"a wheel")
        asked = self.file()
        self.wire.last.answer(body=data, content_encoding="GZIP")
        body = self.now(asked)
        received = self.received(body)
        self.assertEqual(("gzip", len(data), data), (body.encoding, body.length, received.data))
        self.assertIs(ResponseDone, received.end)

    def test_identity_by_its_name_is_no_encoding(self) -> None:
        """Some servers say it."""
        asked = self.file()
        self.wire.last.answer(body=b"x", content_encoding="identity")
        self.assertEqual("", self.now(asked).encoding)

    def test_address_that_is_none_is_upstreams_mistake(self) -> None:
        """It is told as such, and the place is given back."""
        self.upstream = self.made(concurrency=1)
        self.failing(self.file("https://[files.example/a.whl"), UpstreamDown)
        self.assert_a_slot_is_free(self.upstream)

    def test_files_are_given_as_they_are_listed(self) -> None:
        """What is percent-encoded stays so."""
        self.file("https://files.example/a%2Bb/c%20d.whl?x=%2F")
        self.assertEqual("/a%2Bb/c%20d.whl?x=%2F", self.wire.last.path)


class _Received(Protocol):
    def __init__(self) -> None:
        self.data = b""
        self.end: type[BaseException] | None = None

    def dataReceived(self, data: bytes) -> None:
        self.data += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.end = reason.type


def _source(answer: PageResponse) -> SourceDocument:
    assert answer.source is not None
    return answer.source
