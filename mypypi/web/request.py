"""One request of a client: its id, the limit of its body, and a response that is as long as its head says.

Knows Twisted's requests. Must never know routes, or how a connection refuses what it reads.
"""

from __future__ import annotations

from typing import Any, AnyStr

from twisted.python.failure import Failure
from twisted.web.http import NO_BODY_CODES
from twisted.web.server import Request

from mypypi.errors import BadUpstreamResponse, storage_error
from mypypi.web.errors import break_off
from mypypi.web.hot_answers import Repeatable
from mypypi.web.request_log import choose_id

#: The largest body of a request, in bytes: an audit of a large project, gzipped, takes some hundred kilobytes.
LARGEST_BODY = 8 * 1024 * 1024
#: A browser may only show a response and follow its links, and does not guess its type.
BROWSER_HEADERS = {
    b"Content-Security-Policy": b"default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    b"X-Content-Type-Options": b"nosniff",
}
TOO_LARGE = b"this server is a read-only cache, and takes no upload or other request of this size"


class WebRequest(Request):
    """
    A request with an id and a limited body, and its response.

    The limit is low, since no route needs much input. What is larger is an upload: twine shows the reason phrase alone.
    """

    request_id = "-"
    kind = "other"
    #: How to answer requests of the same bytes, if that is known.
    again: Repeatable | None = None
    #: When the request was complete, on the site's clock; None before that.
    begun_at: float | None = None
    _received = 0
    _refused = False
    _broken = False

    @property
    def has_left(self) -> bool:
        """Whether the client has closed the connection."""
        return bool(self._disconnected)

    def getHeader(self, key: AnyStr) -> AnyStr | None:
        """
        Return the last value of a header.

        Any bytes are valid in a value (RFC 9110, section 5.5), so they are read as Latin-1. Twisted reads UTF-8.
        """
        if isinstance(key, bytes):
            return super().getHeader(key)
        value = super().getHeader(key.encode())
        return None if value is None else value.decode("latin-1")

    def gotLength(self, length: int | None) -> None:
        """Check the announced length of the body, None if unknown."""
        if length is not None and length > LARGEST_BODY:
            super().gotLength(0)
            self._refuse(b"413 " + TOO_LARGE, TOO_LARGE)
            return
        try:
            super().gotLength(length)
        except OSError as error:
            super().gotLength(0)
            self._refuse_unstored(error)

    def handleContentChunk(self, data: bytes) -> None:
        """Store a piece of the body."""
        self._received += len(data)
        if self._received > LARGEST_BODY:
            self._refuse(b"413 " + TOO_LARGE, TOO_LARGE)
        elif not self._refused:
            try:
                super().handleContentChunk(data)
            except OSError as error:
                self._refuse_unstored(error)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """Handle the complete request."""
        if self._refused:
            return
        self._parsePOSTFormSubmission = False  # no route reads form fields, and parsing them takes long
        self.request_id = choose_id(self)
        for name, value in (BROWSER_HEADERS | {b"X-Request-ID": self.request_id.encode()}).items():
            self.responseHeaders.setRawHeaders(name, [value])
        site: Any = self.channel.factory
        self.begun_at = site.now()
        super().requestReceived(command, path, version)

    def write(self, data: bytes) -> None:
        """Send a piece of the body; break the response off where that would exceed the length in its head."""
        if data and not self._broken and self.sentLength + len(data) > self._announced(float("inf")):
            self._break_off(self.sentLength + len(data))
        if not self._broken:
            super().write(data)

    def finish(self) -> None:
        """
        Complete the response; break it off if its body is shorter than its head says.

        The client would take the next response for the rest of this one. This is the last guard: whatever made the body
        should have failed before.
        """
        if not self.startedWriting:
            self.write(b"")
        if self.sentLength < self._announced(0) and not self.has_left:
            self._break_off(self.sentLength)
        if not self._broken:
            super().finish()

    def _announced(self, default: float) -> float:
        """Return the length of the body that the head announces, in bytes; `default` if it announces none."""
        length = self.responseHeaders.getRawHeaders(b"content-length")
        has_body = self.method != b"HEAD" and self.code not in NO_BODY_CODES
        return int(length[0]) if length and has_body else default

    def _break_off(self, size: int) -> None:
        if not self._broken:
            self._broken = True
            why = f"its body has {size} bytes, and its head announces {self._announced(0)}"
            break_off(self, Failure(BadUpstreamResponse(why)))

    def connectionLost(self, reason: Failure) -> None:
        """Log the request as broken: the connection ended before the response did."""
        site: Any = self.channel.factory
        if self.begun_at is not None:
            site.log(self, broken=True)
        super().connectionLost(reason)

    def _refuse_unstored(self, error: OSError) -> None:
        why = str(storage_error(error, "the request body can't be stored now"))
        self._refuse(b"503 Service Unavailable", why.encode())

    def _refuse(self, status: bytes, text: bytes) -> None:
        channel: Any = self.channel
        if not self._refused and channel is not None:
            self._refused = True
            channel.refuse(status, text)
