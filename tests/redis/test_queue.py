"""Tests of the queue, in memory and in a real Redis. Each job is done, by one worker at a time."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, cast

from attrs import evolve
from twisted.internet import reactor as the_reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, LogLevel, globalLogPublisher
from twisted.trial.unittest import TestCase
from zope.interface.verify import verifyObject

from mypypi.errors import CatalogDown
from mypypi.job import ClaimedJob, DeadJob, IQueue, Job, QueueState
from mypypi.redis.client import RedisClient
from mypypi.redis.queue import CLAIM_MS, MOST_TRIES, UNREADABLE, RedisQueue
from tests.redis.test_catalog import eventually, reason_why
from tests.support.fakes import MemoryQueue, QueuedJobs
from tests.support.redis_server import RedisServer

reactor: Any = the_reactor

NOW = 1_793_000_000.0
#: Seconds until a worker's claim expires, unless it is renewed.
CLAIM_SECONDS = CLAIM_MS / 1000
#: Milliseconds for which `take` waits in these tests.
WAIT_MS = 20
#: Seconds; longer than the longest delay before a failed job is tried again.
AN_HOUR = 3600.0
UPLOAD = Job("upload", "https/files.example/a/x-1.0.whl", disk="d1")
FETCH = Job("fetch", "https/files.example/a/x-1.0.whl", {"link": "a/x 1.0ü.whl", "size": "00012", "digest": ""})


class QueuePromises:
    """
    The promises of every queue.

    A test case beside this class sets `clock` in its setUp. It defines `worker`, which returns the queue of one more
    worker. It also defines `advance`, which lets time pass for claims and for `clock`.
    """

    clock: Clock

    def worker(self, disk: str = "") -> IQueue:
        raise NotImplementedError

    async def advance(self, seconds: float) -> None:
        raise NotImplementedError

    async def take(self, queue: IQueue, count: int = 10) -> list[ClaimedJob]:
        """Claim the available jobs. In memory, the wait for a job is on the clock."""
        taking = Deferred.fromCoroutine(cast("Coroutine[Deferred[Any], Any, list[ClaimedJob]]", queue.take(count)))
        self.clock.advance(WAIT_MS / 1000)
        return await taking

    async def names(self, queue: IQueue, count: int = 10) -> list[str]:
        return [taken.job.name for taken in await self.take(queue, count)]

    async def take_one(self, queue: IQueue) -> ClaimedJob:
        (taken,) = await self.take(queue, 1)
        return taken

    async def fail_repeatedly(self, queue: IQueue, times: int) -> None:
        """Let the only job fail this many times, each time once it is due."""
        for _ in range(times):
            await queue.failed(await self.take_one(queue), "no luck")
            await self.advance(AN_HOUR)

    async def age_the_job(self, queue: IQueue) -> None:
        """Let an hour pass for the waiting job."""
        await self.advance(AN_HOUR)

    def test_provides_the_interface(self) -> None:
        """The queue has every method of IQueue, with its arguments."""
        assert verifyObject(IQueue, self.worker())

    async def test_job_is_returned_as_it_was_put(self) -> None:
        """Every field of a job is kept, and text stays text."""
        queue = self.worker("d1")
        await queue.put(FETCH)
        await queue.put(UPLOAD)
        taken = await self.take(queue)
        assert sorted([FETCH, UPLOAD], key=str) == sorted((each.job for each in taken), key=str)

    async def test_jobs_are_taken_in_the_order_in_which_they_were_queued(self) -> None:
        """The oldest jobs come first, and no more than requested. The rest stays for the next worker."""
        queue = self.worker()
        for number in range(5):
            await queue.put(Job("fetch", str(number)))
        assert await self.names(queue, 2) == ["0", "1"]
        assert await self.names(self.worker(), 10) == ["2", "3", "4"]

    async def test_never_more_jobs_than_requested(self) -> None:
        """
        A worker never gets more jobs than it requested.

        This holds even if a job for its disk and one for any disk wait.
        """
        queue = self.worker("d1")
        await queue.put(UPLOAD)
        await queue.put(FETCH)
        assert [len(await self.take(queue, 1)) for _ in range(3)] == [1, 1, 0]

    async def test_jobs_taken_over_count_towards_the_requested_number(self) -> None:
        """Jobs that are taken over count towards the requested number, as new ones do."""
        dying, queue = self.worker(), self.worker()
        await queue.put(FETCH)
        await self.take_one(dying)
        await self.advance(CLAIM_SECONDS)
        await queue.put(Job("fetch", "a"))
        await queue.put(Job("fetch", "b"))
        assert await self.names(queue, 2) == [FETCH.name, "a"]

    async def test_job_is_queued_once_until_it_is_done(self) -> None:
        """
        A job can't be queued twice while it waits, runs, or is due later.

        Once it is done, it can be queued again.
        """
        queue = self.worker()
        await queue.put(FETCH)
        await queue.put(evolve(FETCH, about={}))
        first = await self.take_one(queue)
        await queue.put(FETCH)
        assert await self.take(queue) == []
        await queue.failed(first, "no luck")
        await queue.put(FETCH)
        assert await self.take(queue) == []
        await self.advance(AN_HOUR)
        again = await self.take_one(queue)
        assert again.job.about == FETCH.about
        await queue.done(again)
        await queue.put(FETCH)
        assert [taken.job for taken in await self.take(queue)] == [FETCH]

    async def test_kind_and_disk_tell_jobs_of_one_name_apart(self) -> None:
        """
        Jobs of one name differ by kind and disk.

        The same file can be fetched, and uploaded from each disk that has it.
        """
        queue = self.worker("d1")
        for job in (FETCH, evolve(FETCH, kind="upload"), UPLOAD, evolve(UPLOAD, disk="d2")):
            await queue.put(job)
        assert len(await self.take(queue)) == 3
        assert [taken.job.disk for taken in await self.take(self.worker("d2"))] == ["d2"]

    async def test_claimed_job_is_given_to_no_other_worker(self) -> None:
        """While a claim holds, no worker gets the job again."""
        one, other = self.worker(), self.worker()
        await one.put(FETCH)
        assert await self.names(one) == [FETCH.name]
        await self.advance(CLAIM_SECONDS - 1)
        assert await self.take(other) == []
        assert await self.take(one) == []

    async def test_job_of_a_dead_worker_is_taken_over(self) -> None:
        """When a claim expires, one other worker gets the job. This does not count as a failure."""
        dying, second, third = self.worker(), self.worker(), self.worker()
        await dying.put(FETCH)
        await self.take_one(dying)
        await self.advance(CLAIM_SECONDS)
        taken = await self.take_one(second)
        assert taken.job == FETCH
        assert await self.take(third) == []
        await second.done(taken)
        await self.advance(CLAIM_SECONDS)
        assert await self.take(third) == []
        assert await third.state() == QueueState(0, 0, 0)

    async def test_renewals_keep_a_claim(self) -> None:
        """A renewed claim holds for its full length again."""
        one, other = self.worker(), self.worker()
        await one.put(FETCH)
        taken = await self.take_one(one)
        for _ in range(3):
            await self.advance(CLAIM_SECONDS - 1)
            await one.renew(taken)
        await self.advance(CLAIM_SECONDS - 1)
        assert await self.take(other) == []
        await self.advance(1)
        assert await self.names(other) == [FETCH.name]

    async def test_expired_claim_is_found_behind_many_valid_ones(self) -> None:
        """An expired claim is found behind forty valid ones."""
        busy, dying, idle = self.worker(), self.worker(), self.worker()
        for number in range(41):
            await busy.put(Job("fetch", str(number)))
        working = await self.take(busy, 40)
        assert await self.names(dying) == ["40"]
        await self.advance(CLAIM_SECONDS)
        for taken in working:
            await busy.renew(taken)
        found = [name for _ in range(8) for name in await self.names(idle, 1)]
        assert found == ["40"]

    async def test_late_report_changes_nothing(self) -> None:
        """A late report changes nothing if another worker has finished the job."""
        late, other = self.worker(), self.worker()
        await late.put(FETCH)
        taken = await self.take_one(late)
        await self.advance(CLAIM_SECONDS)
        await other.done(await self.take_one(other))
        await late.renew(taken)
        await late.failed(taken, "too slow")
        await late.hand_back(taken)
        await late.done(taken)
        await self.advance(AN_HOUR)
        assert await self.take(other) == []
        assert await other.state() == QueueState(0, 0, 0)
        assert await other.dead() == []

    async def test_delay_after_a_failure_grows(self) -> None:
        """The delay after a failure is 2 s, and doubles up to ten minutes. It varies by a quarter."""
        queue, other = self.worker(), self.worker()
        await queue.put(FETCH)
        for tries in range(14):
            taken = await self.take_one(queue)
            assert taken.job == evolve(FETCH, tries=tries)
            assert await queue.failed(taken, "no luck")
            pause = min(600, 2 * 2**tries)
            await self.advance(0.75 * pause - 0.1)
            assert await self.take(other) == []
            await self.advance(0.5 * pause + 0.1)

    async def test_jobs_that_failed_together_are_not_retried_together(self) -> None:
        """
        Jobs that failed together are not retried together.

        After half of the spread, some of fifty are back, and some are not.
        """
        queue = self.worker()
        for number in range(50):
            await queue.put(Job("fetch", str(number)))
        for taken in await self.take(queue, 50):
            await queue.failed(taken, "no luck")
        await self.advance(2)
        assert 0 < len(await self.take(queue, 50)) < 50

    async def test_job_that_fails_too_often_is_set_aside(self) -> None:
        """A job is set aside after its last try, with reason and time. It can be queued again."""
        queue = self.worker("d1")
        await queue.put(UPLOAD)
        await self.fail_repeatedly(queue, MOST_TRIES - 1)
        assert await queue.dead() == []
        assert not await queue.failed(await self.take_one(queue), "the bucket said: näh")
        at = self.clock.seconds()
        await self.advance(AN_HOUR)
        assert await self.take(queue) == []
        (dead,) = await queue.dead()
        assert dead == DeadJob(evolve(UPLOAD, tries=MOST_TRIES), dead.id, "the bucket said: näh", at)
        await queue.put(UPLOAD)
        assert [taken.job for taken in await self.take(queue)] == [UPLOAD]

    async def test_jobs_set_aside_are_listed_in_order(self) -> None:
        """Jobs that were set aside are listed oldest first. Each can be revived by itself."""
        queue = self.worker()
        for name in ("a", "b", "c"):
            await queue.put(Job("fetch", name))
            await self.fail_repeatedly(queue, MOST_TRIES)
        listed = await queue.dead()
        assert [dead.job.name for dead in listed] == ["a", "b", "c"]
        assert await queue.revive(listed[1])
        assert await self.names(queue) == ["b"]
        assert [dead.job.name for dead in await queue.dead()] == ["a", "c"]

    async def test_revived_job_has_all_its_tries(self) -> None:
        """A revived job has all its tries again. It is queued once, and can't be revived twice."""
        queue = self.worker("d1")
        await queue.put(UPLOAD)
        await self.fail_repeatedly(queue, MOST_TRIES)
        (dead,) = await queue.dead()
        assert await queue.revive(dead)
        assert not await queue.revive(dead)
        await queue.put(UPLOAD)
        assert [taken.job for taken in await self.take(queue)] == [UPLOAD]
        assert await queue.state() == QueueState(1, 0, 0)

    async def test_dropped_job_is_gone(self) -> None:
        """A dropped job is deleted: it can be neither revived nor dropped again. The others stay."""
        queue = self.worker()
        for name in ("a", "b"):
            await queue.put(Job("fetch", name))
            await self.fail_repeatedly(queue, MOST_TRIES)
        first, second = await queue.dead()
        assert await queue.drop(first)
        assert not await queue.drop(first)
        assert not await queue.revive(first)
        assert await queue.dead() == [second]
        assert await self.take(queue) == []

    async def test_reviving_a_queued_job_does_not_duplicate_it(self) -> None:
        """Reviving a job that was queued again meanwhile only removes it from the list."""
        queue = self.worker()
        await queue.put(FETCH)
        await self.fail_repeatedly(queue, MOST_TRIES)
        await queue.put(FETCH)
        (dead,) = await queue.dead()
        assert await queue.revive(dead)
        assert len(await self.take(queue)) == 1
        assert await queue.dead() == []

    async def test_job_that_is_handed_back_is_available_at_once(self) -> None:
        """A job that is handed back is available at once. A worker that stops does so; the job has not failed."""
        stopping, other = self.worker("d1"), self.worker("d1")
        await stopping.put(UPLOAD)
        await stopping.hand_back(await self.take_one(stopping))
        await stopping.put(UPLOAD)
        assert [taken.job for taken in await self.take(other)] == [UPLOAD]

    async def test_job_for_a_disk_goes_to_workers_with_access(self) -> None:
        """Only workers with access to its disk get a job, even after a failure. Jobs for any disk go to all workers."""
        here, elsewhere, nowhere = self.worker("d1"), self.worker("d2"), self.worker()
        await nowhere.put(UPLOAD)
        assert await self.take(elsewhere) == []
        assert await self.take(nowhere) == []
        taken = await self.take_one(here)
        await self.advance(CLAIM_SECONDS)
        assert await self.take(elsewhere) == []
        await here.failed(taken, "no luck")
        await self.advance(AN_HOUR)
        assert await self.take(elsewhere) == []
        await here.hand_back(await self.take_one(here))
        assert await self.take(nowhere) == []
        assert await self.names(self.worker("d1")) == [UPLOAD.name]
        for queue in (here, elsewhere, nowhere):
            await here.put(FETCH)
            taken = await self.take_one(queue)
            assert taken.job == FETCH
            await queue.done(taken)

    async def test_state_counts_jobs(self) -> None:
        """
        The state counts jobs that wait or run, are due later, or were set aside.

        It covers the disks that the worker has access to.
        """
        queue = self.worker()
        assert await queue.state() == QueueState(0, 0, 0)
        await queue.put(FETCH)
        await self.fail_repeatedly(queue, MOST_TRIES)
        for name in ("a", "b", "c"):
            await queue.put(Job("fetch", name))
        await queue.failed(await self.take_one(queue), "no luck")
        await self.take_one(queue)
        assert await queue.state() == QueueState(2, 1, 1)
        await queue.put(UPLOAD)
        assert await queue.state() == QueueState(2, 1, 1)
        assert await self.worker("d1").state() == QueueState(3, 1, 1)

    async def test_state_everywhere_counts_the_jobs_of_every_disk(self) -> None:
        """`everywhere` counts the jobs of all disks, also those due later. So an operator sees all hosts."""
        here, elsewhere, nowhere = self.worker("d1"), self.worker("d2"), self.worker()
        assert await nowhere.state(everywhere=True) == QueueState(0, 0, 0)
        await nowhere.put(FETCH)
        await self.fail_repeatedly(here, MOST_TRIES)
        await nowhere.put(UPLOAD)
        await here.failed(await self.take_one(here), "no luck")
        for name in ("a", "b"):
            await nowhere.put(Job("upload", name, disk="d2"))
        await self.take_one(elsewhere)
        await nowhere.put(FETCH)
        for queue in (here, elsewhere, nowhere):
            assert await queue.state(everywhere=True) == QueueState(3, 1, 1)

    async def test_state_has_the_age_of_the_oldest_job(self) -> None:
        """
        The age is that of the oldest waiting or running job.

        It covers the worker's disks; without any job, it is 0.
        """
        queue = self.worker()
        assert (await queue.state()).oldest == 0
        await queue.put(UPLOAD)
        assert (await queue.state()).oldest == 0  # it has no access to this disk
        await queue.put(FETCH)
        await self.age_the_job(queue)
        await queue.put(Job("fetch", "new"))
        assert (await queue.state()).oldest >= AN_HOUR
        await queue.done(await self.take_one(queue))
        assert (await queue.state()).oldest < AN_HOUR

    async def test_state_counts_jobs_that_no_running_worker_can_do(self) -> None:
        """
        Jobs count as unattended while no worker takes them, also those that are due later.

        A worker on another disk can do the jobs for any disk, but not those for this disk.
        """
        server, here, elsewhere = self.worker("d1"), self.worker("d1"), self.worker("d2")
        for job in (FETCH, UPLOAD, evolve(UPLOAD, name="failing")):
            await server.put(job)
        assert (await server.state()).unattended == 3
        taken = await self.take(elsewhere)
        assert [each.job for each in taken] == [FETCH]
        assert (await server.state()).unattended == 2
        assert (await server.state(everywhere=True)).unattended == 2
        _, failing = await self.take(here)
        assert (await server.state()).unattended == 0
        await here.failed(failing, "no luck")
        await self.advance(CLAIM_SECONDS + 1)
        assert await server.state() == QueueState(2, 1, 0)
        assert (await server.state()).unattended == 3

    async def test_worker_that_only_renews_claims_is_known_to_run(self) -> None:
        """A worker with long jobs takes no further ones. It is known to run, for all its disks."""
        queue = self.worker("d1")
        for job in (FETCH, UPLOAD):
            await queue.put(job)
        taken = await self.take_one(queue)
        for _ in range(3):
            await self.advance(CLAIM_SECONDS - 1)
            await queue.renew(taken)
        assert (await queue.state()).unattended == 0

    async def test_two_hundred_jobs_survive_workers_that_vanish(self) -> None:
        """Two hundred jobs are all done although workers vanish now and then."""
        random_numbers = random.Random(4)  # noqa: S311 - every run has to be the same
        jobs = [Job("upload", str(number), disk="d1" if number % 2 else "") for number in range(200)]
        for job in jobs:
            await self.worker().put(job)
        workers = [self.worker("d1") for _ in range(4)]
        done: list[str] = []
        vanished = rounds = 0
        while await workers[0].state() != QueueState(0, 0, 0):
            rounds += 1
            assert rounds < 200, f"{200 - len(set(done))} jobs are missing"
            claims = await gatherResults([Deferred.fromCoroutine(self.take(worker, 5)) for worker in workers])
            for number, claimed in enumerate(claims):
                for taken in claimed:
                    if random_numbers.random() < 0.05:
                        workers[number] = self.worker("d1")
                        vanished += 1
                        break
                    await workers[number].done(taken)
                    done.append(taken.job.name)
            await self.advance(5)
        assert sorted(job.name for job in jobs) == sorted(done)
        assert vanished > 3

    async def test_check_of_a_working_queue_succeeds(self) -> None:
        """The check of a working queue raises nothing."""
        await self.worker("d1").check()


class MemoryQueueTests(QueuePromises, TestCase):
    """The queue for tests keeps the promises of the real one."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(NOW)
        self.jobs = QueuedJobs()

    def worker(self, disk: str = "") -> MemoryQueue:
        return MemoryQueue(self.clock, disk, jobs=self.jobs, wait=WAIT_MS)

    async def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    def test_take_waits_on_the_clock(self) -> None:
        """Without a job, `take` waits on the clock, no longer than it may."""
        taking = Deferred.fromCoroutine(self.worker().take(1))
        self.clock.advance(WAIT_MS / 1000 - 0.001)
        self.assertNoResult(taking)
        self.clock.advance(0.001)
        assert self.successResultOf(taking) == []
        assert self.clock.getDelayedCalls() == []

    async def test_job_ends_a_wait(self) -> None:
        """A waiting worker gets a job at once when it is queued or handed back."""
        one, other = self.worker(), self.worker()
        taking = Deferred.fromCoroutine(one.take(1))
        await other.put(FETCH)
        (taken,) = self.successResultOf(taking)
        taking = Deferred.fromCoroutine(other.take(1))
        self.assertNoResult(taking)
        await one.hand_back(taken)
        assert [each.job for each in self.successResultOf(taking)] == [FETCH]
        assert self.clock.getDelayedCalls() == []

    async def test_can_be_made_to_fail(self) -> None:
        """Tests can make the queue fail with the error of the real one."""
        queue = self.worker()
        queue.down = "cable pulled"
        for ask in every_call(queue):
            assert await reason_why(ask) == "cable pulled"
        queue.down = None
        waiting = Deferred.fromCoroutine(queue.take(1))
        queue.down = "cable pulled"
        self.clock.advance(WAIT_MS / 1000)
        self.failureResultOf(waiting, CatalogDown)


class RedisQueueTests(QueuePromises, TestCase):
    """The queue in a real Redis, which writes every change to its append-only file."""

    async def setUp(self) -> None:  # type: ignore[override] # trial waits for it
        self.clock = Clock()
        self.clock.advance(NOW)
        self.events: list[LogEvent] = []
        observer = cast("ILogObserver", self.events.append)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        self.server = RedisServer(reactor)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.server.clean_up()))
        await self.server.start()
        self.client = self.new_client()
        self.reader = self.new_client(timeout=10, connections=1)

    def new_client(self, timeout: float = 2, connections: int = 4) -> RedisClient:
        client = RedisClient(reactor, self.server.url(), timeout, connections)
        client.start()
        self.addCleanup(client.stop)
        return client

    def worker(self, disk: str = "", prefix: str = "test", ecosystem: str = "pypi", wait: int = WAIT_MS) -> RedisQueue:
        return RedisQueue(self.client, prefix, ecosystem, disk, self.clock, reader=self.reader, wait=wait)

    async def advance(self, seconds: float) -> None:
        """Let time pass. Redis has its own clock, so every claim and every worker's key is made older instead."""
        self.clock.advance(seconds)
        for key in await self.client.call("KEYS", "test:worker:*"):
            await self.client.call("PEXPIRE", key, await self.client.call("PTTL", key) - int(seconds * 1000))
        for stream in await self.client.call("KEYS", "test:queue:pypi*"):
            if await self.client.call("TYPE", stream) == b"stream" and await self.has_group(stream):
                for identity, holder, idle, _ in await self.client.call("XPENDING", stream, "workers", "-", "+", 1000):
                    age = idle + int(seconds * 1000)
                    await self.client.call("XCLAIM", stream, "workers", holder, 0, identity, "IDLE", age, "JUSTID")

    async def age_the_job(self, queue: IQueue) -> None:
        """Let an hour pass for the waiting job. Redis has its own clock, so the entry gets an older id."""
        stream = "test:queue:pypi"
        ((identity, fields),) = await self.client.call("XRANGE", stream, "-", "+")
        await self.client.call("DEL", stream)
        await self.client.call("XADD", stream, f"{int(identity.split(b'-')[0]) - int(AN_HOUR * 1000)}-0", *fields)

    async def has_group(self, stream: bytes) -> bool:
        return bool(await self.client.call("XINFO", "GROUPS", stream))

    async def until_a_read_blocks(self) -> None:
        """Return once a read blocks."""
        while b"blocked_clients:1" not in await self.client.call("INFO", "clients"):
            pass

    def warnings(self) -> list[LogEvent]:
        return [event for event in self.events if event["log_level"] >= LogLevel.warn]

    async def test_job_ends_a_wait(self) -> None:
        """A waiting worker gets a job at once when it is queued or handed back. It gets no more than requested."""
        one, other = self.worker("d1", wait=9_000), self.worker("d1")
        actions: list[Callable[[], Awaitable[None]]] = [lambda: other.put(UPLOAD), lambda: other.hand_back(taken)]
        for action in actions:
            began = reactor.seconds()
            taking = Deferred.fromCoroutine(one.take(1))
            await self.until_a_read_blocks()
            await action()
            (taken,) = await taking
            assert taken.job == UPLOAD
            assert reactor.seconds() - began < 5

    async def test_surplus_job_is_handed_back(self) -> None:
        """A job beyond the requested number is handed back. Redis may return one of each stream to a read for one."""
        other = self.worker("d1")

        class LateReader:
            async def call(reader, *command: str | bytes | int) -> object:  # noqa: N805 - self is the test
                await other.put(UPLOAD)
                await other.put(FETCH)
                return await self.reader.call(*command)

        reader = cast("RedisClient", LateReader())
        first = await RedisQueue(self.client, "test", "pypi", "d1", self.clock, reader=reader, wait=WAIT_MS).take(1)
        second = await self.take(other, 1)
        assert [len(first), len(second)] == [1, 1]
        assert sorted(taken.job.kind for taken in first + second) == ["fetch", "upload"]

    async def test_waiting_does_not_block_other_commands(self) -> None:
        """A worker that waits for a job can send other commands."""
        queue = self.worker(wait=9_000)
        waiting = Deferred.fromCoroutine(queue.take(1))
        await self.until_a_read_blocks()
        began = reactor.seconds()
        await gatherResults([Deferred.fromCoroutine(queue.state()) for _ in range(50)])
        assert reactor.seconds() - began < 5
        self.assertNoResult(waiting)
        await queue.put(FETCH)
        assert [taken.job for taken in await waiting] == [FETCH]

    async def test_stop_during_a_wait(self) -> None:
        """Stopping the client ends a blocked read with CatalogDown, and logs nothing."""
        queue = self.worker(wait=60_000)
        waiting = Deferred.fromCoroutine(queue.take(1))
        await self.until_a_read_blocks()
        await self.reader.stop()
        await self.assertFailure(waiting, CatalogDown)
        assert self.warnings() == []

    async def test_jobs_survive_a_redis_that_is_killed(self) -> None:
        """Jobs survive a Redis that is killed: waiting, running, due later or set aside."""
        queue, other = self.worker(wait=9_000), self.worker()
        for name in ("dead", "later", "held", "waiting"):
            await queue.put(Job("fetch", name, tries=MOST_TRIES - 1 if name == "dead" else 0))
        dead, later, held = await self.take(queue, 3)
        await queue.failed(dead, "no luck")
        await queue.failed(later, "no luck")
        await self.server.kill()
        for ask in every_call(queue):
            await reason_why(ask)
        await self.server.start()
        assert await eventually(queue.state) == QueueState(2, 1, 1)
        assert await self.names(other) == ["waiting"]
        await queue.renew(held)
        await queue.done(held)
        await self.advance(AN_HOUR)
        assert sorted(await self.names(other)) == ["later", "waiting"]
        assert [each.why for each in await queue.dead()] == ["no luck"]

    async def test_wait_ends_when_redis_is_killed(self) -> None:
        """Killing Redis ends a blocked read with CatalogDown. After a restart, the next read returns the job."""
        queue = self.worker(wait=9_000)
        waiting = Deferred.fromCoroutine(queue.take(1))
        await self.until_a_read_blocks()
        await self.server.kill()
        await self.assertFailure(waiting, CatalogDown)
        await self.server.start()
        await eventually(lambda: queue.put(FETCH))
        assert [taken.job for taken in await eventually(lambda: queue.take(1))] == [FETCH]

    async def test_redis_that_has_lost_its_data_is_used(self) -> None:
        """A Redis that has lost its data is used as before. The log has one warning, for the lost claim."""
        queue = self.worker("d1")
        await queue.put(UPLOAD)
        taken = await self.take_one(queue)
        await self.client.call("FLUSHALL")
        assert "NOGROUP" in await reason_why(lambda: queue.renew(taken))
        await queue.done(taken)
        assert await self.take(queue) == []
        await self.client.call("FLUSHALL")
        await queue.put(UPLOAD)
        assert [each.job for each in await self.take(queue)] == [UPLOAD]
        assert len(self.warnings()) == 1

    async def test_redis_emptied_during_a_wait(self) -> None:
        """Emptying Redis during a read causes CatalogDown at most. The next read works as usual."""
        queue = self.worker(wait=200)
        waiting = Deferred.fromCoroutine(queue.take(1))
        await self.until_a_read_blocks()
        await self.client.call("FLUSHALL")
        await queue.put(FETCH)
        taken = await jobs_or_none(waiting) or await queue.take(1)
        assert [each.job for each in taken] == [FETCH]

    async def test_entry_that_is_not_a_job_is_set_aside(self) -> None:
        """An entry that is not a job is set aside with its content. It delays no job and is never tried again."""
        queue = self.worker()
        for entry in (("job", "{"), ("job", '{"kind": 1}'), ("job", b"\xff\x00"), ("other", "field")):
            await self.client.call("XADD", "test:queue:pypi", "*", *entry)
        await self.client.call("ZADD", "test:queue:pypi:later", 1, "[]")
        await queue.put(FETCH)
        assert await self.names(queue) == [FETCH.name]
        dead = await queue.dead()
        assert [each.job.kind for each in dead] == [UNREADABLE] * 5
        assert "field" in dead[3].job.about["entry"]
        assert await queue.state() == QueueState(1, 0, 5)
        assert await queue.revive(dead[0])
        assert await self.take(queue) == []
        assert len(await queue.dead()) == 5

    async def test_deleted_entry_is_not_taken_over(self) -> None:
        """A claimed job that an operator deletes is not taken over. It causes no error."""
        queue, other = self.worker(), self.worker()
        await queue.put(FETCH)
        taken = await self.take_one(queue)
        await self.client.call("XDEL", taken.stream, taken.id)
        await self.advance(CLAIM_SECONDS)
        await queue.put(Job("fetch", "next"))
        assert await self.names(other) == ["next"]

    async def test_reason_can_be_any_text(self) -> None:
        """
        A reason may have any characters and any length.

        A filename that is not UTF-8 does not keep a job from being set aside.
        """
        queue = self.worker()
        await queue.put(evolve(FETCH, tries=MOST_TRIES - 1))
        assert not await queue.failed(await self.take_one(queue), "no file \udcff" * 1000)
        (dead,) = await queue.dead()
        assert dead.why.startswith("no file ?no file")
        assert len(dead.why) == 1000

    async def test_prefixes_and_ecosystems_do_not_mix(self) -> None:
        """Deployments that share a Redis do not see each other's jobs."""
        mine = self.worker("d1")
        others = [self.worker("d1", "test2"), self.worker("d1", "test", "npm")]
        for other in others:
            await mine.put(FETCH)
            await other.put(FETCH)
            await other.put(UPLOAD)
            assert len(await self.take(other)) == 2
            assert await other.state() == QueueState(2, 0, 0)
        assert len(await self.take(mine)) == 1
        keys = await self.client.call("KEYS", "*")
        assert {bytes(key).split(b":")[0] for key in keys} == {b"test", b"test2"}

    async def test_finished_jobs_leave_nothing_behind(self) -> None:
        """Finished jobs take no space in Redis."""
        queue = self.worker("d1")
        for number in range(20):
            await queue.put(Job("upload", str(number), disk="d1" if number % 2 else ""))
        for taken in await self.take(queue, 20):
            await queue.done(taken)
        left = sorted(await self.client.call("KEYS", "test:queue:*"))
        assert left == [b"test:queue:pypi", b"test:queue:pypi:d1"]
        workers = [key for key in await self.client.call("KEYS", "*") if key not in left]
        assert sorted(workers) == [b"test:worker:pypi", b"test:worker:pypi:d1"]
        assert all([0 < await self.client.call("TTL", key) <= CLAIM_SECONDS for key in workers])
        assert [await self.client.call("XLEN", key) for key in left] == [0, 0]

    async def test_worker_takes_jobs_from_a_redis_that_is_out_of_memory(self) -> None:
        """A worker empties the queue of a full Redis, and is known to run."""
        queue = self.worker()
        await queue.put(FETCH)
        await self.take(self.worker())  # creates the group
        await self.advance(CLAIM_SECONDS + 1)
        await self.client.call("CONFIG", "SET", "maxmemory", "1")
        assert "OOM" in await reason_why(lambda: queue.put(Job("fetch", "new")))
        (taken,) = await self.take(queue)
        assert (await queue.state()).unattended == 0
        await queue.done(taken)
        assert await queue.state() == QueueState(0, 0, 0)

    async def test_claim_has_the_requested_length(self) -> None:
        """A claim expires after the requested time, by Redis's clock."""
        await self.worker().put(FETCH)
        short = RedisQueue(self.client, "test", "pypi", "", self.clock, reader=self.reader, claim=1, wait=WAIT_MS)
        assert await self.names(short) == [FETCH.name]
        assert await self.take(self.worker()) == []
        taken: list[str] = []
        while not taken:
            taken = await self.names(short)
        assert taken == [FETCH.name]


def every_call(queue: IQueue) -> list[Callable[[], Awaitable[object]]]:
    """Return a call of each of the queue's methods."""
    taken = ClaimedJob(FETCH, "test:queue:pypi", "1-1")
    return [
        lambda: queue.put(FETCH),
        lambda: queue.take(1),
        lambda: queue.renew(taken),
        lambda: queue.done(taken),
        lambda: queue.failed(taken, "no luck"),
        lambda: queue.failed(evolve(taken, job=evolve(FETCH, tries=MOST_TRIES)), "no luck"),
        lambda: queue.hand_back(taken),
        queue.dead,
        lambda: queue.revive(DeadJob(FETCH, "1-1", "no luck", NOW)),
        lambda: queue.drop(DeadJob(FETCH, "1-1", "no luck", NOW)),
        queue.state,
        lambda: queue.state(everywhere=True),
        queue.check,
    ]


async def jobs_or_none(taking: Deferred[list[ClaimedJob]]) -> list[ClaimedJob]:
    """Return the jobs of a take; none if the queue went down."""
    try:
        return await taking
    except CatalogDown:
        return []
