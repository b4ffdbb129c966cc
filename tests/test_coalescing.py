"""Tests of `mypypi.coalescing`: calls at the same time, or shortly after each other, share one run."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred

from mypypi.coalescing import Coalescer, RecentResult
from mypypi.errors import UpstreamDown
from tests.support.memory import MemoryTestCase


class CoalescerTest(MemoryTestCase):
    """Callers of one name share one run, and each has its own Deferred."""

    def setUp(self) -> None:
        super().setUp()
        self.coalescer: Coalescer[str] = Coalescer()
        self.runs: list[Deferred[str]] = []

    async def work(self) -> str:
        self.runs.append(Deferred())
        return await self.runs[-1]

    def test_concurrent_callers_share_one_run(self) -> None:
        """Concurrent callers of one name get the result of a single run."""
        waiters = [self.coalescer.run("a", self.work) for _ in range(3)]
        self.assertIn("a", self.coalescer)
        self.runs[0].callback("done")
        self.assertEqual(["done"] * 3, [self.now(waiter) for waiter in waiters])
        self.assertEqual(1, len(self.runs))

    def test_different_names_run_separately(self) -> None:
        """Calls with different names run separately."""
        self.coalescer.run("a", self.work)
        self.coalescer.run("b", self.work)
        self.assertEqual(2, len(self.runs))

    def test_finished_work_runs_again(self) -> None:
        """A call after the end of a run starts a new one: no result is cached."""
        self.coalescer.run("a", self.work)
        self.runs[0].callback("old")
        self.assertNotIn("a", self.coalescer)
        again = self.coalescer.run("a", self.work)
        self.runs[1].callback("new")
        self.assertEqual("new", self.now(again))

    def test_work_that_does_not_wait_fires_at_once(self) -> None:
        """Work that finishes without waiting fires at once, and leaves no entry behind."""

        async def at_once() -> str:
            return "done"

        self.assertEqual("done", self.now(self.coalescer.run("a", at_once)))
        self.assertNotIn("a", self.coalescer)

    def test_a_cancelled_caller_does_not_affect_the_others(self) -> None:
        """Cancelling one caller stops neither the work nor the other callers."""
        cancelled, waiting = self.coalescer.run("a", self.work), self.coalescer.run("a", self.work)
        cancelled.cancel()
        self.failing(cancelled, CancelledError)
        self.assertFalse(self.runs[0].called)
        self.runs[0].callback("done")
        self.assertEqual("done", self.now(waiting))

    def test_work_continues_after_every_caller_has_cancelled(self) -> None:
        """Work continues after every caller has cancelled. The next caller of the name joins it."""
        cancelled = self.coalescer.run("a", self.work)
        cancelled.cancel()
        self.failing(cancelled, CancelledError)
        late = self.coalescer.run("a", self.work)
        self.runs[0].callback("done")
        self.assertEqual("done", self.now(late))
        self.assertEqual(1, len(self.runs))

    def test_a_callback_may_cancel_another_caller(self) -> None:
        """A caller's callback may cancel another caller. The remaining callers still get the result."""
        first, second, third = (self.coalescer.run("a", self.work) for _ in range(3))
        first.addCallback(lambda _: second.cancel())
        self.runs[0].callback("done")
        self.failing(second, CancelledError)
        self.assertEqual("done", self.now(third))

    def test_failure_reaches_every_caller(self) -> None:
        """Every caller gets the failure, and the next run starts afresh."""
        waiters = [self.coalescer.run("a", self.work) for _ in range(2)]
        self.runs[0].errback(UpstreamDown("gone"))
        for waiter in waiters:
            self.failing(waiter, UpstreamDown)
        self.assertNotIn("a", self.coalescer)

    def test_expected_failure_without_a_caller_is_not_logged(self) -> None:
        """
        An expected failure is not logged when every caller has cancelled.

        Upstream's failures are logged elsewhere.
        """
        cancelled = self.coalescer.run("a", self.work)
        cancelled.cancel()
        self.failing(cancelled, CancelledError)
        self.runs[0].errback(UpstreamDown("gone"))
        self.assertEqual([], self.flushLoggedErrors())

    def test_unexpected_failure_without_a_caller_is_logged(self) -> None:
        """An unexpected error is logged even when every caller has cancelled."""
        cancelled = self.coalescer.run("a", self.work)
        cancelled.cancel()
        self.failing(cancelled, CancelledError)
        self.runs[0].errback(ZeroDivisionError())
        self.assertEqual(1, len(self.flushLoggedErrors(ZeroDivisionError)))


class RecentResultTest(MemoryTestCase):
    """A result is shared for a while; then the work runs again, and callers do not wait long for it."""

    def setUp(self) -> None:
        super().setUp()
        self.runs: list[Deferred[str]] = []
        self.result = RecentResult(self.work, self.clock, fresh=1.0, patience=0.02)

    async def work(self) -> str:
        self.runs.append(Deferred())
        return await self.runs[-1]

    def get(self) -> Deferred[str]:
        return Deferred.fromCoroutine(self.result.get())

    def first(self, result: str) -> None:
        waiting = self.get()
        self.clock.advance(10)
        self.assertNoResult(waiting)  # the first caller waits, since there is nothing else to return
        self.runs[0].callback(result)
        self.assertEqual(result, self.now(waiting))

    def test_a_result_is_shared_while_it_is_fresh(self) -> None:
        """Within `fresh` seconds, callers get the same result, and no work runs."""
        self.first("old")
        self.clock.advance(0.99)
        self.assertEqual("old", self.now(self.get()))
        self.assertEqual(1, len(self.runs))

    def test_a_new_result_in_time_is_used(self) -> None:
        """Later, the work runs again, and a caller gets the new result if it is there in time."""
        self.first("old")
        self.clock.advance(1)
        waiting = self.get()
        self.clock.advance(0.01)
        self.runs[1].callback("new")
        self.assertEqual("new", self.now(waiting))

    def test_a_caller_does_not_wait_for_slow_work(self) -> None:
        """While the work takes long, callers get the previous result, and the work runs once."""
        self.first("old")
        self.clock.advance(5)
        for _ in range(3):
            waiting = self.get()
            self.clock.advance(0.02)
            self.assertEqual("old", self.now(waiting))
        self.assertEqual(2, len(self.runs))
        self.runs[1].callback("new")
        self.assertEqual("new", self.now(self.get()))

    def test_a_renewed_result_is_waited_for(self) -> None:
        """A caller that needs a new result gets one, however long it takes."""
        self.first("old")
        waiting = Deferred.fromCoroutine(self.result.renew())
        self.clock.advance(10)
        self.assertNoResult(waiting)
        self.runs[1].callback("new")
        self.assertEqual(["new", "new"], [self.now(waiting), self.now(self.get())])

    def test_a_failure_is_not_remembered(self) -> None:
        """A caller gets the failure of the work that it waits for; the next one starts the work again."""
        self.first("old")
        self.clock.advance(1)
        waiting = self.get()
        self.runs[1].errback(UpstreamDown("no"))
        self.failing(waiting, UpstreamDown)
        self.get()
        self.runs[2].callback("new")
        self.assertEqual("new", self.now(self.get()))

    def test_a_clock_that_jumps_back_does_not_keep_a_result(self) -> None:
        """A result from the future is not fresh."""
        self.first("old")
        self.clock.rightNow -= 86400
        waiting = self.get()
        self.runs[1].callback("new")
        self.assertEqual("new", self.now(waiting))
