"""Tests of files whose bodies arrive in chunks of a few bytes."""

from __future__ import annotations

from mypypi.errors import BadUpstreamResponse
from mypypi.upstream.framing import LARGEST_FRAMING
from tests.files.test_fetch import DATA, FetchTestCase
from tests.support.memory import response


class FramingTest(FetchTestCase):
    """A file in chunks that are mostly framing is given up, and not resumed."""

    def test_file_in_chunks_of_one_byte_is_given_up(self) -> None:
        """A file that comes in chunks of one byte ends its connection and its fetch, and says why."""
        content = self.fetch()
        self.wire.last.send(response(200, b"", content_length="", transfer_encoding="chunked"))
        self.wire.last.polite = False
        sent = 0
        for start in range(0, len(DATA), 100):
            part = b"".join(b"1;a=bcdefgh\r\n%c\r\n" % byte for byte in DATA[start : start + 100])
            self.wire.last.send(part)
            sent += len(part)
            self.clock.advance(0)
            if self.wire.last.closed:
                break
        self.assertTrue(self.wire.last.closed)
        self.assertLess(sent, 2 * LARGEST_FRAMING)
        self.assert_failed(content, BadUpstreamResponse)
        self.assertIn("too small chunks", str(content.error))
        self.clock.advance(5)
        self.assertEqual(1, len(self.wire.exchanges))
