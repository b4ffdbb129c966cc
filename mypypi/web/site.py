"""The HTTP server around the routes: protocol limits, time limits and the request log.

Knows Twisted's HTTP classes. Must never know routes or what is served.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IHalfCloseableDescriptor, ISSLTransport
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from mypypi import descriptors
from mypypi.observability import metrics
from mypypi.web.connections import FULL, Connections, Verdict
from mypypi.web.content_reader import CLIENT_SILENCE
from mypypi.web.draining import DrainingSite
from mypypi.web.hot_answers import HotAnswers
from mypypi.web.repeating import RepeatingChannel
from mypypi.web.request import BROWSER_HEADERS, TOO_LARGE, WebRequest
from mypypi.web.request_log import RequestRecord, method_of, path_of, record_of

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall
    from twisted.web.http import Request
    from twisted.web.resource import IResource

#: Time limit in seconds for each of three phases: idle between requests, from the first to the last byte of a head, and
#: from there to the last byte of the body. Clients come back after up to 60 seconds (the longest Retry-After, and the
#: last retry of npm and pnpm). A connection that closed at the same moment would break that request.
_IDLE = 75
#: Digits of a Content-Length. A longer one is over any limit, and Python's int() refuses some thousand.
_MOST_DIGITS = 18
#: Seconds for which a refused client may go on sending, so that it gets to read the reason.
_LINGER = 5
#: Seconds of the Retry-After of a connection or body that can't be taken now.
_RETRY_AFTER = 5
#: The share of the descriptors kept for files beyond which connections are aborted, and not refused with an answer.
_MOST_REFUSED = 0.5

_BROWSER_LINES = b"".join(b"%s: %s\r\n" % header for header in BROWSER_HEADERS.items())

_log_requests = Logger("mypypi.requests")


class Channel(RepeatingChannel):
    """
    An HTTP/1.1 connection with strict time limits, which answers malformed requests.

    Twisted restarts its time limit with every byte, so that a client could stay for ever with one byte a minute. Here,
    a head and a body each have one limit. A client that stops reading its response is disconnected.
    """

    _refused = False
    _begun = False
    _stall_timer: IDelayedCall | None = None

    def connectionMade(self) -> None:
        """
        Count the connection; refuse it if there are too many, or if it took a descriptor that is kept for files.

        Twisted would close it without a word once no descriptor is left. Refused connections take at most half of the
        kept ones, since each lingers for some seconds.
        """
        metrics.CONNECTIONS.inc()
        super().connectionMade()
        transport: Any = self.transport
        verdict = self._connections.admit(self)
        if verdict is not Verdict.STAYS:
            if verdict is Verdict.REFUSED:
                self.turn_away(FULL)
            else:
                metrics.REJECTED_CONNECTIONS.inc()
                self.abort()
            return
        scarcity = descriptors.scarcity(transport.fileno()) if hasattr(transport, "fileno") else 0.0
        if scarcity > 0:
            self._connections.warn_of_scarcity()
            metrics.REJECTED_CONNECTIONS.inc()
            if scarcity > _MOST_REFUSED:
                transport.abortConnection()
            else:
                self.refuse(b"503 Service Unavailable", f"{descriptors.NONE_LEFT}: try again".encode(), is_logged=False)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Stop counting the connection."""
        metrics.CONNECTIONS.dec()
        self._connections.forget(self)
        self._set_stall_timer(None)
        super().connectionLost(reason)

    def dataReceived(self, data: bytes) -> None:
        """
        Answer a request that came before; parse any other bytes.

        Once a request was refused, all is discarded.
        """
        if self._refused:
            return
        if not self._pending:
            if self.repeat_answer(data):
                return
            self._connections.set_waiting(self)
        super().dataReceived(data)

    def answer_begun(self) -> None:
        """Note that a response is under way."""
        self._connections.set_busy(self)

    def answer_ended(self) -> None:
        """Note that a request was answered at once."""
        super().answer_ended()
        self._connections.set_idle(self)
        super().resetTimeout()

    def resetTimeout(self) -> None:
        """Start the limit at a head's first byte; later bytes do not extend it."""
        if not self._begun:
            self._begun = True
            super().resetTimeout()

    def allHeadersReceived(self) -> None:
        """Start the limit for the body: the head is complete."""
        super().resetTimeout()
        super().allHeadersReceived()

    def allContentReceived(self) -> None:
        """Note that the request is complete."""
        self._begun = False
        self._connections.set_busy(self)
        super().allContentReceived()

    def requestDone(self, request: Request) -> None:
        """Note that the request is answered."""
        self._connections.set_idle(self)
        super().requestDone(request)

    def _send100Continue(self) -> None:
        if not self._refused:
            super()._send100Continue()

    def timeoutConnection(self) -> None:
        """Refuse a request that is incomplete; close an idle connection."""
        if self._begun and not self._refused:
            self.refuse(b"408 Request Timeout", b"the request was not complete in time")
        else:
            self._abortingCall = self.callLater(self.abortTimeout, self.forceAbortClient)
            self.loseConnection()

    def pauseProducing(self) -> None:
        """Start the stall timer: the client has stopped reading."""
        self._set_stall_timer(CLIENT_SILENCE)
        super().pauseProducing()

    def resumeProducing(self) -> None:
        """Stop the stall timer: the client reads again."""
        self._set_stall_timer(None)
        super().resumeProducing()

    def loseConnection(self) -> None:
        """Close once everything is sent, or when the client stops reading."""
        self._set_stall_timer(CLIENT_SILENCE)
        super().loseConnection()

    def turn_away(self, why: str) -> None:
        """Answer with a 503 instead of reading the request. TLS is closed: an answer would cost a handshake."""
        metrics.REJECTED_CONNECTIONS.inc()
        if ISSLTransport.providedBy(self.transport):
            self.abort()
        else:
            self.refuse(b"503 Service Unavailable", why.encode(), is_logged=False)

    def abort(self) -> None:
        """Close the connection at once."""
        transport: Any = self.transport
        transport.abortConnection()

    @property
    def _connections(self) -> Connections:
        site: Any = self.factory
        return site.connections  # type: ignore[no-any-return]

    def _set_stall_timer(self, seconds: float | None) -> None:
        """Abort the connection after so many seconds; None stops the timer."""
        if self._stall_timer is not None and self._stall_timer.active():
            self._stall_timer.cancel()
        self._stall_timer = None if seconds is None else self.callLater(seconds, self.abort)

    def lineLengthExceeded(self, line: bytes) -> None:
        """Refuse a head that is too large: over 16 KiB, or over 500 headers."""
        self.refuse(b"431 Request Header Fields Too Large", b"the request line or the headers are too long")

    def _respondToBadRequestAndDisconnect(self) -> None:
        if self._receivedHeaderSize > self.totalHeadersSize or self._receivedHeaderCount > self.maxHeaders:
            self.lineLengthExceeded(b"")
        else:
            self.refuse(b"400 Bad Request", b"this is not an HTTP request")

    def _maybeChooseTransferDecoder(self, header: bytes, data: bytes) -> bool:
        """
        Read a header that tells the length of the body; refuse one that leaves doubt.

        Twisted ignores ``Transfer-Encoding: identity``, so that another one may follow it (RFC 9112, section 6.1).
        """
        if header == b"Content-Length" and data.isdigit() and len(data) > _MOST_DIGITS:
            self.refuse(b"413 " + TOO_LARGE, TOO_LARGE)
            return False
        if header == b"Transfer-Encoding" and data.lower() != b"chunked":
            return bool(self._failChooseTransferDecoder())
        return bool(super()._maybeChooseTransferDecoder(header, data))

    def refuse(self, status: bytes, text: bytes, *, is_logged: bool = True) -> None:
        """
        Answer with an error at once, and close the connection a moment later.

        A connection that is one too many has sent no complete request, so none is logged: there may be hundreds at
        once. `Connections` warns of them.

        Until then, what the client sends is discarded (RFC 9112, section 9.6). To a client that is still sending, a
        connection that is closed at once is broken, and the client never reads the answer.
        """
        if self._refused:
            return
        transport: Any = self.transport
        self._refused = True
        self.clearLineBuffer()
        body = b'{"error":"%s"}\n' % text
        retry = b"Retry-After: %d\r\n" % _RETRY_AFTER if status.startswith(b"503") else b""
        transport.write(
            b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%s%sConnection: close\r\n\r\n%s"
            % (status, len(body), _BROWSER_LINES, retry, body)
        )
        self.setTimeout(None)  # Twisted takes long to move a timer ahead of many others
        self.setTimeout(_LINGER)
        if is_logged:
            site: Any = self.factory
            site.log_refused(self, int(status[:3]), len(body))
        half_closes = IHalfCloseableDescriptor.providedBy(transport)  # not with TLS
        if half_closes:
            transport.loseWriteConnection()


class WebSite(DrainingSite):
    """
    Accepts connections and logs requests.

    `connections` limits how many there are. The log has no queries, since they may hold secrets.
    """

    requestFactory = WebRequest
    protocol = Channel  # type: ignore[assignment] # not the one that speaks HTTP/2 as well
    noisy = False

    def __init__(
        self,
        resource: IResource,
        reactor: Any,
        connections: Connections | None = None,
        hot: HotAnswers | None = None,
    ) -> None:
        super().__init__(resource, reactor=reactor, timeout=_IDLE)
        self.displayTracebacks = False
        self.now = reactor.seconds
        self.connections = connections or Connections(reactor)
        self.hot = hot or HotAnswers()

    def log(self, request: Request, *, broken: bool = False) -> None:
        """Log and count a finished request."""
        begun_at = getattr(request, "begun_at", None)
        self.log_record(record_of(request, 0.0 if begun_at is None else self.now() - begun_at, broken=broken))

    def log_refused(self, channel: Channel, status: int, size: int) -> None:
        """Log and count a request that was refused before it was complete."""
        method, uri = getattr(channel, "_command", b""), getattr(channel, "_path", b"")
        client = getattr(channel.getPeer(), "host", None) or "-"
        self.log_record(RequestRecord(client, method_of(method), path_of(uri), status, size, 0.0, "none", "other", "-"))

    def log_record(self, record: RequestRecord) -> None:
        """Log and count what was recorded of a request."""
        record.count()
        _log_requests.info("{record}", record=record)
