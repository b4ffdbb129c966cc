"""Tests of the times that hosts share through Redis, when the clock of a host jumps by a day and is mended."""

from __future__ import annotations

import struct
import time
from collections.abc import Coroutine
from typing import Any
from unittest import mock

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from mypypi.clock import MOST_SKEW, SharedClock, remaining
from mypypi.coordination import Pause
from mypypi.interfaces import ICatalog
from mypypi.job import ClaimedJob, IQueue, Job
from mypypi.model import FileCheck, PageId, Refusal
from mypypi.redis.catalog import RedisCatalog
from mypypi.redis.client import RedisClient
from mypypi.redis.queue import CLAIM_MS, LONGEST_PAUSE, RedisQueue
from mypypi.redis.time_of_day import clock_trouble
from tests.redis.test_catalog import NOW, PAGE, connected
from tests.support.fakes import MemoryCatalog, MemoryQueue, QueuedJobs

DAY = 86_400.0
DAY_MS = 86_400_000
KEY = "https/files.example/a-1.0.whl"
#: Milliseconds for which `take` waits for a job.
WAIT_MS = 20
UPLOAD = Job("upload", KEY, disk="d1")
FETCH = Job("fetch", KEY, {"digest": "ü"})


class ClockCase:
    """A process with a steady clock, on a host whose time of day is `ahead` seconds ahead."""

    clock: Clock
    ahead = 0.0

    def wall(self) -> float:
        return float(self.clock.seconds()) + self.ahead


class CatalogPromises(ClockCase):
    """The promises of every catalog. A test case beside this class sets `catalog` and `clock` in its setUp."""

    catalog: ICatalog

    async def put_times(self) -> None:
        """Store one time of each kind, all of them as of now."""
        now = self.clock.seconds()
        await self.catalog.put_page(evolve(PAGE, checked_at=now), ())
        await self.catalog.put_file_check(KEY, FileCheck(now, '"e"', "m"))
        await self.catalog.put_pause("origin", Pause(now + 60, "it answered 500", 7))
        await self.catalog.put_link(KEY, "https://bucket.example/a", now + 600)
        await self.catalog.withhold(PAGE.id, "a")

    async def times(self) -> tuple[float, ...]:
        """The times as this process reads them, relative to now: four times, and the number of withheld links."""
        page, stamp = await self.catalog.get_page(PAGE.id), await self.catalog.page_stamp(PAGE.id)
        check, pause = await self.catalog.file_check(KEY), await self.catalog.pause("origin")
        link, withheld = await self.catalog.link(KEY), await self.catalog.withheld(PAGE.id)
        assert page is not None
        assert stamp == ("v1", page.checked_at)
        assert check is not None
        assert pause is not None
        assert pause.failures == 7
        now = self.clock.seconds()
        left = 0.0 if link is None else remaining(link[1], now, 600)
        return page.checked_at - now, check.at - now, pause.until - now, left, len(withheld)

    async def test_wrong_clock_is_consistent_with_itself(self) -> None:
        """While a clock is wrong by a day, its process reads the times that it wrote, to the last bit."""
        for ahead in (0.0, DAY + 0.123456789, -DAY / 3):
            self.ahead = ahead
            await self.put_times()
            assert await self.times() == (0, 0, 60, 600, 1)
            self.clock.advance(1.75)
            assert await self.times() == (-1.75, -1.75, 58.25, 598.25, 1)

    async def test_times_of_a_clock_that_was_ahead_are_not_believed(self) -> None:
        """
        Once a clock that was a day ahead is mended, its times count as unknown or over, at once.

        Page and file are unconfirmed, the back-off is over, the link is not used and nothing is withheld.
        """
        self.ahead = DAY
        await self.put_times()
        self.ahead = 0.0
        assert await self.times() == (-NOW, -NOW, -NOW, 0, 0)
        await self.put_times()
        assert await self.times() == (0, 0, 60, 600, 1)

    async def test_times_of_a_clock_that_was_behind_are_old(self) -> None:
        """Once a clock that was a day behind is mended, its times are a day old."""
        self.ahead = -DAY
        await self.put_times()
        self.ahead = 0.0
        assert await self.times() == (-DAY, -DAY, 60 - DAY, 0, 0)

    async def test_times_of_a_clock_that_is_a_little_ahead_are_believed(self) -> None:
        """Clocks of hosts may differ by some seconds. Their times count."""
        self.ahead = MOST_SKEW / 2
        await self.put_times()
        self.ahead = 0.0
        assert await self.times() == (5, 5, 65, 600, 1)

    async def test_unconfirmed_page_stays_unconfirmed(self) -> None:
        """A page that was never confirmed is not confirmed by a jump of the clock."""
        for self.ahead in (0.0, DAY, -DAY):
            await self.catalog.put_page(evolve(PAGE, checked_at=0.0), ())
            assert await self.catalog.page_stamp(PAGE.id) == ("v1", 0.0)

    async def test_missing_page_of_a_clock_that_was_ahead_is_not_believed(self) -> None:
        """A page that upstream did not have, by a clock that was a day ahead, is unconfirmed once that is mended."""
        missing = PageId("project", "missing")
        self.ahead = DAY
        await self.catalog.put_page(evolve(PAGE, id=missing, forms={}, checked_at=NOW, refusal=Refusal(404)), ())
        self.ahead = 0.0
        page = await self.catalog.get_page(missing)
        assert page is not None
        assert (page.missing, page.checked_at) == (True, 0.0)


class MemoryCatalogTests(CatalogPromises, TestCase):
    """The catalog for tests converts times as the real one does."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(NOW)
        self.catalog = MemoryCatalog(self.clock, self.wall)


class RedisCatalogTests(CatalogPromises, TestCase):
    """The real catalog, in a real Redis."""

    async def setUp(self) -> None:  # type: ignore[override] # trial waits for it
        self.clock = Clock()
        self.clock.advance(NOW)
        self.client = await connected(self)
        self.catalog = RedisCatalog(self.client, "test", "pypi", self.clock, self.wall)

    async def test_lease_of_a_redis_that_was_ahead_is_over(self) -> None:
        """A lease that lasts longer than its owner asked for, since Redis's clock was ahead, can be taken."""
        key = "test:lease:pypi:page"
        assert await self.catalog.take_lease("page", "one", 4.5) is None
        await self.client.call("PEXPIRE", key, 4500 + int(MOST_SKEW * 1000))
        held = await self.catalog.take_lease("page", "two", 4.5)
        assert held is not None
        assert held.owner == "one"
        await self.client.call("PEXPIRE", key, DAY_MS)
        assert await self.catalog.take_lease("page", "two", 4.5) is None
        assert await self.client.call("PTTL", key) <= 4500

    async def test_records_of_earlier_versions_are_read(self) -> None:
        """A lease and a back-off that an earlier version wrote count as before."""
        await self.client.call("SET", "test:lease:pypi:page", '{"owner":"one","about":"late"}', "PX", 60_000)
        held = await self.catalog.take_lease("page", "two", 4.5)
        assert held is not None
        assert held.about == "late"
        pause = f'{{"until":{NOW + 60},"why":"it answered 500","failures":2,"status":503}}'
        await self.client.call("SET", "test:pause:pypi:origin", pause, "EX", 360)
        assert await self.catalog.pause("origin") == Pause(NOW + 60, "it answered 500", 2)


class LaterPromises(ClockCase):
    """What every queue promises about jobs that wait for their next try. A test case beside this class has `worker`."""

    def worker(self, disk: str = "d1") -> IQueue:
        raise NotImplementedError

    async def take(self, queue: IQueue) -> list[ClaimedJob]:
        """Claim the available jobs. In memory, the wait for a job is on the clock."""
        taking = start(queue.take(10))
        self.clock.advance(WAIT_MS / 1000)
        return await taking

    async def postpone(self, queue: IQueue, *jobs: Job) -> None:
        """Let these jobs fail once."""
        for job in jobs:
            await queue.put(job)
        for taken in await self.take(queue):
            await queue.failed(taken, "no luck")

    async def test_job_of_a_clock_that_was_ahead_is_due(self) -> None:
        """
        A job that failed while the clock was a day ahead is tried again once the clock is mended.

        Before that, it waits for its pause like any other.
        """
        queue = self.worker()
        self.ahead = DAY
        await self.postpone(queue, UPLOAD)
        assert await self.take(queue) == []
        self.ahead = 0.0
        (later,) = await queue.later()
        assert later.at > self.wall() + DAY - 1  # so it would have to wait for a day
        (taken,) = await self.take(queue)
        assert taken.job == evolve(UPLOAD, tries=1)
        assert await queue.later() == []

    async def test_longest_pause_is_believed(self) -> None:
        """A job waits for the longest pause that there is, and no clock needs to be exact for that."""
        queue, self.ahead = self.worker(), LONGEST_PAUSE
        await self.postpone(queue, FETCH)
        self.ahead = 0.0
        assert await self.take(queue) == []
        self.clock.advance(LONGEST_PAUSE)
        self.clock.advance(3)
        assert [taken.job.name for taken in await self.take(queue)] == [FETCH.name]

    async def test_jobs_that_wait_are_listed(self) -> None:
        """The jobs of all disks that wait for their next try are listed, soonest first. Each has an id of its own."""
        other = evolve(UPLOAD, disk="d2")
        with mock.patch("random.uniform", lambda low, high: (low + high) / 2):
            for disk, job in (("d2", other), ("d1", UPLOAD), ("", FETCH)):
                await self.postpone(self.worker(disk), job)
        listed = await self.worker("").later()
        assert [each.job for each in listed] == [evolve(job, tries=1) for job in (other, UPLOAD, FETCH)]
        assert abs(listed[-1].at - self.wall() - 2) < 0.1
        assert len({each.id for each in listed}) == 3
        assert [each.id for each in listed] == [each.id for each in await self.worker("").later()]

    async def test_job_that_waits_can_be_hurried(self) -> None:
        """A job that waits is queued at once, with all its tries, and only once. Others go on waiting."""
        queue = self.worker()
        await self.postpone(queue, UPLOAD, FETCH)
        upload = next(each for each in await queue.later() if each.job.kind == "upload")
        assert await queue.hurry(upload)
        assert not await queue.hurry(upload)
        (taken,) = await self.take(queue)
        assert taken.job == UPLOAD
        await queue.put(UPLOAD)  # it is queued already
        assert await self.take(queue) == []
        assert [each.job.kind for each in await queue.later()] == ["fetch"]


class MemoryLaterTests(LaterPromises, TestCase):
    """The queue for tests keeps these promises."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(NOW)
        self.jobs = QueuedJobs()

    def worker(self, disk: str = "d1") -> MemoryQueue:
        return MemoryQueue(self.clock, disk, jobs=self.jobs, wait=WAIT_MS, wall=self.wall)


class RedisLaterTests(LaterPromises, TestCase):
    """The queue in a real Redis keeps these promises."""

    client: RedisClient

    async def setUp(self) -> None:  # type: ignore[override] # trial waits for it
        self.clock = Clock()
        self.clock.advance(NOW)
        self.client = await connected(self)

    def worker(self, disk: str = "d1") -> RedisQueue:
        return RedisQueue(self.client, "test", "pypi", disk, SharedClock(self.clock, self.wall), wait=WAIT_MS)

    async def test_claim_of_a_redis_that_was_ahead_expires(self) -> None:
        """
        The job of a worker that died is taken over, though Redis's clock was a day ahead when it was claimed.

        The claim counts from the next look of a worker on.
        """
        queue = self.worker()
        await queue.put(UPLOAD)
        (taken,) = await self.take(queue)
        at = await self.claimed_at(taken)
        await self.claim_a_day_ahead(taken)
        assert await self.take(self.worker()) == []
        assert at <= await self.claimed_at(taken) < at + 60_000
        await self.client.call("XCLAIM", taken.stream, "workers", "dead", 0, taken.id, "IDLE", CLAIM_MS, "JUSTID")
        assert [each.id for each in await self.take(self.worker())] == [taken.id]

    async def claimed_at(self, taken: ClaimedJob) -> int:
        """When a job was claimed, in milliseconds on Redis's clock."""
        (group,) = dict_of(await self.client.call("XINFO", "STREAM", taken.stream, "FULL"))[b"groups"]
        ((_, _, at, _),) = dict_of(group)[b"pending"]
        return int(at)

    async def claim_a_day_ahead(self, taken: ClaimedJob) -> None:
        """Move the claim's time by a day. No command does that, so a dump of the stream is changed."""
        at, dump = await self.claimed_at(taken), await self.client.call("DUMP", taken.stream)
        changed = dump[:-8].replace(struct.pack("<Q", at), struct.pack("<Q", at + DAY_MS))
        await self.client.call("RESTORE", taken.stream, 0, changed + struct.pack("<Q", crc64(changed)), "REPLACE")
        assert await self.claimed_at(taken) == at + DAY_MS


class TimeOfDayTests(TestCase):
    """The clock of this host is compared with that of a real Redis."""

    async def setUp(self) -> None:  # type: ignore[override] # trial waits for it
        self.client = await connected(self)

    async def trouble(self, ahead: float) -> str:
        return await clock_trouble(self.client, lambda: time.time() + ahead)

    async def test_clock_that_differs_is_told(self) -> None:
        """A clock that is ahead or behind by a day is told, with the seconds. One that differs by a little is not."""
        assert "clock is 86400 s ahead of that of Redis: set" in await self.trouble(DAY)
        assert "clock is 86400 s behind that of Redis: set" in await self.trouble(-DAY)
        for ahead in (0.0, MOST_SKEW - 1, 1 - MOST_SKEW):
            assert await self.trouble(ahead) == ""

    async def test_slow_answer_is_not_a_wrong_clock(self) -> None:
        """A Redis that takes a minute to answer does not make the clock seem wrong."""
        times = iter((time.time() - 30, time.time() + 30))
        assert await clock_trouble(self.client, lambda: next(times)) == ""


def dict_of(pairs: list[Any]) -> dict[bytes, Any]:
    """A reply of names and values in turn as a dictionary."""
    return dict(zip(pairs[::2], pairs[1::2], strict=True))


def crc64(data: bytes) -> int:
    """The checksum of a dump (CRC-64/Jones)."""
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x95AC9329AC4BC9B5 if crc & 1 else 0)
    return crc


def start(work: Any) -> Deferred[list[ClaimedJob]]:
    coroutine: Coroutine[Deferred[Any], Any, list[ClaimedJob]] = work
    return Deferred.fromCoroutine(coroutine)
