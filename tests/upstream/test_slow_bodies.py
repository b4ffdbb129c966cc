"""Tests of pages and other answers that upstream sends too slowly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred

from mypypi.errors import UpstreamDown
from mypypi.upstream.pace import LONGEST_PAGE
from tests.support.memory import response
from tests.upstream.cases import UpstreamTestCase

SIZE = 10_000_000


class SlowBodyTest(UpstreamTestCase):
    """An answer that comes too slowly fails, and its place is free."""

    def trickle(self, ask: Callable[[], Deferred[Any]], count: int, every: float) -> tuple[float, str]:
        """Answer with a body of so many bytes at this interval; return when and why that ended."""
        self.upstream = self.make_upstream(concurrency=1)
        pending, began = ask(), self.clock.seconds()
        self.wire.last.send(response(200, b"", content_length=str(SIZE), content_type="application/json"))
        while not self.wire.last.closed:
            self.assertNoResult(pending)
            self.clock.advance(every)
            self.wire.last.send(b" " * count)
        return self.clock.seconds() - began, str(self.failing(pending, UpstreamDown))

    def test_one_byte_every_five_seconds(self) -> None:
        """A page, and the answer to an audit, end after 30 seconds if they come a byte every five seconds."""
        for ask in (self.page, self.audit):
            lasted, why = self.trickle(ask, 1, 5)
            self.assertEqual(30, lasted)
            self.assertEqual("upstream sent less than 1000 bytes per second for 30 seconds", why)

    def test_page_has_ten_minutes(self) -> None:
        """A page that keeps the lowest rate ends after ten minutes."""
        lasted, why = self.trickle(self.page, 1100, 1)
        self.assertEqual(LONGEST_PAGE, lasted)
        self.assertEqual("upstream took more than 10 minutes for the page", why)

    def test_place_is_free_again(self) -> None:
        """A page that was too slow gives its place to the next request, which waited for it."""
        self.upstream = self.make_upstream(concurrency=1)
        self.page("/slow")
        self.wire.last.send(response(200, b"", content_length=str(SIZE)))
        waiting = self.page("/next")
        self.assertEqual(["/root/slow"], self.wire.paths)
        slow = self.wire.last
        while not slow.closed:
            slow.send(b" ")
            self.clock.advance(5)
        self.assertEqual(["/root/slow", "/root/next"], self.wire.paths)
        self.wire.last.answer(body=b"{}", content_type="application/json")
        assert self.now(waiting).source is not None
