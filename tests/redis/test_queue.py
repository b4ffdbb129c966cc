"""The queue, in memory and in a real Redis: what is put is done, by one worker at a time, whatever happens to it."""

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
from mypypi.interfaces import IQueue
from mypypi.model import ClaimedJob, DeadJob, Job, QueueState
from mypypi.redis.client import RedisClient
from mypypi.redis.queue import CLAIM_MS, MOST_TRIES, UNREADABLE, RedisQueue
from tests.redis.test_catalog import eventually, reason_why
from tests.support.fakes import MemoryQueue, QueuedJobs
from tests.support.redis_server import RedisServer

reactor: Any = the_reactor

NOW = 1_793_000_000.0
#: Seconds for which a worker's claim holds without a sign of life.
HOLDS = CLAIM_MS / 1000
#: Milliseconds for which `take` waits here.
WAIT_MS = 20
#: Longer than the longest pause before a job comes again.
AN_HOUR = 3600.0
UPLOAD = Job("upload", "https/files.example/a/x-1.0.whl", disk="d1")
FETCH = Job("fetch", "https/files.example/a/x-1.0.whl", {"link": "a/x 1.0ü.whl", "size": "00012", "digest": ""})


class QueuePromises:
    """
    What every queue promises. A test case beside this class makes `clock` in its setUp, and says how a worker of its
    own gets at the queue and how time passes, for claims as well as for `clock`.
    """

    clock: Clock

    def worker(self, disk: str = "") -> IQueue:
        raise NotImplementedError

    async def passes(self, seconds: float) -> None:
        raise NotImplementedError

    async def take(self, queue: IQueue, count: int = 10) -> list[ClaimedJob]:
        """What there is now, in memory too, where the waiting is on the clock."""
        taking = Deferred.fromCoroutine(cast("Coroutine[Deferred[Any], Any, list[ClaimedJob]]", queue.take(count)))
        self.clock.advance(WAIT_MS / 1000)
        return await taking

    async def names(self, queue: IQueue, count: int = 10) -> list[str]:
        return [taken.job.name for taken in await self.take(queue, count)]

    async def take_one(self, queue: IQueue) -> ClaimedJob:
        (taken,) = await self.take(queue, 1)
        return taken

    async def fail_often(self, queue: IQueue, times: int) -> None:
        """Let the only job fail so often, each time as soon as it comes again."""
        for _ in range(times):
            await queue.failed(await self.take_one(queue), "no luck")
            await self.passes(AN_HOUR)

    async def grow_old(self, queue: IQueue) -> None:
        """Let an hour pass for the job that waits."""
        await self.passes(AN_HOUR)

    def test_provides_the_interface(self) -> None:
        """It has every method that IQueue names, with the arguments that it names."""
        assert verifyObject(IQueue, self.worker())

    async def test_job_comes_as_it_was_put(self) -> None:
        """Every field of a job arrives, and text stays text."""
        queue = self.worker("d1")
        await queue.put(FETCH)
        await queue.put(UPLOAD)
        taken = await self.take(queue)
        assert sorted([FETCH, UPLOAD], key=str) == sorted((each.job for each in taken), key=str)

    async def test_jobs_come_in_the_order_in_which_they_were_queued(self) -> None:
        """The oldest first, no more than asked for, and the rest is there for the next."""
        queue = self.worker()
        for number in range(5):
            await queue.put(Job("fetch", str(number)))
        assert await self.names(queue, 2) == ["0", "1"]
        assert await self.names(self.worker(), 10) == ["2", "3", "4"]

    async def test_never_more_than_asked_for(self) -> None:
        """A worker with room for one gets one, though a job for its disk and one for anybody are there."""
        queue = self.worker("d1")
        await queue.put(UPLOAD)
        await queue.put(FETCH)
        assert [len(await self.take(queue, 1)) for _ in range(3)] == [1, 1, 0]

    async def test_jobs_taken_over_count_among_those_asked_for(self) -> None:
        """A worker with room for two gets one of a worker that died and one that is new, and not both new ones."""
        dying, queue = self.worker(), self.worker()
        await queue.put(FETCH)
        await self.take_one(dying)
        await self.passes(HOLDS)
        await queue.put(Job("fetch", "a"))
        await queue.put(Job("fetch", "b"))
        assert await self.names(queue, 2) == [FETCH.name, "a"]

    async def test_job_is_queued_once_until_it_is_done(self) -> None:
        """Putting a job again does nothing while it waits, is worked on or comes again later; then it is a new one."""
        queue = self.worker()
        await queue.put(FETCH)
        await queue.put(evolve(FETCH, about={}))
        first = await self.take_one(queue)
        await queue.put(FETCH)
        assert await self.take(queue) == []
        await queue.failed(first, "no luck")
        await queue.put(FETCH)
        assert await self.take(queue) == []
        await self.passes(AN_HOUR)
        again = await self.take_one(queue)
        assert again.job.about == FETCH.about
        await queue.done(again)
        await queue.put(FETCH)
        assert [taken.job for taken in await self.take(queue)] == [FETCH]

    async def test_kind_and_disk_tell_jobs_of_one_name_apart(self) -> None:
        """The same file can be fetched and be uploaded, from each disk where it lies."""
        queue = self.worker("d1")
        for job in (FETCH, evolve(FETCH, kind="upload"), UPLOAD, evolve(UPLOAD, disk="d2")):
            await queue.put(job)
        assert len(await self.take(queue)) == 3
        assert [taken.job.disk for taken in await self.take(self.worker("d2"))] == ["d2"]

    async def test_job_in_somebodys_hands_is_nobody_elses(self) -> None:
        """While a claim holds, no other worker gets the job, nor does the same one twice."""
        one, other = self.worker(), self.worker()
        await one.put(FETCH)
        assert await self.names(one) == [FETCH.name]
        await self.passes(HOLDS - 1)
        assert await self.take(other) == []
        assert await self.take(one) == []

    async def test_job_of_a_worker_that_died_is_taken_over(self) -> None:
        """When a claim has run out, one other worker gets the job; it did not fail."""
        dying, second, third = self.worker(), self.worker(), self.worker()
        await dying.put(FETCH)
        await self.take_one(dying)
        await self.passes(HOLDS)
        taken = await self.take_one(second)
        assert taken.job == FETCH
        assert await self.take(third) == []
        await second.done(taken)
        await self.passes(HOLDS)
        assert await self.take(third) == []
        assert await third.state() == QueueState(0, 0, 0)

    async def test_signs_of_life_keep_a_job(self) -> None:
        """A claim that is renewed holds for as long again, from then on."""
        one, other = self.worker(), self.worker()
        await one.put(FETCH)
        taken = await self.take_one(one)
        for _ in range(3):
            await self.passes(HOLDS - 1)
            await one.renew(taken)
        await self.passes(HOLDS - 1)
        assert await self.take(other) == []
        await self.passes(1)
        assert await self.names(other) == [FETCH.name]

    async def test_claim_that_ran_out_is_found_behind_many_that_hold(self) -> None:
        """Forty jobs that take long do not hide the one behind them whose worker died."""
        busy, dying, idle = self.worker(), self.worker(), self.worker()
        for number in range(41):
            await busy.put(Job("fetch", str(number)))
        working = await self.take(busy, 40)
        assert await self.names(dying) == ["40"]
        await self.passes(HOLDS)
        for taken in working:
            await busy.renew(taken)
        found = [name for _ in range(8) for name in await self.names(idle, 1)]
        assert found == ["40"]

    async def test_worker_that_comes_back_too_late_does_no_harm(self) -> None:
        """What a worker says of a job that another has finished meanwhile changes nothing."""
        late, other = self.worker(), self.worker()
        await late.put(FETCH)
        taken = await self.take_one(late)
        await self.passes(HOLDS)
        await other.done(await self.take_one(other))
        await late.renew(taken)
        await late.failed(taken, "too slow")
        await late.hand_back(taken)
        await late.done(taken)
        await self.passes(AN_HOUR)
        assert await self.take(other) == []
        assert await other.state() == QueueState(0, 0, 0)
        assert await other.dead() == []

    async def test_pause_after_a_failure_grows(self) -> None:
        """2 s after the first failure, doubled each time up to ten minutes, a quarter more or less."""
        queue, other = self.worker(), self.worker()
        await queue.put(FETCH)
        for tries in range(14):
            taken = await self.take_one(queue)
            assert taken.job == evolve(FETCH, tries=tries)
            assert await queue.failed(taken, "no luck")
            pause = min(600, 2 * 2**tries)
            await self.passes(0.75 * pause - 0.1)
            assert await self.take(other) == []
            await self.passes(0.5 * pause + 0.1)

    async def test_jobs_that_failed_together_do_not_come_again_together(self) -> None:
        """After half of the spread some of fifty jobs are back, and some are not."""
        queue = self.worker()
        for number in range(50):
            await queue.put(Job("fetch", str(number)))
        for taken in await self.take(queue, 50):
            await queue.failed(taken, "no luck")
        await self.passes(2)
        assert 0 < len(await self.take(queue, 50)) < 50

    async def test_job_that_fails_too_often_is_set_aside(self) -> None:
        """After the last try it is no more taken, and is listed with the reason and the time; it can be put anew."""
        queue = self.worker("d1")
        await queue.put(UPLOAD)
        await self.fail_often(queue, MOST_TRIES - 1)
        assert await queue.dead() == []
        assert not await queue.failed(await self.take_one(queue), "the bucket said: näh")
        at = self.clock.seconds()
        await self.passes(AN_HOUR)
        assert await self.take(queue) == []
        (dead,) = await queue.dead()
        assert dead == DeadJob(evolve(UPLOAD, tries=MOST_TRIES), dead.id, "the bucket said: näh", at)
        await queue.put(UPLOAD)
        assert [taken.job for taken in await self.take(queue)] == [UPLOAD]

    async def test_jobs_set_aside_are_listed_in_order(self) -> None:
        """The one that was set aside first comes first, and each is revived by itself."""
        queue = self.worker()
        for name in ("a", "b", "c"):
            await queue.put(Job("fetch", name))
            await self.fail_often(queue, MOST_TRIES)
        listed = await queue.dead()
        assert [dead.job.name for dead in listed] == ["a", "b", "c"]
        assert await queue.revive(listed[1])
        assert await self.names(queue) == ["b"]
        assert [dead.job.name for dead in await queue.dead()] == ["a", "c"]

    async def test_revived_job_starts_anew(self) -> None:
        """It has all its tries again, is queued once, and can be revived no second time."""
        queue = self.worker("d1")
        await queue.put(UPLOAD)
        await self.fail_often(queue, MOST_TRIES)
        (dead,) = await queue.dead()
        assert await queue.revive(dead)
        assert not await queue.revive(dead)
        await queue.put(UPLOAD)
        assert [taken.job for taken in await self.take(queue)] == [UPLOAD]
        assert await queue.state() == QueueState(1, 0, 0)

    async def test_job_that_was_dropped_is_forgotten(self) -> None:
        """It is not listed, not taken, and can be neither revived nor dropped again; the others stay."""
        queue = self.worker()
        for name in ("a", "b"):
            await queue.put(Job("fetch", name))
            await self.fail_often(queue, MOST_TRIES)
        first, second = await queue.dead()
        assert await queue.drop(first)
        assert not await queue.drop(first)
        assert not await queue.revive(first)
        assert await queue.dead() == [second]
        assert await self.take(queue) == []

    async def test_job_that_is_queued_anew_already_is_not_revived_beside_itself(self) -> None:
        """Reviving a job that was put again meanwhile only takes it off the list."""
        queue = self.worker()
        await queue.put(FETCH)
        await self.fail_often(queue, MOST_TRIES)
        await queue.put(FETCH)
        (dead,) = await queue.dead()
        assert await queue.revive(dead)
        assert len(await self.take(queue)) == 1
        assert await queue.dead() == []

    async def test_job_that_is_handed_back_is_somebody_elses_at_once(self) -> None:
        """No pause, and no failure: a worker that stops has nothing against the job."""
        stopping, other = self.worker("d1"), self.worker("d1")
        await stopping.put(UPLOAD)
        await stopping.hand_back(await self.take_one(stopping))
        await stopping.put(UPLOAD)
        assert [taken.job for taken in await self.take(other)] == [UPLOAD]

    async def test_job_for_a_disk_is_taken_by_those_who_see_it(self) -> None:
        """Workers of another disk, or of none, never get it, whatever becomes of it; other jobs are anybody's."""
        here, elsewhere, nowhere = self.worker("d1"), self.worker("d2"), self.worker()
        await nowhere.put(UPLOAD)
        assert await self.take(elsewhere) == []
        assert await self.take(nowhere) == []
        taken = await self.take_one(here)
        await self.passes(HOLDS)
        assert await self.take(elsewhere) == []
        await here.failed(taken, "no luck")
        await self.passes(AN_HOUR)
        assert await self.take(elsewhere) == []
        await here.hand_back(await self.take_one(here))
        assert await self.take(nowhere) == []
        assert await self.names(self.worker("d1")) == [UPLOAD.name]
        for queue in (here, elsewhere, nowhere):
            await here.put(FETCH)
            taken = await self.take_one(queue)
            assert taken.job == FETCH
            await queue.done(taken)

    async def test_state_tells_how_much_there_is_to_do(self) -> None:
        """Waiting or being worked on, waiting for the next try, set aside; for the disks that are seen."""
        queue = self.worker()
        assert await queue.state() == QueueState(0, 0, 0)
        await queue.put(FETCH)
        await self.fail_often(queue, MOST_TRIES)
        for name in ("a", "b", "c"):
            await queue.put(Job("fetch", name))
        await queue.failed(await self.take_one(queue), "no luck")
        await self.take_one(queue)
        assert await queue.state() == QueueState(2, 1, 1)
        await queue.put(UPLOAD)
        assert await queue.state() == QueueState(2, 1, 1)
        assert await self.worker("d1").state() == QueueState(3, 1, 1)

    async def test_state_everywhere_counts_the_jobs_of_every_disk(self) -> None:
        """Whoever looks after several hosts sees what waits on each, be it their first or a later try."""
        here, elsewhere, nowhere = self.worker("d1"), self.worker("d2"), self.worker()
        assert await nowhere.state(everywhere=True) == QueueState(0, 0, 0)
        await nowhere.put(FETCH)
        await self.fail_often(here, MOST_TRIES)
        await nowhere.put(UPLOAD)
        await here.failed(await self.take_one(here), "no luck")
        for name in ("a", "b"):
            await nowhere.put(Job("upload", name, disk="d2"))
        await self.take_one(elsewhere)
        await nowhere.put(FETCH)
        for queue in (here, elsewhere, nowhere):
            assert await queue.state(everywhere=True) == QueueState(3, 1, 1)

    async def test_state_tells_how_old_the_oldest_job_is(self) -> None:
        """What waits or is worked on, for the disks that are seen; nothing is of no age."""
        queue = self.worker()
        assert (await queue.state()).oldest == 0
        await queue.put(UPLOAD)
        assert (await queue.state()).oldest == 0  # a disk that it does not see
        await queue.put(FETCH)
        await self.grow_old(queue)
        await queue.put(Job("fetch", "new"))
        assert (await queue.state()).oldest >= AN_HOUR
        await queue.done(await self.take_one(queue))
        assert (await queue.state()).oldest < AN_HOUR

    async def test_two_hundred_jobs_survive_workers_that_vanish(self) -> None:
        """Four workers, one of which never comes back now and then: every job is done, and nothing is left over."""
        chance = random.Random(4)  # noqa: S311 - which worker vanishes when, the same in every run
        jobs = [Job("upload", str(number), disk="d1" if number % 2 else "") for number in range(200)]
        for job in jobs:
            await self.worker().put(job)
        workers = [self.worker("d1") for _ in range(4)]
        done: list[str] = []
        vanished = rounds = 0
        while await workers[0].state() != QueueState(0, 0, 0):
            rounds += 1
            assert rounds < 200, f"{200 - len(set(done))} jobs are missing"
            hands = await gatherResults([Deferred.fromCoroutine(self.take(worker, 5)) for worker in workers])
            for place, hand in enumerate(hands):
                for taken in hand:
                    if chance.random() < 0.05:
                        workers[place] = self.worker("d1")
                        vanished += 1
                        break
                    await workers[place].done(taken)
                    done.append(taken.job.name)
            await self.passes(5)
        assert sorted(job.name for job in jobs) == sorted(done)
        assert vanished > 3

    async def test_check_is_silent_when_all_is_well(self) -> None:
        """A queue that works has nothing to say about itself."""
        await self.worker("d1").check()


class MemoryQueueTests(QueuePromises, TestCase):
    """The queue that tests use keeps the promises of the real one."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(NOW)
        self.jobs = QueuedJobs()

    def worker(self, disk: str = "") -> MemoryQueue:
        return MemoryQueue(self.clock, disk, jobs=self.jobs, wait=WAIT_MS)

    async def passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    def test_take_waits_on_the_clock(self) -> None:
        """Where there is nothing to do it waits, and no longer than it may."""
        taking = Deferred.fromCoroutine(self.worker().take(1))
        self.clock.advance(WAIT_MS / 1000 - 0.001)
        self.assertNoResult(taking)
        self.clock.advance(0.001)
        assert self.successResultOf(taking) == []
        assert self.clock.getDelayedCalls() == []

    async def test_job_ends_the_waiting(self) -> None:
        """Whoever waits gets what is put, or handed back, at once."""
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
        """Tests of what happens without a queue get the error that the real one raises."""
        queue = self.worker()
        queue.down = "cable pulled"
        for ask in every_question(queue):
            assert await reason_why(ask) == "cable pulled"
        queue.down = None
        waiting = Deferred.fromCoroutine(queue.take(1))
        queue.down = "cable pulled"
        self.clock.advance(WAIT_MS / 1000)
        self.failureResultOf(waiting, CatalogDown)


class RedisQueueTests(QueuePromises, TestCase):
    """The queue in a real Redis, whose append-only file keeps every write."""

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

    async def passes(self, seconds: float) -> None:
        """Redis knows no other clock than its own: every claim is made older instead."""
        self.clock.advance(seconds)
        for stream in await self.client.call("KEYS", "test:queue:pypi*"):
            if await self.client.call("TYPE", stream) == b"stream" and await self.has_group(stream):
                for identity, holder, idle, _ in await self.client.call("XPENDING", stream, "workers", "-", "+", 1000):
                    age = idle + int(seconds * 1000)
                    await self.client.call("XCLAIM", stream, "workers", holder, 0, identity, "IDLE", age, "JUSTID")

    async def grow_old(self, queue: IQueue) -> None:
        """Redis knows no other clock than its own: what waits is put there as it was an hour ago."""
        stream = "test:queue:pypi"
        ((identity, fields),) = await self.client.call("XRANGE", stream, "-", "+")
        await self.client.call("DEL", stream)
        await self.client.call("XADD", stream, f"{int(identity.split(b'-')[0]) - int(AN_HOUR * 1000)}-0", *fields)

    async def has_group(self, stream: bytes) -> bool:
        return bool(await self.client.call("XINFO", "GROUPS", stream))

    async def waiting_reader(self) -> None:
        """Returns when a read has begun to block."""
        while b"blocked_clients:1" not in await self.client.call("INFO", "clients"):
            pass

    def complaints(self) -> list[LogEvent]:
        return [event for event in self.events if event["log_level"] >= LogLevel.warn]

    async def test_job_ends_the_waiting(self) -> None:
        """Whoever waits gets what is put, or handed back, at once, and no more of it than asked for."""
        one, other = self.worker("d1", wait=9_000), self.worker("d1")
        acts: list[Callable[[], Awaitable[None]]] = [lambda: other.put(UPLOAD), lambda: other.hand_back(taken)]
        for act in acts:
            began = reactor.seconds()
            taking = Deferred.fromCoroutine(one.take(1))
            await self.waiting_reader()
            await act()
            (taken,) = await taking
            assert taken.job == UPLOAD
            assert reactor.seconds() - began < 5

    async def test_one_too_many_is_handed_back(self) -> None:
        """When a job comes to each of two streams just before a wait for one, the next worker gets the other."""
        other = self.worker("d1")

        class Late:
            async def call(late, *command: str | bytes | int) -> object:  # noqa: N805 - self is the test
                await other.put(UPLOAD)
                await other.put(FETCH)
                return await self.reader.call(*command)

        late = cast("RedisClient", Late())
        first = await RedisQueue(self.client, "test", "pypi", "d1", self.clock, reader=late, wait=WAIT_MS).take(1)
        second = await self.take(other, 1)
        assert [len(first), len(second)] == [1, 1]
        assert sorted(taken.job.kind for taken in first + second) == ["fetch", "upload"]

    async def test_waiting_holds_nobody_up(self) -> None:
        """While a worker waits for a job it can say that others are done, as many as it likes."""
        queue = self.worker(wait=9_000)
        waiting = Deferred.fromCoroutine(queue.take(1))
        await self.waiting_reader()
        began = reactor.seconds()
        await gatherResults([Deferred.fromCoroutine(queue.state()) for _ in range(50)])
        assert reactor.seconds() - began < 5
        self.assertNoResult(waiting)
        await queue.put(FETCH)
        assert [taken.job for taken in await waiting] == [FETCH]

    async def test_stop_in_the_middle_of_waiting(self) -> None:
        """A client that is stopped ends the read that waits, with an error that is expected and none in the log."""
        queue = self.worker(wait=60_000)
        waiting = Deferred.fromCoroutine(queue.take(1))
        await self.waiting_reader()
        await self.reader.stop()
        await self.assertFailure(waiting, CatalogDown)
        assert self.complaints() == []

    async def test_jobs_survive_a_redis_that_is_killed(self) -> None:
        """What waits, what is worked on, what comes later and what was set aside: all is there when Redis is back."""
        queue, other = self.worker(wait=9_000), self.worker()
        for name in ("dead", "later", "held", "waiting"):
            await queue.put(Job("fetch", name, tries=MOST_TRIES - 1 if name == "dead" else 0))
        dead, later, held = await self.take(queue, 3)
        await queue.failed(dead, "no luck")
        await queue.failed(later, "no luck")
        await self.server.kill()
        for ask in every_question(queue):
            await reason_why(ask)
        await self.server.start()
        assert await eventually(queue.state) == QueueState(2, 1, 1)
        assert await self.names(other) == ["waiting"]
        await queue.renew(held)
        await queue.done(held)
        await self.passes(AN_HOUR)
        assert sorted(await self.names(other)) == ["later", "waiting"]
        assert [each.why for each in await queue.dead()] == ["no luck"]

    async def test_waiting_for_a_redis_that_is_killed_is_cut_short(self) -> None:
        """The read that waits ends with the expected error, and the next one after the restart brings the job."""
        queue = self.worker(wait=9_000)
        waiting = Deferred.fromCoroutine(queue.take(1))
        await self.waiting_reader()
        await self.server.kill()
        await self.assertFailure(waiting, CatalogDown)
        await self.server.start()
        await eventually(lambda: queue.put(FETCH))
        assert [taken.job for taken in await eventually(lambda: queue.take(1))] == [FETCH]

    async def test_redis_that_comes_back_empty_is_used(self) -> None:
        """Who put and took before goes on with the empty one; that what was held is lost is all that is said of it."""
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
        assert len(self.complaints()) == 1

    async def test_redis_emptied_while_a_worker_waits(self) -> None:
        """Nothing but the expected error comes of it, and the next read is as if nothing had been."""
        queue = self.worker(wait=200)
        waiting = Deferred.fromCoroutine(queue.take(1))
        await self.waiting_reader()
        await self.client.call("FLUSHALL")
        await queue.put(FETCH)
        taken = await waiting_for(waiting) or await queue.take(1)
        assert [each.job for each in taken] == [FETCH]

    async def test_entry_that_is_no_job_is_set_aside(self) -> None:
        """What can't be read holds nobody up: it is listed with what it is, and never comes again."""
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

    async def test_held_entry_that_somebody_deleted_is_nothing(self) -> None:
        """A job that an operator deletes while its worker is dead is not taken over, and breaks nothing."""
        queue, other = self.worker(), self.worker()
        await queue.put(FETCH)
        taken = await self.take_one(queue)
        await self.client.call("XDEL", taken.stream, taken.id)
        await self.passes(HOLDS)
        await queue.put(Job("fetch", "next"))
        assert await self.names(other) == ["next"]

    async def test_reason_can_be_any_text(self) -> None:
        """A file name that is no text, in a reason of any length, does not keep a job from being set aside."""
        queue = self.worker()
        await queue.put(evolve(FETCH, tries=MOST_TRIES - 1))
        assert not await queue.failed(await self.take_one(queue), "no file \udcff" * 1000)
        (dead,) = await queue.dead()
        assert dead.why.startswith("no file ?no file")
        assert len(dead.why) == 1000

    async def test_prefixes_and_ecosystems_do_not_meet(self) -> None:
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

    async def test_nothing_is_left_of_jobs_that_are_done(self) -> None:
        """What is over takes no room in Redis."""
        queue = self.worker("d1")
        for number in range(20):
            await queue.put(Job("upload", str(number), disk="d1" if number % 2 else ""))
        for taken in await self.take(queue, 20):
            await queue.done(taken)
        left = sorted(await self.client.call("KEYS", "*"))
        assert left == [b"test:queue:pypi", b"test:queue:pypi:d1"]
        assert [await self.client.call("XLEN", key) for key in left] == [0, 0]

    async def test_claim_has_the_length_that_was_asked_for(self) -> None:
        """Redis itself lets a claim run out."""
        await self.worker().put(FETCH)
        short = RedisQueue(self.client, "test", "pypi", "", self.clock, reader=self.reader, claim=1, wait=WAIT_MS)
        assert await self.names(short) == [FETCH.name]
        assert await self.take(self.worker()) == []
        taken: list[str] = []
        while not taken:
            taken = await self.names(short)
        assert taken == [FETCH.name]


def every_question(queue: IQueue) -> list[Callable[[], Awaitable[object]]]:
    """Each of a queue's methods, ready to be called."""
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


async def waiting_for(taking: Deferred[list[ClaimedJob]]) -> list[ClaimedJob]:
    """What it brings; nothing where the queue went away."""
    try:
        return await taking
    except CatalogDown:
        return []
