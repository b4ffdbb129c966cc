"""Tests that no request leaves anything behind, in whatever order requests are answered, fail, and are cancelled."""

from __future__ import annotations

import random
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from mypypi.upstream.responses import FileResponse
from tests.support.fakes import MemoryCatalog
from tests.support.memory import response
from tests.upstream.cases import FILE, TIMEOUT, BreakerTestCase, paths

LIMIT = 8
STATUSES = (200, 200, 200, 302, 304, 403, 404, 429, 500, 502, 503)


class SlowCatalog(MemoryCatalog):
    """A catalog whose calls take time, so that requests are cancelled while they wait for it."""

    async def check(self) -> None:
        await deferLater(self._clock, 0.05)
        await super().check()


class LeakTest(BreakerTestCase):
    """Any mix of requests leaves all places free, no trial, and no timer."""

    retries = (0.2, 0.6)

    def setUp(self) -> None:
        super().setUp()
        self.catalog = SlowCatalog(self.clock)
        self.upstream = self.make_upstream(concurrency=LIMIT)
        self.chance = random.Random(20)  # noqa: S311 - an order that can be repeated
        self.pending: list[Deferred[Any]] = []
        self.bodies: list[FileResponse] = []
        self.cancelled = self.ended = 0

    def test_no_place_no_trial_and_no_timer_is_left(self) -> None:
        """Each request gives back what it took once, wherever it was when it ended."""
        for _ in range(15):
            for _ in range(100):
                self.wire.refuses = self.chance.random() < 0.2
                self.wire.silent = self.chance.random() < 0.1
                self.request_something()
                for _ in range(3):
                    self.disturb_something()
            self.end_all()
            self.assertEqual([], self.clock.getDelayedCalls())
            self.assert_all_places_are_free()
        self.assertGreater(self.cancelled, 100, "requests were cancelled")
        self.assertGreater(self.ended, 100, "requests ended by themselves")

    def request_something(self) -> None:
        path, client = f"/{self.chance.randrange(20)}/", self.chance.choice("abc")
        kind = self.chance.choice(("page", "keys", "file", "audit"))
        if kind == "file":
            url = self.chance.choice((FILE, f"{self.url}{path}"))
            self.pending.append(self.file(url, client=client).addCallback(self.bodies.append))
        elif kind == "audit":
            self.pending.append(self.audit(path, client=client))
        else:
            background = self.chance.random() < 0.2
            self.pending.append(self.page(path, kind=kind, client=client, etag='"1"', background=background))

    def disturb_something(self) -> None:
        """Let time pass, cancel a request, close a file, or let upstream answer, partly or as a whole."""
        act = self.chance.random()
        waiting = [each for each in self.pending if not each.called]
        open_ones = [each for each in self.wire.exchanges if not each.closed and not each.paused]
        if act < 0.3:
            self.clock.advance(self.chance.choice((0, 0.02, 0.05, 0.1, 0.5, 3, TIMEOUT)))
        elif act < 0.4 and waiting:
            self.cancelled += 1
            self.chance.choice(waiting).cancel()
        elif act < 0.5 and self.bodies:
            self.bodies.pop(0).close()
        elif act < 0.6 and open_ones:
            self.chance.choice(open_ones).cut()
        elif open_ones:
            answer = response(self.chance.choice(STATUSES), b"{}", location=f"/{self.chance.randrange(20)}/")
            self.chance.choice(open_ones).send(answer[: self.chance.choice((1, 30, -1, len(answer)))])

    def end_all(self) -> None:
        """Wait until every request has ended, and every pause."""
        self.wire.silent = False
        self.wire.hang_up()
        self.clock.pump([1.0] * 200)
        for body in self.bodies:
            body.close()
        self.clock.pump([1.0] * 10)
        for each in self.pending:
            each.addErrback(lambda failure: failure.value)
            self.ended += not isinstance(self.successResultOf(each), Exception)
        self.pending.clear()
        self.bodies.clear()
        self.wire.exchanges.clear()
        self.wire.refuses = False

    def assert_all_places_are_free(self) -> None:
        """Send a request, which ends any pause; then fill all places with two kinds. So much is sent, and no more."""
        for kind in ("page", "search"):
            first = self.page(kind=kind)
            self.clock.pump([0.05] * 20)
            self.wire.last.answer(body=b"{}")
            self.clock.pump([0.05] * 20)
            self.successResultOf(first)
        self.wire.exchanges.clear()
        asked = [self.page(path, kind=kind, client=path) for kind in ("page", "search") for path in paths(LIMIT)]
        self.clock.pump([0.05] * 20)
        self.assertEqual(LIMIT, self.request_count)
        for each in asked:
            each.addErrback(lambda _: None)
            each.cancel()
        self.clock.pump([0.05] * 20)
        self.wire.exchanges.clear()
