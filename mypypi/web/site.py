"""The HTTP server around the routes: limits of the protocol, and the log of requests.

Knows Twisted's HTTP classes. Must never know routes or what is served.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IHalfCloseableDescriptor
from twisted.logger import Logger
from twisted.web.server import Request

from mypypi.web.draining import DrainingChannel, DrainingSite

if TYPE_CHECKING:
    from twisted.web.resource import IResource

#: Seconds for which a connection may be idle between requests, or take to send one.
_IDLE = 60
#: Seconds for which a client that was refused may go on sending, so that it comes to read why.
_LINGER = 5
#: The largest body of a request, in bytes: an audit of a large project, gzipped, takes some hundred kilobytes.
LARGEST_BODY = 8 * 1024 * 1024


class Channel(DrainingChannel):
    """An HTTP/1.1 connection that says what was wrong with a request it can't read."""

    _refused = False

    def dataReceived(self, data: bytes) -> None:
        """Bytes came, of which none count any more once a request was refused."""
        if not self._refused:
            super().dataReceived(data)

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
        transport: Any = self.transport
        self._refused = True
        self.clearLineBuffer()
        body = b'{"error":"%s"}\n' % text
        transport.write(
            b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s"
            % (status, len(body), body)
        )
        self.setTimeout(_LINGER)
        half_closes = IHalfCloseableDescriptor.providedBy(transport)  # TLS does not
        if half_closes:
            transport.loseWriteConnection()


class WebRequest(Request):
    """A request whose body is bounded: nobody here has much to say."""

    _received = 0
    _refused = False

    def gotLength(self, length: int | None) -> None:
        """A body of this many bytes comes; None where nobody knows."""
        super().gotLength(length)
        if length is not None and length > LARGEST_BODY:
            self._refuse()

    def handleContentChunk(self, data: bytes) -> None:
        """A piece of the body."""
        self._received += len(data)
        if self._received > LARGEST_BODY:
            self._refuse()
        elif not self._refused:
            super().handleContentChunk(data)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """All of it is here."""
        if not self._refused:
            super().requestReceived(command, path, version)

    def _refuse(self) -> None:
        if not self._refused and isinstance(self.channel, Channel):
            self._refused = True
            self.channel.refuse(b"413 Content Too Large", b"the request has a larger body than is read here")


class WebSite(DrainingSite):
    """Logs a line for each request, without its query: that may hold what nobody else should read."""

    requestFactory = WebRequest
    protocol = Channel  # type: ignore[assignment] # and not the one that speaks HTTP/2 as well
    noisy = False
    log_requests = Logger("mypypi.requests")

    def __init__(self, resource: IResource, reactor: Any) -> None:
        super().__init__(resource, reactor=reactor, timeout=_IDLE)
        self.displayTracebacks = False

    def log(self, request: Request) -> None:  # type: ignore[override] # it gets what it made
        """One line: client, method, path, status, bytes, how the cache served it."""
        self.log_requests.info(
            "{client} {method} {path} {status} {size} {cache}",
            client=getattr(request.getClientAddress(), "host", "-"),
            method=request.method.decode("latin-1"),
            path=request.uri.partition(b"?")[0].decode("latin-1"),
            status=request.code,
            size=request.sentLength,
            cache=(request.responseHeaders.getRawHeaders("cache-status") or ["-"])[0],
        )
