"""How connections come to their end when a server stops: in memory, over real HTTP."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.web.http import Request

from mypypi.web.site import WebSite
from tests.support.memory import Connection, Handling, MemoryTestCase

ANOTHER = b"GET /again HTTP/1.1\r\nHost: here\r\n\r\n"


class DrainingTests(MemoryTestCase):
    """What each connection gets, by what it is at."""

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

    def test_one_on_which_nothing_goes_on_is_closed_at_once(self) -> None:
        """It has had an answer, and no other question."""
        client = Connection(self.site)
        self._answer()
        drained = self.site.drain()
        assert (client.closed, client.aborted) == (True, False)
        self.successResultOf(drained)

    def test_one_that_waits_for_its_answer_gets_it(self) -> None:
        """With the word that no other comes, and then a close."""
        client = Connection(self.site)
        drained = self.site.drain()
        self.assertNoResult(drained)
        self._answer()
        assert "Connection: close" in client.head
        assert client.body == b"done"
        assert client.closed
        assert not client.aborted
        self.successResultOf(drained)

    def test_one_whose_answer_has_begun_gets_the_rest(self) -> None:
        """The head can't be changed any more; the connection is closed all the same."""
        client = Connection(self.site)
        self.requests[-1].write(b"do")
        drained = self.site.drain()
        self.assertNoResult(drained)
        self._answer(b"ne")
        assert client.body == b"done"
        assert client.closed
        self.successResultOf(drained)

    def test_a_request_that_has_begun_to_arrive_is_answered(self) -> None:
        """Its first bytes came before the end: the client could not know."""
        client = Connection(self.site, ANOTHER[:7])
        drained = self.site.drain()
        self.assertNoResult(drained)
        client.channel.dataReceived(ANOTHER[7:])
        self._answer()
        assert "Connection: close" in client.head
        assert client.closed
        self.successResultOf(drained)

    def test_a_second_request_that_has_begun_to_arrive_is_answered(self) -> None:
        """As the first one is."""
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

    def test_a_body_that_arrives_is_waited_for(self) -> None:
        """The head was here, and what follows it is on its way."""
        client = Connection(self.site, b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 2\r\n\r\nx")
        drained = self.site.drain()
        client.channel.dataReceived(b"y")
        self._answer()
        assert "Connection: close" in client.head
        assert client.closed
        self.successResultOf(drained)

    def test_a_client_that_has_just_connected_may_ask_once(self) -> None:
        """It knows of no end. It has three seconds."""
        asking, silent = Connection(self.site, b""), Connection(self.site, b"")
        drained = self.site.drain()
        self.clock.advance(2)
        asking.channel.dataReceived(ANOTHER)
        self.clock.advance(1)
        assert (silent.closed, asking.closed) == (True, False)
        self._answer()
        assert asking.body == b"done"
        self.successResultOf(drained)

    def test_no_second_request_is_read(self) -> None:
        """Sent before the answer to the first, it is one that the client sends again elsewhere."""
        client = Connection(self.site)
        client.channel.dataReceived(ANOTHER)
        drained = self.site.drain()
        self._answer()
        assert len(self.requests) == 1
        assert client.closed
        self.successResultOf(drained)

    def test_what_does_not_end_is_broken(self) -> None:
        """So that nobody takes what came so far for all of it."""
        client = Connection(self.site)
        self.requests[-1].write(b"do")
        drained = self.site.drain()
        assert self.site.abort() == 1
        assert client.aborted
        self.successResultOf(drained)

    def test_without_connections_there_is_nothing_to_wait_for(self) -> None:
        """Nor with those that went by themselves."""
        Connection(self.site).leave()
        self.successResultOf(self.site.drain())
