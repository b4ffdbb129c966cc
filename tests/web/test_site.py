"""Tests of the HTTP server's size limits, time limits and request log."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, cast
from unittest import mock

from prometheus_client import REGISTRY
from twisted.internet.defer import Deferred
from twisted.logger import formatEvent
from twisted.python.failure import Failure
from twisted.web import http
from twisted.web.resource import IResource, Resource
from twisted.web.server import Request, Site

from mypypi.errors import NotFound
from mypypi.pieces import slices
from mypypi.web.connections import Connections
from mypypi.web.content_reader import CLIENT_SILENCE
from mypypi.web.errors import answer_failure
from mypypi.web.request import LARGEST_BODY
from mypypi.web.request_log import cache_word, method_of, path_of, set_kind
from mypypi.web.senders import send
from mypypi.web.site import WebSite
from tests.support.memory import Connection, Handling, MemoryTestCase

PLAIN = b"GET /a HTTP/1.1\r\nHost: here\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: here\r\n"


class Client(Connection):
    """A client that can send more. A `slow` one stops reading at each large piece."""

    slow = False

    def write(self, data: bytes) -> None:
        super().write(data)
        if self.slow and len(data) >= 64 * 1024:
            self.full()

    def send(self, data: bytes) -> None:
        assert self.channel is not None
        self.channel.dataReceived(data)

    @property
    def status(self) -> int:
        return int(self.head.split()[1]) if self.head else 0


class LengthResource(Resource):
    """Answers with the length of the request's body."""

    isLeaf = True

    def render(self, request: Request) -> bytes:
        assert request.content is not None
        return b"%d bytes" % len(request.content.read())


class SiteTestCase(MemoryTestCase):
    """Sites with an in-memory client, and the events that they log."""

    def setUp(self) -> None:
        super().setUp()
        self.events = self.log_events()

    def site(self, resource: Resource | None = None, **limits: Any) -> WebSite:
        connections = Connections(self.clock, **limits)
        return WebSite(cast("IResource", resource or LengthResource()), self.clock, connections)

    def site_with_handler(self, handler: Callable[[Any], Deferred[None]]) -> WebSite:
        return self.site(Handling(handler))

    def client(self, request: bytes = b"", site: WebSite | None = None) -> Client:
        return Client(site or self.site(), request)

    @property
    def log_lines(self) -> list[str]:
        return [formatEvent(event) for event in self.events if event["log_namespace"] == "mypypi.requests"]

    def wait(self, seconds: int) -> None:
        self.clock.pump([1.0] * seconds)


class RequestLogTest(SiteTestCase):
    """The request log has one line per request."""

    def test_line_describes_the_request(self) -> None:
        """A line has client, method, path, status, bytes, milliseconds, cache, kind and id."""

        def handle(request: Any) -> Deferred[None]:
            set_kind(request, "page")
            request.setHeader(b"cache-status", b"MyPyPi; hit; ttl=3")
            later: Deferred[None] = Deferred()
            self.clock.callLater(1.5, request.write, b"hello")
            self.clock.callLater(1.5, later.callback, None)
            return later

        client = self.client(
            b"GET /a/b HTTP/1.1\r\nHost: here\r\nX-Request-ID: build-7\r\n\r\n", self.site_with_handler(handle)
        )
        self.clock.advance(1.5)
        assert client.status == 200
        assert self.log_lines == ["192.0.2.1 200 hit page 1500.0 ms 5 B GET /a/b build-7"]

    def test_response_has_the_request_id(self) -> None:
        """The response and the log have the client's request id. An id that is no short token is replaced."""
        for given, kept in ((b"a-b:C/1=", True), (b"x" * 129, False), (b"a b", False), (b"\xff", False), (b"", False)):
            self.events.clear()
            client = self.client(b"GET / HTTP/1.1\r\nHost: a\r\nX-Request-ID: " + given + b"\r\n\r\n")
            (request_id,) = re.findall(r"(?mi)^X-Request-ID: (\S+)\r?$", client.head)
            assert (request_id == given.decode("latin-1")) is kept
            assert kept or re.fullmatch("[0-9a-f]{16}", request_id)
            assert [line.split()[-1] for line in self.log_lines] == [request_id]

    def test_client_that_leaves_is_logged(self) -> None:
        """A request whose client left has one line in the log."""

        def handle(request: Any) -> Deferred[None]:
            if request.path == b"/begun":
                request.write(b"123")
            return Deferred()

        for path, expected in (("/begun", "200 none other 0.0 ms 3"), ("/waits", "499 none other 0.0 ms 0")):
            self.events.clear()
            client = self.client(
                f"GET {path} HTTP/1.1\r\nHost: a\r\nX-Request-ID: i\r\n\r\n".encode(), self.site_with_handler(handle)
            )
            client.leave()
            assert self.log_lines == [f"192.0.2.1 {expected} B GET {path} i broken"]

    def test_secrets_are_not_logged(self) -> None:
        """The log has no query, credentials or token from a request."""
        for target in (
            "/a?token=s3cret",
            "http://me:s3cret@here/a",
            "/-/user/token/s3cret",
            "/-/npm/v1/tokens/token/s3cret",
            "/%2d/user/token/s3cret",
            "//-//user/token/s3cret",
            "/prefix/-/user/token/s3cret",
        ):
            self.events.clear()
            for method in ("GET", "DELETE"):
                self.client(
                    f"{method} {target} HTTP/1.1\r\nHost: a\r\nAuthorization: Basic s3cret\r\nCookie: a=s3cret\r\n"
                    "Referer: /?s3cret\r\nUser-Agent: s3cret\r\nX-Request-ID: s3cret or not\r\n\r\n".encode()
                )
            assert len(self.log_lines) == 2
            assert "s3cret" not in repr(self.events)

    def test_log_lines_are_printable(self) -> None:
        """A log line is short and printable, for any request."""
        assert path_of(b"/a\x1b[31m\x7f\xe9?q") == "/a%1B[31m%7F%E9"
        assert len(path_of(b"/" + b"a" * 9000)) < 1100
        assert (method_of(b"GET"), method_of(b"\x00"), method_of(b"G" * 100)) == ("GET", "-", "-")

    def test_unexpected_error_is_logged_with_the_request_id(self) -> None:
        """The log entry of an unexpected error has the request's id."""

        def handle(request: Any) -> Deferred[None]:
            request.write(answer_failure(request, Failure(ZeroDivisionError("odd"))))
            done: Deferred[None] = Deferred()
            done.callback(None)
            return done

        self.client(
            b"GET /a?token=s3cret HTTP/1.1\r\nHost: a\r\nX-Request-ID: i-9\r\n\r\n", self.site_with_handler(handle)
        )
        (event,) = [event for event in self.events if "log_failure" in event]
        assert formatEvent(event) == "request i-9 failed: GET /a"
        assert len(self.flushLoggedErrors(ZeroDivisionError)) == 1

    def test_expected_error_is_one_log_line(self) -> None:
        """An expected error has only its request's line."""

        def handle(request: Any) -> Deferred[None]:
            request.write(answer_failure(request, Failure(NotFound("nothing"))))
            done: Deferred[None] = Deferred()
            done.callback(None)
            return done

        self.client(PLAIN, self.site_with_handler(handle))
        (line,) = self.log_lines
        assert line.startswith("192.0.2.1 404 ")
        assert " GET /a " in line
        assert [event for event in self.events if "log_failure" in event] == []

    def test_cache_words(self) -> None:
        expected = {
            None: "none",
            "MyPyPi; hit; ttl=3": "hit",
            "MyPyPi; hit; ttl=-3; detail=stale": "stale",
            "MyPyPi; fwd=miss; stored": "miss",
            "MyPyPi; fwd=stale; stored; ttl=3": "miss",
            "MyPyPi; fwd=bypass": "bypass",
        }
        assert {value: cache_word(None if value is None else [value]) for value in expected} == expected

    def test_requests_are_counted(self) -> None:
        """Requests are counted by kind, cache and status. Clients can't add label values."""

        def value(name: str, **labels: str) -> float:
            return REGISTRY.get_sample_value(name, labels) or 0.0

        def metric_values() -> tuple[float, ...]:
            return (
                value("mypypi_requests_total", kind="other", cache="none", status="200"),
                value("mypypi_request_seconds_count", kind="other"),
                value("mypypi_sent_bytes_total", cache="none"),
                value("mypypi_connections"),
            )

        before = metric_values()
        client = self.client(PLAIN)
        assert [now - then for now, then in zip(metric_values(), before, strict=True)] == [1, 1, len("0 bytes"), 1]
        client.leave()
        assert metric_values()[3] == before[3]
        series = {sample.labels.get("kind") for metric in REGISTRY.collect() for sample in metric.samples}
        self.client(b"BREW /%s HTTP/1.1\r\nHost: a\r\n\r\n" % (b"b" * 50))
        assert series == {sample.labels.get("kind") for metric in REGISTRY.collect() for sample in metric.samples}


class SizeLimitTest(SiteTestCase):
    """Requests that are too large get an error, and their connection is closed."""

    def assert_refused(self, request: bytes, status: int) -> None:
        self.events.clear()
        client = self.client(request)
        assert client.status == status
        assert "Connection: close" in client.head
        assert client.body.startswith(b'{"error":"')
        assert client.value().count(b"HTTP/1.1") == 1
        client.send(PLAIN)
        assert client.value().count(b"HTTP/1.1") == 1
        self.wait(6)
        assert client.closed
        assert [line.split()[1] for line in self.log_lines] == [str(status)]

    def test_request_line(self) -> None:
        self.assert_refused(b"GET /" + b"a" * 20_000, 431)
        self.assert_refused(b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 431)

    def test_headers(self) -> None:
        """Headers that are too long, too large together or too many are refused."""
        self.assert_refused(b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 17_000 + b"\r\n\r\n", 431)
        self.assert_refused(b"GET / HTTP/1.1\r\nHost: a\r\n" + (b"X: " + b"a" * 1000 + b"\r\n") * 17 + b"\r\n", 431)
        self.assert_refused(b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X:\r\n" * 501 + b"\r\n", 431)

    def test_announced_body(self) -> None:
        """A body is refused by its announced length, before any of it is read."""
        self.assert_refused(POST + b"Content-Length: %d\r\n\r\n" % (LARGEST_BODY + 1), 413)
        self.assert_refused(POST + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % (LARGEST_BODY + 1), 413)
        self.assert_refused(POST + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n", 413)
        self.assert_refused(POST + b"Content-Length: " + b"0" * 5000 + b"1\r\n\r\na", 413)

    def test_chunked_body(self) -> None:
        """A chunked body is refused as soon as it exceeds the limit."""
        chunk = b"100000\r\n" + b"a" * 0x100000 + b"\r\n"
        self.assert_refused(POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 9, 413)

    def test_malformed_chunks(self) -> None:
        """Chunks with invalid sizes, endless lines and endless trailers are refused."""
        for body in (b"zz\r\n", b"1;" + b"a" * 3000, b"0\r\n" + b"X: a\r\n" * 20_000):
            self.assert_refused(POST + b"Transfer-Encoding: chunked\r\n\r\n" + body, 400)

    def test_two_lengths(self) -> None:
        """A request with two lengths is refused. The start of the next one is unclear (RFC 9112, section 6.3)."""
        self.assert_refused(POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 400)
        self.assert_refused(POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n", 400)
        self.assert_refused(POST + b"Content-Length: -5\r\n\r\n", 400)

    def test_two_codings(self) -> None:
        """A request with two transfer codings, or one other than chunked, is refused (RFC 9112, section 6.1)."""
        coding, chunk = b"Transfer-Encoding: %s\r\n", b"\r\n0\r\n\r\n"
        for first, second in ((b"chunked", b"chunked"), (b"identity", b"chunked"), (b"chunked", b"Identity")):
            self.assert_refused(POST + coding % first + coding % second + chunk, 400)
        self.assert_refused(POST + coding % b"identity" + b"Content-Length: 5\r\n\r\n", 400)
        for other in (b"identity", b"identity, chunked", b"gzip", b""):
            self.assert_refused(POST + coding % other + chunk, 400)
        assert self.client(POST + coding % b"CHUNKED" + b"\r\n1\r\na\r\n0\r\n\r\n").body == b"1 bytes"

    def test_largest_body(self) -> None:
        """A body of the largest size is read, with a length or chunked. Forms are not parsed."""
        body = b"a" * LARGEST_BODY
        size = b"%d bytes" % LARGEST_BODY
        kind = b"Content-Type: multipart/form-data; boundary=x\r\n"
        assert self.client(POST + kind + b"Content-Length: %d\r\n\r\n" % len(body) + body).body == size
        chunks = b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n"
        assert size in self.client(POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunks).body

    def test_body_without_room_on_the_disk(self) -> None:
        """A body that does not fit on the disk is a 503."""
        got_length = http.Request.gotLength

        def raise_no_space(request: http.Request, length: int | None) -> None:
            if length != 0:
                raise OSError(28, "No space left on device")
            got_length(request, length)

        self.patch(http.Request, "gotLength", raise_no_space)
        self.assert_refused(POST + b"Content-Length: 200000\r\n\r\n", 503)


class TimeLimitTest(SiteTestCase):
    """Connections of slow or idle clients are closed."""

    def test_slow_head(self) -> None:
        """A head must be complete within 75 seconds, however slowly its bytes arrive."""
        client = self.client(b"GET / HTTP/1.1\r\n")
        for _ in range(74):
            client.send(b"X")
            self.wait(1)
        assert (client.status, client.closed) == (0, False)
        self.wait(2)
        assert client.status == 408
        self.wait(6)
        assert client.closed
        assert [line.split()[1] for line in self.log_lines] == ["408"]

    def test_slow_body(self) -> None:
        """A body must be complete within 75 seconds after the head."""
        client = self.client(POST[:-2])
        self.wait(50)
        client.send(b"\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(74):
            client.send(b"X")
            self.wait(1)
        assert (client.status, client.closed) == (0, False)
        self.wait(2)
        assert client.status == 408
        client.leave()

    def test_slow_chunks(self) -> None:
        client = self.client(POST + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(76):
            client.send(b"1\r\na\r\n")
            self.wait(1)
        assert client.status == 408
        client.leave()

    def test_each_request_has_its_own_time_limit(self) -> None:
        """The time limit restarts with each request of a connection."""
        client = self.client(PLAIN)
        self.wait(50)
        client.send(b"GET / HTTP/1.1\r\n")
        self.wait(50)
        client.send(b"Host: a\r\n\r\n")
        assert client.value().count(b"HTTP/1.1 200") == 2

    def test_retry_after_a_minute(self) -> None:
        """
        A client that comes back after a minute finds its connection open, with seconds to spare.

        That is the longest Retry-After, and the pause of npm and pnpm before their last retry.
        """
        client = self.client(PLAIN)
        self.wait(70)
        client.send(PLAIN)
        assert client.value().count(b"HTTP/1.1 200") == 2

    def test_answer_may_take_long(self) -> None:
        """A client may wait for a slow response without a time limit."""
        client = self.client(PLAIN, self.site_with_handler(lambda _: Deferred()))
        self.wait(1000)
        assert not client.closed

    def test_idle_connection(self) -> None:
        """An idle connection is closed without a response and without a log line."""
        client = self.client(PLAIN)
        received = client.value()
        self.events.clear()
        self.wait(74)
        closed_early = client.closed
        self.wait(2)
        assert (closed_early, client.closed) == (False, True)
        assert client.value() == received
        assert self.events == []

    def test_connection_without_a_request(self) -> None:
        client = self.client()
        self.wait(76)
        assert client.closed

    def test_client_that_stops_reading_a_page(self) -> None:
        """A client that stops reading a page is disconnected. A slow client that reads is not."""

        def handle(request: Any) -> Deferred[None]:
            request.setHeader(b"content-length", b"1000000")
            return send(request, slices(b"a" * 1_000_000))

        client = self.client(b"", self.site_with_handler(handle))
        client.slow = True
        client.send(PLAIN)
        for _ in range(3):
            self.wait(int(CLIENT_SILENCE) - 1)
            client.drained()
        assert not client.closed
        self.wait(int(CLIENT_SILENCE) + 1)
        assert client.aborted

    def test_client_that_stops_reading_the_last_response(self) -> None:
        """A client that does not read its last response is disconnected, while the server waits to close."""
        client = self.client(b"")
        self.patch(client, "loseConnection", lambda: None)  # a transport closes only after everything is sent
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert client.status == 200
        self.wait(int(CLIENT_SILENCE) - 1)
        assert not client.closed
        self.wait(2)
        assert client.aborted


class ConnectionLimitTest(SiteTestCase):
    """MYPYPI_CONNECTIONS_PER_ADDRESS limits connections."""

    def test_connections_per_address_are_limited(self) -> None:
        """Connections beyond the limit are closed without a response. Other addresses are not affected."""
        site = self.site(per_address=2)
        first, second = (Client(site, PLAIN, "192.0.2.1") for _ in range(2))
        assert ExcessConnection(site).aborted
        assert Client(site, PLAIN, "192.0.2.2").status == 200
        first.leave()
        assert Client(site, PLAIN, "192.0.2.1").status == 200
        assert ExcessConnection(site).aborted
        assert (first.aborted, second.closed) == (False, False)

    def test_log_is_not_flooded(self) -> None:
        """The log has at most one line a minute per address."""
        site = self.site(per_address=1)
        Client(site, b"")

        def warnings() -> list[str]:
            return [formatEvent(each) for each in self.events if each["log_namespace"] == "mypypi.connections"]

        for _ in range(5):
            ExcessConnection(site)
        assert warnings() == ["192.0.2.1 has 1 connections, the limit for one address; further ones are closed"]
        self.clock.advance(61)
        Client(site, b"")  # the first one was idle for too long
        for _ in range(5):
            ExcessConnection(site)
        assert len(warnings()) == 2

    def test_there_is_no_limit_by_default(self) -> None:
        site = self.site()
        assert all(Client(site, PLAIN).status == 200 for _ in range(200))


class ScarcityTest(SiteTestCase):
    """Connections leave the last descriptors to the files of those that are connected already."""

    def connect(self, newest: int, site: Site | None = None) -> Client:
        """A client whose connection has this descriptor, of 1000."""

        class ClientOfSocket(Client):
            def fileno(self) -> int:
                return newest

        with mock.patch("resource.getrlimit", return_value=(1000, 1000)):
            client = ClientOfSocket(site or self.site(), b"")
        if not client.closed:
            client.send(PLAIN)
        return client

    def test_connection_is_answered(self) -> None:
        """The first connections that take kept descriptors get a 503 with its reason, before their request is read."""
        assert self.connect(935).status == 200
        client = self.connect(936)
        assert client.status == 503
        assert "Retry-After: 5" in client.head
        assert client.body == b'{"error":"this server has run out of file descriptors: try again"}\n'
        self.wait(6)
        assert client.closed

    def test_connection_is_aborted(self) -> None:
        """Half of the kept descriptors are for files alone: a refused connection would keep one for seconds."""
        assert self.connect(967).status == 503
        client = self.connect(968)
        assert (client.aborted, client.value()) == (True, b"")

    def test_log_tells_once(self) -> None:
        """However many connections are refused, the log has one line a minute."""
        events, site = self.log_events(), self.site()
        for newest in (936, 940, 968, 999):
            self.connect(newest, site)
        lines = [formatEvent(event) for event in events]
        assert lines == ["few file descriptors are left; new connections get a 503 or are closed"]


class ExcessConnection(Client):
    """A connection beyond the limit, on which the client sends nothing."""

    def __init__(self, site: Site) -> None:
        super().__init__(site, b"")
