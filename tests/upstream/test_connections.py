"""Tests of connections to upstream, over loopback and with Twisted's own agent."""

from __future__ import annotations

import socket
import sys
from collections.abc import Coroutine, Mapping
from typing import Any
from unittest import skipUnless

from twisted.internet import reactor as the_reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from mypypi.errors import BadUpstreamResponse, UpstreamDown, UpstreamPaused, UpstreamUnreachable
from mypypi.model import PageRequest
from mypypi.upstream.backoff import Backoff
from mypypi.upstream.breaker import Breaker
from mypypi.upstream.client import Upstream
from tests.support.fakes import MemoryCatalog
from tests.support.memory import clock_now

reactor: Any = the_reactor

PAGE = PageRequest("/simple/a/", "text/html")
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


class ClosingServer(Factory):
    """
    An upstream that keeps its connections, but closes some of them in place of an answer.

    `closing` says what it sends before it closes, by the number of the connection and of the request on it.
    `requests` are the received ones: connection, method, content.
    """

    noisy = False

    def __init__(self, closing: Mapping[tuple[int, int], bytes]) -> None:
        self.closing = closing
        self.answer = _ANSWER
        self.requests: list[tuple[int, str, bytes]] = []
        self.connections: list[_Connection] = []

    def buildProtocol(self, address: object) -> Protocol:
        connection = _Connection(self, len(self.connections))
        self.connections.append(connection)
        return connection


class _Connection(Protocol):
    transport: Any

    def __init__(self, upstream: ClosingServer, number: int) -> None:
        self.closed: Deferred[None] = Deferred()
        self._upstream = upstream
        self._number = number
        self._received = b""
        self._count = 0

    def dataReceived(self, data: bytes) -> None:
        if data.startswith(b"\x16\x03"):  # TLS
            self.transport.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            self.transport.loseConnection()
            return
        self._received += data
        head, separator, content = self._received.partition(b"\r\n\r\n")
        if not separator or (head.startswith(b"POST") and not content):
            return
        self._received = b""
        self._upstream.requests.append((self._number, head.split()[0].decode(), content))
        part = self._upstream.closing.get((self._number, self._count))
        self._count += 1
        self.transport.write(self._upstream.answer if part is None else part)
        if part is not None:
            self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.closed.callback(None)


async def _stop(server: ClosingServer, port: Any, upstream: Upstream) -> None:
    await upstream.stop()
    await port.stopListening()
    for connection in server.connections:
        connection.transport.loseConnection()
    await gatherResults([connection.closed for connection in server.connections])


class ConnectionTestCase(TestCase):
    """An upstream on loopback, which the real agent asks."""

    timeout = 30

    def setUp(self) -> None:
        self.clock = clock_now()
        self.catalog = MemoryCatalog(self.clock)
        self.ports: list[int] = []

    def serve(self, closing: Mapping[tuple[int, int], bytes], scheme: str = "http") -> ClosingServer:
        """Start an upstream."""
        server = ClosingServer(closing)
        port = reactor.listenTCP(0, server, interface="127.0.0.1")
        self.ports.append(port.getHost().port)
        self.upstream = self.make_upstream(f"{scheme}://127.0.0.1:{self.ports[-1]}")
        self.addCleanup(lambda upstream: Deferred.fromCoroutine(_stop(server, port, upstream)), self.upstream)
        return server

    def make_upstream(self, url: str, timeout: float = 20) -> Upstream:
        breaker = Breaker(Backoff(self.catalog, self.clock), self.catalog, "one", self.clock, timeout)
        return Upstream(reactor, url, timeout=timeout, breaker=breaker)

    async def audit(self) -> bytes:
        return (await self.upstream.pass_on("audit", "POST", "/audit", {}, b"content")).body

    async def page(self) -> bytes:
        response = await self.upstream.page(PAGE)
        assert response.source is not None
        return response.source.body

    def failing(self, work: Coroutine[Any, Any, object], kind: type[Exception]) -> Deferred[Any]:
        """Return the error of this work, which must be of this kind."""
        return self.assertFailure(Deferred.fromCoroutine(work), kind)


class KeptConnectionTest(ConnectionTestCase):
    """A request whose kept connection upstream has just closed is sent once more, on a new connection."""

    async def test_audit_is_sent_once_more(self) -> None:
        """A POST on a connection that upstream closes instead of an answer is answered on a new one."""
        server = self.serve({(0, 1): b""})
        assert await self.audit() == b"{}"
        assert await self.audit() == b"{}"
        assert server.requests == [(number, "POST", b"content") for number in (0, 0, 1)]

    async def test_page_is_sent_once_more(self) -> None:
        """A GET on a connection that upstream closes instead of an answer is answered on a new one."""
        server = self.serve({(0, 1): b""})
        assert await self.page() == b"{}"
        assert await self.page() == b"{}"
        assert server.requests == [(number, "GET", b"") for number in (0, 0, 1)]

    async def test_new_connection_is_none_of_the_kept_ones(self) -> None:
        """Upstream may have closed all kept connections, so the request is not sent on another one of them."""
        server = self.serve({(0, 1): b"", (1, 1): b""})
        await gatherResults([Deferred.fromCoroutine(self.audit()) for _ in range(2)])
        assert await self.audit() == b"{}"
        assert [number for number, _, _ in server.requests][3:] == [2]

    async def test_neither_is_sent_a_third_time(self) -> None:
        """If upstream closes the new connection as well, the request has failed."""
        for ask in (self.audit, self.page):
            server = self.serve({(0, 1): b"", (1, 0): b""})
            await ask()
            error = await self.failing(ask(), UpstreamUnreachable)
            assert "it closed the connection" in str(error)
            assert [number for number, _, _ in server.requests] == [0, 0, 1]

    async def test_neither_is_sent_again_after_a_byte_of_the_answer(self) -> None:
        """A connection that is closed within the answer is a failure."""
        for ask in (self.audit, self.page):
            for part in (b"H", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"):
                server = self.serve({(0, 1): part})
                await ask()
                await self.failing(ask(), UpstreamDown)
                assert [number for number, _, _ in server.requests] == [0, 0]

    async def test_bytes_after_an_answer_belong_to_no_other(self) -> None:
        """A connection on which bytes followed an answer is not used again: more of them may be on their way."""
        server = self.serve({})
        server.answer = _ANSWER + b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n"
        for _ in range(2):
            assert await self.page() == b"{}"
        assert [number for number, _, _ in server.requests] == [0, 1]

    async def test_connection_that_was_closed_before_is_not_used(self) -> None:
        """A connection that upstream closed in time is replaced without a failure."""
        server = self.serve({})
        await self.audit()
        server.connections[0].transport.loseConnection()
        await server.connections[0].closed
        assert await self.audit() == b"{}"
        assert [number for number, _, _ in server.requests] in ([0, 1], [0, 0, 1])


class BoundedConnectionTest(ConnectionTestCase):
    """Heads are bounded on every connection that is made."""

    async def test_new_and_kept_connections_are_bounded(self) -> None:
        """Interim answers without end are refused on a new connection, a kept one, and the one that replaces it."""
        endless = b"HTTP/1.1 100 Continue\r\n\r\n" * 1000
        for closing in ({(0, 0): endless}, {(0, 1): endless}, {(0, 1): b"", (1, 0): endless}):
            server = self.serve(closing)
            if (0, 1) in closing:
                assert await self.page() == b"{}"
            error = await self.failing(self.page(), BadUpstreamResponse)
            assert "interim answers" in str(error)
            number, count = max(closing)
            assert [asked for asked, _, _ in server.requests].count(number) == count + 1


class ManyHostsTest(ConnectionTestCase):
    """Connections to other hosts than upstream's are kept, and bounded in all."""

    async def test_connection_used_longest_ago_is_closed_for_another_one(self) -> None:
        """With many hosts, the connections of the last ones are kept. The others are closed, and forgotten."""
        servers = [self.serve({}) for _ in range(5)]
        upstream = Upstream(reactor, "http://127.0.0.1:9", concurrency=1)
        self.addCleanup(lambda: Deferred.fromCoroutine(upstream.stop()))
        pool = upstream._requester._pool
        assert pool is not None
        for number, port in enumerate([*self.ports, self.ports[-1]]):
            body = await upstream.file(f"http://127.0.0.1:{port}/{number}", {})
            received = _Received()
            body.deliver(received)
            await received.done
            body.close()
        await gatherResults([server.connections[0].closed for server in servers[:3]])
        assert [len(server.connections) for server in servers] == [1] * 5
        assert [len(server.requests) for server in servers] == [1, 1, 1, 1, 2]
        assert [server.connections[0].closed.called for server in servers] == [True, True, True, False, False]
        assert len(pool._connections) == 2


class _Received(Protocol):
    """Receives a body."""

    def __init__(self) -> None:
        self.done: Deferred[None] = Deferred()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.done.callback(None)


class NoConnectionTest(ConnectionTestCase):
    """Failures to connect hold the origin back. Requests that were cancelled meanwhile do not."""

    async def test_server_without_tls(self) -> None:
        """A server that does not speak TLS is a failure to connect, with its reason."""
        server = self.serve({}, "https")
        for _ in range(5):
            error = await self.failing(self.page(), UpstreamUnreachable)
            assert "TLS failed: 127.0.0.1 does not speak TLS at this port" in str(error)
        assert len(server.connections) == 5
        error = await self.failing(self.audit(), UpstreamPaused)
        assert "TLS failed: 127.0.0.1 does not speak TLS at this port" in str(error)

    async def test_port_without_a_server(self) -> None:
        """A refused connection is a failure to connect, with its reason."""
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            self.upstream = self.make_upstream(f"http://127.0.0.1:{unused.getsockname()[1]}")
            for _ in range(5):
                error = await self.failing(self.page(), UpstreamUnreachable)
                assert "connection was refused by other side" in str(error)
            await self.failing(self.audit(), UpstreamPaused)

    @skipUnless(sys.platform == "linux", "only Linux ignores connections to a socket whose queue is full")
    async def test_time_out_of_connecting(self) -> None:
        """A connection that is not made within the time-out is a failure to connect, with its reason."""
        self.upstream = self.make_upstream(self.silent_address(), timeout=0.2)
        for error in await gatherResults([self.failing(self.page(), UpstreamUnreachable) for _ in range(5)]):
            assert "connecting timed out" in str(error)
        error = await self.failing(self.audit(), UpstreamPaused)
        assert "connecting timed out" in str(error)

    @skipUnless(sys.platform == "linux", "only Linux ignores connections to a socket whose queue is full")
    async def test_cancelled_connecting(self) -> None:
        """A client that leaves while upstream is connected to says nothing about upstream."""
        self.upstream = self.make_upstream(self.silent_address())
        for _ in range(5):
            pending = Deferred.fromCoroutine(self.page())
            await deferLater(reactor, 0)
            pending.cancel()
            error = await self.assertFailure(pending, UpstreamDown)
            assert str(error) == "the request was cancelled"
        await self.upstream.check("page")

    def silent_address(self) -> str:
        """Return the URL of a socket whose queue of connections is full."""
        listening = socket.create_server(("127.0.0.1", 0), backlog=0)
        self.addCleanup(listening.close)
        for _ in range(3):
            waiting = socket.socket()
            self.addCleanup(waiting.close)
            waiting.setblocking(False)
            waiting.connect_ex(listening.getsockname())
        return f"http://127.0.0.1:{listening.getsockname()[1]}"
