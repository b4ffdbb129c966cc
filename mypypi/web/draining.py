"""Drains connections: a stopping server closes each one after the response under way.

Knows connections, and whether they wait for a response. Must never know what is served, or how long a drain may take.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel, Request
from twisted.web.server import Site

#: Seconds for the first request of a client that connected just before the drain: it can't know that the server stops.
_FIRST_REQUEST = 3.0


class DrainingChannel(HTTPChannel):
    """A connection of a `DrainingSite`."""

    #: Whether bytes of an unanswered request have arrived.
    _pending = False
    #: Whether a request was answered. After that, the connection may be closed at any time: the client may send its
    #: next request again on another connection (RFC 9112, section 9.3.1).
    _answered = False
    _draining = False

    def connectionMade(self) -> None:
        """Register the connection with its site."""
        super().connectionMade()
        site: Any = self.factory
        site.connection_made(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Remove the connection from its site."""
        super().connectionLost(reason)
        site: Any = self.factory
        site.connection_lost(self)

    def dataReceived(self, data: bytes) -> None:
        """Note that a request is arriving."""
        self._pending = self._pending or bool(data)
        super().dataReceived(data)

    def requestDone(self, request: Request) -> None:
        """Note that a request is answered. Bytes of the next one may be buffered already."""
        self._pending, self._answered = False, True
        super().requestDone(request)

    def drain(self) -> None:
        """
        Close the connection: now if it is idle, else once the response is sent.

        The response gets ``Connection: close``, unless its headers are sent already. A new connection without a request
        gets a few seconds for one.
        """
        self._draining = True
        if self.requests:
            self.persistent = False
            if not self.requests[0].startedWriting:
                _set_connection_close(self.requests[0])
        elif self._answered and not self._pending:
            self.close_idle()
        elif not self._pending:
            self.callLater(_FIRST_REQUEST, self._stop_waiting)

    def checkPersistence(self, request: Request, version: bytes) -> bool:
        """Return whether another request may follow this one, whose head has arrived."""
        kept = bool(super().checkPersistence(request, version))
        if self._draining:
            _set_connection_close(request)
        return kept and not self._draining

    def loseConnection(self) -> None:
        """
        Close the connection once everything is sent.

        In a drain, this does not wait for the client.
        """
        super().loseConnection()
        if self._draining:
            self._bypass_tls()

    def close_idle(self) -> None:
        """Close a connection that is idle, without waiting for its client."""
        self.loseConnection()
        self._bypass_tls()

    def _bypass_tls(self) -> None:
        """Close without the client's close_notify, which an idle client does not send."""
        plain_transport = getattr(self.transport, "transport", None)
        if plain_transport is not None:
            plain_transport.loseConnection()

    def _stop_waiting(self) -> None:
        if not self._pending:
            self.loseConnection()


def _set_connection_close(request: Request) -> None:
    request.responseHeaders.setRawHeaders(b"connection", [b"close"])


class DrainingSite(Site):
    """A site that tracks its connections and can drain them. Its protocol is a `DrainingChannel`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._channels: set[DrainingChannel] = set()
        self._drained: Deferred[None] | None = None

    def connection_made(self, channel: DrainingChannel) -> None:
        """Track a new connection; in a drain, drain it at once."""
        self._channels.add(channel)
        if self._drained is not None:
            channel.drain()

    def connection_lost(self, channel: DrainingChannel) -> None:
        """Forget a closed connection; the last one completes the drain."""
        self._channels.discard(channel)
        if self._drained is not None and not self._channels and not self._drained.called:
            self._drained.callback(None)

    def drain(self) -> Deferred[None]:
        """
        Drain all connections; fires when the last one has ended.

        Each connection ends after the response that it waits for. To be called once.
        """
        self._drained = Deferred()
        if not self._channels:
            return succeed(None)
        for channel in list(self._channels):
            channel.drain()
        return self._drained

    def abort(self) -> int:
        """
        Abort all connections, and return how many there were.

        An abort shows the client that its response is incomplete.
        """
        channels = list(self._channels)
        for channel in channels:
            transport: Any = channel.transport
            transport.abortConnection()
        return len(channels)
