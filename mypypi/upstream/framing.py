"""Bounds what upstream sends besides content: heads, interim answers, chunk extensions and trailers.

Without a bound, one answer could fill the memory. Knows Twisted's parser of answers. Must never know what is requested,
or from which host.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.web._newclient import HTTP11ClientProtocol, HTTPClientParser
from twisted.web.http import _ChunkedTransferDecoder, _MalformedChunkedDataError, maxChunkSizeLineLength
from twisted.web.iweb import IResponse

from mypypi.errors import BadUpstreamResponse

#: Lines of the largest head, and of the interim answers before it. Clients may send as many.
MOST_LINES = 500
#: Bytes of the largest head, and of the interim answers before it. A large Content-Security-Policy has 10 kB.
LARGEST_HEAD = 64 * 1024
#: Bytes of the longest line of a head.
LONGEST_LINE = 16 * 1024
#: The most interim answers (1xx) before an answer. Twisted logs each.
MOST_INTERIM = 16
#: Bytes that the chunks' sizes, extensions and trailers may take beyond the bytes of their content.
LARGEST_FRAMING = 64 * 1024


class BoundedProtocol(HTTP11ClientProtocol):
    """A connection to upstream, which is aborted when an answer exceeds a bound. BadUpstreamResponse says which."""

    transport: Any

    def request(self, request: Any) -> Deferred[IResponse]:
        """Send a request, see `HTTP11ClientProtocol.request`. Twisted makes the parser, so its class is replaced."""
        answer = super().request(request)
        if self._parser is not None:
            self._parser.__class__ = _BoundedParser
        return answer

    def _giveUp(self, reason: Failure) -> None:
        if reason.check(BadUpstreamResponse):  # over TLS, `loseConnection` would wait for upstream and read on
            self.transport.abortConnection()
        super()._giveUp(reason)


class _BoundedChunks(_ChunkedTransferDecoder):
    """Decodes a chunked body (RFC 9112, section 7.1) that is mostly content."""

    _received = _delivered = 0

    def __init__(self, deliver: Any, finish: Any) -> None:
        def count(content: bytes) -> None:
            self._delivered += len(content)
            deliver(content)

        super().__init__(count, finish)

    def dataReceived(self, data: bytes) -> None:
        self._received += len(data)
        try:
            super().dataReceived(data)
        except _MalformedChunkedDataError as error:
            if self.state == "TRAILER":
                raise BadUpstreamResponse("upstream sent a chunked body with too long trailers") from error
            if self.state == "CHUNK_LENGTH" and b"\r\n" not in self._buffer[: maxChunkSizeLineLength + 1]:
                raise BadUpstreamResponse("upstream sent a chunked body with too long extensions") from error
            raise
        if self.state != "FINISHED" and self._received - 2 * self._delivered > LARGEST_FRAMING:
            raise BadUpstreamResponse("upstream sent a chunked body that has more framing than content")


class _BoundedParser(HTTPClientParser):
    """Parses an answer, and counts its head with the interim answers before it."""

    MAX_LENGTH = LONGEST_LINE
    _transferDecoders: dict[bytes, type[_ChunkedTransferDecoder]] = {b"chunked": _BoundedChunks}  # noqa: RUF012 - Twisted's
    _lines = _bytes = _interim = 0

    def lineReceived(self, line: bytes) -> None:
        self._lines += 1
        self._bytes += len(line) + 1
        if self._lines > MOST_LINES:
            raise BadUpstreamResponse(f"upstream sent a head of more than {MOST_LINES} lines")
        if self._bytes > LARGEST_HEAD:
            raise BadUpstreamResponse(f"upstream sent a head of more than {LARGEST_HEAD} bytes")
        super().lineReceived(line)

    def lineLengthExceeded(self, line: bytes) -> None:
        raise BadUpstreamResponse(f"upstream sent a head with a line of more than {LONGEST_LINE} bytes")

    def allHeadersReceived(self) -> None:
        if 100 <= self.response.code < 200:  # noqa: PLR2004 - interim answers (RFC 9110, section 15.2)
            self._interim += 1
            if self._interim > MOST_INTERIM:
                raise BadUpstreamResponse(f"upstream sent more than {MOST_INTERIM} interim answers")
        super().allHeadersReceived()
