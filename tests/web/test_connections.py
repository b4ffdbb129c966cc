"""Tests of the limits of connections: who gets a place, and who gives way."""

from __future__ import annotations

from typing import Any, cast

from prometheus_client import REGISTRY
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import ISSLTransport
from twisted.internet.ssl import CertificateOptions
from twisted.logger import formatEvent
from twisted.protocols.tls import TLSMemoryBIOFactory
from zope.interface import classImplements

from mypypi.settings.types import networks
from mypypi.web.connections import LEAVING, SHARE, Connections
from mypypi.web.site import WebSite
from tests.support.memory import Connection, Handling, MemoryTestCase

MOST = 16
SHARE_OF_ONE = int(MOST * SHARE)
ONE, OTHER, THIRD = "192.0.2.1", "192.0.2.2", "192.0.2.3"
GET = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"
SLOW = b"GET /slow HTTP/1.1\r\nHost: here\r\n\r\n"


class TLSConnection(Connection):
    """A connection over TLS. Its end is reported later, as that of a socket."""

    def abortConnection(self) -> None:
        self.aborted = True

    def setTcpNoDelay(self, enabled: bool) -> None:  # noqa: FBT001 - Twisted's
        pass


cast("Any", classImplements)(TLSConnection, ISSLTransport)  # only what is needed here


class ConnectionsTestCase(MemoryTestCase):
    """A site with a limit of connections. It answers at once, but at `/slow` when a test says so."""

    def setUp(self) -> None:
        super().setUp()
        self.events = self.log_events()
        self.slow: list[Deferred[None]] = []
        self.site = self.make_site()

    def make_site(self, most: int = MOST, **limits: Any) -> WebSite:
        return WebSite(Handling(self._handle), self.clock, Connections(self.clock, most, **limits))

    def _handle(self, request: Any) -> Deferred[None]:
        done: Deferred[None] = Deferred()
        if request.path == b"/slow":
            self.slow.append(done)
        else:
            done.callback(None)
        return done

    def connect(self, host: str = ONE, request: bytes = GET) -> Connection:
        return Connection(self.site, request, host)

    def connect_many(self, count: int, host: str = ONE, request: bytes = GET) -> list[Connection]:
        return [self.connect(host, request) for _ in range(count)]

    def fill(self, request: bytes) -> None:
        """Take all places with connections of two addresses, each with this request."""
        for host in (ONE, OTHER):
            clients = self.connect_many(MOST // 2, host, request)
            assert not any(client.value() or client.closed for client in clients)

    def assert_refused(self, client: Connection) -> None:
        assert client.head.startswith("HTTP/1.1 503 ")
        assert "Retry-After: 5" in client.head
        assert client.body == b'{"error":"this server has too many connections: try again"}\n'

    @property
    def warnings(self) -> list[str]:
        return [formatEvent(event) for event in self.events if event["log_namespace"] == "mypypi.connections"]

    @property
    def request_lines(self) -> list[str]:
        """The clients of the requests that were logged."""
        return [event["record"].client for event in self.events if event["log_namespace"] == "mypypi.requests"]

    @staticmethod
    def count(name: str) -> float:
        return REGISTRY.get_sample_value(f"mypypi_{name}_total") or 0.0


class ShareTest(ConnectionsTestCase):
    """One address has at most its share of the connections."""

    def test_one_address_keeps_no_other_out(self) -> None:
        """An address that opens many connections is refused at its share. Another one is served."""
        before = self.count("rejected_connections")
        clients = self.connect_many(3 * MOST, ONE, b"")
        assert [client.head for client in clients[:SHARE_OF_ONE]] == [""] * (SHARE_OF_ONE)
        self.assert_refused(clients[SHARE_OF_ONE])
        assert self.count("rejected_connections") - before == 3 * MOST - SHARE_OF_ONE
        assert self.connect(OTHER).head.startswith("HTTP/1.1 200 ")
        assert self.warnings == ["192.0.2.1 has 12 connections, the most for one address; further ones get a 503"]
        assert self.request_lines == ["192.0.2.2"]

    def test_idle_connection_of_the_address_gives_way(self) -> None:
        """A new connection of an address at its share closes the one of it that has been idle for longest."""
        first, second, *others = self.connect_many(SHARE_OF_ONE)
        cast("Any", first.channel).dataReceived(GET)
        before = self.count("closed_idle_connections")
        assert self.connect().head.startswith("HTTP/1.1 200 ")
        assert [client.closed for client in (second, first, *others)] == [True] + [False] * (SHARE_OF_ONE - 1)
        assert not second.aborted
        assert self.count("closed_idle_connections") - before == 1

    def test_trusted_proxy_has_no_share(self) -> None:
        """A trusted proxy may have all connections, since all clients come through it."""
        self.site = self.make_site(trusted=networks("192.0.2.0/30"), per_address=2)
        clients = self.connect_many(MOST, ONE, SLOW)
        assert not any(client.closed or client.value() for client in clients)
        self.assert_refused(self.connect())

    def test_ipv6_site_is_one_address(self) -> None:
        """All addresses of an IPv6 network of 64 bits share one limit: one client may have all of them."""
        clients = [self.connect(f"2001:db8::{number:x}", b"") for number in range(MOST)]
        self.assert_refused(clients[-1])
        assert self.connect("2001:db8:0:1::1").head.startswith("HTTP/1.1 200 ")

    def test_mapped_address_is_the_ipv4_address(self) -> None:
        """A dual-stack socket reports IPv4 clients as IPv6. They do not share one limit."""
        self.connect_many(SHARE_OF_ONE, f"::ffff:{ONE}", SLOW)
        self.assert_refused(self.connect(ONE))
        assert self.connect(f"::ffff:{OTHER}").head.startswith("HTTP/1.1 200 ")


class FullTest(ConnectionsTestCase):
    """All connections are in use."""

    def test_idle_connection_gives_way(self) -> None:
        """A new connection closes an idle one of the address that has the most."""
        few, many = self.connect_many(3, ONE), self.connect_many(SHARE_OF_ONE, OTHER)
        self.connect_many(MOST - SHARE_OF_ONE - 3, THIRD, SLOW)
        assert self.connect("192.0.2.4").head.startswith("HTTP/1.1 200 ")
        assert [client.closed for client in many] == [True] + [False] * (SHARE_OF_ONE - 1)
        assert not any(client.closed for client in few)

    def test_connection_without_a_request_gives_way(self) -> None:
        """Without an idle connection, one whose request is incomplete gives way to an address that has fewer."""
        for request in (b"", GET[:20], b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nbody"):
            self.site = self.make_site()
            self.fill(request)
            assert self.connect(THIRD).head.startswith("HTTP/1.1 200 ")
            self.assert_refused(self.connect(ONE, b""))
            assert "sends no request on some; others need their places" in self.warnings[0]
            assert self.request_lines == [THIRD]
            self.events.clear()

    def test_busy_connections_stay(self) -> None:
        """While all connections are being answered, a new one is refused. The others get their responses."""
        self.fill(SLOW)
        for host in (ONE, THIRD):
            self.assert_refused(self.connect(host))
        assert "all 16 connections of clients are in use; new ones get a 503" in self.warnings
        for done in self.slow:
            done.callback(None)
        assert self.connect(THIRD).head.startswith("HTTP/1.1 200 ")

    def test_place_is_free_after_a_client_has_left(self) -> None:
        """The place of a client that has left is free again."""
        self.fill(SLOW)
        client = self.connect(THIRD)
        self.assert_refused(client)
        for channel in list(self.site._channels)[:2]:
            cast("Any", channel).transport.leave()
        assert self.connect(THIRD).head.startswith("HTTP/1.1 200 ")

    def test_refused_clients_linger_in_limited_number(self) -> None:
        """Refused connections that their clients keep open are aborted, the oldest first."""
        self.fill(SLOW)
        clients = self.connect_many(10, THIRD)
        for client in clients:
            self.assert_refused(client)
        lingering = MOST // LEAVING
        assert [client.aborted for client in clients] == [True] * (10 - lingering) + [False] * lingering
        assert len(self.site._channels) == MOST + lingering

    def test_tls_client_is_closed_without_a_handshake(self) -> None:
        """A TLS connection beyond the limit is closed without a byte, since an answer would cost a handshake."""
        self.fill(SLOW)
        client = TLSConnection(self.site, b"", THIRD)
        assert (client.aborted, client.value()) == (True, b"")

    def test_handshake_that_does_not_end(self) -> None:
        """A client that sends its TLS handshake a byte at a time is disconnected after 75 seconds."""
        hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500)
        factory = TLSMemoryBIOFactory(CertificateOptions(), False, self.site, self.clock)
        client = TLSConnection(cast("Any", factory), b"")
        for at in range(75):
            assert not client.aborted
            cast("Any", client.channel).dataReceived(hello[at : at + 1])
            self.clock.advance(1)
        assert client.aborted
