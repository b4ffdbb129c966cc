"""Connections that end with what they are at: how a server stops without breaking what it has begun to answer.

Knows connections and whether they wait for something. Must never know what is served on them, or for how long to wait.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel, Request
from twisted.web.server import Site

#: Seconds that a client has for its first request, where it connected just before the end: it can't know of it.
_FIRST_REQUEST = 3.0


class DrainingChannel(HTTPChannel):
    """A connection of a `DrainingSite`."""

    #: Bytes of a request came that is not answered yet.
    _asked = False
    #: A request was answered: what comes next, the client may send again on another connection (RFC 9112, 9.3.1).
    _answered = False
    _draining = False

    def connectionMade(self) -> None:
        """A client came."""
        super().connectionMade()
        site: Any = self.factory
        site.connection_made(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """It is gone."""
        super().connectionLost(reason)
        site: Any = self.factory
        site.connection_lost(self)

    def dataReceived(self, data: bytes) -> None:
        """Bytes came."""
        self._asked = self._asked or bool(data)
        super().dataReceived(data)

    def requestDone(self, request: Request) -> None:
        """A request is answered; bytes of another one may be here already."""
        self._asked, self._answered = False, True
        super().requestDone(request)

    def drain(self) -> None:
        """
        Close the connection: now if nothing goes on, else once the answer is sent, with ``Connection: close`` where
        that can still be said.
        """
        self._draining = True
        if self.requests:
            self.persistent = False
            if not self.requests[0].startedWriting:
                _say_close(self.requests[0])
        elif self._answered and not self._asked:
            self.loseConnection()
        elif not self._asked:
            self.callLater(_FIRST_REQUEST, self._stop_waiting)

    def checkPersistence(self, request: Request, version: bytes) -> bool:
        """Whether another request may follow this one, whose head is here."""
        kept = bool(super().checkPersistence(request, version))
        if self._draining:
            _say_close(request)
        return kept and not self._draining

    def loseConnection(self) -> None:
        """Close it once all is sent. TLS would wait for a farewell, which a client that is idle never gets to send."""
        super().loseConnection()
        beneath = getattr(self.transport, "transport", None)
        if self._draining and beneath is not None:
            beneath.loseConnection()

    def _stop_waiting(self) -> None:
        if not self._asked:
            self.loseConnection()


def _say_close(request: Request) -> None:
    request.responseHeaders.setRawHeaders(b"connection", [b"close"])


class DrainingSite(Site):
    """A site that knows its connections and can bring them to their end. Its protocol is a `DrainingChannel`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._channels: set[DrainingChannel] = set()
        self._drained: Deferred[None] | None = None

    def connection_made(self, channel: DrainingChannel) -> None:
        """There is one connection more."""
        self._channels.add(channel)
        if self._drained is not None:
            channel.drain()

    def connection_lost(self, channel: DrainingChannel) -> None:
        """There is one connection less."""
        self._channels.discard(channel)
        if self._drained is not None and not self._channels and not self._drained.called:
            self._drained.callback(None)

    def drain(self) -> Deferred[None]:
        """Fires once every connection has ended, each with the answer that it waits for. To be called once."""
        self._drained = Deferred()
        if not self._channels:
            return succeed(None)
        for channel in list(self._channels):
            channel.drain()
        return self._drained

    def abort(self) -> int:
        """Break all connections there are, so that what was sent so far can't be taken for all of it; how many."""
        channels = list(self._channels)
        for channel in channels:
            transport: Any = channel.transport
            transport.abortConnection()
        return len(channels)
