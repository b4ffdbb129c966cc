"""Tests of what clients get while upstream is late with the first byte of a file."""

from __future__ import annotations

from mypypi.errors import UpstreamDown, UpstreamTimedOut
from mypypi.proxy.answers import LocalContent
from mypypi.upstream.requester import LATE_LIMIT
from tests.proxy.test_proxy import DATA, ProxyTestCase

#: Seconds for which a client waits for upstream: the default time-out.
TIMEOUT = 15


class LateFileTest(ProxyTestCase):
    """A client waits for the time-out, and the fetch goes on."""

    def setUp(self) -> None:
        super().setUp()
        self.cache_page()

    def test_file_is_had_by_the_next_try(self) -> None:
        """A file whose first byte takes 18 seconds is fetched once. The first client gets a 503, the next one joins."""
        first, before = self.start_fetch(), len(self.wire.exchanges)
        self.clock.advance(TIMEOUT - 0.1)
        self.assertNoResult(first)
        self.clock.advance(0.1)
        error = self.failing(first, UpstreamTimedOut)
        self.assertEqual((503, 5), (error.status, error.retry_after))
        second = self.request_file()
        self.clock.advance(3)
        self.assertNoResult(second)
        self.wire.last.answer(body=DATA)
        answer = self.now(second)
        assert isinstance(answer, LocalContent)
        self.assertTrue(answer.content.whole)
        self.assertEqual((True, before), (self.get_content().hit, len(self.wire.exchanges)))

    def test_each_client_waits_as_long(self) -> None:
        """A client that joins a late fetch waits for the length of the time-out, too."""
        first = self.start_fetch()
        self.clock.advance(10)
        second = self.request_file()
        self.clock.advance(5)
        self.failing(first, UpstreamTimedOut)
        self.assertNoResult(second)
        self.clock.advance(9.9)
        self.assertNoResult(second)
        self.clock.advance(0.1)
        self.failing(second, UpstreamTimedOut)
        self.wire.last.answer(body=DATA)
        self.assertTrue(self.get_content().hit)

    def test_fetch_is_given_up_in_the_end(self) -> None:
        """After a minute the fetch fails, and the file has a back-off."""
        first = self.start_fetch()
        self.clock.advance(TIMEOUT)
        self.failing(first, UpstreamTimedOut)
        self.clock.advance(LATE_LIMIT - TIMEOUT)
        self.assertEqual(0, len(self.fetches))
        again = self.request_file()
        self.clock.advance(2)
        self.wire.last.answer(500)
        self.assertIn("500", str(self.failing(again, UpstreamDown)))
