"""Tests of requests for files, whose bytes are passed on undecoded."""

from __future__ import annotations

from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone

from mypypi.errors import BadUpstreamResponse, UpstreamDown
from mypypi.upstream.responses import FileResponse
from tests.support.memory import gzipped, response
from tests.upstream.cases import UpstreamTestCase


class FileTest(UpstreamTestCase):
    """A file's response comes before its body, and its bytes are not decoded."""

    def deliver(self, body: FileResponse) -> _Received:
        receiver = _Received()
        body.deliver(receiver)
        return receiver

    def test_files_are_requested_with_identity(self) -> None:
        """Files are requested with identity encoding. An encoding would change their length and digest."""
        self.file()
        self.assertEqual("identity", self.wire.last.headers["accept-encoding"])

    def test_response_has_status_length_and_headers(self) -> None:
        """A partial response has its status, length and headers."""
        pending = self.file(Range="bytes=2-")
        self.wire.last.send(response(206, b"", content_length="3", content_range="bytes 2-4/5", etag='"1"'))
        body = self.now(pending)
        self.assertEqual((206, 3, '"1"', ""), (body.status, body.length, body.header("etag"), body.header("x-none")))

    def test_unrequested_part_is_refused(self) -> None:
        """A 206 or 304 that was not requested is an error. A part could be mistaken for the whole file."""
        for status in (206, 304):
            pending = self.file()
            self.wire.last.answer(status, content_range="bytes 2-4/5")
            self.failing(pending, BadUpstreamResponse)

    def test_unread_body_closes_its_connection(self) -> None:
        """Closing a response without reading its body closes the connection."""
        pending = self.file()
        self.wire.last.send(response(200, b"some", content_length="999999"))
        self.now(pending).close()
        self.clock.advance(0)
        self.assertTrue(self.wire.last.closed)

    def test_length_may_be_unknown(self) -> None:
        """Without a Content-Length the length is None, and the body ends with the connection."""
        pending = self.file()
        self.wire.last.answer(body=b"bytes", content_length="")
        body = self.now(pending)
        received = self.deliver(body)
        self.wire.last.end()
        self.assertIsNone(body.length)
        self.assertEqual(b"bytes", received.data)

    def test_unrequested_encoding_is_not_decoded(self) -> None:
        """
        An encoded body is delivered undecoded, with the name of its encoding.

        The length counts the encoded bytes.
        """
        data = gzipped(b"a wheel")
        pending = self.file()
        self.wire.last.answer(body=data, content_encoding="GZIP")
        body = self.now(pending)
        received = self.deliver(body)
        self.assertEqual(("gzip", len(data), data), (body.encoding, body.length, received.data))
        self.assertIs(ResponseDone, received.end)

    def test_explicit_identity_is_no_encoding(self) -> None:
        """The encoding identity counts as none. Some servers send it."""
        pending = self.file()
        self.wire.last.answer(body=b"x", content_encoding="identity")
        self.assertEqual("", self.now(pending).encoding)

    def test_invalid_url_is_an_upstream_error(self) -> None:
        """An invalid URL is an upstream error, and frees the slot."""
        self.upstream = self.make_upstream(concurrency=1)
        self.failing(self.file("https://[files.example/a.whl"), UpstreamDown)
        self.assert_slot_is_free(self.upstream)

    def test_url_of_a_file_is_not_changed(self) -> None:
        """The URL of a file keeps its percent-encoding."""
        self.file("https://files.example/a%2Bb/c%20d.whl?x=%2F")
        self.assertEqual("/a%2Bb/c%20d.whl?x=%2F", self.wire.last.path)


class _Received(Protocol):
    def __init__(self) -> None:
        self.data = b""
        self.end: type[BaseException] | None = None

    def dataReceived(self, data: bytes) -> None:
        self.data += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.end = reason.type
