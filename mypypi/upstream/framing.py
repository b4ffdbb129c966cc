"""Bounds what upstream sends besides content: heads, interim answers, chunk extensions and trailers.

Without a bound, one answer could fill the memory. Knows Twisted's parser of answers. Must never know what is requested,
or from which host.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.web._newclient import HTTP11ClientProtocol, HTTPClientParser
from twisted.web.http import (
    _ChunkedTransferDecoder,
    _chunkExtChars,
    _MalformedChunkedDataError,
    maxChunkSizeLineLength,
)
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
#: Chunks that a body may have, and the bytes of content that allow one more. Each chunk takes about a microsecond.
MOST_CHUNKS, BYTES_PER_CHUNK = 4096, 16
#: The first line of a chunk: its size, and extensions of a usual length.
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,7})(?:;[%s]{0,200})?\r\n" % re.escape(_chunkExtChars))


class BoundedProtocol(HTTP11ClientProtocol):
    """A connection to upstream, which is aborted when an answer exceeds a bound. BadUpstreamResponse says which."""

    transport: Any

    def request(self, request: Any) -> Deferred[IResponse]:
        """Send a request, see `HTTP11ClientProtocol.request`. Twisted makes the parser, so its class is replaced."""
        answer = super().request(request)
        if self._parser is not None:
            self._parser.__class__ = _BoundedParser
        return answer

    def _finishResponse(self, rest: bytes) -> None:
        if rest and self._currentRequest is not None:  # more of them would be taken for the answer to the next request
            self._currentRequest.persistent = False
        super()._finishResponse(rest)

    def _giveUp(self, reason: Failure) -> None:
        if reason.check(BadUpstreamResponse):  # over TLS, `loseConnection` would wait for upstream and read on
            self.transport.abortConnection()
        super()._giveUp(reason)


class _BoundedChunks(_ChunkedTransferDecoder):
    """
    Decodes a chunked body (RFC 9112, section 7.1) that is mostly content.

    Twisted's decoder takes three to six microseconds for each chunk, so that small ones block the reactor. Here, a
    pattern finds the chunks that have arrived whole, and Twisted decodes the others. Content is delivered once for all
    chunks that arrive together.
    """

    _received = _delivered = _chunks = 0

    def __init__(self, deliver: Callable[[bytes], object], finish: Callable[[bytes], object]) -> None:
        self._deliver = deliver
        self._pieces: list[bytes] = []

        def finish_delivered(rest: bytes) -> None:
            self._flush()
            finish(rest)

        super().__init__(self._pieces.append, finish_delivered)

    def dataReceived(self, data: bytes) -> None:
        self._received += len(data)
        try:
            while data:
                data = self._decode(data)
        except _MalformedChunkedDataError as error:
            if self.state == "TRAILER":
                raise BadUpstreamResponse("upstream sent a chunked body with too long trailers") from error
            if self.state == "CHUNK_LENGTH" and b"\r\n" not in self._buffer[: maxChunkSizeLineLength + 1]:
                raise BadUpstreamResponse("upstream sent a chunked body with too long extensions") from error
            raise
        self._flush()
        if self.state == "FINISHED":
            return
        if self._received - 2 * self._delivered > LARGEST_FRAMING:
            raise BadUpstreamResponse("upstream sent a chunked body that has more framing than content")
        if self._chunks > MOST_CHUNKS + self._delivered // BYTES_PER_CHUNK:
            raise BadUpstreamResponse("upstream sent a body in too small chunks")

    def _decode(self, data: bytes) -> bytes:
        """Decode the chunk that has begun, or all chunks that are whole and the begin of one; return the rest."""
        if self.state == "BODY":
            end = self.length + len(b"\r\n")
        elif self.state == "CRLF":
            end = len(b"\r\n") - len(self._buffer)
        else:
            end = len(data)
            if self.state == "CHUNK_LENGTH":
                data = self._decode_whole_chunks(bytes(self._buffer) + data)
                end = len(data)
                self._buffer.clear()
                self._start = 0
        super().dataReceived(data[:end])
        return data[end:]

    def _decode_whole_chunks(self, data: bytes) -> bytes:
        """Decode the chunks that are there with all their bytes; return what follows them."""
        start = 0
        while (line := _CHUNK_LINE.match(data, start)) is not None:
            begin = line.end()
            end = begin + int(line[1], 16)
            if end == begin or not data.startswith(b"\r\n", end):  # the last chunk, or not all of it is there
                break
            self._pieces.append(data[begin:end])
            self._chunks += 1
            start = end + 2
        return data[start:]

    def _flush(self) -> None:
        content = b"".join(self._pieces)
        self._pieces.clear()
        if content:
            self._delivered += len(content)
            self._deliver(content)


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
