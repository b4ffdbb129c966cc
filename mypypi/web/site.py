"""The HTTP server around the routes: limits of the protocol, and the log of requests.

Knows Twisted's HTTP classes. Must never know routes or what is served.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, AnyStr

from cachetools import TTLCache
from twisted.internet.interfaces import IAddress, IHalfCloseableDescriptor
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.server import Request

from mypypi.observability import metrics
from mypypi.web.draining import DrainingChannel, DrainingSite
from mypypi.web.reader import CLIENT_SILENCE
from mypypi.web.request_log import RequestRecord, choose_id, method_of, path_of, record_of

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall
    from twisted.web.resource import IResource

#: Seconds for which a connection may be idle between requests, from the first byte of a request's head to its last, and
#: from there to the last of its body.
_IDLE = 60
#: Seconds for which a client that was refused may go on sending, so that it comes to read why.
_LINGER = 5
#: The largest body of a request, in bytes: an audit of a large project, gzipped, takes some hundred kilobytes.
LARGEST_BODY = 8 * 1024 * 1024
#: Seconds between two log lines about one address that has too many connections, and how many addresses are remembered.
_COMPLAIN_EVERY = 60.0
_MOST_COMPLAINTS = 1000

_log_requests = Logger("mypypi.requests")
_log_connections = Logger("mypypi.connections")


class Channel(DrainingChannel):
    """
    An HTTP/1.1 connection that says what was wrong with a request it can't read.

    Twisted's own time limit begins anew with every byte, so that whoever sends one a minute could stay for ever: here
    it does not until a head, and then a body, is whole. A client that takes nothing of what it is sent is left.
    """

    _refused = False
    _begun = False
    _patience: IDelayedCall | None = None

    def connectionMade(self) -> None:
        """A client came."""
        metrics.CONNECTIONS.inc()
        super().connectionMade()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """It is gone."""
        metrics.CONNECTIONS.dec()
        self._be_patient(None)
        super().connectionLost(reason)

    def dataReceived(self, data: bytes) -> None:
        """Bytes came, of which none count any more once a request was refused."""
        if not self._refused:
            super().dataReceived(data)

    def resetTimeout(self) -> None:
        """A byte came: the first one of a request sets the limit for its head."""
        if not self._begun:
            self._begun = True
            super().resetTimeout()

    def allHeadersReceived(self) -> None:
        """The head is whole; the limit for its body begins."""
        super().resetTimeout()
        super().allHeadersReceived()

    def allContentReceived(self) -> None:
        """The request is whole."""
        self._begun = False
        super().allContentReceived()

    def _send100Continue(self) -> None:
        if not self._refused:
            super()._send100Continue()

    def timeoutConnection(self) -> None:
        """Nothing came for long, or not all of a request."""
        if self._begun and not self._refused:
            self.refuse(b"408 Request Timeout", b"the request did not come to its end in time")
        else:
            self._abortingCall = self.callLater(self.abortTimeout, self.forceAbortClient)
            self.loseConnection()

    def pauseProducing(self) -> None:
        """The client has not taken what it was sent."""
        self._be_patient(CLIENT_SILENCE)
        super().pauseProducing()

    def resumeProducing(self) -> None:
        """It has."""
        self._be_patient(None)
        super().resumeProducing()

    def loseConnection(self) -> None:
        """This was the last answer; a client that does not take it is not waited for either."""
        self._be_patient(CLIENT_SILENCE)
        super().loseConnection()

    def _be_patient(self, seconds: float | None) -> None:
        """Break the connection after so many seconds, unless told otherwise; None: don't."""
        if self._patience is not None and self._patience.active():
            self._patience.cancel()
        self._patience = None if seconds is None else self.callLater(seconds, self._lose_patience)

    def _lose_patience(self) -> None:
        transport: Any = self.transport
        transport.abortConnection()

    def lineLengthExceeded(self, line: bytes) -> None:
        """A line, or all headers together, is longer than is read (16 KiB), or there are more headers (500)."""
        self.refuse(b"431 Request Header Fields Too Large", b"the request line or the headers are too long")

    def _respondToBadRequestAndDisconnect(self) -> None:
        if self._receivedHeaderSize > self.totalHeadersSize or self._receivedHeaderCount > self.maxHeaders:
            self.lineLengthExceeded(b"")
        else:
            self.refuse(b"400 Bad Request", b"this is not an HTTP request")

    def refuse(self, status: bytes, text: bytes) -> None:
        """
        Answer at once, and throw away what is still sent for a moment (RFC 9112, section 9.6): for a client that is
        sending, a connection that is just closed is a broken one, and it never sees the answer.
        """
        if self._refused:
            return
        transport: Any = self.transport
        self._refused = True
        self.clearLineBuffer()
        body = b'{"error":"%s"}\n' % text
        transport.write(
            b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s"
            % (status, len(body), body)
        )
        self.setTimeout(_LINGER)
        site: Any = self.factory
        site.log_refused(self, int(status[:3]), len(body))
        half_closes = IHalfCloseableDescriptor.providedBy(transport)  # TLS does not
        if half_closes:
            transport.loseWriteConnection()


class WebRequest(Request):
    """A request whose body is bounded, since nobody here has much to say, and that has an id."""

    request_id = "-"
    kind = "other"
    #: On the site's clock; None until all of it was here.
    begun_at: float | None = None
    _received = 0
    _refused = False

    def getHeader(self, key: AnyStr) -> AnyStr | None:
        """A header's last value. Any bytes are read as text (RFC 9110, section 5.5), which Twisted takes for UTF-8."""
        if isinstance(key, bytes):
            return super().getHeader(key)
        value = super().getHeader(key.encode())
        return None if value is None else value.decode("latin-1")

    def gotLength(self, length: int | None) -> None:
        """A body of this many bytes comes; None where nobody knows."""
        if length is not None and length > LARGEST_BODY:
            super().gotLength(0)
            self._refuse(b"413 Content Too Large", b"the request has a larger body than is read here")
            return
        try:
            super().gotLength(length)
        except OSError:
            super().gotLength(0)
            self._no_room()

    def handleContentChunk(self, data: bytes) -> None:
        """A piece of the body."""
        self._received += len(data)
        if self._received > LARGEST_BODY:
            self._refuse(b"413 Content Too Large", b"the request has a larger body than is read here")
        elif not self._refused:
            try:
                super().handleContentChunk(data)
            except OSError:
                self._no_room()

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """All of it is here."""
        if self._refused:
            return
        self._parsePOSTFormSubmission = False  # nobody asks by a form here, and parsing one takes long
        self.request_id = choose_id(self)
        self.responseHeaders.setRawHeaders(b"X-Request-ID", [self.request_id.encode()])
        site: Any = self.channel.factory
        self.begun_at = site.now()
        super().requestReceived(command, path, version)

    def connectionLost(self, reason: Failure) -> None:
        """The connection ended before the answer did."""
        site = self.channel.factory
        if self.begun_at is not None and isinstance(site, WebSite):
            site.log(self, broken=True)
        super().connectionLost(reason)

    def _no_room(self) -> None:
        self._refuse(b"503 Service Unavailable", b"there is no room for the body of a request now")

    def _refuse(self, status: bytes, text: bytes) -> None:
        if not self._refused and isinstance(self.channel, Channel):
            self._refused = True
            self.channel.refuse(status, text)


class WebSite(DrainingSite):
    """
    Makes the connections, at most `per_address` of one address at a time (0: any number), and logs a line for each
    request, without its query: that may hold what nobody else should read.
    """

    requestFactory = WebRequest
    protocol = Channel  # type: ignore[assignment] # and not the one that speaks HTTP/2 as well
    noisy = False

    def __init__(self, resource: IResource, reactor: Any, *, per_address: int = 0) -> None:
        super().__init__(resource, reactor=reactor, timeout=_IDLE)
        self.displayTracebacks = False
        self.now = reactor.seconds
        self._per_address = per_address
        self._connected: Counter[str] = Counter()
        self._complained: TTLCache[str, None] = TTLCache(_MOST_COMPLAINTS, _COMPLAIN_EVERY, reactor.seconds)

    def buildProtocol(self, addr: IAddress) -> Protocol | None:  # type: ignore[override] # Site says less
        """A connection, or one that is closed at once where its address has too many."""
        host = getattr(addr, "host", None)
        if self._per_address and host is not None:
            if self._connected[host] >= self._per_address:
                self._complain(host)
                return _Surplus()
            self._connected[host] += 1
        built: Protocol | None = super().buildProtocol(addr)
        return built

    def connection_lost(self, channel: DrainingChannel) -> None:
        """There is one connection less."""
        super().connection_lost(channel)
        host = getattr(channel.getPeer(), "host", None)
        if self._per_address and host is not None:
            self._connected[host] -= 1
            if self._connected[host] <= 0:
                del self._connected[host]

    def log(self, request: Request, *, broken: bool = False) -> None:  # type: ignore[override] # it gets what it made
        """One line for a request that is over, and what is counted of it."""
        begun_at = getattr(request, "begun_at", None)
        line = record_of(request, 0.0 if begun_at is None else self.now() - begun_at, broken=broken)
        line.count()
        _log_requests.info("{record}", record=line)

    def log_refused(self, channel: Channel, status: int, size: int) -> None:
        """The same of one that was not read to its end."""
        method, uri = getattr(channel, "_command", b""), getattr(channel, "_path", b"")
        client = getattr(channel.getPeer(), "host", None) or "-"
        line = RequestRecord(client, method_of(method), path_of(uri), status, size, 0.0, "none", "other", "-")
        line.count()
        _log_requests.info("{record}", record=line)

    def _complain(self, host: str) -> None:
        if host not in self._complained:
            self._complained[host] = None
            _log_connections.warn(
                "{client} has {most} connections, as many as it may have; more of them are closed",
                client=host,
                most=self._per_address,
            )


class _Surplus(Protocol):
    """
    A connection too many. Nothing is said on it: TLS would have to be spoken first.

    Not a `policies.LimitConnectionsByPeer` around the site: its transport hides the socket that readers send to.
    """

    def connectionMade(self) -> None:
        """Close it."""
        transport: Any = self.transport
        transport.abortConnection()
