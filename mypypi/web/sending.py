"""Sends a body that is made piece by piece, at the client's pace, so that a large page costs no memory per client.

Knows requests. Must never know what the pieces are.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

if TYPE_CHECKING:
    from twisted.web.http import Request

_PIECE = 64 * 1024


def slices(body: bytes) -> Iterator[bytes]:
    """The body in pieces."""
    for start in range(0, len(body), _PIECE):
        yield body[start : start + _PIECE]


def inflated(body: bytes) -> Iterator[bytes]:
    """What this gzip encodes, in pieces, never the whole of it at once."""
    decoder = zlib.decompressobj(wbits=31)
    for piece in slices(body):
        rest = piece
        while rest and (data := decoder.decompress(rest, _PIECE)):
            yield data
            rest = decoder.unconsumed_tail


def send(request: Request, pieces: Iterator[bytes]) -> Deferred[None]:
    """Fires when every piece has been written."""
    sender = _Pieces(request, pieces)
    request.registerProducer(sender, True)
    sender.resumeProducing()
    return sender.done


@implementer(IPushProducer)
class _Pieces:
    def __init__(self, request: Request, pieces: Iterator[bytes]) -> None:
        self.done: Deferred[None] = Deferred(lambda _: self.stopProducing())
        self._request = request
        self._pieces = pieces
        self._paused = False

    def resumeProducing(self) -> None:
        self._paused = False
        while not self._paused and not self.done.called:
            piece = next(self._pieces, None)
            if piece is None:
                self._request.unregisterProducer()
                self.done.callback(None)
                return
            self._request.write(piece)

    def pauseProducing(self) -> None:
        self._paused = True

    def stopProducing(self) -> None:
        self._paused = True
        self._pieces = iter(())
