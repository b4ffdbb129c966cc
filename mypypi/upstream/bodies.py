"""Takes in the bodies of upstream's answers: whole pages, what nobody wants, and how a connection is ended at once.

Knows Twisted's body protocols, lengths and silences. Must never know what was asked, nor of whom.
"""

from __future__ import annotations

import zlib
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss

from mypypi.errors import BadUpstreamResponse, UpstreamDown


def abort_connection(receiver: Protocol) -> None:
    """
    Close the connection whose body goes to this receiver, now.

    Over TLS, `loseConnection` would wait for the other side, which may be silent for good; `abortConnection` is hidden
    by Twisted's proxy for the transport.
    """
    transport: Any = receiver.transport
    abort = getattr(getattr(transport, "_producer", None), "abortConnection", None)
    if abort is not None:
        abort()
    elif transport is not None:
        transport.loseConnection()


class BodyCollector(Protocol):
    """
    Takes in a page of at most `largest` bytes, and decodes it where it is `gzipped`. No silence may last longer than
    `timeout` (seconds). `done` fires with the page; fails with UpstreamDown or BadUpstreamResponse.
    """

    def __init__(self, clock: Any, timeout: float, largest: int, *, gzipped: bool) -> None:
        self.done: Deferred[bytes] = Deferred(lambda _: self._fail(UpstreamDown("the request was given up")))
        self._chunks: list[bytes] = []
        self._size = 0
        self._error: Exception | None = None
        self._timeout = timeout
        self._largest = largest
        self._decoder = _GzipDecoder() if gzipped else None
        self._silence = clock.callLater(timeout, self._stalled)

    def dataReceived(self, data: bytes) -> None:
        if self._silence.active():
            self._silence.reset(self._timeout)
        if self._error is not None:
            return
        try:
            data = data if self._decoder is None else self._decoder.decode(data)
        except zlib.error:
            self._fail(BadUpstreamResponse("upstream sends a page in gzip that is damaged"))
            return
        self._chunks.append(data)
        self._size += len(data)
        if self._size > self._largest:
            self._fail(BadUpstreamResponse("upstream sends a page without end"))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._silence.active():
            self._silence.cancel()
        if self.done.called:
            return
        content = b"".join(self._chunks)
        if self._error is not None:
            self.done.errback(self._error)
        elif not reason.check(ResponseDone) and not (reason.check(PotentialDataLoss) and _has_an_end(content)):
            self.done.errback(UpstreamDown("upstream closed the connection in the middle of a page"))
        elif self._decoder is not None and not self._decoder.is_whole:
            self.done.errback(BadUpstreamResponse("upstream sends a page in gzip that ends early"))
        else:
            self.done.callback(content)

    def _stalled(self) -> None:
        self._fail(UpstreamDown(f"upstream stopped in the middle of a page for {self._timeout:g} seconds"))

    def _fail(self, error: Exception) -> None:
        self._error = error
        self._chunks.clear()
        abort_connection(self)


def _has_an_end(content: bytes) -> bool:
    """Where nothing gave the length, a page that ends as its format ends is whole."""
    tail = content[-64:].rstrip().lower()
    return tail.endswith((b"}", b"</html>"))


class RefusedBody(Protocol):
    """Wants no byte of a body, however short."""

    def connectionMade(self) -> None:
        abort_connection(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        pass


class DiscardedBody(Protocol):
    """Reads off a body that is short and comes soon."""

    def __init__(self, clock: Any, timeout: float) -> None:
        self._room = 64 * 1024
        self._patience = clock.callLater(timeout, abort_connection, self)

    def dataReceived(self, data: bytes) -> None:
        self._room -= len(data)
        if self._room < 0:
            abort_connection(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._patience.active():
            self._patience.cancel()


class _GzipDecoder:
    """Decodes gzip (RFC 1952), whose checksum and end tell whether all of it came."""

    def __init__(self) -> None:
        self._decoder = zlib.decompressobj(wbits=31)

    def decode(self, data: bytes) -> bytes:
        """What these bytes add. Raises zlib.error."""
        decoded = self._decoder.decompress(data)
        while self._decoder.unused_data:  # another member
            data, self._decoder = self._decoder.unused_data, zlib.decompressobj(wbits=31)
            decoded += self._decoder.decompress(data)
        return decoded

    @property
    def is_whole(self) -> bool:
        """Whether the end has come."""
        return self._decoder.eof
