"""Tests of readers: with writes in memory, and with sendfile over loopback."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from unittest import mock

from twisted.internet import reactor as the_reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.interfaces import IWriteDescriptor
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from twisted.web.server import Request, Site

from mypypi.errors import UpstreamDown
from mypypi.files.content import HELD_BACK, Content
from mypypi.web.content_reader import CLIENT_SILENCE, LEAST_READ, Reader, Span
from mypypi.web.copiers import SendfileCopier
from tests.support.memory import AtOnce, Connection, Handling, MemoryTestCase, WhenTold, open_descriptors, sha256

reactor: Any = the_reactor
T = TypeVar("T")

DATA = os.urandom(1024) * 1200
SIZE = len(DATA)
Parts = Sequence[bytes | Span]


def sip(self: Connection, data: bytes) -> None:
    """Write to a client whose receive buffer is full after each piece."""
    super(Connection, self).write(data)
    if len(data) > 1000:
        self.full()


def growing_content(count: int) -> Content:
    """Return a content that is still arriving, with its first bytes on disk."""
    fd = os.memfd_create("content")
    os.write(fd, DATA)
    content = Content(fd)
    content.begin(SIZE)
    content.grow(count)
    return content


def whole_content() -> Content:
    content = growing_content(SIZE)
    content.finish(sha256(DATA))
    return content


class WriteTest(MemoryTestCase):
    """Blocks are read in a thread, and written while the client reads."""

    def setUp(self) -> None:
        super().setUp()
        self.before = open_descriptors()
        self.addCleanup(self.assert_nothing_is_left)
        self.threads: AtOnce | WhenTold = AtOnce()

    def assert_nothing_is_left(self) -> None:
        """Assert that no descriptor and no timer is left."""
        self.assertEqual(self.before, open_descriptors())
        self.assertEqual([], self.clock.getDelayedCalls())

    def serve(self, content: Content, *parts: bytes | Span, length: int | None = None) -> Connection:
        """Return a client whose request is answered with these parts of the content."""

        def handle(request: Request) -> Deferred[None]:
            if length is not None:
                request.setHeader(b"content-length", b"%d" % length)
            self.done = Reader(request, content, parts or [Span(0, SIZE)], self.threads, self.clock).run()
            return self.done

        connection = Connection(Site(Handling(handle), reactor=self.clock, timeout=None))
        self.addCleanup(connection.leave)
        return connection

    def test_whole_content_is_sent(self) -> None:
        """All bytes are sent, and the connection stays open for the next request."""
        connection = self.serve(whole_content(), length=SIZE)
        self.assertEqual(DATA, connection.body)
        self.assertTrue(self.done.called)
        self.assertFalse(connection.closed)

    def test_parts_are_sent_in_order(self) -> None:
        """Bytes and spans are sent in order. Spans may come in any order and be empty."""
        last = Span(SIZE - 1, None)
        parts = (b"first:", Span(700_000, 1_100_000), b"", b",then:", Span(5, 5), Span(0, 10), b".", last)
        expected = b"first:" + DATA[700_000:1_100_000] + b",then:" + DATA[:10] + b"." + DATA[-1:]
        self.assertEqual(expected, self.serve(whole_content(), *parts, length=len(expected)).body)

    def test_empty_content_is_sent(self) -> None:
        """The response for an empty content ends at once."""
        for span in (Span(0, 0), Span(0, None)):
            content = Content(os.memfd_create("empty"))
            content.finish(sha256(b""))
            self.assertEqual(b"", self.serve(content, span, length=0).body)
            self.assertTrue(self.done.called)

    def test_last_bytes_are_held_back_until_the_digest_is_checked(self) -> None:
        """The client gets the last bytes after the digest check (promise 2)."""
        content = growing_content(100_000)
        connection = self.serve(content, length=SIZE)
        self.assertEqual(DATA[: 100_000 - HELD_BACK], connection.body)
        content.grow(SIZE - 100_000)
        self.assertEqual(DATA[:-HELD_BACK], connection.body)
        content.finish(sha256(DATA))
        self.assertEqual(DATA, connection.body)

    def test_content_of_unknown_length_is_sent_in_chunks(self) -> None:
        """A content of unknown length is sent chunked, up to its end."""
        content = growing_content(50_000)
        content.total = None
        connection = self.serve(content, Span(0, None))
        self.assertIn("chunked", connection.head)
        self.assertNotIn(b"0\r\n\r\n", connection.body[-5:])
        content.length = 60_000
        content.finish(sha256(b""))
        self.assertTrue(connection.body.endswith(b"0\r\n\r\n"))
        self.assertTrue(self.done.called)

    def test_range_is_sent_as_soon_as_its_bytes_are_there(self) -> None:
        """A range of a growing file is sent as soon as its bytes are there."""
        content = growing_content(1_000)
        connection = self.serve(content, Span(10, 50), length=40)
        self.assertEqual(b"", connection.body)
        content.grow(HELD_BACK)
        self.assertEqual(DATA[10:50], connection.body)
        self.assertTrue(self.done.called)

    def test_failed_content_aborts_the_connection(self) -> None:
        """A failed content aborts the connection (promise 2). The client sees that the response is incomplete."""
        for known in (SIZE, None):
            content = growing_content(100_000)
            connection = self.serve(content, length=known)
            content.fail(UpstreamDown("gone"))
            self.assertTrue(connection.aborted)
            self.assertFalse(connection.body.endswith(b"0\r\n\r\n"))
            self.assertLess(len(connection.body), SIZE)

    def test_truncated_file_aborts_the_connection(self) -> None:
        """A file that was truncated on disk aborts the connection."""
        content = whole_content()
        os.truncate(content.fd, 5_000)
        connection = self.serve(content, length=SIZE)
        self.assertTrue(connection.aborted)

    def test_read_error_aborts_the_connection(self) -> None:
        """A read error aborts the connection, since the headers are sent already."""
        with mock.patch("os.pread", side_effect=OSError(errno.EIO, "Input/output error")):
            connection = self.serve(whole_content(), length=SIZE)
        self.assertTrue(connection.aborted)

    def test_client_sets_the_pace(self) -> None:
        """No block is read while the client does not read."""
        content = growing_content(50_000)
        connection = self.serve(content, length=SIZE)
        connection.full()
        content.grow(SIZE - 50_000)
        content.finish(sha256(DATA))
        self.assertEqual(50_000 - HELD_BACK, len(connection.body))
        connection.drained()
        self.assertEqual(DATA, connection.body)

    def test_client_that_leaves_ends_the_reader(self) -> None:
        """The reader of a client that left closes its descriptor. Other readers keep theirs."""
        content = growing_content(50_000)
        others = content.open()
        connection = self.serve(content, length=SIZE)
        connection.leave()
        content.grow(1_000)
        self.assertEqual([], content._watchers)
        self.assertGreaterEqual(others.fd, 0)
        others.close()

    def test_client_that_leaves_during_a_read_ends_the_reader(self) -> None:
        """A block that a thread read for a client that left is discarded. Its descriptor is closed."""
        self.threads = WhenTold()
        connection = self.serve(whole_content(), length=SIZE)
        connection.leave()
        self.threads.finish()
        self.assertEqual(b"", connection.body)

    def test_client_that_stops_reading_is_disconnected(self) -> None:
        """A client that stops reading is disconnected after `CLIENT_SILENCE`."""
        content = growing_content(50_000)
        connection = self.serve(content, length=SIZE)
        connection.full()
        content.grow(SIZE - 50_000)
        self.clock.advance(CLIENT_SILENCE - 0.1)
        self.assertFalse(connection.closed)
        self.clock.advance(0.1)
        self.assertTrue(connection.aborted)

    def test_client_that_reads_a_little_is_disconnected(self) -> None:
        """A client must read `LEAST_READ` in `CLIENT_SILENCE`, or it is disconnected."""
        for count, is_disconnected in ((LEAST_READ // 20, True), (LEAST_READ // 5, False)):
            content = growing_content(SIZE)
            content.finish(sha256(DATA))
            with mock.patch("mypypi.web.copiers._BLOCK", count), mock.patch.object(Connection, "write", sip):
                connection = self.serve(content, length=SIZE)
                for _ in range(10):
                    self.clock.advance(CLIENT_SILENCE / 10)
                    if not connection.aborted:
                        connection.drained()
            self.assertEqual(is_disconnected, connection.aborted)
            self.assertGreaterEqual(len(connection.body), 9 * count)
            connection.leave()

    def test_wait_for_bytes_is_not_the_fault_of_the_client(self) -> None:
        """The time in which upstream sent nothing does not count: the limit starts again with new bytes."""
        content = growing_content(50_000)
        connection = self.serve(content, length=SIZE)
        connection.full()
        self.clock.advance(CLIENT_SILENCE - 1)
        content.grow(SIZE - 50_000)
        self.clock.advance(CLIENT_SILENCE - 1)
        self.assertFalse(connection.closed)
        self.clock.advance(1)
        self.assertTrue(connection.aborted)

    def test_client_that_waits_for_bytes_is_not_disconnected(self) -> None:
        """A client that waits for upstream's bytes is not disconnected."""
        content = growing_content(50_000)
        connection = self.serve(content, length=SIZE)
        self.clock.pump([CLIENT_SILENCE] * 5)
        self.assertFalse(connection.closed)
        content.grow(SIZE - 50_000)
        content.finish(sha256(DATA))
        self.assertEqual(DATA, connection.body)


class _ReactorWithTestClock:
    """The reactor's descriptors with a clock that only the test moves."""

    def __init__(self, clock: Clock) -> None:
        self.callLater = clock.callLater
        self.addWriter: Callable[[IWriteDescriptor], None] = reactor.addWriter
        self.removeWriter: Callable[[IWriteDescriptor], None] = reactor.removeWriter


class _Client(Protocol):
    """A client that fires Deferreds at a body length and at its end."""

    def __init__(self) -> None:
        self.received = b""
        self.ended: Deferred[None] = Deferred()
        self._wanted: tuple[int, Deferred[None]] | None = None

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(b"GET / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")

    def leave(self) -> None:
        transport: Any = self.transport
        transport.abortConnection()

    @property
    def body(self) -> bytes:
        return self.received.partition(b"\r\n\r\n")[2]

    def wait_for_body(self, count: int) -> Deferred[None]:
        self._wanted = (count, Deferred())
        self._check_body()
        return self._wanted[1]

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        self._check_body()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.ended.callback(None)

    def _check_body(self) -> None:
        if self._wanted is not None and len(self.body) >= self._wanted[0] and not self._wanted[1].called:
            self._wanted[1].callback(None)


class SendfileTest(TestCase):
    """On a plain socket the kernel copies from the file."""

    timeout = 20

    def setUp(self) -> None:
        self.clock = Clock()
        self.copiers: list[SendfileCopier] = []
        self.content = whole_content()
        self.parts: Parts = [Span(0, SIZE)]
        self.finished: Deferred[None] = Deferred()
        site = Site(Handling(self.handle), reactor=reactor, timeout=None)
        self.port = reactor.listenTCP(0, site, interface="127.0.0.1")
        self.addCleanup(self.port.stopListening)

    def handle(self, request: Request) -> Deferred[None]:
        request.setHeader(b"content-length", b"%d" % SIZE)
        reader = Reader(request, self.content, self.parts, AtOnce(), _ReactorWithTestClock(self.clock))
        done = reader.run()
        assert isinstance(reader._copier, SendfileCopier)
        self.copiers.append(reader._copier)
        return done.addBoth(self.note_finished)

    def note_finished(self, result: T) -> T:
        self.finished.callback(None)
        return result

    def replace(self, content: Content) -> None:
        """Serve this content instead."""
        if self.content.fd >= 0:
            self.content.close()
        self.content = content

    async def connect(self) -> _Client:
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", self.port.getHost().port)
        client: _Client = await connectProtocol(endpoint, _Client())
        self.addCleanup(client.leave)
        return client

    async def assert_nothing_is_left(self) -> None:
        """Wait for the request's end, and assert that no descriptor, writer or timer is left."""
        await self.finished
        self.assertEqual((-1, -1), (self.content.fd, self.copiers[-1]._fd))
        self.assertEqual([], self.clock.getDelayedCalls())
        self.assertNotIn(self.copiers[-1], reactor.getWriters())

    def test_whole_content_is_sent(self) -> Deferred[None]:
        """All bytes are sent after the headers."""

        async def run() -> None:
            client = await self.connect()
            await client.ended
            self.assertEqual(DATA, client.body)
            self.assertTrue(client.received.startswith(b"HTTP/1.1 200 OK\r\n"))
            await self.assert_nothing_is_left()

        return Deferred.fromCoroutine(run())

    def test_parts_are_sent_in_order(self) -> Deferred[None]:
        """Bytes and spans are sent as one body (RFC 9110, section 14.6)."""
        tail = SIZE - 5 - 700_000
        self.parts = [b"words", Span(SIZE - tail, None), Span(0, 700_000)]

        async def run() -> None:
            client = await self.connect()
            await client.ended
            self.assertEqual(b"words" + DATA[SIZE - tail :] + DATA[:700_000], client.body)
            await self.assert_nothing_is_left()

        return Deferred.fromCoroutine(run())

    def test_last_bytes_are_held_back_until_the_digest_is_checked(self) -> Deferred[None]:
        """The client gets the last bytes after the digest check (promise 2). They never enter Python."""
        self.replace(growing_content(500_000))

        async def run() -> None:
            client = await self.connect()
            await client.wait_for_body(500_000 - HELD_BACK)
            self.assertEqual(DATA[: 500_000 - HELD_BACK], client.body)
            self.content.grow(SIZE - 500_000)
            await client.wait_for_body(SIZE - HELD_BACK)
            self.assertEqual(DATA[:-HELD_BACK], client.body)
            self.content.finish(sha256(DATA))
            await client.ended
            self.assertEqual(DATA, client.body)
            await self.assert_nothing_is_left()

        return Deferred.fromCoroutine(run())

    def test_failed_content_aborts_the_connection(self) -> Deferred[None]:
        """A failed content aborts the connection before the announced length."""
        self.replace(growing_content(500_000))

        async def run() -> None:
            client = await self.connect()
            await client.wait_for_body(500_000 - HELD_BACK)
            self.content.fail(UpstreamDown("gone"))
            await client.ended
            self.assertEqual(DATA[: 500_000 - HELD_BACK], client.body)
            await self.assert_nothing_is_left()

        return Deferred.fromCoroutine(run())

    def test_truncated_file_aborts_the_connection(self) -> Deferred[None]:
        """A file that was truncated on disk aborts the connection. The reader does not loop."""
        os.truncate(self.content.fd, 300_000)

        async def run() -> None:
            client = await self.connect()
            await client.ended
            self.assertTrue(DATA[:300_000].startswith(client.body))
            await self.assert_nothing_is_left()

        return Deferred.fromCoroutine(run())

    def test_file_without_sendfile_support_is_written(self) -> Deferred[None]:
        """A file on a file system without sendfile is written instead."""

        async def run() -> None:
            with mock.patch("os.sendfile", side_effect=OSError(errno.EINVAL, "Invalid argument")) as sendfile:
                client = await self.connect()
                await client.ended
            self.assertEqual(DATA, client.body)
            self.assertEqual(1, sendfile.call_count)
            await self.assert_nothing_is_left()

        return Deferred.fromCoroutine(run())

    def test_client_that_leaves_leaves_no_descriptor(self) -> Deferred[None]:
        """Descriptors of a client that left are closed, while it reads and while it waits."""

        async def run() -> None:
            for content in (growing_content(500_000), growing_content(SIZE)):
                self.replace(content)
                self.finished = Deferred()
                client = await self.connect()
                await client.wait_for_body(100_000)
                client.leave()
                await client.ended
                await self.assert_nothing_is_left()

        return Deferred.fromCoroutine(run())

    def test_client_that_stops_reading_is_disconnected(self) -> Deferred[None]:
        """A client whose socket buffers stay full is disconnected after `CLIENT_SILENCE`."""
        self.content.length = self.content.total = 64 * 1024 * 1024
        os.truncate(self.content.fd, 64 * 1024 * 1024)
        self.parts = [Span(0, None)]

        async def run() -> None:
            client = await self.connect()
            await client.wait_for_body(1)
            transport: Any = client.transport
            transport.pauseProducing()
            self.clock.advance(CLIENT_SILENCE - 0.1)
            self.assertFalse(self.finished.called)
            self.clock.advance(0.1)
            await self.finished
            transport.resumeProducing()
            await client.ended
            self.assertLess(len(client.body), 64 * 1024 * 1024)
            await self.assert_nothing_is_left()

        return Deferred.fromCoroutine(run())
