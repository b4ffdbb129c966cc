"""Tests of the senders: pieces of a body are made and sent while the client reads."""

from __future__ import annotations

from collections.abc import Iterator

from twisted.internet.defer import CancelledError, Deferred
from twisted.web.server import Request, Site

from mypypi.web.senders import send
from tests.support.memory import Connection, Handling, MemoryTestCase, WhenTold


class SendTestCase(MemoryTestCase):
    """A response of 30 bytes, whose head is sent."""

    def setUp(self) -> None:
        super().setUp()
        self.made: list[int] = []
        self.connection = Connection(Site(Handling(self.handle), reactor=self.clock))

    def handle(self, request: Request) -> Deferred[None]:
        request.setHeader(b"content-length", b"30")
        request.write(b"")
        self.request = request
        return Deferred()


class SendTest(SendTestCase):
    """Pieces are sent while the client reads them."""

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


class SendInThreadsTest(SendTestCase):
    """Pieces that are made in a thread."""

    def setUp(self) -> None:
        super().setUp()
        self.threads = WhenTold()

    def pieces(self, count: int = 10) -> Iterator[bytes]:
        for number in range(count):
            self.made.append(number)
            yield b"%03d" % number
        if count < 10:
            raise ValueError("no more")

    def test_the_client_sets_the_pace(self) -> None:
        """One piece is made at a time, and none while the client reads nothing."""
        done = send(self.request, self.pieces(), self.threads)
        for number in range(4):
            assert (self.made, len(self.threads.waiting)) == (list(range(number)), 1)
            self.threads.step()
        self.connection.full()
        self.threads.step()
        assert (self.made, self.threads.waiting) == ([0, 1, 2, 3, 4], [])
        self.assertNoResult(done)
        self.connection.drained()
        self.threads.finish()
        self.now(done)
        assert self.connection.body == b"".join(b"%03d" % number for number in range(10))

    def test_a_client_that_leaves_ends_the_sending(self) -> None:
        """A piece that is being made when the client leaves is dropped, and is the last one."""
        done = send(self.request, self.pieces(), self.threads)
        self.threads.step()
        self.connection.leave()
        done.cancel()
        self.failing(done, CancelledError)
        self.threads.finish()
        assert self.made == [0, 1]

    def test_a_piece_that_can_not_be_made_ends_the_sending(self) -> None:
        """The error reaches the route, which breaks the response off."""
        done = send(self.request, self.pieces(3), self.threads)
        self.threads.finish()
        self.failing(done, ValueError)
