"""Tests which ranges of cold files upstream is asked for, in memory."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from mypypi.byte_range import ByteRange
from mypypi.proxy.answers import FileAnswer, FileRequest, LocalContent
from mypypi.upstream.responses import FileRange
from tests.proxy.test_proxy import DATA, FILE, LINK, SIZE, ProxyTestCase

END = ByteRange(None, 70)


class ColdRangesTest(ProxyTestCase):
    """The range of a file is requested upstream once for all, and only where that pays."""

    def ask(self, asked: ByteRange = END) -> Deferred[FileAnswer]:
        pending = self.start(self.proxy.file(LINK, FileRequest(range=asked)))
        pending.addCallback(self.close_after_test)
        self.clock.advance(0)
        return pending

    def answer(self, start: int = SIZE - 70, stop: int = SIZE, total: int = SIZE) -> None:
        self.wire.last.answer(206, DATA[start:stop], content_range=f"bytes {start}-{stop - 1}/{total}")

    def test_clients_that_ask_for_one_range_share_it(self) -> None:
        """The same range asked for by many at once is one request upstream."""
        self.cache_page()
        pending = [self.ask() for _ in range(3)]
        self.assertEqual(1, self.wire.paths.count(FILE))
        self.answer()
        expected = FileRange(SIZE - 70, SIZE, DATA[-70:])
        self.assertEqual([expected] * 3, [self.now(each) for each in pending])

    def test_answer_that_is_not_the_range_is_not_used(self) -> None:
        """Another range, one of no known length, or an encoded one: the whole file is fetched instead."""
        self.cache_page()
        for headers in (
            {"content_range": f"bytes 0-69/{SIZE}"},
            {"content_range": f"bytes {SIZE - 70}-{SIZE - 1}/*"},
            {"content_range": f"bytes {SIZE - 70}-{SIZE - 1}/{SIZE}", "content_encoding": "gzip"},
            {"content_range": "x"},
            {},
        ):
            self.proxy = self.make_proxy()
            pending = self.ask()
            self.wire.last.answer(206, DATA[-70:], **headers)
            self.assertNotIn("range", self.wire.last.headers)
            self.wire.last.answer(body=DATA)
            self.assertIsInstance(self.now(pending), LocalContent)
            self.now(self.storage.delete(LINK))
