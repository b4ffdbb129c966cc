"""Tests of sending bodies in pieces, at the client's pace."""

from __future__ import annotations

import os
from collections.abc import Iterator

from twisted.internet.defer import CancelledError, Deferred
from twisted.web.server import Request, Site

from mypypi.pieces import inflated, slices
from mypypi.rendering.tasks import gzip
from mypypi.web.senders import send
from tests.support.memory import Connection, Handling, MemoryTestCase

PIECE = 64 * 1024


def test_slices_add_up_to_the_body() -> None:
    """The pieces of a body of any length add up to it."""
    for size in (0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 7):
        body = os.urandom(size)
        pieces = list(slices(body))
        assert b"".join(pieces) == body
        assert all(0 < len(piece) <= PIECE for piece in pieces)


def test_inflated_body_is_the_compressed_one() -> None:
    """Decoding yields the compressed body, in pieces of limited size. This holds for every compression ratio."""
    bodies = [b"", b"a", bytes(PIECE), bytes(PIECE + 1), bytes(20_000_000), os.urandom(3 * PIECE), b"abc" * 1_000_001]
    bodies += [os.urandom(size) + bytes(5_000_000) for size in range(PIECE - 60, PIECE + 10, 7)]
    for body in bodies:
        pieces = list(inflated(gzip(body)))
        assert b"".join(pieces) == body
        assert all(len(piece) <= PIECE for piece in pieces)


class SendTest(MemoryTestCase):
    """Pieces are sent while the client reads them."""

    def setUp(self) -> None:
        super().setUp()
        self.made: list[int] = []
        self.done: Deferred[None] | None = None
        self.connection = Connection(Site(Handling(self.handle), reactor=self.clock))

    def handle(self, request: Request) -> Deferred[None]:
        request.setHeader(b"content-length", b"30")
        request.write(b"")
        self.request = request
        return Deferred()

    def pieces(self) -> Iterator[bytes]:
        for number in range(10):
            self.made.append(number)
            yield b"%03d" % number
            if number == 4:
                self.connection.full()

    def test_client_sets_the_pace(self) -> None:
        """No piece is made before the client reads. All pieces are sent in order."""
        done = send(self.request, self.pieces())
        self.assertEqual(list(range(6)), self.made)
        self.assertNoResult(done)
        self.connection.drained()
        self.now(done)
        self.assertEqual(b"".join(b"%03d" % number for number in range(10)), self.connection.body)

    def test_client_that_leaves_ends_the_sending(self) -> None:
        """No piece is made after the client has left, even before the handler is cancelled."""
        done = send(self.request, self.pieces())
        self.connection.leave()
        done.cancel()
        self.failing(done, CancelledError)
        self.assertEqual(list(range(6)), self.made)

    def test_body_without_pieces_is_done_at_once(self) -> None:
        """A body without pieces is done at once. Another one can follow it."""
        self.now(send(self.request, iter(())))
        self.now(send(self.request, iter([b"x"])))
        self.assertEqual(b"x", self.connection.body)
