"""Body protocols: collect a page, discard a body, abort a connection.

Knows Twisted's body protocols, lengths and idle limits. Must never know what was requested, or from which host.
"""

from __future__ import annotations

import io
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss

from mypypi.errors import BadUpstreamResponse, UpstreamDown
from mypypi.gunzip import ENCODED_PER_MEMBER, MEMBER_BEGIN, MOST_MEMBERS
from mypypi.upstream.body_memory import BodyClaim, BodyMemory
from mypypi.upstream.causes import excess_of
from mypypi.upstream.pace import LONGEST_PAGE, Pace, PaceLimits

#: Bytes that are read at once from a connection with a large body.
_LARGE_READ = 256 * 1024


def abort_connection(receiver: Protocol) -> None:
    """
    Close the connection of this body's receiver at once.

    Over TLS, `loseConnection` would wait for the peer, which may never answer. Twisted's transport proxy hides
    `abortConnection`.
    """
    transport: Any = receiver.transport
    abort = getattr(getattr(transport, "_producer", None), "abortConnection", None)
    if abort is not None:
        abort()
    elif transport is not None:
        transport.loseConnection()


def read_more_at_once(receiver: Protocol) -> None:
    """
    Let Twisted read up to 256 KiB at once from the connection of this body's receiver, in place of 64 KiB.

    Each read costs some 100 microseconds besides the copying. Over TLS, the connection lies below the protocol of TLS.
    """
    transport: Any = getattr(receiver.transport, "_producer", None)
    transport = getattr(transport, "transport", transport)
    if hasattr(transport, "bufferSize"):
        transport.bufferSize = _LARGE_READ


class BodyCollector(Protocol):
    """
    Collects a body of at most `largest` bytes, of a `what`, in words for errors.

    Collecting fails when the body exceeds the limits of its `pace`. `done` fires with the body as it came; it fails
    with UpstreamDown or BadUpstreamResponse. The end of an `encoded` body is checked by its decoder; one of empty gzip
    members, which might never end, fails at once. While `claim` has to wait for memory, the connection is paused. The
    claim is released if collecting fails.
    """

    def __init__(
        self,
        clock: Any,
        pace: PaceLimits,
        largest: int,
        claim: BodyClaim | None = None,
        *,
        encoded: bool,
        what: str = "page",
    ) -> None:
        self.done: Deferred[bytes] = Deferred(lambda _: self._fail(UpstreamDown("the request was cancelled")))
        self._body = io.BytesIO()  # its value is not copied, as joined chunks would be
        self._size = 0
        self._members = 0
        self._claim = claim or BodyMemory().claim()
        self._error: Exception | None = None
        self._largest = largest
        self._encoded = encoded
        self._what = what
        self._pace = Pace(clock, pace, f"the {what}", LONGEST_PAGE, lambda why: self._fail(UpstreamDown(why)))

    def dataReceived(self, data: bytes) -> None:
        self._pace.received(len(data))
        if self._error is not None:
            return
        self._body.write(data)
        self._size += len(data)
        if self._encoded:
            self._members += data.count(MEMBER_BEGIN)
        if self._size > self._largest:
            self._fail(BadUpstreamResponse(f"upstream sent a {self._what} of more than {self._largest} bytes"))
        elif self._members > MOST_MEMBERS + self._size // ENCODED_PER_MEMBER:
            self._fail(BadUpstreamResponse("upstream sent a page of gzip members with next to nothing in them"))
        elif not self._claim.take(len(data), self._resume) and self.transport is not None:
            self._pace.pause()
            self.transport.pauseProducing()  # type: ignore[attr-defined]

    def _resume(self) -> None:
        if self.transport is not None:
            self._pace.resume()
            self.transport.resumeProducing()  # type: ignore[attr-defined]

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._pace.stop()
        if self.done.called:
            self._claim.release()
            return
        content, self._body = self._body.getvalue(), io.BytesIO()  # the garbage collector finds the collector late
        error = self._error or excess_of(reason)
        if error is not None:
            self._claim.release()
            self.done.errback(error)
        elif not reason.check(ResponseDone) and not (
            reason.check(PotentialDataLoss) and (self._encoded or _looks_complete(content))
        ):
            self._claim.release()
            self.done.errback(UpstreamDown(f"upstream closed the connection in the middle of a {self._what}"))
        else:
            self.done.callback(content)

    def _fail(self, error: Exception) -> None:
        self._error = error
        self._body = io.BytesIO()
        self._claim.release()
        abort_connection(self)


def _looks_complete(content: bytes) -> bool:
    """Whether a page ends as its format does. Without a length, HTTP can't tell whether it is complete."""
    tail = content[-64:].rstrip().lower()
    return tail.endswith((b"}", b"</html>"))


class RefusedBody(Protocol):
    """Aborts the connection instead of reading the body."""

    def connectionMade(self) -> None:
        abort_connection(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        pass


class DiscardedBody(Protocol):
    """
    Reads and drops a short body.

    Its connection can then be used again. Aborts the connection after 64 KiB or `timeout` seconds.
    """

    def __init__(self, clock: Any, timeout: float) -> None:
        self._left = 64 * 1024
        self._timer = clock.callLater(timeout, abort_connection, self)

    def dataReceived(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left < 0:
            abort_connection(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._timer.active():
            self._timer.cancel()
