"""Tests of the limit of concurrent requests, and of the shares of kinds and clients."""

from __future__ import annotations

import random

from twisted.internet.defer import CancelledError, Deferred

from mypypi.errors import UpstreamBusy, UpstreamDown
from mypypi.observability import metrics
from mypypi.upstream.limiter import ConcurrencyLimiter, Place
from tests.support.memory import MemoryTestCase
from tests.upstream.cases import TIMEOUT, UpstreamTestCase, end_abandoned_requests, paths

KINDS = ("page", "file", "audit", "search", "keys")


class LimiterTestCase(MemoryTestCase):
    """A limiter, and the places that its requests got."""

    def setUp(self) -> None:
        super().setUp()
        self.limiter = ConcurrencyLimiter(64, metered=False)

    def ask(self, kind: str = "page", client: str = "", *, background: bool = False) -> Deferred[Place]:
        return self.start(self.limiter.acquire(kind, client, background=background))

    def ask_often(self, count: int, kind: str = "page", client: str = "") -> list[Deferred[Place]]:
        return [self.ask(kind, client) for _ in range(count)]

    def ask_as_many(self, count: int, kind: str = "page") -> list[Deferred[Place]]:
        """Ask as one client each."""
        return [self.ask(kind, f"{kind} client {number}") for number in range(count)]

    def release(self, asked: Deferred[Place]) -> None:
        self.successResultOf(asked).release()

    def leave(self, asked: Deferred[Place]) -> None:
        """Release the place of this request, or cancel the request while it waits."""
        if running([asked]):
            self.release(asked)
        elif not asked.called:
            asked.cancel()
            self.failureResultOf(asked, CancelledError)
        else:
            self.failureResultOf(asked, UpstreamBusy)


def running(asked: list[Deferred[Place]]) -> int:
    """Return how many of these requests have got a place."""
    return sum(each.called and isinstance(each.result, Place) for each in asked)


class ShareTest(LimiterTestCase):
    """A kind holds at most half of the places; one client at most three quarters of those, and of all."""

    def test_one_kind_holds_half(self) -> None:
        """Requests of one kind that hang leave half of the places to other kinds, however many clients ask."""
        hanging = self.ask_as_many(200)
        self.assertEqual(32, running(hanging))
        self.assertEqual(32, running(self.ask_as_many(200, "file")))

    def test_no_kind_holds_more_than_half_of_any_number(self) -> None:
        """This holds for each number of places above one. The single place of one is for all kinds in turn."""
        for limit in (1, 2, 3, 4, 5, 6, 7, 8, 9, 63, 64, 65):
            self.limiter = ConcurrencyLimiter(limit, metered=False)
            hanging = self.ask_as_many(8 * limit)
            self.assertEqual(max(1, limit // 2), running(hanging), limit)
            others = self.ask_as_many(8 * limit, "file")
            self.assertEqual(min(limit - max(1, limit // 2), max(1, limit // 2)), running(others), limit)

    def test_single_place_serves_all_in_turn(self) -> None:
        """With one place, requests run one after another, whatever their kind and client."""
        self.limiter = ConcurrencyLimiter(1, metered=False)
        asked = [self.ask(kind, client) for kind in KINDS[:2] for client in ("a", "b")]
        for each in asked:
            self.assertEqual((1, 1), (running(asked), running([each])))
            self.release(each)

    def test_one_client_leaves_a_quarter_of_a_kind(self) -> None:
        """What one client asks for leaves places of the same kind to others."""
        self.assertEqual(24, running(self.ask_often(200, client="a")))
        self.assertEqual(8, running(self.ask_often(200, client="b")))

    def test_one_client_never_fills_all_places(self) -> None:
        """One client that asks for all kinds leaves a quarter of all places to others."""
        for limit in (2, 3, 4, 8, 64):
            self.limiter = ConcurrencyLimiter(limit, metered=False)
            asked = [each for kind in KINDS for each in self.ask_often(2 * limit, kind, "a")]
            self.assertLess(running(asked), limit)
            self.assertGreaterEqual(running(asked), limit // 2)
            others = [each for kind in KINDS for each in self.ask_often(2, kind, "b")]
            self.assertGreaterEqual(running(others), 1, limit)

    def test_freed_places_go_to_clients_in_turn(self) -> None:
        """A client that asks for much does not delay one that asks for little."""
        hanging = self.ask_as_many(32)
        greedy = self.ask_often(100, client="greedy")
        modest = self.ask_often(2, client="modest")
        self.assertEqual(0, running(greedy + modest))
        for asked in hanging[:4]:
            self.release(asked)
        self.assertEqual((2, 2), (running(greedy), running(modest)))

    def test_freed_place_goes_to_the_kind_that_runs_least(self) -> None:
        """A request does not wait behind the queues of two other kinds that have taken all places."""
        pages, files = self.ask_as_many(100), self.ask_as_many(100, "file")
        audits = self.ask_as_many(3, "audit")
        self.assertEqual((32, 32, 0), (running(pages), running(files), running(audits)))
        self.release(pages[0])
        self.release(files[0])
        self.assertEqual((31, 31, 2), (running(pages), running(files), running(audits)))
        self.release(audits[0])
        self.assertEqual((31, 31, 2), (running(pages), running(files), running(audits)))
        self.release(audits[1])
        self.assertEqual((32, 31, 1), (running(pages), running(files), running(audits)))

    def test_whole_files_come_last(self) -> None:
        """A freed place goes to what a resolution reads, although more of that runs already."""
        metadata, files = self.ask_often(30, "metadata", "a"), self.ask_often(30, "file", "a")
        others = self.ask_as_many(16, "range")
        self.assertEqual((24, 24, 16), (running(metadata), running(files), running(others)))
        self.release(others[0])
        self.assertEqual((24, 24, 15), (running(metadata), running(files), running(others)))
        wanted, file = self.ask("range", "b"), self.ask("file", "b")
        self.assertEqual((1, 0), (running([wanted]), running([file])))
        for each in others[1:3]:
            self.release(each)
        self.assertEqual(1, running([file]))

    def test_kinds_and_clients_that_ended_hold_nothing(self) -> None:
        """Places are counted down to zero: after any number of requests, all of them are free."""
        for _ in range(3):
            asked = [*self.ask_as_many(100), *self.ask_as_many(100, "file"), *self.ask_often(50, "audit", "a")]
            for each in asked:
                self.release(each)
        self.assertEqual(32, running(self.ask_as_many(100)))


class QueueTest(LimiterTestCase):
    """The queue is bounded, and has shares of the same sizes as the places."""

    def refused(self, asked: list[Deferred[Place]]) -> int:
        count = 0
        for each in asked:
            if each.called and not isinstance(each.result, Place):
                self.failureResultOf(each, UpstreamBusy)
                count += 1
        return count

    def test_queue_has_sixteen_places_for_each_that_runs(self) -> None:
        """One kind fills half of the queue. Further requests fail at once."""
        asked = self.ask_as_many(32 + 512 + 10)
        self.assertEqual((32, 10), (running(asked), self.refused(asked)))
        self.assertEqual(0, self.refused(self.ask_as_many(32 + 512, "file")))
        self.assertEqual(1, self.refused([self.ask("audit")]))

    def test_one_client_leaves_a_quarter_of_the_queue(self) -> None:
        """What one client asks for leaves room to others that wait for the same kind."""
        self.assertEqual(10, self.refused(self.ask_often(24 + 384 + 10, client="a")))
        self.assertEqual(0, self.refused(self.ask_often(8 + 128, client="b")))
        self.assertEqual(1, self.refused([self.ask(client="c")]))

    def test_request_that_has_room_does_not_wait_for_the_queue(self) -> None:
        """A full queue of one kind does not refuse requests of another kind."""
        self.ask_as_many(32 + 512)
        self.assertEqual(1, running([self.ask("file")]))

    def test_cancelled_waiter_leaves_the_queue(self) -> None:
        """A waiter that is cancelled gets no place, and its place in the queue is free."""
        hanging = self.ask_as_many(32)
        waiting = self.ask_as_many(512)
        for each in waiting[:-1]:
            each.cancel()
            self.failureResultOf(each, CancelledError)
        self.assertEqual(0, self.refused(self.ask_as_many(511)))
        self.release(hanging[0])
        self.assertEqual(1, running(waiting[-1:]))

    def test_request_cancelled_with_its_place_is_released_by_its_owner(self) -> None:
        """Cancelling a request that got its place meanwhile changes nothing: its owner releases the place once."""
        hanging = self.ask_as_many(32)
        waiting = self.ask(client="a")
        self.release(hanging[0])
        waiting.cancel()
        self.release(waiting)
        self.assertEqual(1, running(self.ask_as_many(5)))

    def test_no_place_is_lost_or_doubled(self) -> None:
        """After any order of requests, cancellations and releases, all places are free, and none is twice."""
        chance = random.Random(20)  # noqa: S311 - an order that can be repeated
        for limit in (1, 2, 3, 5, 8):
            self.limiter = ConcurrencyLimiter(limit, metered=False)
            asked: list[Deferred[Place]] = []
            for _ in range(2000):
                act = chance.random()
                if act < 0.5 or not asked:
                    kind, client = chance.choice(KINDS), chance.choice("abc")
                    asked.append(self.ask(kind, client, background=chance.random() < 0.1))
                else:
                    self.leave(asked.pop(chance.randrange(len(asked))))
                self.assertLessEqual(running(asked), limit)
            while asked:
                self.leave(asked.pop(0))
            fresh = [each for kind in KINDS for each in self.ask_as_many(limit, kind)]
            self.assertEqual(limit, running(fresh))


class BackgroundTest(LimiterTestCase):
    """Background requests run only in places that clients do not need."""

    def test_background_requests_leave_half_of_a_kind(self) -> None:
        """Background requests take half of a kind's places, and do not wait in the queue."""
        asked = [self.ask(background=True) for _ in range(20)]
        self.assertEqual(16, running(asked))
        self.assertFalse(self.limiter.has_spare_capacity("page"))
        self.assertTrue(self.limiter.has_spare_capacity("file"))
        for each in asked[16:]:
            self.failureResultOf(each, UpstreamBusy)
        self.assertEqual(16, running(self.ask_as_many(20)))

    def test_background_requests_leave_half_of_all(self) -> None:
        """While half of all places are taken, no background request of any kind runs."""
        self.ask_as_many(16)
        self.ask_as_many(16, "file")
        self.assertFalse(self.limiter.has_spare_capacity("audit"))
        self.failureResultOf(self.ask("audit", background=True), UpstreamBusy)


class UpstreamLimitTest(UpstreamTestCase):
    """The upstream client keeps to the limits: with hanging requests, others are sent and answered."""

    def setUp(self) -> None:
        super().setUp()
        self.upstream = self.make_upstream(concurrency=8)
        end_abandoned_requests()
        self.before = self.counts()

    def test_hanging_pages_leave_room(self) -> None:
        """While pages hang, files and audits are sent; while one client's pages hang, another's are sent."""
        for path in paths(50):
            self.page(path, client="greedy")
        self.assertEqual(3, self.request_count)
        self.page("/simple/thing/", client="modest")
        self.assertEqual("/simple/thing/", self.wire.last.path.removeprefix("/root"))
        self.page("/simple/other/", client="late")
        self.file(client="modest")
        self.audit(client="modest")
        self.assertEqual(6, self.request_count)
        self.assertEqual((6.0, 48.0), self.counts())

    def test_hanging_bodies_keep_their_places(self) -> None:
        """A body that stalls takes a place of its kind until its time-out, and then frees it."""
        pending = [self.page(path, client=path) for path in paths(5)]
        for exchange in list(self.wire.exchanges):
            exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{")
        self.assertEqual(4, self.request_count)
        self.file()
        self.assertEqual(5, self.request_count)
        self.clock.advance(TIMEOUT)
        self.failing(pending[0], UpstreamDown)
        self.assertIn("/root/simple/4/", self.wire.paths)

    def test_full_queue_is_told_at_once(self) -> None:
        """
        A request beyond the queue's limit fails at once with 503 and Retry-After.

        When a request ends, another may wait.
        """
        refused = metrics.UPSTREAM_REFUSED._value.get()
        pending = [self.page(path, client=path) for path in paths(4 + 64)]
        self.assertEqual((4.0, 64.0), self.counts())
        error = self.failing(self.page("/more"), UpstreamBusy)
        self.assertEqual((503, 5), (error.status, error.retry_after))
        self.assertEqual(refused + 1, metrics.UPSTREAM_REFUSED._value.get())
        self.wire.exchanges[0].answer(body=b"{}")
        self.now(pending[0])
        self.assertNoResult(self.page("/more"))
        self.assertEqual((5, (4.0, 64.0)), (self.request_count, self.counts()))

    def test_background_requests_leave_half_of_the_slots(self) -> None:
        """Background requests leave half of the slots of their kind free. They do not wait in the queue."""
        self.upstream = self.make_upstream(concurrency=4)
        self.assertTrue(self.upstream.has_spare_capacity("page"))
        self.page("/1", background=True)
        self.assertEqual(1, self.request_count)
        self.assertFalse(self.upstream.has_spare_capacity("page"))
        self.failing(self.page("/2", background=True), UpstreamBusy)
        self.page("/3", client="a")
        self.assertEqual(2, self.request_count)

    def counts(self) -> tuple[float, float]:
        """Return how many requests of this test run and how many wait."""
        counts = metrics.UPSTREAM_RUNNING._value.get(), metrics.UPSTREAM_WAITING._value.get()
        before = getattr(self, "before", (0.0, 0.0))
        return counts[0] - before[0], counts[1] - before[1]
