"""Work that several ask for at the same time runs once."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred

from mypypi.coalescing import Coalescer
from mypypi.errors import UpstreamDown
from tests.support.memory import MemoryTestCase


class OnceTest(MemoryTestCase):
    """One run for each name, a Deferred for each who waits."""

    def setUp(self) -> None:
        super().setUp()
        self.once: Coalescer[str] = Coalescer()
        self.runs: list[Deferred[str]] = []

    async def work(self) -> str:
        self.runs.append(Deferred())
        return await self.runs[-1]

    def test_those_who_ask_meanwhile_share_one_run(self) -> None:
        """Each gets the result, of one run."""
        waiters = [self.once.run("a", self.work) for _ in range(3)]
        self.assertIn("a", self.once)
        self.runs[0].callback("done")
        self.assertEqual(["done"] * 3, [self.now(waiter) for waiter in waiters])
        self.assertEqual(1, len(self.runs))

    def test_names_do_not_share(self) -> None:
        """Other work runs beside it."""
        self.once.run("a", self.work)
        self.once.run("b", self.work)
        self.assertEqual(2, len(self.runs))

    def test_work_that_is_over_runs_again(self) -> None:
        """Nothing is remembered: who asks afterwards gets a new run."""
        self.once.run("a", self.work)
        self.runs[0].callback("old")
        self.assertNotIn("a", self.once)
        again = self.once.run("a", self.work)
        self.runs[1].callback("new")
        self.assertEqual("new", self.now(again))

    def test_work_that_never_waits_is_answered_at_once(self) -> None:
        """A run that is over before it could be joined leaves nothing behind."""

        async def at_once() -> str:
            return "done"

        self.assertEqual("done", self.now(self.once.run("a", at_once)))
        self.assertNotIn("a", self.once)

    def test_one_who_leaves_takes_nothing_from_the_others(self) -> None:
        """Cancelling one wait ends neither the work nor the other waits."""
        leaving, staying = self.once.run("a", self.work), self.once.run("a", self.work)
        leaving.cancel()
        self.failing(leaving, CancelledError)
        self.assertFalse(self.runs[0].called)
        self.runs[0].callback("done")
        self.assertEqual("done", self.now(staying))

    def test_work_goes_on_when_all_have_left(self) -> None:
        """Whoever asks next joins the run that nobody waits for."""
        leaving = self.once.run("a", self.work)
        leaving.cancel()
        self.failing(leaving, CancelledError)
        late = self.once.run("a", self.work)
        self.runs[0].callback("done")
        self.assertEqual("done", self.now(late))
        self.assertEqual(1, len(self.runs))

    def test_one_answer_may_make_another_leave(self) -> None:
        """A waiter that goes away because of what another one does with the result disturbs nobody."""
        first, second, third = (self.once.run("a", self.work) for _ in range(3))
        first.addCallback(lambda _: second.cancel())
        self.runs[0].callback("done")
        self.failing(second, CancelledError)
        self.assertEqual("done", self.now(third))

    def test_failure_reaches_everyone(self) -> None:
        """An error is as good as a result, and the next run starts clean."""
        waiters = [self.once.run("a", self.work) for _ in range(2)]
        self.runs[0].errback(UpstreamDown("gone"))
        for waiter in waiters:
            self.failing(waiter, UpstreamDown)
        self.assertNotIn("a", self.once)

    def test_expected_failure_without_a_waiter_is_silent(self) -> None:
        """What is wrong with upstream is told elsewhere."""
        leaving = self.once.run("a", self.work)
        leaving.cancel()
        self.failing(leaving, CancelledError)
        self.runs[0].errback(UpstreamDown("gone"))
        self.assertEqual([], self.flushLoggedErrors())

    def test_unexpected_failure_without_a_waiter_is_logged(self) -> None:
        """A mistake in the work is never lost."""
        leaving = self.once.run("a", self.work)
        leaving.cancel()
        self.failing(leaving, CancelledError)
        self.runs[0].errback(ZeroDivisionError())
        self.assertEqual(1, len(self.flushLoggedErrors(ZeroDivisionError)))
