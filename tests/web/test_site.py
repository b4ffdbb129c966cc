"""Promises of the HTTP server around the routes: what is too much, what is too slow, and what is told of a request."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, cast

from prometheus_client import REGISTRY
from twisted.internet.defer import Deferred
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.web import http
from twisted.web.resource import IResource, Resource
from twisted.web.server import Request, Site

from mypypi.errors import NotFound
from mypypi.web.errors import answer_failure
from mypypi.web.pages import send, slices
from mypypi.web.reader import CLIENT_SILENCE
from mypypi.web.request_log import cache_word, method_of, path_of, set_kind
from mypypi.web.site import LARGEST_BODY, WebSite
from tests.support.memory import Connection, Handling, MemoryTestCase

PLAIN = b"GET /a HTTP/1.1\r\nHost: here\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: here\r\n"


class Client(Connection):
    """A client that goes on sending, and that may be `slow`: it has to take a large piece before it gets another."""

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


class Answering(Resource):
    """Answers with the length of the body that came."""

    isLeaf = True

    def render(self, request: Request) -> bytes:
        assert request.content is not None
        return b"%d bytes" % len(request.content.read())


class SiteTestCase(MemoryTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.events: list[LogEvent] = []
        observer = cast("ILogObserver", self.events.append)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def site(self, resource: Resource | None = None, **options: int) -> WebSite:
        return WebSite(cast("IResource", resource or Answering()), self.clock, **options)

    def handling(self, handler: Callable[[Any], Deferred[None]]) -> WebSite:
        return self.site(Handling(handler))

    def client(self, request: bytes = b"", site: WebSite | None = None) -> Client:
        return Client(site or self.site(), request)

    @property
    def lines(self) -> list[str]:
        return [formatEvent(event) for event in self.events if event["log_namespace"] == "mypypi.requests"]

    def passes(self, seconds: int) -> None:
        self.clock.pump([1.0] * seconds)


class LineTest(SiteTestCase):
    """One line for each request."""

    def test_line_tells_what_happened(self) -> None:
        """Client, method, path, status, bytes, seconds, cache, kind and id."""

        def handle(request: Any) -> Deferred[None]:
            set_kind(request, "page")
            request.setHeader(b"cache-status", b"MyPyPi; hit; ttl=3")
            later: Deferred[None] = Deferred()
            self.clock.callLater(1.5, request.write, b"hello")
            self.clock.callLater(1.5, later.callback, None)
            return later

        client = self.client(b"GET /a/b HTTP/1.1\r\nHost: here\r\nX-Request-ID: build-7\r\n\r\n", self.handling(handle))
        self.clock.advance(1.5)
        assert client.status == 200
        assert self.lines == ["192.0.2.1 200 hit page 1500.0 ms 5 B GET /a/b build-7"]

    def test_request_id_comes_back(self) -> None:
        """The client's own where it is a short token, else one that was made up; the log names the same."""
        for given, kept in ((b"a-b:C/1=", True), (b"x" * 129, False), (b"a b", False), (b"\xff", False), (b"", False)):
            self.events.clear()
            client = self.client(b"GET / HTTP/1.1\r\nHost: a\r\nX-Request-ID: " + given + b"\r\n\r\n")
            (told,) = re.findall(r"(?mi)^X-Request-ID: (\S+)\r?$", client.head)
            assert (told == given.decode("latin-1")) is kept
            assert kept or re.fullmatch("[0-9a-f]{16}", told)
            assert [line.split()[-1] for line in self.lines] == [told]

    def test_client_that_leaves_is_told_of(self) -> None:
        """Of a request that is not answered to its end there is a line as well, and one only."""

        def handle(request: Any) -> Deferred[None]:
            if request.path == b"/begun":
                request.write(b"123")
            return Deferred()

        for path, told in (("/begun", "200 none other 0.0 ms 3"), ("/waits", "499 none other 0.0 ms 0")):
            self.events.clear()
            client = self.client(
                f"GET {path} HTTP/1.1\r\nHost: a\r\nX-Request-ID: i\r\n\r\n".encode(), self.handling(handle)
            )
            client.leave()
            assert self.lines == [f"192.0.2.1 {told} B GET {path} i broken"]

    def test_secrets_of_a_request_are_not_told(self) -> None:
        """Neither a query, nor credentials in headers or in an address, nor a token that npm puts into a path."""
        for target in (
            "/a?token=s3cret",
            "http://me:s3cret@here/a",
            "/-/user/token/s3cret",
            "/-/npm/v1/tokens/token/s3cret",
            "/%2d/user/token/s3cret",
        ):
            self.events.clear()
            for method in ("GET", "DELETE"):
                self.client(
                    f"{method} {target} HTTP/1.1\r\nHost: a\r\nAuthorization: Basic s3cret\r\nCookie: a=s3cret\r\n"
                    "Referer: /?s3cret\r\nUser-Agent: s3cret\r\nX-Request-ID: s3cret or not\r\n\r\n".encode()
                )
            assert len(self.lines) == 2
            assert "s3cret" not in repr(self.events)

    def test_what_can_not_be_printed_is_not(self) -> None:
        """A line is one line, and short, whatever a client sends."""
        assert path_of(b"/a\x1b[31m\x7f\xe9?q") == "/a%1B[31m%7F%E9"
        assert len(path_of(b"/" + b"a" * 9000)) < 1100
        assert (method_of(b"GET"), method_of(b"\x00"), method_of(b"G" * 100)) == ("GET", "-", "-")

    def test_unexpected_failure_names_the_request(self) -> None:
        """So that the line of a client's request leads to the reason."""

        def handle(request: Any) -> Deferred[None]:
            request.write(answer_failure(request, Failure(ZeroDivisionError("odd"))))
            done: Deferred[None] = Deferred()
            done.callback(None)
            return done

        self.client(b"GET /a?token=s3cret HTTP/1.1\r\nHost: a\r\nX-Request-ID: i-9\r\n\r\n", self.handling(handle))
        (event,) = [event for event in self.events if "log_failure" in event]
        assert formatEvent(event) == "request i-9 failed: GET /a"
        assert len(self.flushLoggedErrors(ZeroDivisionError)) == 1

    def test_expected_failure_is_the_line_of_its_request(self) -> None:
        def handle(request: Any) -> Deferred[None]:
            request.write(answer_failure(request, Failure(NotFound("nothing"))))
            done: Deferred[None] = Deferred()
            done.callback(None)
            return done

        self.client(PLAIN, self.handling(handle))
        (line,) = self.lines
        assert line.startswith("192.0.2.1 404 ")
        assert " GET /a " in line
        assert [event for event in self.events if "log_failure" in event] == []

    def test_ways_of_the_cache(self) -> None:
        told = {
            None: "none",
            "MyPyPi; hit; ttl=3": "hit",
            "MyPyPi; hit; ttl=-3; detail=stale": "stale",
            "MyPyPi; fwd=miss; stored": "miss",
            "MyPyPi; fwd=stale; stored; ttl=3": "miss",
            "MyPyPi; fwd=bypass": "bypass",
        }
        assert {value: cache_word(None if value is None else [value]) for value in told} == told

    def test_what_is_counted(self) -> None:
        """By kind, way and status, and by nothing that a client could make up."""

        def value(name: str, **labels: str) -> float:
            return REGISTRY.get_sample_value(name, labels) or 0.0

        def counted() -> tuple[float, ...]:
            return (
                value("mypypi_requests_total", kind="other", cache="none", status="200"),
                value("mypypi_request_seconds_count", kind="other"),
                value("mypypi_sent_bytes_total", cache="none"),
                value("mypypi_connections"),
            )

        before = counted()
        client = self.client(PLAIN)
        assert [now - then for now, then in zip(counted(), before, strict=True)] == [1, 1, len("0 bytes"), 1]
        client.leave()
        assert counted()[3] == before[3]
        series = {sample.labels.get("kind") for metric in REGISTRY.collect() for sample in metric.samples}
        self.client(b"BREW /%s HTTP/1.1\r\nHost: a\r\n\r\n" % (b"b" * 50))
        assert series == {sample.labels.get("kind") for metric in REGISTRY.collect() for sample in metric.samples}


class TooMuchTest(SiteTestCase):
    """What is larger than anybody means is refused, with the reason, and the connection is not used any more."""

    def refused(self, request: bytes, status: int) -> None:
        self.events.clear()
        client = self.client(request)
        assert client.status == status
        assert "Connection: close" in client.head
        assert client.body.startswith(b'{"error":"')
        assert client.value().count(b"HTTP/1.1") == 1
        client.send(PLAIN)
        assert client.value().count(b"HTTP/1.1") == 1
        self.passes(6)
        assert client.closed
        assert [line.split()[1] for line in self.lines] == [str(status)]

    def test_request_line(self) -> None:
        self.refused(b"GET /" + b"a" * 20_000, 431)
        self.refused(b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 431)

    def test_headers(self) -> None:
        """One that is too long, too much of them together, and too many."""
        self.refused(b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 17_000 + b"\r\n\r\n", 431)
        self.refused(b"GET / HTTP/1.1\r\nHost: a\r\n" + (b"X: " + b"a" * 1000 + b"\r\n") * 17 + b"\r\n", 431)
        self.refused(b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X:\r\n" * 501 + b"\r\n", 431)

    def test_announced_body(self) -> None:
        """Before any of it came, and without asking for it."""
        self.refused(POST + b"Content-Length: %d\r\n\r\n" % (LARGEST_BODY + 1), 413)
        self.refused(POST + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % (LARGEST_BODY + 1), 413)

    def test_chunked_body(self) -> None:
        """As soon as more came than is read."""
        chunk = b"100000\r\n" + b"a" * 0x100000 + b"\r\n"
        self.refused(POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 9, 413)

    def test_chunks_that_are_none(self) -> None:
        """Sizes that are no numbers, lines and trailers without end."""
        for body in (b"zz\r\n", b"1;" + b"a" * 3000, b"0\r\n" + b"X: a\r\n" * 20_000):
            self.refused(POST + b"Transfer-Encoding: chunked\r\n\r\n" + body, 400)

    def test_two_lengths(self) -> None:
        """Nobody could say where the next request begins (RFC 9112, section 6.3)."""
        self.refused(POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 400)
        self.refused(POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n", 400)
        self.refused(POST + b"Content-Length: -5\r\n\r\n", 400)

    def test_largest_body(self) -> None:
        """What is not too much is read, in either form; a form is not parsed."""
        body = b"a" * LARGEST_BODY
        size = b"%d bytes" % LARGEST_BODY
        kind = b"Content-Type: multipart/form-data; boundary=x\r\n"
        assert self.client(POST + kind + b"Content-Length: %d\r\n\r\n" % len(body) + body).body == size
        chunks = b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n"
        assert size in self.client(POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunks).body

    def test_body_that_finds_no_room(self) -> None:
        """A full disk, on which a large body would lie while it comes, is said to be the reason."""
        got_length = http.Request.gotLength

        def full(request: http.Request, length: int | None) -> None:
            if length != 0:
                raise OSError(28, "No space left on device")
            got_length(request, length)

        self.patch(http.Request, "gotLength", full)
        self.refused(POST + b"Content-Length: 200000\r\n\r\n", 503)


class TooSlowTest(SiteTestCase):
    """A connection is not held for ever by who does nothing with it."""

    def test_head_that_drips(self) -> None:
        """However slowly it comes, it is whole after a minute or not wanted."""
        client = self.client(b"GET / HTTP/1.1\r\n")
        for _ in range(59):
            client.send(b"X")
            self.passes(1)
        assert (client.status, client.closed) == (0, False)
        self.passes(2)
        assert client.status == 408
        self.passes(6)
        assert client.closed
        assert [line.split()[1] for line in self.lines] == ["408"]

    def test_body_that_drips(self) -> None:
        """As with the head, which has a minute of its own."""
        client = self.client(POST[:-2])
        self.passes(50)
        client.send(b"\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(59):
            client.send(b"X")
            self.passes(1)
        assert (client.status, client.closed) == (0, False)
        self.passes(2)
        assert client.status == 408
        client.leave()

    def test_chunks_that_drip(self) -> None:
        client = self.client(POST + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(61):
            client.send(b"1\r\na\r\n")
            self.passes(1)
        assert client.status == 408
        client.leave()

    def test_next_request_has_a_minute_of_its_own(self) -> None:
        """What a connection was used for before does not count."""
        client = self.client(PLAIN)
        self.passes(50)
        client.send(b"GET / HTTP/1.1\r\n")
        self.passes(50)
        client.send(b"Host: a\r\n\r\n")
        assert client.value().count(b"HTTP/1.1 200") == 2

    def test_answer_may_take_long(self) -> None:
        """The limits are for clients: what is asked for is waited for."""
        client = self.client(PLAIN, self.handling(lambda _: Deferred()))
        self.passes(1000)
        assert not client.closed

    def test_idle_connection(self) -> None:
        """It is closed without a word, and without a line in the log."""
        client = self.client(PLAIN)
        told = client.value()
        self.events.clear()
        self.passes(59)
        closed_early = client.closed
        self.passes(2)
        assert (closed_early, client.closed) == (False, True)
        assert client.value() == told
        assert self.events == []

    def test_connection_that_never_asks(self) -> None:
        client = self.client()
        self.passes(61)
        assert client.closed

    def test_client_that_takes_nothing_of_a_page(self) -> None:
        """It is left after a while; one that takes a piece now and then is not."""

        def handle(request: Any) -> Deferred[None]:
            request.setHeader(b"content-length", b"1000000")
            return send(request, slices(b"a" * 1_000_000))

        client = self.client(b"", self.handling(handle))
        client.slow = True
        client.send(PLAIN)
        for _ in range(3):
            self.passes(int(CLIENT_SILENCE) - 1)
            client.drained()
        assert not client.closed
        self.passes(int(CLIENT_SILENCE) + 1)
        assert client.aborted

    def test_client_that_takes_nothing_of_a_last_answer(self) -> None:
        """Where the connection is to be closed once all is out, and never is."""
        client = self.client(b"")
        self.patch(client, "loseConnection", lambda: None)  # which a transport does not before all is out
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert client.status == 200
        self.passes(int(CLIENT_SILENCE) - 1)
        assert not client.closed
        self.passes(2)
        assert client.aborted


class ConnectionsTest(SiteTestCase):
    """MYPYPI_CONNECTIONS_PER_ADDRESS."""

    def test_one_address_has_so_many_and_no_more(self) -> None:
        """What is too much is closed at once, without an answer; other addresses are not touched by that."""
        site = self.site(per_address=2)
        first, second = (Client(site, PLAIN, "192.0.2.1") for _ in range(2))
        assert Surplus(site).aborted
        assert Client(site, PLAIN, "192.0.2.2").status == 200
        first.leave()
        assert Client(site, PLAIN, "192.0.2.1").status == 200
        assert Surplus(site).aborted
        assert (first.aborted, second.closed) == (False, False)

    def test_log_is_not_flooded(self) -> None:
        """One line a minute for an address."""
        site = self.site(per_address=1)
        Client(site, b"")

        def complaints() -> list[str]:
            return [formatEvent(each) for each in self.events if each["log_namespace"] == "mypypi.connections"]

        for _ in range(5):
            Surplus(site)
        assert complaints() == ["192.0.2.1 has 1 connections, the limit for one address; further ones are closed"]
        self.clock.advance(61)
        Client(site, b"")  # the first one was idle for too long
        for _ in range(5):
            Surplus(site)
        assert len(complaints()) == 2

    def test_there_is_no_limit_unless_asked_for(self) -> None:
        site = self.site()
        assert all(Client(site, PLAIN).status == 200 for _ in range(200))


class Surplus(Client):
    """A connection too many, on which nothing can be sent."""

    def __init__(self, site: Site) -> None:
        super().__init__(site, b"")
