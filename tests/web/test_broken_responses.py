"""Tests of responses that can't be completed after their head was sent, for every way of sending a body.

A whole server in memory sends pages and files, and an error is injected while the body is on its way.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import random
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, patch

import pytest
from twisted.internet.defer import fail
from twisted.logger import LogEvent, formatEvent
from twisted.web.server import Request

from mypypi.errors import BadUpstreamResponse, NotFound
from mypypi.files.content import Content
from mypypi.model import Link, StoredFile
from mypypi.pieces import inflated, slices
from mypypi.proxy.answers import StoredElsewhere
from mypypi.proxy.bucket_reader import BODY_SILENCE, BucketReader
from mypypi.upstream.client import Upstream
from mypypi.web import pages
from mypypi.web.content_reader import Reader, Span
from mypypi.web.errors import ResponseBroken, sending
from mypypi.web.pass_through import pass_on
from mypypi.web.site import WebSite
from tests.fuzz.world import UPSTREAM, Transmission, World, check_log, observed, read_answer
from tests.support.fakes import MemoryStorage
from tests.support.memory import (
    Connection,
    Exchange,
    Handling,
    MemoryTestCase,
    Wire,
    open_descriptors,
    response,
    sha256,
)

#: A file of several blocks, and a page that is large in each of its encodings, since its digests can't be compressed.
DATA = random.Random(1).randbytes(700_000)  # noqa: S311
FILE = "thing-1.0-py3-none-any.whl"
_random = random.Random(2).randbytes  # noqa: S311
LISTED = {"filename": FILE, "url": f"{UPSTREAM}/{FILE}", "hashes": {"sha256": sha256(DATA).hex}, "size": len(DATA)}
OTHERS = [
    {"filename": f"thing-2.{number}.zip", "url": f"{UPSTREAM}/{number}", "hashes": {"sha256": _random(32).hex()}}
    for number in range(2200)
]
VERSIONS = {
    version: {
        "name": "thing",
        "version": version,
        "dist": {
            "tarball": f"{UPSTREAM}/thing/-/thing-{version}.tgz",
            "integrity": f"sha512-{b64encode(_random(64)).decode()}",
        },
    }
    for version in (f"1.0.{number}" for number in range(1100))
}
PACKUMENT = json.dumps({"name": "thing", "versions": VERSIONS}).encode()
_JSON = "application/vnd.pypi.simple.v1+json"
PAGE, PACKUMENT_PATH, FILE_PATH = "/simple/thing/", "/thing", f"/file/{UPSTREAM.replace('://', '/')}/{FILE}"


@pytest.fixture(autouse=True)
def _nothing_stays_open() -> Iterator[None]:
    """Assert that no descriptor is left."""
    before = open_descriptors()
    yield
    gc.collect()
    assert open_descriptors() == before


class Server:
    """
    A server in memory.

    Its upstream lists `others` besides the file, and breaks that off after `cut` bytes if it is set.
    """

    def __init__(self, directory: Path, package_type: str = "pypi", *others: object) -> None:
        self.cut: int | None = None
        files = [LISTED, *others]
        self._simple = json.dumps({"meta": {"api-version": "1.0"}, "name": "thing", "files": files}).encode()
        self.world = World(package_type, directory, self._upstream, lambda _: True)

    def _upstream(self, exchange: Exchange) -> Transmission:
        if exchange.path in (PAGE, PACKUMENT_PATH):
            page = self._simple if exchange.path == PAGE else PACKUMENT
            return Transmission(
                response(200, page, content_type=_JSON if exchange.path == PAGE else "application/json")
            )
        whole = response(200, DATA)
        return Transmission(
            whole if self.cut is None else whole[: len(whole) - len(DATA) + self.cut], cut=self.cut is not None
        )

    def pipeline(self, path: str, **headers: str) -> bytes:
        """What a client receives that sends this request, and a second one right behind it."""
        lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        first = "\r\n".join([f"GET {path} HTTP/1.1", "Host: here.example", *lines, "", ""])
        second = "GET /-/health/live HTTP/1.1\r\nHost: here.example\r\nConnection: close\r\n\r\n"
        return self.world.ask((first + second).encode())

    @property
    def broken_off(self) -> list[str]:
        """The lines of the log about this."""
        return [line for event in self.world.logged if "broken off" in (line := formatEvent(event))]


def assert_broken(received: bytes, status: int = 200) -> bytes:
    """Assert that a response has begun and is incomplete, that no error is in it, and that no other one follows it."""
    answer = read_answer(received)
    assert (answer.status, answer.whole) == (status, False)
    assert b'"error"' not in received
    assert received.count(b"HTTP/1.1 ") == 1
    return answer.body


def _fail_after(
    pieces: Callable[[bytes], Iterator[bytes]], count: int, error: Exception
) -> Callable[[bytes], Iterator[bytes]]:
    def failing(body: bytes) -> Iterator[bytes]:
        for number, piece in enumerate(pieces(body)):
            if number == count:
                raise error
            yield piece

    return failing


def _cut_short(body: bytes) -> Iterator[bytes]:
    """Decode a page of which the second half is missing."""
    return inflated(body[: len(body) // 2])


_NO_DESCRIPTOR = OSError(errno.EMFILE, os.strerror(errno.EMFILE))


class TestPages:
    """A page that can't be sent to its end."""

    @pytest.mark.parametrize(
        ("package_type", "path", "accept"),
        [("pypi", PAGE, _JSON), ("pypi", PAGE, "text/html"), ("npm", PACKUMENT_PATH, "application/json")],
        ids=["json", "html", "derived"],
    )
    @pytest.mark.parametrize("when", ["cold", "hot"])
    @pytest.mark.parametrize(
        ("encoding", "fault"),
        [
            ("gzip", {"slices": _fail_after(slices, 1, _NO_DESCRIPTOR)}),
            ("identity", {"inflated": _fail_after(inflated, 1, _NO_DESCRIPTOR)}),
            ("identity", {"inflated": _cut_short}),
        ],
        ids=["gzip", "identity", "short"],
    )
    def test_transfer_is_broken(
        self, tmp_path: Path, package_type: str, path: str, accept: str, when: str, encoding: str, fault: dict[str, Any]
    ) -> None:
        """The transfer is broken, the log has one line, and the next request gets the whole page."""
        server = Server(tmp_path, package_type, *OTHERS)
        asked: Any = {"Accept": accept, "Accept_Encoding": encoding}
        if when == "hot":
            assert server.world.get(path, **asked).whole
        with patch.multiple(pages, **fault):
            assert_broken(server.pipeline(path, **asked))
        assert len(server.broken_off) == 1
        answer = server.world.get(path, **asked)
        assert (answer.status, answer.whole) == (200, True)


#: The requests for a file, by name: headers and the status of the response.
_PARTS = {
    "whole": ({}, 200),
    "range": ({"Range": "bytes=1000-600000"}, 206),
    "ranges": ({"Range": "bytes=0-9,300000-600000"}, 206),
}


def _read_error(number: int) -> AbstractContextManager[Any]:
    """The disk fails in the second read of a file."""
    pread, reads = os.pread, []

    def read(fd: int, count: int, offset: int) -> bytes:
        if count > 4096:  # a note has so many
            reads.append(offset)
            if len(reads) == 2:
                raise OSError(number, os.strerror(number))
        return pread(fd, count, offset)

    return patch("os.pread", read)


class TestFiles:
    """A file that can't be sent to its end."""

    @pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE], ids=["EIO", "EMFILE"])
    @pytest.mark.parametrize("part", list(_PARTS))
    def test_stored_file(self, tmp_path: Path, part: str, number: int) -> None:
        """The transfer is broken at the block that can't be read. What was sent is right, and later all is well."""
        server, (headers, status) = Server(tmp_path), _PARTS[part]
        assert server.world.get(FILE_PATH).body == DATA
        with _read_error(number):
            body = assert_broken(server.pipeline(FILE_PATH, **headers), status)
        if part != "ranges":
            start = 0 if part == "whole" else 1000
            assert DATA[start:].startswith(body)
        (line,) = server.broken_off
        assert line.endswith(f"GET {FILE_PATH}: {os.strerror(number)}")
        assert server.world.get(FILE_PATH).body == DATA

    @pytest.mark.parametrize("part", list(_PARTS))
    def test_truncated_file(self, tmp_path: Path, part: str) -> None:
        """A stored file that becomes shorter while it is sent breaks the transfer."""
        server, (headers, status) = Server(tmp_path), _PARTS[part]
        assert server.world.get(FILE_PATH).body == DATA
        pread = os.pread

        def read(fd: int, count: int, offset: int) -> bytes:
            return pread(fd, count, offset) if offset < 290_000 else b""

        with patch("os.pread", read):
            assert_broken(server.pipeline(FILE_PATH, **headers), status)
        assert len(server.broken_off) == 1

    @pytest.mark.parametrize("part", ["whole", "range"])
    def test_draft(self, tmp_path: Path, part: str) -> None:
        """A draft whose transfer from upstream breaks off breaks the responses. The log has one line, of the fetch."""
        server, (headers, status) = Server(tmp_path), _PARTS[part]
        server.world.get(PAGE)
        server.cut = 400_000
        received = server.pipeline(FILE_PATH, **headers)
        assert_broken(received, status)
        assert server.broken_off == []
        assert [line for event in server.world.logged if "was not stored" in (line := formatEvent(event))]
        server.cut = None
        server.world.reactor.advance(1000)
        assert server.world.get(FILE_PATH).body == DATA

    @pytest.mark.parametrize(
        ("cut", "fault"),
        [
            (400_000, nullcontext()),
            (None, patch("mypypi.web.pass_through.CompleteFile.take", side_effect=_NO_DESCRIPTOR)),
        ],
        ids=["upstream breaks off", "an error here"],
    )
    def test_passed_through(self, tmp_path: Path, cut: int | None, fault: AbstractContextManager[Any]) -> None:
        """
        A file that is passed through is broken off with the transfer from upstream, which is stopped.

        If nothing is sent yet, the client gets an error with its reason.
        """
        server = Server(tmp_path)
        server.world.get(PAGE)
        (tmp_path / "drafts").write_bytes(b"")  # no draft can be written, and upstream wants a password
        server.cut = cut
        with fault:
            received = server.pipeline(FILE_PATH)
        if cut is not None:
            assert DATA.startswith(assert_broken(received))
            assert len(server.broken_off) == 1
        else:
            answer = read_answer(received)
            assert (answer.status, answer.whole) == (503, True)
        assert all(exchange.closed for exchange in server.world.wire.exchanges)
        server.cut = None
        server.world.reactor.advance(1000)
        assert server.world.get(FILE_PATH).body == DATA


class TestBucket(MemoryTestCase):
    """A file that is streamed from the bucket, and can't be sent to its end."""

    def setUp(self) -> None:
        super().setUp()
        self.wire = Wire(self.clock)
        self.spoiled: list[bool] = []
        self.events: list[LogEvent] = []

    def serve(self, span: Span) -> Connection:
        """A client that gets this span of the stored file."""
        stored = StoredFile("key", len(DATA), sha256(DATA))
        client = Upstream(self.clock, "https://bucket.example", agent=self.wire.agent, metered=False)
        bucket = BucketReader(client, MemoryStorage(self.directory()), self.clock)
        linked = StoredElsewhere(stored, Link("https://bucket.example/key", None), proxied=True)

        def handle(request: Request) -> Any:
            stop = len(DATA) if span.stop is None else span.stop
            request.setHeader(b"content-length", b"%d" % (stop - span.start))
            sent = pass_on(request, linked, span, bucket, self.clock, "client", lambda: self.spoiled.append(True))
            return self.start(sent)

        with observed(self.events):
            connection = Connection(WebSite(Handling(handle), self.clock))
        self.addCleanup(connection.leave)
        return connection

    def assert_broken_off(self, connection: Connection) -> None:
        self.clock.advance(0)
        assert connection.aborted
        assert b'"error"' not in connection.value()
        assert self.wire.last.closed
        assert self.clock.getDelayedCalls() == []

    def test_transfer_that_breaks(self) -> None:
        """A transfer from the bucket that breaks is broken for the client, for the whole file and for a part."""
        for span in (Span(0, None), Span(1000, 600_000)):
            connection = self.serve(span)
            self.wire.last.send(response(200, DATA)[:300_000])
            assert connection.head.startswith("HTTP/1.1 200")
            self.wire.last.cut()
            self.assert_broken_off(connection)

    def test_transfer_that_stalls(self) -> None:
        """A bucket that sends nothing for its time-out breaks the transfer."""
        connection = self.serve(Span(0, None))
        self.wire.last.send(response(200, DATA)[:300_000])
        self.clock.advance(BODY_SILENCE)
        self.assert_broken_off(connection)

    def test_transfer_that_trickles(self) -> None:
        """A bucket that sends a byte every five seconds breaks the transfer after a minute at most."""
        connection = self.serve(Span(0, None))
        self.wire.last.send(response(200, DATA)[:300_000])
        for at in range(300_000, 300_012):
            assert not connection.aborted
            self.clock.advance(5)
            if self.wire.last.closed:
                break
            self.wire.last.send(DATA[at : at + 1])
        self.assert_broken_off(connection)

    def test_client_that_reads_slowly(self) -> None:
        """A client that reads slowly gets the file: the time in which the bucket waits for it does not count."""
        connection = self.serve(Span(0, None))
        data = response(200, DATA)
        self.wire.last.send(data[:300_000])
        for _ in range(4):
            connection.full()
            self.clock.advance(100)
            connection.drained()
        self.wire.last.send(data[300_000:])
        assert connection.body == DATA

    def test_transfer_with_more_framing_than_content(self) -> None:
        """A body in chunks of one byte is broken off for the client."""
        connection = self.serve(Span(0, None))
        self.wire.last.send(response(200, b"", content_length="", transfer_encoding="chunked"))
        for start in range(0, 10_000, 100):
            self.wire.last.send(b"".join(b"1;a=bcdefgh\r\n%c\r\n" % byte for byte in DATA[start : start + 100]))
            self.clock.advance(0)
            if self.wire.last.closed:
                break
        self.assert_broken_off(connection)

    def test_other_file(self) -> None:
        """An object with other bytes is never complete for the client, not even one that is longer."""
        for other in (DATA[:-1] + b"?", DATA + bytes(100_000)):
            connection = self.serve(Span(0, None))
            self.wire.last.answer(200, other)
            self.assert_broken_off(connection)
            assert len(connection.body) < len(DATA)
        assert self.spoiled

    def test_error_of_ours(self) -> None:
        """An error in the middle of the body stops the transfer from the bucket at once."""
        connection = self.serve(Span(0, None))
        self.wire.last.send(response(200, DATA)[:300_000])
        with patch("mypypi.web.pass_through.CompleteFile.take", side_effect=_NO_DESCRIPTOR):
            self.wire.last.send(DATA[:1000])
        self.assert_broken_off(connection)


class TestOtherErrors(MemoryTestCase):
    """Errors that no route foresees, and bodies that are not as long as their head says."""

    def setUp(self) -> None:
        super().setUp()
        self.events: list[LogEvent] = []

    def serve(self, *pieces: bytes, error: Exception | None = None, length: int | None = None) -> Connection:
        """A client whose response consists of these pieces, and of an error after them."""

        async def respond(request: Request) -> None:
            if length is not None:
                request.setHeader(b"content-length", b"%d" % length)
            for piece in pieces:
                request.write(piece)
            if error is not None:
                raise error

        with observed(self.events):
            connection = Connection(
                WebSite(Handling(lambda request: self.start(sending(request, respond(request)))), self.clock)
            )
        self.clock.advance(0)
        self.addCleanup(connection.leave)
        return connection

    def test_unexpected_error_has_a_traceback(self) -> None:
        """An unexpected error is logged once, with its traceback. The transfer is broken."""
        connection = self.serve(b"some", error=ZeroDivisionError("odd"), length=100)
        assert (connection.aborted, connection.body) == (True, b"some")
        assert len(self.flushLoggedErrors(ZeroDivisionError)) == 1

    def test_no_route_may_answer_otherwise(self) -> None:
        """Once the head is out, an error that a route could catch, to try something else, becomes another one."""
        for begun, expected in ((0, NotFound), (1, ResponseBroken)):
            request: Any = SimpleNamespace(startedWriting=begun)
            self.failing(sending(request, fail(NotFound("gone"))), expected)

    def test_no_thread(self) -> None:
        """A file for which no thread can be started breaks the transfer, since its head is sent. It is closed."""
        content = Content(os.memfd_create("content"), length=1000, total=1000, whole=True)
        threads = Mock(run=Mock(side_effect=RuntimeError("can't start new thread")))

        def handle(request: Request) -> Any:
            request.setHeader(b"content-length", b"1000")
            return self.start(sending(request, Reader(request, content, [Span(0, 1000)], threads, self.clock).run()))

        connection = Connection(WebSite(Handling(handle), self.clock))
        assert (connection.aborted, connection.body, content.fd) == (True, b"", -1)
        assert len(self.flushLoggedErrors(RuntimeError)) == 1

    def test_a_shared_error_is_logged_once(self) -> None:
        """Readers of one draft share its error, which is one line in the log."""
        error = BadUpstreamResponse("broke")
        for _ in range(3):
            assert self.serve(b"some", error=error, length=100).aborted
        assert sum("broken off" in formatEvent(event) for event in self.events) == 1

    def test_length_that_is_not_kept(self) -> None:
        """A body that is shorter or longer than its head says breaks the transfer. The client gets no byte too many."""
        for length in (3, 5):
            connection = self.serve(b"so", b"me", length=length)
            assert connection.aborted
            assert connection.body == b"some"[: 2 if length == 3 else 4]
        assert not self.serve(b"so", b"me", length=4).closed

    def test_client_that_leaves_is_no_error(self) -> None:
        """A client that leaves while upstream is asked, for a search or for a file, leaves no error in the log."""
        for package_type, path in (("npm", "/-/v1/search?text=a"), ("pypi", FILE_PATH)):
            world = World(package_type, self.directory(), lambda _: Transmission(b""), lambda _: True)
            world.wire.replies = {}
            with observed(self.events):
                connection = Connection(world.site, f"GET {path} HTTP/1.1\r\nHost: here.example\r\n\r\n".encode())
                world.reactor.advance(0)
                assert world.wire.exchanges
                connection.leave()
                world.wire.hang_up()
                world.reactor.pump([10] * 20)
        check_log(self.events)
