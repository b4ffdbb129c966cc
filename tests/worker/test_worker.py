"""The worker: so many jobs at once, none lost, none kept on stopping, and no more in the log than there is to say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, LogLevel, eventAsText, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from mypypi.errors import CatalogDown, StorageDown
from mypypi.model import ClaimedJob, DeadJob, Job, QueueState
from mypypi.redis.queue import CLAIM_MS, MOST_TRIES
from mypypi.worker.jobs import Jobs
from mypypi.worker.worker import Worker
from tests.support.fakes import MemoryQueue, QueuedJobs

AN_HOUR = 3600.0
#: Seconds for which a worker's claim holds without a sign of life.
HOLDS = CLAIM_MS / 1000
#: Longer than the queue waits for a job, and than the worker pauses where there is no queue.
A_WHILE = 2.5


class TestJobs:
    """Handlers of the test's own: a job of the kind ``wait`` ends when the test says so."""

    __test__ = False

    def __init__(self) -> None:
        self.began: list[str] = []
        self.running: dict[str, Deferred[None]] = {}
        self.cancelled: list[str] = []
        self.interrupted = 0
        self.stubborn = False
        self.error: Exception | None = None
        self.handlers: dict[str, Callable[[Job], Deferred[None]]] = {
            "wait": self.wait,
            "fail": self.fail,
            "sweep": self.note,
        }

    def note(self, job: Job) -> Deferred[None]:
        self.began.append(job.name)
        return succeed(None)

    def wait(self, job: Job) -> Deferred[None]:
        self.began.append(job.name)
        self.running[job.name] = Deferred(lambda _: self.cancelled.append(job.name))
        return self.running[job.name]

    def fail(self, job: Job) -> Deferred[None]:
        self.began.append(job.name)
        if self.error is not None:
            raise self.error
        return succeed(None)

    def interrupt(self) -> None:
        self.interrupted += 1
        if not self.stubborn:
            for each in list(self.running.values()):
                if not each.called:
                    each.errback(StorageDown("interrupted"))


class NotedQueue(MemoryQueue):
    """Tells which jobs were renewed, and what became of each."""

    def __init__(self, clock: Clock, jobs: QueuedJobs) -> None:
        super().__init__(clock, "d1", jobs=jobs)
        self.noted: list[str] = []

    async def renew(self, taken: ClaimedJob) -> None:
        self.noted.append(f"renewed {taken.job.name}")
        await super().renew(taken)

    async def done(self, taken: ClaimedJob) -> None:
        self.noted.append(f"done {taken.job.name}")
        await super().done(taken)

    async def failed(self, taken: ClaimedJob, why: str) -> bool:
        self.noted.append(f"failed {taken.job.name}: {why}")
        return await super().failed(taken, why)

    async def hand_back(self, taken: ClaimedJob) -> None:
        self.noted.append(f"handed back {taken.job.name}")
        await super().hand_back(taken)


class WorkerTests(SynchronousTestCase):
    """What becomes of jobs in a worker's hands."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.shared = QueuedJobs()
        self.queue = NotedQueue(self.clock, self.shared)
        self.other = MemoryQueue(self.clock, "d1", jobs=self.shared)
        self.jobs = TestJobs()
        self.worker = self.new_worker(2)
        self.events: list[LogEvent] = []
        observer = cast("ILogObserver", self.events.append)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def new_worker(self, concurrency: int) -> Worker:
        return Worker(self.queue, cast("Jobs", self.jobs), self.clock, concurrency=concurrency, disk="d1")

    def start(self) -> None:
        """Start it, and let the sweeps that come first be over."""
        self.worker.startService()
        self.jobs.began.clear()
        self.queue.noted.clear()

    def put(self, kind: str, *names: str, disk: str = "") -> None:
        for name in names:
            self.result(self.other.put(Job(kind, name, disk=disk)))

    def result(self, coroutine: Any) -> Any:
        return self.successResultOf(Deferred.fromCoroutine(coroutine))

    def passes(self, seconds: float) -> None:
        """Time goes by in small steps, so that what follows from one event happens before the next."""
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

    def test_job_that_was_done_is_done_for_good(self) -> None:
        """Its handler is given the job once, and nothing of it is left in the queue."""
        self.start()
        self.put("wait", "a", disk="d1")
        assert self.jobs.began == ["a"]
        assert self.queue.noted == []
        self.jobs.running["a"].callback(None)
        assert self.queue.noted == ["done a"]
        self.passes(AN_HOUR / 6 - 1)
        assert self.jobs.began == ["a"]
        assert self.result(self.other.state()) == QueueState(0, 0, 0)
        assert self.log_lines() == []

    def test_no_more_jobs_at_once_than_it_may(self) -> None:
        """With room for two, two of four are begun; as one ends, however it ends, the next is begun at once."""
        self.start()
        self.put("wait", "a", "b", "c", "d")
        self.passes(A_WHILE)
        assert self.jobs.began == ["a", "b"]
        self.jobs.running["b"].callback(None)
        assert self.jobs.began == ["a", "b", "c"]
        self.jobs.running["a"].errback(StorageDown("no bucket"))
        assert self.jobs.began == ["a", "b", "c", "d"]
        self.passes(1)
        assert len(self.jobs.began) == 4

    def test_other_workers_get_what_it_has_no_room_for(self) -> None:
        """Jobs that it can't begin stay in the queue."""
        self.start()
        self.put("wait", "a", "b", "c")
        assert [taken.job.name for taken in self.result(self.other.take(10))] == ["c"]

    def test_jobs_of_two_streams_with_one_id_are_two(self) -> None:
        """Redis names jobs by the millisecond: a job for a disk and another may have the same id."""
        jobs = [ClaimedJob(Job("wait", "a"), "all", "1-0"), ClaimedJob(Job("wait", "b"), "d1", "1-0")]

        async def take(count: int) -> list[ClaimedJob]:
            hand, jobs[:] = jobs[:count], jobs[count:]
            return hand or await MemoryQueue.take(self.queue, count)

        self.queue.take = take  # type: ignore[method-assign]
        self.put("wait", "c", "d")
        self.worker.startService()
        self.passes(A_WHILE)
        assert self.jobs.began == ["a", "b"]
        self.jobs.running["a"].callback(None)
        assert self.jobs.began == ["a", "b", "c"]

    def test_failed_job_is_tried_again_with_one_line_in_the_log(self) -> None:
        """The first failure is told with its reason, the last one too, and those between are not."""
        self.start()
        self.jobs.error = StorageDown("the bucket is on holiday")
        self.put("fail", "a")
        assert self.queue.noted == ["failed a: the bucket is on holiday"]
        assert self.log_lines() == ["fail a is tried again: the bucket is on holiday"]
        for _ in range(MOST_TRIES - 1):
            assert self.result(self.other.dead()) == []
            self.clock.advance(AN_HOUR)
            self.clock.advance(A_WHILE)
        assert self.log_lines()[1:] == ["fail a is set aside: the bucket is on holiday"]
        assert [name for name in self.jobs.began if name == "a"] == ["a"] * MOST_TRIES
        (dead,) = self.result(self.other.dead())
        assert (dead.why, dead.job.name) == ("the bucket is on holiday", "a")

    def test_job_that_works_after_some_failures_is_done(self) -> None:
        """A bucket that comes back gets what waited for it."""
        self.start()
        self.jobs.error = StorageDown("no bucket")
        self.put("fail", "a")
        self.jobs.error = None
        self.passes(5)
        assert self.queue.noted == ["failed a: no bucket", "done a"]
        assert self.result(self.other.state()) == QueueState(0, 0, 0)

    def test_error_that_nobody_thought_of_is_told_once_with_its_traceback(self) -> None:
        """The job is tried again all the same, the log has one traceback, and the reason names the error."""
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

    def test_job_of_a_kind_that_is_not_known_waits_for_somebody_who_knows_it(self) -> None:
        """It fails like any other, and says why; the worker goes on."""
        self.start()
        self.put("paint", "a")
        assert self.queue.noted == ["failed a: there is no job of this kind: paint"]
        assert len(self.log_lines()) == 1
        self.put("wait", "b")
        assert self.jobs.began == ["b"]

    def test_job_that_takes_long_stays_with_its_worker(self) -> None:
        """Three signs of life in the time for which a claim holds keep it, until the job has ended."""
        self.start()
        self.put("wait", "a", "b")
        self.passes(10 * HOLDS)
        assert self.queue.noted.count("renewed a") == 30
        asked = Deferred.fromCoroutine(self.other.take(1))
        self.passes(A_WHILE)
        assert self.successResultOf(asked) == []
        self.jobs.running["a"].callback(None)
        self.jobs.running["b"].errback(StorageDown("no bucket"))
        self.queue.noted.clear()
        self.passes(HOLDS)
        assert "renewed a" not in self.queue.noted

    def test_queue_that_goes_away_and_comes_back(self) -> None:
        """It asks again, in silence since the queue's own client has said it, and takes jobs when it is back."""
        self.start()
        self.queue.down = "cable pulled"
        self.put("wait", "a")
        self.passes(AN_HOUR / 60)
        assert self.jobs.began == []
        self.queue.down = None
        self.passes(1)
        assert self.jobs.began == ["a"]
        assert self.log_lines() == []

    def test_pause_where_there_is_no_queue(self) -> None:
        """A queue that is down is not asked more than once a second."""
        asked: list[float] = []

        async def take(count: int) -> list[ClaimedJob]:
            assert count == 2
            asked.append(self.clock.seconds())
            raise CatalogDown("cable pulled")

        self.queue.take = take  # type: ignore[method-assign]
        self.worker.startService()
        self.passes(10)
        assert asked == [float(second) for second in range(11)]
        assert self.log_lines() == []

    def test_job_whose_end_could_not_be_told_is_done_again(self) -> None:
        """Its claim runs out, and whoever takes it over does it again; no sooner, and no worker is lost by it."""
        self.start()
        self.put("wait", "a")
        self.queue.down = "cable pulled"
        self.jobs.running["a"].callback(None)
        self.queue.down = None
        self.passes(HOLDS - 1)
        assert self.jobs.began == ["a"]
        self.passes(1 + A_WHILE)
        assert self.jobs.began == ["a", "a"]

    def test_sweeps_are_queued_at_the_start_and_regularly(self) -> None:
        """The disk every ten minutes, records once a day, each for the disk that this worker sees."""
        swept: list[tuple[float, Job]] = []

        def note(job: Job) -> Deferred[None]:
            swept.append((self.clock.seconds(), job))
            return succeed(None)

        self.jobs.handlers["sweep"] = note
        self.worker.startService()
        disk, records = Job("sweep", "disk", {}, "d1"), Job("sweep", "records", {"records": "yes"}, "d1")
        assert swept == [(0.0, disk), (0.0, records)]
        for _ in range(144):
            self.clock.advance(600)
        assert [at for at, job in swept[2:] if job == disk] == [600.0 * number for number in range(1, 145)]
        assert [at for at, job in swept[2:] if job == records] == [86_400.0]

    def test_sweep_that_could_not_be_queued_comes_soon(self) -> None:
        """Soon after it is back there is one, which finds what could not be queued meanwhile; then they go on."""
        self.queue.down = "cable pulled"
        self.start()
        self.passes(30)
        assert self.jobs.began == []
        self.queue.down = None
        self.passes(7)
        assert self.jobs.began == ["disk"]
        self.passes(300)
        assert self.jobs.began == ["disk"]
        self.passes(300)
        assert self.jobs.began == ["disk", "disk"]
        assert self.log_lines() == []

    def test_idle_worker_stops(self) -> None:
        """As soon as its look at the queue is over; after that it takes nothing, and no timer is left."""
        self.start()
        stopped = self.stop()
        self.passes(A_WHILE)
        assert self.successResultOf(stopped) is None
        assert self.clock.getDelayedCalls() == []
        self.put("wait", "a")
        self.passes(AN_HOUR)
        assert self.jobs.began == []

    def test_stop_waits_for_jobs_that_end_by_themselves(self) -> None:
        """Within ten seconds they are done, and not interrupted."""
        self.start()
        self.put("wait", "a", "b")
        stopped = self.stop()
        self.passes(9)
        self.jobs.running["a"].callback(None)
        self.assertNoResult(stopped)
        self.jobs.running["b"].callback(None)
        assert self.successResultOf(stopped) is None
        assert [line for line in self.queue.noted if "renewed" not in line] == ["done a", "done b"]
        self.passes(AN_HOUR)
        assert self.jobs.interrupted == 0
        assert self.clock.getDelayedCalls() == []

    def test_stop_hands_back_what_does_not_end(self) -> None:
        """After ten seconds jobs are interrupted; what ends by that is another's at once, and did not fail."""
        self.start()
        self.put("wait", "a")
        stopped = self.stop()
        self.passes(9.5)
        assert self.jobs.interrupted == 0
        self.passes(0.5)
        assert self.successResultOf(stopped) is None
        assert self.jobs.interrupted == 1
        assert self.queue.noted[-1] == "handed back a"
        assert [taken.job for taken in self.result(self.other.take(1))] == [Job("wait", "a")]
        assert self.clock.getDelayedCalls() == []
        assert self.log_lines() == []

    def test_stop_hands_back_what_can_not_be_interrupted(self) -> None:
        """A job that ignores the interruption is cancelled 5 s later: the daemon ends, and another does the job."""
        self.jobs.stubborn = True
        self.start()
        self.put("wait", "a", "b")
        stopped = self.stop()
        self.passes(14.5)
        self.assertNoResult(stopped)
        self.passes(0.5)
        assert self.successResultOf(stopped) is None
        assert self.jobs.cancelled == ["a", "b"]
        assert [taken.job.name for taken in self.result(self.other.take(9))] == ["a", "b"]

    def test_stop_hands_back_what_comes_too_late(self) -> None:
        """A job that the last look at the queue brings is not begun any more."""
        self.start()
        stopped = self.stop()
        self.put("wait", "a")
        assert self.successResultOf(stopped) is None
        assert self.jobs.began == []
        assert self.queue.noted == ["handed back a"]
        assert [taken.job.name for taken in self.result(self.other.take(1))] == ["a"]

    def test_stop_without_a_queue(self) -> None:
        """A worker whose queue is gone ends too; what it held is taken over when its claim has run out."""
        self.start()
        self.put("wait", "a")
        self.queue.down = "cable pulled"
        stopped = self.stop()
        self.passes(15)
        assert self.successResultOf(stopped) is None
        assert self.log_lines() == []
        self.passes(HOLDS)
        assert [taken.job.name for taken in self.result(self.other.take(1))] == ["a"]

    def test_started_again_it_works_again(self) -> None:
        """A service can be stopped and started."""
        self.start()
        stopped = self.stop()
        self.passes(A_WHILE)
        self.successResultOf(stopped)
        self.start()
        self.put("wait", "a")
        assert self.jobs.began == ["a"]

    def test_revived_job_is_done(self) -> None:
        """A job that was set aside, put back by an operator, is begun like any other."""
        dead = DeadJob(Job("wait", "a", tries=MOST_TRIES), "1", "no luck", 0.0)
        self.shared.dead["1"] = dead
        self.start()
        assert self.result(self.other.revive(dead))
        assert self.jobs.began == ["a"]
