"""A client's view of a content: in memory, where it is written, and over loopback, where the kernel copies it."""

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
from mypypi.web.reader import CLIENT_SILENCE, Reader, Span, _SendfileCopier
from tests.support.memory import AtOnce, Connection, Handling, MemoryTestCase, WhenTold, open_descriptors, sha256

reactor: Any = the_reactor
T = TypeVar("T")

DATA = os.urandom(1024) * 1200
SIZE = len(DATA)
Parts = Sequence[bytes | Span]


def filled(count: int) -> Content:
    """A content that is still arriving, with its first bytes on disk."""
    fd = os.memfd_create("content")
    os.write(fd, DATA)
    content = Content(fd)
    content.begin(SIZE)
    content.grow(count)
    return content


def whole() -> Content:
    content = filled(SIZE)
    content.finish(sha256(DATA))
    return content


class WritesTest(MemoryTestCase):
    """Blocks are read in a thread and written, as long as the client takes them."""

    def setUp(self) -> None:
        super().setUp()
        self.before = open_descriptors()
        self.addCleanup(self.assert_nothing_is_left)
        self.threads: AtOnce | WhenTold = AtOnce()

    def assert_nothing_is_left(self) -> None:
        """Neither descriptors nor timers, however it ended."""
        self.assertEqual(self.before, open_descriptors())
        self.assertEqual([], self.clock.getDelayedCalls())

    def serve(self, content: Content, *parts: bytes | Span, length: int | None = None) -> Connection:
        """A client that asks, and is answered with these parts of the content."""

        def handle(request: Request) -> Deferred[None]:
            if length is not None:
                request.setHeader(b"content-length", b"%d" % length)
            self.done = Reader(request, content, parts or [Span(0, SIZE)], self.threads, self.clock).run()
            return self.done

        connection = Connection(Site(Handling(handle), reactor=self.clock, timeout=None))
        self.addCleanup(connection.leave)
        return connection

    def test_whole_content_is_sent(self) -> None:
        """Every byte, and then the connection is free for the next request."""
        connection = self.serve(whole(), length=SIZE)
        self.assertEqual(DATA, connection.body)
        self.assertTrue(self.done.called)
        self.assertFalse(connection.closed)

    def test_parts_are_sent_in_order(self) -> None:
        """Words between spans, spans in any order and of any size, an empty one too."""
        last = Span(SIZE - 1, None)
        parts = (b"first:", Span(700_000, 1_100_000), b"", b",then:", Span(5, 5), Span(0, 10), b".", last)
        expected = b"first:" + DATA[700_000:1_100_000] + b",then:" + DATA[:10] + b"." + DATA[-1:]
        self.assertEqual(expected, self.serve(whole(), *parts, length=len(expected)).body)

    def test_empty_content_is_sent(self) -> None:
        """That is, nothing, and it is over."""
        for span in (Span(0, 0), Span(0, None)):
            content = Content(os.memfd_create("empty"))
            content.finish(sha256(b""))
            self.assertEqual(b"", self.serve(content, span, length=0).body)
            self.assertTrue(self.done.called)

    def test_last_bytes_are_held_back_until_the_digest_agrees(self) -> None:
        """Promise 2: the client has all but the end, and gets that when it is checked."""
        content = filled(100_000)
        connection = self.serve(content, length=SIZE)
        self.assertEqual(DATA[: 100_000 - HELD_BACK], connection.body)
        content.grow(SIZE - 100_000)
        self.assertEqual(DATA[:-HELD_BACK], connection.body)
        content.finish(sha256(DATA))
        self.assertEqual(DATA, connection.body)

    def test_content_of_unknown_length_is_sent_in_chunks(self) -> None:
        """Up to its end, wherever that is."""
        content = filled(50_000)
        content.total = None
        connection = self.serve(content, Span(0, None))
        self.assertIn("chunked", connection.head)
        self.assertNotIn(b"0\r\n\r\n", connection.body[-5:])
        content.length = 60_000
        content.finish(sha256(b""))
        self.assertTrue(connection.body.endswith(b"0\r\n\r\n"))
        self.assertTrue(self.done.called)

    def test_range_is_sent_as_soon_as_its_bytes_are_there(self) -> None:
        """A range of a cold file does not wait for the rest of it."""
        content = filled(1_000)
        connection = self.serve(content, Span(10, 50), length=40)
        self.assertEqual(b"", connection.body)
        content.grow(HELD_BACK)
        self.assertEqual(DATA[10:50], connection.body)
        self.assertTrue(self.done.called)

    def test_content_that_fails_breaks_the_connection(self) -> None:
        """Promise 2: a client never takes what it has for all of it."""
        for known in (SIZE, None):
            content = filled(100_000)
            connection = self.serve(content, length=known)
            content.fail(UpstreamDown("gone"))
            self.assertTrue(connection.aborted)
            self.assertFalse(connection.body.endswith(b"0\r\n\r\n"))
            self.assertLess(len(connection.body), SIZE)

    def test_file_that_is_shorter_than_it_was_breaks_the_connection(self) -> None:
        """Somebody has cut it on disk."""
        content = whole()
        os.truncate(content.fd, 5_000)
        connection = self.serve(content, length=SIZE)
        self.assertTrue(connection.aborted)

    def test_disk_that_can_not_be_read_breaks_the_connection(self) -> None:
        """There is nothing else that could be said by then."""
        with mock.patch("os.pread", side_effect=OSError(errno.EIO, "Input/output error")):
            connection = self.serve(whole(), length=SIZE)
        self.assertTrue(connection.aborted)

    def test_client_sets_the_pace(self) -> None:
        """While it takes nothing, nothing is read for it."""
        content = filled(50_000)
        connection = self.serve(content, length=SIZE)
        connection.full()
        content.grow(SIZE - 50_000)
        content.finish(sha256(DATA))
        self.assertEqual(50_000 - HELD_BACK, len(connection.body))
        connection.drained()
        self.assertEqual(DATA, connection.body)

    def test_client_that_leaves_ends_it(self) -> None:
        """Waiting for upstream, or for the client: the descriptor is given back, and others keep theirs."""
        content = filled(50_000)
        others = content.open()
        connection = self.serve(content, length=SIZE)
        connection.leave()
        content.grow(1_000)
        self.assertEqual([], content._watchers)
        self.assertGreaterEqual(others.fd, 0)
        others.close()

    def test_client_that_leaves_while_a_thread_reads_for_it_ends_it(self) -> None:
        """What the thread has read is thrown away, and its descriptor closed."""
        self.threads = WhenTold()
        connection = self.serve(whole(), length=SIZE)
        connection.leave()
        self.threads.finish()
        self.assertEqual(b"", connection.body)

    def test_client_that_takes_nothing_is_closed_in_the_end(self) -> None:
        """After `CLIENT_SILENCE`, and not before."""
        content = filled(50_000)
        connection = self.serve(content, length=SIZE)
        connection.full()
        content.grow(SIZE - 50_000)
        self.clock.advance(CLIENT_SILENCE - 0.1)
        self.assertFalse(connection.closed)
        self.clock.advance(0.1)
        self.assertTrue(connection.aborted)

    def test_client_that_waits_for_us_is_not_closed(self) -> None:
        """As long as there is nothing that it could take."""
        content = filled(50_000)
        connection = self.serve(content, length=SIZE)
        self.clock.pump([CLIENT_SILENCE] * 5)
        self.assertFalse(connection.closed)
        content.grow(SIZE - 50_000)
        content.finish(sha256(DATA))
        self.assertEqual(DATA, connection.body)


class _HalfTime:
    """The reactor's descriptors with a clock that only the test moves."""

    def __init__(self, clock: Clock) -> None:
        self.callLater = clock.callLater
        self.addWriter: Callable[[IWriteDescriptor], None] = reactor.addWriter
        self.removeWriter: Callable[[IWriteDescriptor], None] = reactor.removeWriter


class _Client(Protocol):
    """Reads a response; tells when so many bytes of the body have come, and when the connection has ended."""

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

    def has(self, count: int) -> Deferred[None]:
        self._wanted = (count, Deferred())
        self._look()
        return self._wanted[1]

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        self._look()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.ended.callback(None)

    def _look(self) -> None:
        if self._wanted is not None and len(self.body) >= self._wanted[0] and not self._wanted[1].called:
            self._wanted[1].callback(None)


class KernelTest(TestCase):
    """On a plain socket the kernel copies from the file."""

    timeout = 20

    def setUp(self) -> None:
        self.clock = Clock()
        self.ways: list[_SendfileCopier] = []
        self.content = whole()
        self.parts: Parts = [Span(0, SIZE)]
        self.finished: Deferred[None] = Deferred()
        site = Site(Handling(self.handle), reactor=reactor, timeout=None)
        self.port = reactor.listenTCP(0, site, interface="127.0.0.1")
        self.addCleanup(self.port.stopListening)

    def handle(self, request: Request) -> Deferred[None]:
        request.setHeader(b"content-length", b"%d" % SIZE)
        reader = Reader(request, self.content, self.parts, AtOnce(), _HalfTime(self.clock))
        done = reader.run()
        assert isinstance(reader._copier, _SendfileCopier)
        self.ways.append(reader._copier)
        return done.addBoth(self.over)

    def over(self, result: T) -> T:
        self.finished.callback(None)
        return result

    def replace(self, content: Content) -> None:
        """Let this be the content that is served."""
        if self.content.fd >= 0:
            self.content.close()
        self.content = content

    async def connect(self) -> _Client:
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", self.port.getHost().port)
        client: _Client = await connectProtocol(endpoint, _Client())
        self.addCleanup(client.leave)
        return client

    async def assert_nothing_is_left(self) -> None:
        """When the request is over, the content and the duplicate of the socket are closed, and no timer runs."""
        await self.finished
        self.assertEqual((-1, -1), (self.content.fd, self.ways[-1]._fd))
        self.assertEqual([], self.clock.getDelayedCalls())
        self.assertNotIn(self.ways[-1], reactor.getWriters())

    def test_whole_content_is_sent(self) -> Deferred[None]:
        """Every byte, after the headers."""

        async def run() -> None:
            client = await self.connect()
            await client.ended
            self.assertEqual(DATA, client.body)
            self.assertTrue(client.received.startswith(b"HTTP/1.1 200 OK\r\n"))
            await self.assert_nothing_is_left()

        return Deferred.fromCoroutine(run())

    def test_parts_are_sent_in_order(self) -> Deferred[None]:
        """Words and spans of one body (RFC 9110, section 14.6)."""
        tail = SIZE - 5 - 700_000
        self.parts = [b"words", Span(SIZE - tail, None), Span(0, 700_000)]

        async def run() -> None:
            client = await self.connect()
            await client.ended
            self.assertEqual(b"words" + DATA[SIZE - tail :] + DATA[:700_000], client.body)
            await self.assert_nothing_is_left()

        return Deferred.fromCoroutine(run())

    def test_last_bytes_are_held_back_until_the_digest_agrees(self) -> Deferred[None]:
        """Promise 2, also where bytes never enter Python."""
        self.replace(filled(500_000))

        async def run() -> None:
            client = await self.connect()
            await client.has(500_000 - HELD_BACK)
            self.assertEqual(DATA[: 500_000 - HELD_BACK], client.body)
            self.content.grow(SIZE - 500_000)
            await client.has(SIZE - HELD_BACK)
            self.assertEqual(DATA[:-HELD_BACK], client.body)
            self.content.finish(sha256(DATA))
            await client.ended
            self.assertEqual(DATA, client.body)
            await self.assert_nothing_is_left()

        return Deferred.fromCoroutine(run())

    def test_content_that_fails_breaks_the_connection(self) -> Deferred[None]:
        """Before the announced length."""
        self.replace(filled(500_000))

        async def run() -> None:
            client = await self.connect()
            await client.has(500_000 - HELD_BACK)
            self.content.fail(UpstreamDown("gone"))
            await client.ended
            self.assertEqual(DATA[: 500_000 - HELD_BACK], client.body)
            await self.assert_nothing_is_left()

        return Deferred.fromCoroutine(run())

    def test_file_that_is_shorter_than_it_was_breaks_the_connection(self) -> Deferred[None]:
        """And not a loop that sends nothing for ever."""
        os.truncate(self.content.fd, 300_000)

        async def run() -> None:
            client = await self.connect()
            await client.ended
            self.assertTrue(DATA[:300_000].startswith(client.body))
            await self.assert_nothing_is_left()

        return Deferred.fromCoroutine(run())

    def test_file_that_the_kernel_can_not_copy_is_written(self) -> Deferred[None]:
        """Some file systems do not do it: the same bytes come another way."""

        async def run() -> None:
            with mock.patch("os.sendfile", side_effect=OSError(errno.EINVAL, "Invalid argument")) as sendfile:
                client = await self.connect()
                await client.ended
            self.assertEqual(DATA, client.body)
            self.assertEqual(1, sendfile.call_count)
            await self.assert_nothing_is_left()

        return Deferred.fromCoroutine(run())

    def test_client_that_leaves_gives_back_what_was_opened_for_it(self) -> Deferred[None]:
        """In the middle, taking nothing or waiting for more."""

        async def run() -> None:
            for content in (filled(500_000), filled(SIZE)):
                self.replace(content)
                self.finished = Deferred()
                client = await self.connect()
                await client.has(100_000)
                client.leave()
                await client.ended
                await self.assert_nothing_is_left()

        return Deferred.fromCoroutine(run())

    def test_client_that_takes_nothing_is_closed_in_the_end(self) -> Deferred[None]:
        """Its socket's buffers are full, and stay so."""
        self.content.length = self.content.total = 64 * 1024 * 1024
        os.truncate(self.content.fd, 64 * 1024 * 1024)
        self.parts = [Span(0, None)]

        async def run() -> None:
            client = await self.connect()
            await client.has(1)
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
