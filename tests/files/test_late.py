"""Tests of files whose upstream answers later than clients wait."""

from __future__ import annotations

from mypypi.errors import UpstreamTimedOut
from mypypi.files.drafts import Drafts
from mypypi.files.room import Room
from mypypi.upstream.requester import LATE_LIMIT
from tests.files.test_fetch import DATA, SIZE, TIMEOUT, FetchTestCase, listed


class LateTest(FetchTestCase):
    """The request for a file goes on after clients have been let go."""

    def test_late_file_is_fetched_by_one_request(self) -> None:
        """A file whose first byte takes longer than the time-out is stored. Those who ask meanwhile join the fetch."""
        content = self.fetch()
        self.clock.advance(TIMEOUT)
        self.assertEqual((True, False), (content.late, content.ended))
        joined = self.fetches.join(listed())
        assert joined is not None
        joined.close()
        self.clock.advance(3)
        self.wire.last.answer(body=DATA)
        self.assertEqual((True, False), (content.whole, content.late))
        self.assertEqual(1, len(self.wire.exchanges))
        self.assert_stored()

    def test_late_request_has_a_limit(self) -> None:
        """Without an answer the fetch fails in the end, and its connection is closed."""
        content = self.fetch()
        self.clock.advance(TIMEOUT)
        self.clock.advance(LATE_LIMIT - TIMEOUT - 1)
        self.assertIsNone(content.error)
        self.clock.advance(1)
        self.assert_failed(content, UpstreamTimedOut)
        self.assertTrue(self.wire.last.closed)

    def test_late_rest_of_a_file_is_awaited(self) -> None:
        """A resumed transfer waits as long for its answer. Its readers keep what they have."""
        content = self.fetch()
        self.send_and_cut(5000, etag='"1"')
        self.wait_for_retry(1)
        self.clock.advance(TIMEOUT)
        self.assertEqual((False, True), (content.late, content.begun))
        self.clock.advance(3)
        self.send_rest(5000, etag='"1"')
        self.assertTrue(content.whole)

    def test_late_fetch_is_stopped_with_its_process(self) -> None:
        """A process that stops hands a late fetch over."""
        self.fetch()
        self.clock.advance(TIMEOUT)
        self.now(self.fetches.stop())
        self.assertEqual(0, len(self.fetches))
        again = self.fetch()
        self.assertFalse(again.late)
        self.wire.last.answer(body=DATA)
        self.assertTrue(again.whole)

    def test_followers_learn_that_a_draft_is_late(self) -> None:
        """Other processes on the host see that the fetch is late, and when it begins."""
        self.fetch()
        other = Drafts(self.root / "drafts", Room(self.root / "room")).open(
            next(iter(self.root.glob("drafts/*.note"))).stem
        )
        self.addCleanup(other.content.close)
        self.addCleanup(other.close)
        self.assertFalse(other.filling)
        self.clock.advance(TIMEOUT)
        other.refresh()
        self.assertTrue(other.content.late)
        self.send_head()
        other.refresh()
        self.assertEqual((False, True, SIZE), (other.content.late, other.content.begun, other.content.total))
        self.wire.last.send(DATA)
