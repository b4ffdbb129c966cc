"""Tests of draining connections when a server stops, in memory, with real HTTP."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.web.http import Request

from mypypi.web.site import WebSite
from tests.support.memory import Connection, Handling, MemoryTestCase

ANOTHER = b"GET /again HTTP/1.1\r\nHost: here\r\n\r\n"


class DrainingTests(MemoryTestCase):
    """Each connection is closed after the response that it waits for."""

    def setUp(self) -> None:
        super().setUp()
        self.answers: list[Deferred[None]] = []
        self.requests: list[Request] = []
        self.site = WebSite(Handling(self._handle), self.clock)

    def _handle(self, request: Request) -> Deferred[None]:
        request.setHeader(b"content-length", b"4")
        self.requests.append(request)
        self.answers.append(Deferred())
        return self.answers[-1]

    def _answer(self, body: bytes = b"done") -> None:
        self.requests[-1].write(body)
        self.answers[-1].callback(None)

    def test_idle_connection_is_closed_at_once(self) -> None:
        """An idle connection with an answered request is closed at once."""
        client = Connection(self.site)
        self._answer()
        drained = self.site.drain()
        assert (client.closed, client.aborted) == (True, False)
        self.successResultOf(drained)

    def test_waiting_client_gets_its_response(self) -> None:
        """A waiting client gets its response with `Connection: close`. Then the connection is closed."""
        client = Connection(self.site)
        drained = self.site.drain()
        self.assertNoResult(drained)
        self._answer()
        assert "Connection: close" in client.head
        assert client.body == b"done"
        assert client.closed
        assert not client.aborted
        self.successResultOf(drained)

    def test_response_under_way_is_completed(self) -> None:
        """
        A client gets the rest of a response that was begun.

        Its head can't be changed any more, and the connection is closed.
        """
        client = Connection(self.site)
        self.requests[-1].write(b"do")
        drained = self.site.drain()
        self.assertNoResult(drained)
        self._answer(b"ne")
        assert client.body == b"done"
        assert client.closed
        self.successResultOf(drained)

    def test_partly_received_request_is_answered(self) -> None:
        """A request that is partly received is answered. Its client could not know of the drain."""
        client = Connection(self.site, ANOTHER[:7])
        drained = self.site.drain()
        self.assertNoResult(drained)
        client.channel.dataReceived(ANOTHER[7:])
        self._answer()
        assert "Connection: close" in client.head
        assert client.closed
        self.successResultOf(drained)

    def test_partly_received_second_request_is_answered(self) -> None:
        """A second request that is partly received is answered too."""
        client = Connection(self.site)
        self._answer()
        client.channel.dataReceived(ANOTHER[:-2])
        client.clear()
        drained = self.site.drain()
        client.channel.dataReceived(ANOTHER[-2:])
        self._answer()
        assert client.body == b"done"
        assert client.closed
        self.successResultOf(drained)

    def test_request_with_an_incomplete_body_is_answered(self) -> None:
        """A request whose body is still arriving is answered."""
        client = Connection(self.site, b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 2\r\n\r\nx")
        drained = self.site.drain()
        client.channel.dataReceived(b"y")
        self._answer()
        assert "Connection: close" in client.head
        assert client.closed
        self.successResultOf(drained)

    def test_new_connection_may_send_one_request(self) -> None:
        """A new connection has three seconds for one request. Its client does not know of the drain."""
        asking, silent = Connection(self.site, b""), Connection(self.site, b"")
        drained = self.site.drain()
        self.clock.advance(2)
        asking.channel.dataReceived(ANOTHER)
        self.clock.advance(1)
        assert (silent.closed, asking.closed) == (True, False)
        self._answer()
        assert asking.body == b"done"
        self.successResultOf(drained)

    def test_pipelined_request_is_not_read(self) -> None:
        """A pipelined request is not read. The client sends it again on another connection."""
        client = Connection(self.site)
        client.channel.dataReceived(ANOTHER)
        drained = self.site.drain()
        self._answer()
        assert len(self.requests) == 1
        assert client.closed
        self.successResultOf(drained)

    def test_response_that_does_not_end_is_aborted(self) -> None:
        """A response that does not end is aborted. The abort shows the client that it is incomplete."""
        client = Connection(self.site)
        self.requests[-1].write(b"do")
        drained = self.site.drain()
        assert self.site.abort() == 1
        assert client.aborted
        self.successResultOf(drained)

    def test_drain_without_connections_ends_at_once(self) -> None:
        """A drain without open connections ends at once."""
        Connection(self.site).leave()
        self.successResultOf(self.site.drain())
