"""Tests of the pool's scheduling and limits, with processes and threads in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast
from unittest import mock

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred

from mypypi.errors import TemporarilyUnavailable
from mypypi.rendering import pool as pool_module
from mypypi.rendering.pool import SMALL_SECONDS, TASK_SECONDS, RenderPool
from mypypi.rendering.process import RenderProcess, RenderProcessEnded
from mypypi.rendering.tasks import LARGE, LARGEST_PAGE, UNDERSTATED, work_in
from mypypi.threads import Threads
from tests.rendering.processes import FakeProcess, encoded_work
from tests.support.memory import MemoryTestCase, WhenTold

P = ParamSpec("P")
T = TypeVar("T")

IDLE = 300.0


class ResultsLater(Threads):
    """Threads that run each function at once, and return its result when told."""

    def __init__(self) -> None:
        self.results: list[Callable[[], object]] = []

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        result, later = maybeDeferred(function, *args, **kwargs), Deferred[T]()
        self.results.append(lambda: result.chainDeferred(later))
        return later


def small(name: str) -> bytes:
    return encoded_work(name)


def large(name: str) -> bytes:
    return encoded_work(name, LARGE)


def identity(task: bytes) -> bytes:
    return task


class PoolTestCase(MemoryTestCase):
    """A pool whose processes answer with the task, when its threads are told to run."""

    size = 2

    def setUp(self) -> None:
        super().setUp()
        self.threads = WhenTold()
        self.processes: list[FakeProcess] = []
        self.missing: OSError | None = None
        self.pool = self.make_pool(self.size, self.threads)
        self.pool.startService()

    def make_pool(self, size: int, threads: Threads) -> RenderPool:
        return RenderPool(threads, self.clock, size, start=self._start)

    def _start(self) -> RenderProcess:
        if self.missing is not None:
            raise self.missing
        self.processes.append(FakeProcess(identity))
        return cast("RenderProcess", self.processes[-1])

    def run_tasks(self, *tasks: bytes) -> list[Deferred[bytes]]:
        running = [self.pool.run(task) for task in tasks]
        for each in running:
            self.addCleanup(each.addErrback, lambda _: None)
        return running

    @property
    def done(self) -> list[bytes]:
        """All tasks that any process has done."""
        return [task for process in self.processes for task in process.done]

    @property
    def alive(self) -> list[FakeProcess]:
        return [process for process in self.processes if process.is_alive]


class TestProcesses(PoolTestCase):
    """How many processes there are."""

    def test_the_first_process_is_started_with_the_pool(self) -> None:
        """The first page does not wait for the start of a process."""
        assert len(self.processes) == 1
        (page,) = self.run_tasks(small("a"))
        self.threads.finish()
        assert self.successResultOf(page) == small("a")
        assert len(self.processes) == 1

    def test_processes_are_started_when_they_are_needed(self) -> None:
        """A task that finds no free process gets a new one, up to the size of the pool. Others wait."""
        tasks = [small(name) for name in "abcde"]
        pages = self.run_tasks(*tasks)
        assert (len(self.processes), len(self.threads.waiting)) == (2, 2)
        self.threads.finish()
        assert [self.successResultOf(page) for page in pages] == tasks
        assert len(self.processes) == 2

    def test_surplus_processes_end_after_a_while(self) -> None:
        """All processes but one are ended after five minutes without a task."""
        self.run_tasks(small("a"), small("b"))
        self.threads.finish()
        self.clock.advance(IDLE - 1)
        self.run_tasks(small("c"))
        self.threads.finish()
        self.clock.advance(IDLE - 1)
        assert len(self.alive) == 2
        self.clock.advance(1)
        self.threads.finish()
        assert [process.is_closed for process in self.processes].count(True) == 1
        (page,) = self.run_tasks(small("d"))
        self.threads.finish()
        assert self.successResultOf(page) == small("d")
        assert len(self.processes) == 2

    def test_a_process_that_has_grown_is_replaced(self) -> None:
        """A process that holds much memory after a task is ended. The next task gets a new one."""
        (first,) = self.processes
        first.has_grown = True
        pages = self.run_tasks(small("a"))
        self.threads.finish()
        assert (self.successResultOf(pages[0]), first.is_closed) == (small("a"), True)
        pages = self.run_tasks(small("b"))
        self.threads.finish()
        assert self.successResultOf(pages[0]) == small("b")
        assert self.processes[1].done == [small("b")]

    def test_an_idle_process_that_has_died_gets_no_task(self) -> None:
        """A process that something else has ended is replaced before a task could fail with it."""
        (first,) = self.processes
        first.kill()
        (page,) = self.run_tasks(small("a"))
        self.threads.finish()
        assert self.successResultOf(page) == small("a")
        assert first.is_closed

    def test_a_process_that_ends_fails_its_own_task_alone(self) -> None:
        """A task fails with its process. The task that waits gets another one."""
        one, two, three = self.run_tasks(small("a"), small("b"), small("c"))
        first = self.processes[0]
        first.kill()
        self.threads.finish()
        self.failureResultOf(one, RenderProcessEnded)
        assert [self.successResultOf(page) for page in (two, three)] == [small("b"), small("c")]
        assert (first.is_closed, len(self.alive)) == (True, 2)

    def test_a_process_that_can_not_be_started_refuses_what_waits(self) -> None:
        """Without any process, tasks fail with a 503. The next one tries again to start a process."""
        self.processes[0].kill()
        self.missing = OSError("no memory")
        (page,) = self.run_tasks(small("a"))
        error = self.failureResultOf(page, TemporarilyUnavailable).value
        assert "no process can be started" in str(error)
        assert "no memory" in self.pool.trouble()
        self.missing = None
        (page,) = self.run_tasks(small("b"))
        self.threads.finish()
        assert self.successResultOf(page) == small("b")
        assert self.pool.trouble() == ""

    def test_the_pool_tries_to_start_a_process_while_none_can_be_started(self) -> None:
        """The trouble ends without another task once a process can be started."""
        self.processes[0].kill()
        self.missing = OSError("no memory")
        (page,) = self.run_tasks(small("a"))
        self.failureResultOf(page, TemporarilyUnavailable)
        assert [self.pool.trouble() != "" for _ in range(3)] == [True] * 3
        self.missing = None
        assert self.pool.trouble() == ""
        assert len(self.alive) == 1

    def test_processes_that_die_one_after_the_other_are_trouble(self) -> None:
        """A page may end its process. Three in a row are trouble, until one succeeds."""
        for number in range(3):
            assert self.pool.trouble() == ""
            (page,) = self.run_tasks(small(str(number)))
            self.alive[0].kill()
            self.threads.finish()
            self.failureResultOf(page, RenderProcessEnded)
        assert "the last 3 render processes ended" in self.pool.trouble()
        self.clock.advance(61)
        assert self.pool.trouble() == ""
        (page,) = self.run_tasks(small("again"))
        self.alive[0].kill()
        self.threads.finish()
        self.failureResultOf(page, RenderProcessEnded)
        assert "the last 4 render processes ended" in self.pool.trouble()
        (page,) = self.run_tasks(small("fine"))
        self.threads.finish()
        assert self.successResultOf(page) == small("fine")
        assert self.pool.trouble() == ""

    def test_a_process_that_can_not_be_started_leaves_the_others_their_work(self) -> None:
        """While another process runs, tasks wait for that one."""
        (first,) = self.run_tasks(small("a"))
        self.missing = OSError("no memory")
        (second,) = self.run_tasks(small("b"))
        self.assertNoResult(second)
        self.threads.finish()
        assert [self.successResultOf(page) for page in (first, second)] == [small("a"), small("b")]
        assert len(self.processes) == 1

    def test_a_pool_without_processes_starts(self) -> None:
        """A daemon starts even if no process can be started then."""
        self.missing = OSError("no memory")
        pool = self.make_pool(2, self.threads)
        pool.startService()
        self.missing = None
        page = pool.run(small("a"))
        self.threads.finish()
        assert self.successResultOf(page) == small("a")


class TestOrder(PoolTestCase):
    """Which task is next."""

    size = 3

    def test_large_tasks_leave_a_process_to_small_ones(self) -> None:
        """However many large tasks wait, a small one that comes later is done at once."""
        self.run_tasks(*(large(name) for name in "abcde"))
        assert len(self.threads.waiting) == 2
        self.run_tasks(small("f"))
        assert len(self.threads.waiting) == 3
        self.threads.finish()
        assert sorted(self.done) == sorted([*(large(name) for name in "abcde"), small("f")])

    def test_small_tasks_are_done_first(self) -> None:
        """Small tasks that come later are done before a second large one, even if there is a process for it."""
        self.run_tasks(small("a"), small("b"), large("c"), large("d"), small("e"), small("f"))
        expected = [small("a"), small("b"), large("c"), small("e"), small("f"), large("d")]
        for count in range(1, 7):
            self.threads.step()
            assert sorted(self.done) == sorted(expected[:count])

    def test_small_tasks_leave_a_process_to_large_ones(self) -> None:
        """However many small tasks come, a large one is done as soon as one process is free."""
        self.run_tasks(*(small(str(number)) for number in range(9)))
        self.run_tasks(large("a"), large("b"))
        for _ in range(4):
            self.threads.step()
        assert large("a") in self.done
        assert large("b") not in self.done

    def test_a_single_process_does_small_tasks_first(self) -> None:
        """A pool of one process does all tasks, small ones first."""
        self.pool = self.make_pool(1, self.threads)
        self.pool.startService()
        pages = self.run_tasks(small("a"), large("b"), small("c"), large("d"), small("e"))
        self.threads.finish()
        assert self.processes[-1].done == [small("a"), small("c"), small("e"), large("b"), large("d")]
        assert all(self.successResultOf(page) for page in pages)

    def test_smaller_tasks_pass_larger_ones_that_came_a_little_earlier(self) -> None:
        """A page that takes a moment to render does not keep smaller ones waiting, and does not wait for ever."""
        self.pool = self.make_pool(1, self.threads)
        self.pool.startService()
        page, other = encoded_work("page", 4 * 1024 * 1024), encoded_work("other", 4 * 1024 * 1024)
        self.run_tasks(small("a"), page, small("b"))
        self.clock.advance(SMALL_SECONDS * 0.75)
        self.run_tasks(small("c"), other)
        self.clock.advance(SMALL_SECONDS * 0.2)
        self.run_tasks(small("d"))
        self.threads.finish()
        assert self.processes[-1].done == [small("a"), small("b"), small("c"), small("d"), page, other]

    def test_tasks_of_a_size_are_done_in_order(self) -> None:
        """Tasks that are equally large are done in the order in which they came."""
        tasks = [make(name) for name in "abcdef" for make in (small, large)]
        self.run_tasks(*tasks)
        order: list[bytes] = []
        while self.threads.waiting:
            before = set(self.done)
            self.threads.step()
            order += set(self.done) - before
        for make in (small, large):
            assert [task for task in order if task in map(make, "abcdef")] == [make(name) for name in "abcdef"]


class TestWork(PoolTestCase):
    """Large tasks bound the bytes that they decompress together."""

    size = 4

    def test_large_tasks_share_the_work_of_the_largest_page(self) -> None:
        """Of tasks that have more work together than the largest page, some wait. Small ones do not."""
        tasks = [encoded_work(name, LARGEST_PAGE // 2) for name in "abc"]
        pages = self.run_tasks(*tasks, small("d"))
        assert len(self.threads.waiting) == 3
        assert len(self.processes) == 3
        self.threads.finish()
        assert [self.successResultOf(page) for page in pages] == [*tasks, small("d")]

    def test_a_task_with_more_work_than_any_page_is_done_alone(self) -> None:
        """The largest task waits for the others, and the others for it."""
        tasks = [encoded_work("a", LARGEST_PAGE + 1), encoded_work("b", LARGE), encoded_work("c", LARGEST_PAGE)]
        pages = self.run_tasks(*tasks)
        for done in (1, 2, 3):
            assert len(self.threads.waiting) == 1
            self.threads.step()
            assert [page.called for page in pages].count(True) == done

    def test_a_task_that_understates_its_work_is_done_again_as_a_large_one(self) -> None:
        """It is done again with the work of the largest page, and not a third time."""
        works: list[int] = []

        def understate(task: bytes) -> bytes:
            works.append(work_in(task))
            return UNDERSTATED

        self.processes[0]._do = understate
        (page,) = self.run_tasks(small("a"))
        self.threads.finish()
        assert self.successResultOf(page) == UNDERSTATED
        assert works == [0, LARGEST_PAGE]


class TestPriority(PoolTestCase):
    """Large tasks do not take the processor from clients, nor from small tasks."""

    def test_a_process_that_does_a_large_task_is_slowed_down(self) -> None:
        """The process of a large task is slow, and gets the next large task. Small tasks get the other one."""
        self.run_tasks(large("a"), small("b"))
        self.threads.finish()
        slow, fast = self.processes
        assert (slow.is_slow, fast.is_slow) == (True, False)
        for _ in range(2):
            self.run_tasks(small("c"), large("d"))
            self.threads.finish()
        assert slow.done == [large("a"), large("d"), large("d")]
        assert fast.done == [small("b"), small("c"), small("c")]

    def test_the_only_process_is_never_slowed_down(self) -> None:
        """The only process of a pool keeps its priority, since small tasks need it, too."""
        self.pool = self.make_pool(1, self.threads)
        self.pool.startService()
        self.run_tasks(large("a"))
        self.threads.finish()
        assert not self.processes[-1].is_slow


class TestLimits(PoolTestCase):
    """Tasks that take too long, and too many tasks."""

    def test_a_task_that_takes_too_long_is_ended_with_its_process(self) -> None:
        """A large task fails after its time. Another task gets a new process."""
        slow, other = self.run_tasks(large("slow"), large("other"))
        (process,) = self.processes
        self.clock.advance(TASK_SECONDS - 0.1)
        assert self.alive == [process]
        self.clock.advance(0.1)
        assert self.alive == []
        self.assertNoResult(other)
        self.threads.finish()
        self.failureResultOf(slow, RenderProcessEnded)
        assert self.successResultOf(other) == large("other")
        assert (len(self.processes), process.is_closed) == (2, True)

    def test_a_task_in_time_has_no_limit_any_more(self) -> None:
        """The limit of a task does not end the next one of its process."""
        self.run_tasks(large("a"))
        self.clock.advance(TASK_SECONDS - 1)
        self.threads.finish()
        (page,) = self.run_tasks(large("b"))
        self.clock.advance(TASK_SECONDS - 1)
        self.threads.finish()
        assert self.successResultOf(page) == large("b")
        assert len(self.processes) == 1

    def test_a_small_task_that_takes_long_becomes_a_large_one(self) -> None:
        """
        A page of few bytes that takes long is stopped, and done again as a large task.

        So a page that only seems to be small does not keep small ones out, and a slow machine loses no page.
        """
        slow, also_slow = self.run_tasks(small("slow"), small("also slow"))
        self.clock.advance(SMALL_SECONDS)
        assert self.alive == []
        self.threads.step()
        self.threads.step()
        assert len(self.alive) == 1, "one of them runs as a large task, and the other one waits"
        (quick,) = self.run_tasks(small("quick"))
        assert len(self.alive) == 2
        self.clock.advance(SMALL_SECONDS - 0.1)
        self.threads.finish()
        assert [self.successResultOf(page) for page in (quick, slow, also_slow)] == [
            small("quick"),
            small("slow"),
            small("also slow"),
        ]

    def test_a_small_task_that_takes_too_long_fails_at_last(self) -> None:
        """A task that was done again as a large one has no third chance."""
        (slow,) = self.run_tasks(small("slow"))
        self.clock.advance(SMALL_SECONDS)
        self.threads.step()
        self.assertNoResult(slow)
        self.clock.advance(TASK_SECONDS)
        self.threads.finish()
        self.failureResultOf(slow, RenderProcessEnded)
        assert (self.alive, len(self.processes)) == ([], 2)

    def test_a_process_that_is_killed_just_after_its_task_is_not_used_again(self) -> None:
        """A result may arrive in the same moment as the limit. It counts, but its process is gone."""
        threads = ResultsLater()
        self.pool = self.make_pool(2, threads)
        self.pool.startService()
        (page,) = self.run_tasks(large("a"))
        self.clock.advance(TASK_SECONDS)
        assert self.processes[-1].is_killed
        threads.results.pop()()
        assert self.successResultOf(page) == large("a")
        assert self.processes[-1].is_closed

    def test_too_many_tasks_are_refused(self) -> None:
        """More tasks than may wait get a 503. There is room again when one of them is done."""
        with mock.patch.object(pool_module, "_MOST_WAITING", 3):
            pages = self.run_tasks(*(small(name) for name in "abcde"))
            (refused,) = self.run_tasks(large("f"))
            error = self.failureResultOf(refused, TemporarilyUnavailable).value
            assert (str(error), error.retry_after) == ("too many pages wait to be rendered: try again", 5)
            self.threads.step()
            pages += self.run_tasks(small("g"))
            self.threads.finish()
        assert len([self.successResultOf(page) for page in pages]) == 6

    def test_too_many_bytes_are_refused(self) -> None:
        """More bytes than may wait get a 503. There is room again when their tasks are done."""
        task = small("a")
        with mock.patch.object(pool_module, "_MOST_WAITING_BYTES", 3 * len(task)):
            for _ in range(2):
                pages = self.run_tasks(*[task] * 5)
                (refused,) = self.run_tasks(task)
                self.failureResultOf(refused, TemporarilyUnavailable)
                self.threads.finish()
                assert [self.successResultOf(page) for page in pages] == [task] * 5


class TestEnd(PoolTestCase):
    """Callers that leave, and the end of the daemon."""

    def test_a_task_that_no_caller_waits_for_is_not_done(self) -> None:
        """A task whose caller has left before it began is dropped."""
        pages = self.run_tasks(*(small(name) for name in "abc"), large("d"), large("e"))
        for page in pages[2:4]:
            page.cancel()
            self.failureResultOf(page, CancelledError)
        self.threads.finish()
        assert sorted(self.done) == sorted([small("a"), small("b"), large("e")])

    def test_dropped_tasks_take_no_room(self) -> None:
        """Tasks that were dropped do not count as waiting bytes."""
        task = small("a")
        with mock.patch.object(pool_module, "_MOST_WAITING_BYTES", 3 * len(task)):
            for page in self.run_tasks(*[task] * 5)[2:]:
                page.cancel()
                page.addErrback(lambda _: None)
            self.threads.finish()
            pages = self.run_tasks(*[task] * 5)
            self.threads.finish()
        assert [self.successResultOf(page) for page in pages] == [task] * 5

    def test_the_result_for_a_caller_that_has_left_is_dropped(self) -> None:
        """A caller that leaves in the middle of a task does not end its process."""
        (page,) = self.run_tasks(small("a"))
        page.cancel()
        self.failureResultOf(page, CancelledError)
        self.threads.finish()
        (page,) = self.run_tasks(small("b"))
        self.threads.finish()
        assert self.successResultOf(page) == small("b")
        assert len(self.alive) == 1

    def test_a_slow_task_for_a_caller_that_has_left_is_not_done_again(self) -> None:
        """A small task that took long is dropped if its caller has left."""
        (page,) = self.run_tasks(small("a"))
        page.cancel()
        self.failureResultOf(page, CancelledError)
        self.clock.advance(SMALL_SECONDS)
        self.threads.finish()
        assert self.done == []

    def test_stopping_ends_everything_at_once(self) -> None:
        """
        All processes are killed. Tasks that run or wait fail with a 503, as a stop is no fault of their pages.

        A task that comes later is refused, and no timer is left.
        """
        self.run_tasks(small("a"), small("b"))
        self.threads.finish()
        pages = self.run_tasks(small("c"), large("d"), small("e"), large("f"))
        self.pool.stopService()
        assert self.alive == []
        for page in pages[2:]:
            self.failureResultOf(page, TemporarilyUnavailable)
        self.threads.finish()
        for page in [*pages[:2], *self.run_tasks(small("g"))]:
            error = self.failureResultOf(page, TemporarilyUnavailable).value
            assert (str(error), error.retry_after) == ("this server is being stopped: try again", 1)
        assert all(process.is_closed for process in self.processes)
        assert self.clock.getDelayedCalls() == []

    def test_stopping_closes_idle_processes(self) -> None:
        """Idle processes are closed before the stop returns."""
        self.run_tasks(small("a"), small("b"))
        self.threads.finish()
        self.pool.stopService()
        assert [process.is_closed for process in self.processes] == [True, True]
        assert self.clock.getDelayedCalls() == []

    def test_a_task_that_ends_with_the_pool_keeps_its_result(self) -> None:
        """A result that came just before the stop is not lost."""
        threads = ResultsLater()
        self.pool = self.make_pool(2, threads)
        self.pool.startService()
        (page,) = self.run_tasks(small("a"))
        self.pool.stopService()
        threads.results.pop()()
        assert self.successResultOf(page) == small("a")
        assert self.processes[-1].is_closed
