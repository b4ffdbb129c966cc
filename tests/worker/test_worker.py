"""Tests of the worker: how it runs jobs, what it logs, and how it stops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, LogLevel, eventAsText, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from mypypi.errors import CatalogDown, StorageDown
from mypypi.job import ClaimedJob, DeadJob, Job, QueueState
from mypypi.redis.queue import CLAIM_MS, MOST_TRIES
from mypypi.worker.jobs import Jobs
from mypypi.worker.worker import Worker
from tests.support.fakes import MemoryQueue, QueuedJobs

AN_HOUR = 3600.0
#: Seconds until a worker's claim expires, unless it is renewed.
CLAIM_SECONDS = CLAIM_MS / 1000
#: Seconds; longer than the queue waits for a job, and than the worker waits while the queue is down.
A_WHILE = 2.5


class FakeJobs:
    """Handlers that the test controls. A job of the kind ``wait`` ends when the test says so."""

    __test__ = False

    def __init__(self) -> None:
        self.started: list[str] = []
        self.running: dict[str, Deferred[None]] = {}
        self.cancelled: list[str] = []
        self.interrupted = 0
        self.ignores_interrupts = False
        self.error: Exception | None = None
        self.handlers: dict[str, Callable[[Job], Deferred[None]]] = {
            "wait": self.wait,
            "fail": self.fail,
            "sweep": self.record,
        }

    def record(self, job: Job) -> Deferred[None]:
        self.started.append(job.name)
        return succeed(None)

    def wait(self, job: Job) -> Deferred[None]:
        self.started.append(job.name)
        self.running[job.name] = Deferred(lambda _: self.cancelled.append(job.name))
        return self.running[job.name]

    def fail(self, job: Job) -> Deferred[None]:
        self.started.append(job.name)
        if self.error is not None:
            raise self.error
        return succeed(None)

    def interrupt(self) -> None:
        self.interrupted += 1
        if not self.ignores_interrupts:
            for each in list(self.running.values()):
                if not each.called:
                    each.errback(StorageDown("interrupted"))


class RecordingQueue(MemoryQueue):
    """Records renewals, and the result of each job."""

    def __init__(self, clock: Clock, jobs: QueuedJobs) -> None:
        super().__init__(clock, "d1", jobs=jobs)
        self.recorded: list[str] = []

    async def renew(self, taken: ClaimedJob) -> None:
        self.recorded.append(f"renewed {taken.job.name}")
        await super().renew(taken)

    async def done(self, taken: ClaimedJob) -> None:
        self.recorded.append(f"done {taken.job.name}")
        await super().done(taken)

    async def failed(self, taken: ClaimedJob, why: str) -> bool:
        self.recorded.append(f"failed {taken.job.name}: {why}")
        return await super().failed(taken, why)

    async def hand_back(self, taken: ClaimedJob) -> None:
        self.recorded.append(f"handed back {taken.job.name}")
        await super().hand_back(taken)


class WorkerTests(SynchronousTestCase):
    """A worker on a queue in memory."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.shared = QueuedJobs()
        self.queue = RecordingQueue(self.clock, self.shared)
        self.other = MemoryQueue(self.clock, "d1", jobs=self.shared)
        self.jobs = FakeJobs()
        self.worker = self.new_worker(2)
        self.events: list[LogEvent] = []
        observer = cast("ILogObserver", self.events.append)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def new_worker(self, concurrency: int) -> Worker:
        return Worker(self.queue, cast("Jobs", self.jobs), self.clock, concurrency=concurrency, disk="d1")

    def start(self) -> None:
        """Start the worker, and forget the sweeps that come first."""
        self.worker.startService()
        self.jobs.started.clear()
        self.queue.recorded.clear()

    def put(self, kind: str, *names: str, disk: str = "") -> None:
        for name in names:
            self.result(self.other.put(Job(kind, name, disk=disk)))

    def result(self, coroutine: Any) -> Any:
        return self.successResultOf(Deferred.fromCoroutine(coroutine))

    def advance(self, seconds: float) -> None:
        """Advance the clock in small steps. So the effects of one event happen before the next."""
        until = self.clock.seconds() + seconds
        while self.clock.seconds() < until:
            self.clock.advance(min(0.5, until - self.clock.seconds()))

    def log_lines(self) -> list[str]:
        return [
            eventAsText(event, includeTimestamp=False, includeSystem=False, includeTraceback=False)
            for event in self.events
            if event["log_level"] >= LogLevel.info
        ]

    def stop(self) -> Deferred[None]:
        return self.worker.stopService()

    def test_job_runs_once(self) -> None:
        """A job runs once, and nothing of it is left in the queue."""
        self.start()
        self.put("wait", "a", disk="d1")
        assert self.jobs.started == ["a"]
        assert self.queue.recorded == []
        self.jobs.running["a"].callback(None)
        assert self.queue.recorded == ["done a"]
        self.advance(AN_HOUR / 6 - 1)
        assert self.jobs.started == ["a"]
        assert self.result(self.other.state()) == QueueState(0, 0, 0)
        assert self.log_lines() == []

    def test_concurrency_is_limited(self) -> None:
        """A worker with room for two runs two of four jobs. When one succeeds or fails, the next starts at once."""
        self.start()
        self.put("wait", "a", "b", "c", "d")
        self.advance(A_WHILE)
        assert self.jobs.started == ["a", "b"]
        self.jobs.running["b"].callback(None)
        assert self.jobs.started == ["a", "b", "c"]
        self.jobs.running["a"].errback(StorageDown("no bucket"))
        assert self.jobs.started == ["a", "b", "c", "d"]
        self.advance(1)
        assert len(self.jobs.started) == 4

    def test_jobs_beyond_the_limit_stay_in_the_queue(self) -> None:
        """Jobs beyond the limit stay in the queue for other workers."""
        self.start()
        self.put("wait", "a", "b", "c")
        assert [taken.job.name for taken in self.result(self.other.take(10))] == ["c"]

    def test_jobs_of_two_streams_may_have_the_same_id(self) -> None:
        """
        Jobs of two streams may have the same id.

        Redis derives ids from the time in milliseconds, and a job for a disk has another stream.
        """
        jobs = [ClaimedJob(Job("wait", "a"), "all", "1-0"), ClaimedJob(Job("wait", "b"), "d1", "1-0")]

        async def take(count: int) -> list[ClaimedJob]:
            claimed, jobs[:] = jobs[:count], jobs[count:]
            return claimed or await MemoryQueue.take(self.queue, count)

        self.queue.take = take  # type: ignore[method-assign]
        self.put("wait", "c", "d")
        self.worker.startService()
        self.advance(A_WHILE)
        assert self.jobs.started == ["a", "b"]
        self.jobs.running["a"].callback(None)
        assert self.jobs.started == ["a", "b", "c"]

    def test_failed_job_is_tried_again_and_logged_twice_at_most(self) -> None:
        """
        A failed job is tried again.

        Its first and its last failure are logged with the reason, those between are not.
        """
        self.start()
        self.jobs.error = StorageDown("the bucket is on holiday")
        self.put("fail", "a")
        assert self.queue.recorded == ["failed a: the bucket is on holiday"]
        assert self.log_lines() == ["fail a is tried again: the bucket is on holiday"]
        for _ in range(MOST_TRIES - 1):
            assert self.result(self.other.dead()) == []
            self.clock.advance(AN_HOUR)
            self.clock.advance(A_WHILE)
        assert self.log_lines()[1:] == ["fail a is set aside: the bucket is on holiday"]
        assert [name for name in self.jobs.started if name == "a"] == ["a"] * MOST_TRIES
        (dead,) = self.result(self.other.dead())
        assert (dead.why, dead.job.name) == ("the bucket is on holiday", "a")

    def test_job_that_succeeds_after_a_failure_is_done(self) -> None:
        """A job that succeeds after a failure is done. So a bucket that is back gets the files that waited."""
        self.start()
        self.jobs.error = StorageDown("no bucket")
        self.put("fail", "a")
        self.jobs.error = None
        self.advance(5)
        assert self.queue.recorded == ["failed a: no bucket", "done a"]
        assert self.result(self.other.state()) == QueueState(0, 0, 0)

    def test_unexpected_error_is_logged_once_with_its_traceback(self) -> None:
        """
        An unexpected error is logged once, with its traceback.

        The job is tried again, and the reason names the error.
        """
        self.start()
        self.jobs.error = ZeroDivisionError("oops")
        self.put("fail", "a")
        assert self.log_lines() == ["fail a failed"]
        assert len(self.flushLoggedErrors(ZeroDivisionError)) == 1
        for _ in range(MOST_TRIES - 1):
            self.clock.advance(AN_HOUR)
            self.clock.advance(A_WHILE)
        assert self.flushLoggedErrors() == []
        assert self.log_lines()[1:] == ["fail a is set aside: ZeroDivisionError: oops"]
        (dead,) = self.result(self.other.dead())
        assert dead.why == "ZeroDivisionError: oops"

    def test_job_of_an_unknown_kind_is_tried_again(self) -> None:
        """
        A job of an unknown kind fails with that reason.

        It is tried again, perhaps by a worker that knows the kind; this one goes on.
        """
        self.start()
        self.put("paint", "a")
        assert self.queue.recorded == ["failed a: there is no job of this kind: paint"]
        assert len(self.log_lines()) == 1
        self.put("wait", "b")
        assert self.jobs.started == ["b"]

    def test_claim_of_a_running_job_is_renewed(self) -> None:
        """
        The claim of a running job is renewed until the job ends.

        There are three renewals in the length of a claim.
        """
        self.start()
        self.put("wait", "a", "b")
        self.advance(10 * CLAIM_SECONDS)
        assert self.queue.recorded.count("renewed a") == 30
        asked = Deferred.fromCoroutine(self.other.take(1))
        self.advance(A_WHILE)
        assert self.successResultOf(asked) == []
        self.jobs.running["a"].callback(None)
        self.jobs.running["b"].errback(StorageDown("no bucket"))
        self.queue.recorded.clear()
        self.advance(CLAIM_SECONDS)
        assert "renewed a" not in self.queue.recorded

    def test_worker_survives_a_queue_that_is_down(self) -> None:
        """
        The worker takes jobs again once the queue is back.

        Until then it retries in silence, since the queue's own client logs the outage.
        """
        self.start()
        self.queue.down = "cable pulled"
        self.put("wait", "a")
        self.advance(AN_HOUR / 60)
        assert self.jobs.started == []
        self.queue.down = None
        self.advance(1)
        assert self.jobs.started == ["a"]
        assert self.log_lines() == []

    def test_queue_that_is_down_is_asked_once_a_second(self) -> None:
        """A queue that is down is asked at most once a second."""
        asked: list[float] = []

        async def take(count: int) -> list[ClaimedJob]:
            assert count == 2
            asked.append(self.clock.seconds())
            raise CatalogDown("cable pulled")

        self.queue.take = take  # type: ignore[method-assign]
        self.worker.startService()
        self.advance(10)
        assert asked == [float(second) for second in range(11)]
        assert self.log_lines() == []

    def test_job_whose_result_was_not_recorded_runs_again(self) -> None:
        """
        A job runs again if its result can't be recorded.

        It does so when its claim expires, and the worker keeps its capacity.
        """
        self.start()
        self.put("wait", "a")
        self.queue.down = "cable pulled"
        self.jobs.running["a"].callback(None)
        self.queue.down = None
        self.advance(CLAIM_SECONDS - 1)
        assert self.jobs.started == ["a"]
        self.advance(1 + A_WHILE)
        assert self.jobs.started == ["a", "a"]

    def test_sweeps_are_queued_at_the_start_and_regularly(self) -> None:
        """The disk is swept every ten minutes, and records once a day. Each sweep is for the worker's own disk."""
        swept: list[tuple[float, Job]] = []

        def record(job: Job) -> Deferred[None]:
            swept.append((self.clock.seconds(), job))
            return succeed(None)

        self.jobs.handlers["sweep"] = record
        self.worker.startService()
        disk, records = Job("sweep", "disk", {}, "d1"), Job("sweep", "records", {"records": "yes"}, "d1")
        assert swept == [(0.0, disk), (0.0, records)]
        for _ in range(144):
            self.clock.advance(600)
        assert [at for at, job in swept[2:] if job == disk] == [600.0 * number for number in range(1, 145)]
        assert [at for at, job in swept[2:] if job == records] == [86_400.0]

    def test_sweep_follows_an_outage_of_the_queue(self) -> None:
        """
        A sweep runs soon after the queue is back.

        It finds the jobs that could not be queued; then the regular sweeps go on.
        """
        self.queue.down = "cable pulled"
        self.start()
        self.advance(30)
        assert self.jobs.started == []
        self.queue.down = None
        self.advance(7)
        assert self.jobs.started == ["disk"]
        self.advance(300)
        assert self.jobs.started == ["disk"]
        self.advance(300)
        assert self.jobs.started == ["disk", "disk"]
        assert self.log_lines() == []

    def test_idle_worker_stops(self) -> None:
        """An idle worker stops when its read of the queue ends. After that it takes no job, and no timer is left."""
        self.start()
        stopped = self.stop()
        self.advance(A_WHILE)
        assert self.successResultOf(stopped) is None
        assert self.clock.getDelayedCalls() == []
        self.put("wait", "a")
        self.advance(AN_HOUR)
        assert self.jobs.started == []

    def test_stop_waits_for_running_jobs(self) -> None:
        """Jobs that end within ten seconds after a stop are not interrupted."""
        self.start()
        self.put("wait", "a", "b")
        stopped = self.stop()
        self.advance(9)
        self.jobs.running["a"].callback(None)
        self.assertNoResult(stopped)
        self.jobs.running["b"].callback(None)
        assert self.successResultOf(stopped) is None
        assert [line for line in self.queue.recorded if "renewed" not in line] == ["done a", "done b"]
        self.advance(AN_HOUR)
        assert self.jobs.interrupted == 0
        assert self.clock.getDelayedCalls() == []

    def test_stop_interrupts_and_hands_back_jobs(self) -> None:
        """
        Ten seconds after a stop, running jobs are interrupted and handed back.

        They are available at once, and have not failed.
        """
        self.start()
        self.put("wait", "a")
        stopped = self.stop()
        self.advance(9.5)
        assert self.jobs.interrupted == 0
        self.advance(0.5)
        assert self.successResultOf(stopped) is None
        assert self.jobs.interrupted == 1
        assert self.queue.recorded[-1] == "handed back a"
        assert [taken.job for taken in self.result(self.other.take(1))] == [Job("wait", "a")]
        assert self.clock.getDelayedCalls() == []
        assert self.log_lines() == []

    def test_stop_cancels_jobs_that_ignore_the_interruption(self) -> None:
        """Jobs that ignore the interruption are cancelled 5 s later. They are handed back, and the daemon ends."""
        self.jobs.ignores_interrupts = True
        self.start()
        self.put("wait", "a", "b")
        stopped = self.stop()
        self.advance(14.5)
        self.assertNoResult(stopped)
        self.advance(0.5)
        assert self.successResultOf(stopped) is None
        assert self.jobs.cancelled == ["a", "b"]
        assert [taken.job.name for taken in self.result(self.other.take(9))] == ["a", "b"]

    def test_stop_hands_back_a_job_that_arrives_too_late(self) -> None:
        """A job that arrives after a stop is handed back, not started."""
        self.start()
        stopped = self.stop()
        self.put("wait", "a")
        assert self.successResultOf(stopped) is None
        assert self.jobs.started == []
        assert self.queue.recorded == ["handed back a"]
        assert [taken.job.name for taken in self.result(self.other.take(1))] == ["a"]

    def test_stop_without_a_queue(self) -> None:
        """A worker stops even if its queue is down. The claims of its jobs expire, and other workers take them over."""
        self.start()
        self.put("wait", "a")
        self.queue.down = "cable pulled"
        stopped = self.stop()
        self.advance(15)
        assert self.successResultOf(stopped) is None
        assert self.log_lines() == []
        self.advance(CLAIM_SECONDS)
        assert [taken.job.name for taken in self.result(self.other.take(1))] == ["a"]

    def test_worker_can_be_started_again(self) -> None:
        """A worker that was stopped can be started again."""
        self.start()
        stopped = self.stop()
        self.advance(A_WHILE)
        self.successResultOf(stopped)
        self.start()
        self.put("wait", "a")
        assert self.jobs.started == ["a"]

    def test_revived_job_runs(self) -> None:
        """A job that an operator revived runs like any other."""
        dead = DeadJob(Job("wait", "a", tries=MOST_TRIES), "1", "no luck", 0.0)
        self.shared.dead["1"] = dead
        self.start()
        assert self.result(self.other.revive(dead))
        assert self.jobs.started == ["a"]
