"""Tests that heads, interim answers, chunk extensions and trailers of upstream are bounded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from mypypi.errors import BadUpstreamResponse, UpstreamUnreachable
from mypypi.upstream.framing import LARGEST_FRAMING, LARGEST_HEAD, LONGEST_LINE, MOST_CHUNKS, MOST_INTERIM, MOST_LINES
from tests.support.memory import Exchange
from tests.upstream.cases import BreakerTestCase, UpstreamTestCase

_STATUS = b"HTTP/1.1 200 Because\r\n"
_CHUNKED = _STATUS + b"Transfer-Encoding: chunked\r\n\r\n"
#: Bytes that the attacks send at most. One read from a socket has 64 KiB.
_MOST = 4 * 1024 * 1024


def read_until_closed(exchange: Exchange, part: bytes, clock: Clock) -> int:
    """Send this part again and again until the connection is closed, and return the number of bytes sent."""
    sent = 0
    while not exchange.closed and sent < _MOST:
        exchange.send(part)
        sent += len(part)
        clock.advance(0)
    return sent


class HeadTest(UpstreamTestCase):
    """A head without an end closes its connection, and its client learns why."""

    def attack(self, part: bytes, start: bytes = _STATUS) -> str:
        """Request a page, a file and an audit; send such heads, and return the error, which all must have."""
        starts: list[Callable[[], Deferred[Any]]] = [self.page, self.file, self.audit]
        errors = set()
        for begin in starts:
            pending = begin()
            self.wire.last.polite = False  # over TLS, only an abort ends the connection
            if start:
                self.wire.last.send(start)
            sent = read_until_closed(self.wire.last, part, self.clock)
            self.assertTrue(self.wire.last.closed)
            self.assertLessEqual(sent, LARGEST_HEAD + len(part))
            errors.add(str(self.failing(pending, BadUpstreamResponse)))
        self.assert_slot_is_free(self.upstream)
        (error,) = errors
        return error

    def test_head_with_too_many_bytes(self) -> None:
        """A head of more than 64 KiB is refused, in lines of any length."""
        for size in (1000, LONGEST_LINE - 100):
            self.assertIn(f"head of more than {LARGEST_HEAD} bytes", self.attack(b"X-n: %s\r\n" % (b"a" * size)))

    def test_head_with_too_many_lines(self) -> None:
        """A head of more than 500 lines is refused, also where they come at once, or continue one header."""
        for part in (b"a:\r\n", b"a:\n" * 20_000, b" \r\n"):
            start = _STATUS + b"X: y\r\n" if part.startswith(b" ") else _STATUS
            self.assertIn(f"head of more than {MOST_LINES} lines", self.attack(part, start))

    def test_line_without_end(self) -> None:
        """A line of more than 16 KiB is refused: a header, or the status line."""
        for start in (_STATUS + b"X: ", b""):
            part = b"a" * 1000
            self.assertIn(f"line of more than {LONGEST_LINE} bytes", self.attack(part, start))

    def test_interim_answers_without_end(self) -> None:
        """An upstream that sends interim answers for ever is refused, also where they come at once."""
        for code in (b"100", b"103"):
            for times in (1, 1000):
                part = b"HTTP/1.1 %s Continue\r\nLink: <a>\r\n\r\n" % code
                self.assertIn(f"more than {MOST_INTERIM} interim answers", self.attack(part * times, b""))

    def test_interim_answers_count_as_head(self) -> None:
        """Large interim answers count together with the head that follows."""
        part = b"HTTP/1.1 103 Early Hints\r\nLink: %s\r\n\r\n" % (b"a" * 8000)
        self.assertIn(f"head of more than {LARGEST_HEAD} bytes", self.attack(part, b""))

    def test_large_head_is_read(self) -> None:
        """A head just below the limits, after a few interim answers, is an answer."""
        pending = self.page()
        for _ in range(MOST_INTERIM):
            self.wire.last.send(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        self.wire.last.send(_STATUS + b"Content-Length: 2\r\n")
        lines = MOST_LINES - 2 * MOST_INTERIM - 3
        self.wire.last.send((b"X-n: %s\r\n" % (b"a" * 120)) * lines + b"\r\n{}")
        source = self.now(pending).source
        assert source is not None
        self.assertEqual(b"{}", source.body)

    def test_lengths_that_are_no_numbers(self) -> None:
        """A length of thousands of digits, a negative one and two different ones are malformed, and so is a status."""
        lengths = (b"9" * 5000, b"-5", b"1\r\nContent-Length: 2", b"+", b"0x10")
        heads = [_STATUS + b"Content-Length: " + length for length in lengths]
        for head in (*heads, b"HTTP/1.1 " + b"9" * 5000 + b" OK"):
            pending = self.page()
            self.wire.last.send(head + b"\r\n\r\nx")
            why = str(self.failing(pending, UpstreamUnreachable))
            self.assertRegex(why, "is malformed|could not be parsed")
            self.assertTrue(self.wire.last.closed)

    def test_limits_are_those_of_one_answer(self) -> None:
        """A redirect's head does not count for the next answer's."""
        pending = self.page()
        filler: Any = {f"x_{number}": "a" * 10_000 for number in range(5)}
        for _ in range(3):
            self.wire.last.answer(302, location="/next", **filler)
        self.wire.last.answer(200, b"{}", **filler)
        self.assertIsNotNone(self.now(pending).source)


class BreakerTest(BreakerTestCase):
    """Too large heads are answers that can't be used, and no failure to connect."""

    retries = (0.2, 0.6)

    def test_too_large_head_holds_nothing_back(self) -> None:
        """A page whose answers are refused does not hold others back, and is not retried."""
        for number in range(10):
            pending = self.send(f"/simple/{number}/")
            read_until_closed(self.wire.last, b"HTTP/1.1 100 Continue\r\n\r\n", self.clock)
            self.failing(pending, BadUpstreamResponse)
        self.clock.advance(1)
        self.assertEqual(10, self.request_count)
        self.assert_slot_is_free(self.upstream)


class ChunkTest(UpstreamTestCase):
    """A chunked body that is not mostly content closes its connection, and its client learns why."""

    def attack(self, part: bytes, start: bytes = _CHUNKED) -> str:
        """Request a page, and send such a body. Return the error."""
        pending = self.page()
        self.wire.last.polite = False
        self.wire.last.send(start)
        self.sent = read_until_closed(self.wire.last, part, self.clock)
        self.assertTrue(self.wire.last.closed)
        error = str(self.failing(pending, BadUpstreamResponse))
        self.assert_slot_is_free(self.upstream)
        return error

    def test_extensions_without_end(self) -> None:
        """One extension that is too long is refused, and so are short ones without end."""
        self.assertIn("too long extensions", self.attack(b"a" * 100, _CHUNKED + b"5;a="))
        self.assertIn("more framing than content", self.attack(b"5;a=%s\r\nhello\r\n" % (b"a" * 900)))
        self.assertLess(self.sent, 2 * LARGEST_FRAMING)

    def test_trailers_without_end(self) -> None:
        """Trailers without end are refused, whether they are lines or one line."""
        for part in (b"X-n: aaa\r\n", b"a" * 1000):
            error = self.attack(part, _CHUNKED + b"5\r\nhello\r\n0\r\n")
            self.assertRegex(error, "too long trailers|more framing than content")
            self.assertLess(self.sent, 2 * LARGEST_FRAMING)

    def test_chunks_of_a_few_bytes(self) -> None:
        """Chunks of one byte, or of six, without end are refused."""
        for chunk in (b"1\r\na\r\n", b"6\r\nabcdef\r\n"):
            self.assertIn("too small chunks", self.attack(chunk * 100))
            self.assertLess(self.sent, 2 * MOST_CHUNKS * len(chunk))

    def test_chunks_are_read_wherever_they_are_cut(self) -> None:
        """The content is the same in whatever pieces the chunks arrive."""
        content = [b"{", b" " * 300, b"\r\n" * 5, b"}"]
        sent = b"".join(b"%X;a=b\r\n%s\r\n" % (len(each), each) for each in content) + b"0\r\nDigest: abc\r\n\r\n"
        for size in (1, 2, 3, 7, 64, 307, len(sent)):
            pending = self.page()
            self.wire.last.send(_CHUNKED)
            for start in range(0, len(sent), size):
                self.wire.last.send(sent[start : start + size])
            source = self.now(pending).source
            assert source is not None
            self.assertEqual(b"".join(content), source.body)

    def test_audit_is_bounded_as_well(self) -> None:
        """The answer of an audit is refused for its framing, too."""
        pending = self.audit()
        self.wire.last.send(_CHUNKED)
        self.assertLess(read_until_closed(self.wire.last, b"1\r\na\r\n" * 100, self.clock), 3 * LARGEST_FRAMING)
        self.failing(pending, BadUpstreamResponse)

    def test_small_chunks_are_read(self) -> None:
        """A body in chunks of 16 bytes, with extensions and trailers, is read whole."""
        pending = self.page()
        self.wire.last.send(_CHUNKED)
        for _ in range(20_000):
            self.wire.last.send(b"10;a=b\r\n%s\r\n" % (b" " * 16))
        self.wire.last.send(b"2\r\n{}\r\n0\r\nDigest: abc\r\n\r\n")
        source = self.now(pending).source
        assert source is not None
        self.assertEqual(320_002, len(source.body))
