"""In-memory fakes of the catalog, the queue and the storage. They pass the same tests as the real ones.

Knows `ICatalog`, `IQueue`, `IStorage` and a clock. Must never be used by a deployment: their data is not shared between
processes, and ends with the process.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import count
from pathlib import Path

from attrs import define, evolve, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from zope.interface import implementer

from mypypi.clock import SharedClock, remaining
from mypypi.coordination import HeldLease, Pause
from mypypi.digests import Digest, new_hasher
from mypypi.errors import CatalogDown, NotFound, StorageDown
from mypypi.interfaces import ICatalog, IStorage
from mypypi.job import ClaimedJob, DeadJob, IQueue, Job, LaterJob, QueueState
from mypypi.model import FileCheck, Link, Page, PageId, StoredFile
from mypypi.redis.catalog import MOST_MISSING
from mypypi.redis.queue import CLAIM_MS, LONGEST_PAUSE, MOST_TRIES, WAIT_MS, pause_after

_DAY = 86_400.0
#: Seconds for which a back-off is kept after its end, as in `RedisCatalog`.
_PAUSE_KEPT = 300


@implementer(ICatalog)
class MemoryCatalog:
    """
    A catalog in dictionaries.

    Missing pages expire after `missing_kept` seconds, withheld links after a day, and offers after 30. `clock` is the
    process's, and stands for that of Redis as well; `wall` is the time of day (see `RedisCatalog`). While `down` is a
    reason, every method raises CatalogDown with it.
    """

    def __init__(
        self, clock: IReactorTime, wall: Callable[[], float] | None = None, missing_kept: float = _DAY
    ) -> None:
        self._missing_kept = missing_kept
        self.down: str | None = None
        self._clock = clock
        self._shared = SharedClock(clock, wall)
        self._pages: dict[PageId, Page] = {}
        self._missing_until: dict[PageId, float] = {}
        self._strays: dict[str, PageId] = {}
        self._withheld: dict[PageId, dict[str, float]] = {}
        self._offered: dict[PageId, dict[str, float]] = {}
        self._stored: dict[str, StoredFile] = {}
        self._links: dict[str, tuple[str, float, float]] = {}
        self._file_checks: dict[str, FileCheck] = {}
        self._keys_of_links: dict[str, str] = {}
        self._leases: dict[str, tuple[str, float, str]] = {}
        self._pauses: dict[str, tuple[Pause, float, float]] = {}
        self._ranges: dict[str, bool] = {}

    async def get_page(self, page: PageId) -> Page | None:
        """See `ICatalog.get_page`."""
        await self.check()
        kept = self._pages.get(page)
        if kept is None or self._clock.seconds() >= self._missing_until.get(page, float("inf")):
            return None
        return evolve(kept, checked_at=self._shared.to_own(kept.checked_at))

    async def page_stamp(self, page: PageId) -> tuple[str, float] | None:
        """See `ICatalog.page_stamp`."""
        kept = await self.get_page(page)
        return None if kept is None else (kept.version, kept.checked_at)

    async def put_page(self, page: Page, indexed_links: tuple[str, ...] | None) -> None:
        """See `ICatalog.put_page`."""
        await self.delete_page(page.id)
        if indexed_links is not None:
            self._strays = {link: listing for link, listing in self._strays.items() if listing != page.id}
            self._strays.update(dict.fromkeys(indexed_links, page.id))
        checked_at = self._shared.to_shared(page.checked_at)
        self._pages[page.id] = evolve(page, forms=dict(page.forms), checked_at=checked_at)
        if page.missing:
            self._missing_until[page.id] = self._clock.seconds() + self._missing_kept
            if len(self._missing_until) > MOST_MISSING:
                await self.delete_page(next(iter(self._missing_until)))

    async def touch_page(self, page: PageId, version: str, checked_at: float) -> None:
        """See `ICatalog.touch_page`."""
        kept = await self.get_page(page)
        if kept is not None and kept.version == version:
            await self.put_page(evolve(kept, checked_at=checked_at), None)

    async def delete_page(self, page: PageId) -> None:
        """See `ICatalog.delete_page`."""
        await self.check()
        self._pages.pop(page, None)
        self._missing_until.pop(page, None)

    async def page_listing(self, link: str) -> PageId | None:
        """See `ICatalog.page_listing`."""
        await self.check()
        return self._strays.get(link)

    async def withhold(self, page: PageId, link: str) -> None:
        """See `ICatalog.withhold`."""
        await self.check()
        self._withheld.setdefault(page, {})[link] = self._shared.seconds() + _DAY

    async def withheld(self, page: PageId) -> frozenset[str]:
        """See `ICatalog.withheld`."""
        await self.check()
        now, links = self._shared.seconds(), self._withheld.get(page, {})
        return frozenset(link for link, until in links.items() if remaining(until, now, _DAY) > 0)

    async def offer(self, page: PageId, link: str) -> None:
        """See `ICatalog.offer`."""
        await self.check()
        self._offered.setdefault(page, {})[link] = self._shared.seconds() + 30 * _DAY

    async def offered(self, page: PageId) -> frozenset[str]:
        """See `ICatalog.offered`."""
        await self.check()
        now, links = self._shared.seconds(), self._offered.get(page, {})
        return frozenset(link for link, until in links.items() if remaining(until, now, 30 * _DAY) > 0)

    async def stored(self, key: str) -> StoredFile | None:
        """See `ICatalog.stored`."""
        await self.check()
        return self._stored.get(key)

    async def put_stored(self, stored: StoredFile) -> None:
        """See `ICatalog.put_stored`."""
        await self.check()
        self._stored[stored.key] = evolve(stored, path=None)

    async def forget_stored(self, key: str) -> None:
        """See `ICatalog.forget_stored`."""
        await self.check()
        self._stored.pop(key, None)
        self._links.pop(key, None)

    async def stored_keys(self) -> AsyncIterator[str]:
        """See `ICatalog.stored_keys`."""
        await self.check()
        for key in tuple(self._stored):
            yield key

    async def file_check(self, key: str) -> FileCheck | None:
        """See `ICatalog.file_check`."""
        await self.check()
        check = self._file_checks.get(key)
        return None if check is None else evolve(check, at=self._shared.to_own(check.at))

    async def put_file_check(self, key: str, check: FileCheck) -> None:
        """See `ICatalog.put_file_check`."""
        await self.check()
        self._file_checks[key] = evolve(check, at=self._shared.to_shared(check.at))

    async def key_of_link(self, link: str) -> str | None:
        """See `ICatalog.key_of_link`."""
        await self.check()
        return self._keys_of_links.get(link)

    async def put_key_of_link(self, link: str, key: str) -> None:
        """See `ICatalog.put_key_of_link`."""
        await self.check()
        self._keys_of_links[link] = key

    async def link(self, key: str) -> tuple[str, float] | None:
        """See `ICatalog.link`."""
        await self.check()
        url, shared, until = self._links.get(key, ("", 0.0, 0.0))
        return (url, self._shared.to_own(shared, 7 * _DAY)) if until > self._clock.seconds() else None

    async def put_link(self, key: str, url: str, until: float) -> None:
        """See `ICatalog.put_link`."""
        await self.check()
        self._links[key] = (url, self._shared.to_shared(until), until)

    async def take_lease(self, name: str, owner: str, seconds: float, about: str = "") -> HeldLease | None:
        """See `ICatalog.take_lease`."""
        await self.check()
        now = self._clock.seconds()
        holder, until, what = self._leases.get(name, (owner, 0.0, ""))
        if holder != owner and until > now:
            return HeldLease(holder, until - now, what)
        self._leases[name] = (owner, now + seconds, about)
        return None

    async def release_lease(self, name: str, owner: str) -> None:
        """See `ICatalog.release_lease`."""
        await self.check()
        if self._leases.get(name, ("", 0.0, ""))[0] == owner:
            del self._leases[name]

    async def answers_ranges(self, origin: str) -> bool | None:
        """See `ICatalog.answers_ranges`."""
        await self.check()
        return self._ranges.get(origin)

    async def put_answers_ranges(self, origin: str, answers: bool) -> None:  # noqa: FBT001 - it is the value
        """See `ICatalog.put_answers_ranges`."""
        await self.check()
        self._ranges[origin] = answers

    async def pause(self, name: str) -> Pause | None:
        """See `ICatalog.pause`."""
        await self.check()
        if name not in self._pauses:
            return None
        pause, seconds, kept_until = self._pauses[name]
        if self._clock.seconds() >= kept_until:
            return None
        return evolve(pause, until=self._shared.to_own(pause.until, seconds))

    async def put_pause(self, name: str, pause: Pause) -> None:
        """See `ICatalog.put_pause`."""
        await self.check()
        shared = evolve(pause, until=self._shared.to_shared(pause.until))
        self._pauses[name] = shared, pause.until - self._clock.seconds(), pause.until + _PAUSE_KEPT

    async def end_pause(self, name: str) -> None:
        """See `ICatalog.end_pause`."""
        await self.check()
        self._pauses.pop(name, None)

    async def check(self) -> None:
        """See `ICatalog.check`."""
        if self.down is not None:
            raise CatalogDown(self.down)


@define
class _Entry:
    """A job that waits or runs. No worker can claim it before `claimed_until`."""

    job: Job
    since: float
    claimed_until: float = 0.0


@define
class QueuedJobs:
    """
    The jobs that the queues of several workers share.

    Entries have consecutive ids, and are in the order of their ids.
    """

    ids: Iterator[int] = field(factory=lambda: count(1))
    queued: set[tuple[str, str, str]] = field(factory=set)
    entries: dict[str, _Entry] = field(factory=dict)
    later: list[tuple[float, Job]] = field(factory=list)
    dead: dict[str, DeadJob] = field(factory=dict)
    #: The time until which a worker of a disk is known to run; of any disk, under the empty id.
    workers: dict[str, float] = field(factory=dict)
    idle: list[Deferred[None]] = field(factory=list)

    def add(self, job: Job, now: float) -> None:
        self.entries[str(next(self.ids))] = _Entry(job, now)
        idle, self.idle = self.idle, []
        for each in idle:
            each.callback(None)


@implementer(IQueue)
class MemoryQueue:
    """
    The queue as one worker sees it.

    `disk` is the id of the worker's disk, empty if it has none. `jobs` are shared with the queues of other workers.
    `claim` and `wait` are in milliseconds on `clock`; without a job, `take` waits on that clock too. `wall` is the time
    of day, on which jobs wait for their next try. While `down` is a reason, every method raises CatalogDown with it.
    """

    def __init__(
        self,
        clock: IReactorTime,
        disk: str = "",
        *,
        jobs: QueuedJobs | None = None,
        claim: int = CLAIM_MS,
        wait: int = WAIT_MS,
        wall: Callable[[], float] | None = None,
    ) -> None:
        self.down: str | None = None
        self._clock = clock
        self._wall: Callable[[], float] = wall or clock.seconds
        self._disk = disk
        self._claim = claim / 1000
        self._wait = wait / 1000
        self._jobs = jobs or QueuedJobs()

    async def put(self, job: Job) -> None:
        """See `IQueue.put`."""
        await self.check()
        if _marker(job) not in self._jobs.queued:
            self._jobs.queued.add(_marker(job))
            self._jobs.add(evolve(job, about=dict(job.about)), self._clock.seconds())

    async def take(self, count: int) -> list[ClaimedJob]:
        """See `IQueue.take`."""
        await self.check()
        taken = self._take_now(count)
        if taken:
            return taken
        waiting: Deferred[None] = Deferred()
        self._jobs.idle.append(waiting)
        timer = self._clock.callLater(self._wait, self._wake, waiting)
        await waiting
        if timer.active():
            timer.cancel()
        await self.check()
        return self._take_now(count)

    async def renew(self, taken: ClaimedJob) -> None:
        """See `IQueue.renew`."""
        await self.check()
        self._note_worker()
        if taken.id in self._jobs.entries:
            self._jobs.entries[taken.id].claimed_until = self._clock.seconds() + self._claim

    async def done(self, taken: ClaimedJob) -> None:
        """See `IQueue.done`."""
        await self.check()
        self._jobs.entries.pop(taken.id, None)
        self._jobs.queued.discard(_marker(taken.job))

    async def failed(self, taken: ClaimedJob, why: str) -> bool:
        """See `IQueue.failed`."""
        await self.check()
        job = evolve(taken.job, tries=taken.job.tries + 1)
        now = self._clock.seconds()
        held = self._jobs.entries.pop(taken.id, None)
        if job.tries < MOST_TRIES:
            if held is not None:
                self._jobs.later.append((self._wall() + pause_after(job.tries), job))
            return True
        if held is not None:
            self._jobs.dead[taken.id] = DeadJob(job, taken.id, why, now)
        self._jobs.queued.discard(_marker(job))
        return False

    async def hand_back(self, taken: ClaimedJob) -> None:
        """See `IQueue.hand_back`."""
        await self.check()
        if self._jobs.entries.pop(taken.id, None) is not None:
            self._jobs.add(taken.job, self._clock.seconds())

    async def dead(self) -> list[DeadJob]:
        """See `IQueue.dead`."""
        await self.check()
        return list(self._jobs.dead.values())

    async def revive(self, dead: DeadJob) -> bool:
        """See `IQueue.revive`."""
        await self.check()
        if self._jobs.dead.pop(dead.id, None) is None:
            return False
        await self.put(evolve(dead.job, tries=0))
        return True

    async def later(self) -> list[LaterJob]:
        """See `IQueue.later`."""
        await self.check()
        return [LaterJob(job, at) for at, job in sorted(self._jobs.later, key=lambda each: each[0])]

    async def hurry(self, later: LaterJob) -> bool:
        """See `IQueue.hurry`."""
        await self.check()
        entry = later.at, later.job
        if entry not in self._jobs.later:
            return False
        self._jobs.later.remove(entry)
        self._jobs.add(evolve(later.job, tries=0), self._clock.seconds())
        return True

    async def drop(self, dead: DeadJob) -> bool:
        """See `IQueue.drop`."""
        await self.check()
        return self._jobs.dead.pop(dead.id, None) is not None

    async def state(self, *, everywhere: bool = False) -> QueueState:
        """See `IQueue.state`."""
        await self.check()
        waiting = [entry for entry in self._jobs.entries.values() if everywhere or self._sees(entry.job)]
        later = [job for _, job in self._jobs.later if everywhere or self._sees(job)]
        now = self._clock.seconds()
        disks = [job.disk for job in (*(entry.job for entry in waiting), *later)]
        unattended = sum(self._jobs.workers.get(disk, 0.0) <= now for disk in disks)
        oldest = now - min((entry.since for entry in waiting), default=now)
        return QueueState(len(waiting), len(later), len(self._jobs.dead), unattended, oldest)

    async def check(self) -> None:
        """See `IQueue.check`."""
        if self.down is not None:
            raise CatalogDown(self.down)

    def _sees(self, job: Job) -> bool:
        return job.disk in ("", self._disk)

    def _note_worker(self) -> None:
        self._jobs.workers.update(dict.fromkeys(("", self._disk), self._clock.seconds() + self._claim))

    def _take_now(self, count: int) -> list[ClaimedJob]:
        self._note_worker()
        now = self._clock.seconds()
        later, wall = self._jobs.later, self._wall()
        self._jobs.later = [each for each in later if remaining(each[0], wall, LONGEST_PAUSE) > 0]
        for entry in later:
            if entry not in self._jobs.later:
                self._jobs.add(entry[1], now)
        free = [
            ClaimedJob(entry.job, entry.job.disk, name)
            for name, entry in self._jobs.entries.items()
            if self._sees(entry.job) and entry.claimed_until <= now
        ][:count]
        for each in free:
            self._jobs.entries[each.id].claimed_until = now + self._claim
        return free

    def _wake(self, waiting: Deferred[None]) -> None:
        self._jobs.idle.remove(waiting)
        waiting.callback(None)


def _marker(job: Job) -> tuple[str, str, str]:
    return job.disk, job.kind, job.name


@implementer(IStorage)
class MemoryStorage:
    """
    A storage that keeps its files in `directory`, and its records in memory.

    While `down` is a reason, every method raises StorageDown with it, except `link` and `note_read`, which have
    nothing to do.
    """

    upload_window = 0.0
    reaches_others = True

    def __init__(self, directory: Path) -> None:
        self.down: str | None = None
        self._directory = directory
        self._numbers = count()
        self._files: dict[str, StoredFile] = {}

    async def find(self, key: str, *, recheck: bool = False) -> StoredFile | None:
        """See `IStorage.find`."""
        await self.check()
        return self._files.get(key)

    async def commit(self, key: str, draft: Path, digest: Digest) -> StoredFile:
        """See `IStorage.commit`."""
        await self.delete(key)
        path = self._directory / str(next(self._numbers))
        shutil.move(draft, path)
        self._files[key] = StoredFile(key, path.stat().st_size, digest, path)
        return self._files[key]

    async def digest_of(self, stored: StoredFile, algorithm: str) -> Digest | None:
        """See `IStorage.digest_of`."""
        if stored.path is None:
            return None
        hasher = new_hasher(algorithm)
        hasher.update(stored.path.read_bytes())
        return Digest(algorithm, hasher.hexdigest())

    async def link(self, stored: StoredFile) -> Link:
        """See `IStorage.link`."""
        raise StorageDown("a file in a directory has no link")

    async def note_read(self, stored: StoredFile, since: float, error: NotFound | StorageDown | None) -> bool:
        """See `IStorage.note_read`."""
        return True

    async def delete(self, key: str) -> None:
        """See `IStorage.delete`."""
        await self.check()
        stored = self._files.pop(key, None)
        if stored is not None and stored.path is not None:
            stored.path.unlink()

    async def check(self) -> None:
        """See `IStorage.check`."""
        if self.down is not None:
            raise StorageDown(self.down)
