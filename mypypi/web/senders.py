"""Writes bodies piece by piece, at the client's pace.

Knows requests. Must never know what a body is, or where its pieces come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IPushProducer
from twisted.internet.tcp import Connection
from twisted.python.failure import Failure
from zope.interface import implementer

if TYPE_CHECKING:
    from twisted.web.http import Request

    from mypypi.threads import Threads


def is_plain_and_empty(transport: Any) -> bool:
    """Whether a transport is a socket without TLS, and has sent everything."""
    is_plain = isinstance(transport, Connection) and not getattr(transport, "TLS", False)
    return is_plain and not (transport.dataBuffer or transport._tempDataBuffer or transport.disconnecting)  # noqa: SLF001 - the other half of dataBuffer


def write_now(transport: Any, data: bytes) -> None:
    """Write data: what a plain socket takes at once, and the rest when it takes more."""
    if is_plain_and_empty(transport):
        sent = transport.writeSomeData(data)
        if isinstance(sent, int) and sent > 0:
            data = data[sent:]
    if data:
        transport.write(data)


def send(request: Request, pieces: Iterator[bytes], threads: Threads | None = None) -> Deferred[None]:
    """
    Write all pieces; fires after the last one, and fails if one can't be made.

    A piece is made when the client has room for it: at once, or in one of these threads.
    """

    def make() -> Deferred[bytes | None]:
        return maybeDeferred(next, pieces, None) if threads is None else threads.run(next, pieces, None)

    sender = _PieceProducer(request, make)
    request.registerProducer(sender, True)
    sender.resumeProducing()
    return sender.done


@implementer(IPushProducer)
class _PieceProducer:
    """Writes what `make` returns, until that is None."""

    def __init__(self, request: Request, make: Callable[[], Deferred[bytes | None]]) -> None:
        self.done: Deferred[None] = Deferred(lambda _: self.stopProducing())
        self._request = request
        self._make = make
        self._paused = self._making = self._stopped = False

    def resumeProducing(self) -> None:
        self._paused = False
        self._go_on()

    def _go_on(self) -> None:
        while not (self._paused or self._making or self._stopped or self.done.called):
            self._making = True
            made = self._make().addCallback(self._write).addErrback(self._fail)
            if self._making:  # in a thread
                made.addCallback(lambda _: self._go_on())

    def _write(self, piece: bytes | None) -> None:
        self._making = False
        if self._stopped:
            return
        if piece is not None:
            self._request.write(piece)
            return
        self._request.unregisterProducer()
        self.done.callback(None)

    def _fail(self, failure: Failure) -> None:
        """End with an error. The transport or a thread called, which can't answer the request."""
        self._making = False
        if not self._stopped and not self.done.called:
            self._request.unregisterProducer()
            self.done.errback(failure)

    def pauseProducing(self) -> None:
        self._paused = True

    def stopProducing(self) -> None:
        """Make no more pieces: the client is gone."""
        self._stopped = True
