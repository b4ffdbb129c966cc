"""The queue of jobs, in Redis. It delivers each job at least once.

Jobs are entries of a Redis stream with a consumer group. One worker claims a job, and renews the claim while the job
runs. A job that fails is queued again after a delay that grows. A job that has failed too often is set aside with the
reason, for an operator to inspect and queue again. A job for one host's disk is only claimed by workers with access to
that disk. A worker that takes jobs, or renews a claim, also renews a key that shows that it runs; the key expires as a
claim does. Needs Redis 6.2 or Valkey (XAUTOCLAIM). Knows `Job` and streams. Must never know what a job does.
"""

from __future__ import annotations

import random
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec
from attrs import evolve
from zope.interface import implementer

from mypypi.clock import MOST_SKEW, SharedClock
from mypypi.errors import CatalogDown
from mypypi.job import ClaimedJob, DeadJob, IQueue, Job, LaterJob, QueueState
from mypypi.redis import queue_scripts as scripts

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from mypypi.redis.client import RedisClient

_GROUP = "workers"
#: Milliseconds until a claim expires: if it was not renewed, another worker takes the job over.
CLAIM_MS = 15_000
#: Seconds until a failed job is tried again: doubled after each failure, up to the second value.
_FIRST_PAUSE, _LAST_PAUSE = 2.0, 600.0
#: How much longer or shorter each pause is at random, as a share of it; and the longest that a pause can be.
_SPREAD = 0.25
LONGEST_PAUSE = _LAST_PAUSE * (1 + _SPREAD)
#: The number of tries before a job is set aside. With the pauses above, they take about three hours.
MOST_TRIES = 24
#: About this many jobs that were set aside are kept; the oldest are dropped.
_MOST_DEAD = 10_000
#: About this many jobs may wait, for one disk or for any. A further one is not queued: its file is fetched or uploaded
#: when it is requested again, or by the next sweep.
MOST_WAITING = 100_000
#: Milliseconds after its last command for which Redis remembers a worker that is gone.
_WORKER_KEPT = 3_600_000
#: The longest reason that is kept of a failure, in characters.
_LONGEST_WHY = 1_000
#: Milliseconds for which `take` waits for a job if there is none.
WAIT_MS = 2_000
#: The kind under which an entry that is not a job is set aside.
UNREADABLE = "unreadable"

#: Seconds until the marker of a queued job expires.
_MARKER_SECONDS = 86_400


@implementer(IQueue)
class RedisQueue:
    """
    The queue of one ecosystem's jobs, as one process sees it.

    `take` returns the jobs for any disk, and those for the disk with the id `disk` (empty: without access to a disk).
    `reader` is the client that waits for jobs. Waiting blocks its connection for other commands, so a worker passes a
    separate client, with a timeout longer than `wait`. `claim` and `wait` are in milliseconds. `clock` tells the time
    of day, which all processes share.
    """

    def __init__(
        self,
        client: RedisClient,
        prefix: str,
        ecosystem: str,
        disk: str,
        clock: IReactorTime | SharedClock,
        *,
        reader: RedisClient | None = None,
        claim: int = CLAIM_MS,
        wait: int = WAIT_MS,
    ) -> None:
        self._client = client
        self._reader = reader or client
        self._base = f"{prefix}:queue:{ecosystem}"
        self._workers = f"{prefix}:worker:{ecosystem}"
        self._disk = disk
        self._clock = clock
        self._claim = claim
        self._wait = wait
        self._consumer = secrets.token_hex(8)
        self._looked_until: dict[str, bytes] = {}

    async def put(self, job: Job) -> None:
        """See `IQueue.put`."""
        stream = self._stream(job)
        await self._client.call(
            "EVAL", scripts.PUT, 3, stream, self._marker(job), f"{stream}:later",
            _encode(job), _MARKER_SECONDS, MOST_WAITING,
        )  # fmt: skip

    async def take(self, count: int) -> list[ClaimedJob]:
        """See `IQueue.take`."""
        taken: list[ClaimedJob] = []
        for stream in self._streams():
            if len(taken) < count:
                taken += await self._take_from(stream, count - len(taken))
        return taken or await self._wait_for_more(count)

    async def renew(self, taken: ClaimedJob) -> None:
        """See `IQueue.renew`."""
        keys = self._keys_to_take_from(taken.stream)
        await self._client.call(
            "EVAL", scripts.RENEW, len(keys), *keys, self._claim, _GROUP, self._consumer, taken.id
        )  # fmt: skip

    async def done(self, taken: ClaimedJob) -> None:
        """See `IQueue.done`."""
        await self._client.call("EVAL", scripts.DONE, 2, taken.stream, self._marker(taken.job), _GROUP, taken.id)

    async def failed(self, taken: ClaimedJob, why: str) -> bool:
        """See `IQueue.failed`."""
        job = evolve(taken.job, tries=taken.job.tries + 1)
        if job.tries >= MOST_TRIES:
            await self._set_aside(taken, job, why)
            return False
        when = self._clock.seconds() + pause_after(job.tries)
        await self._client.call(
            "EVAL", scripts.LATER, 2, taken.stream, f"{taken.stream}:later", _GROUP, taken.id, repr(when), _encode(job)
        )
        return True

    async def hand_back(self, taken: ClaimedJob) -> None:
        """See `IQueue.hand_back`."""
        await self._client.call("EVAL", scripts.HAND_BACK, 1, taken.stream, _GROUP, taken.id, _encode(taken.job))

    async def dead(self) -> list[DeadJob]:
        """See `IQueue.dead`."""
        found = []
        for identity, fields in await self._client.call("XRANGE", f"{self._base}:dead", "-", "+"):
            entry = dict(zip(fields[::2], fields[1::2], strict=True))
            job = _decode(identity, fields)
            found.append(DeadJob(job, identity.decode(), entry[b"why"].decode(), float(entry[b"at"])))
        return found

    async def revive(self, dead: DeadJob) -> bool:
        """See `IQueue.revive`."""
        job = evolve(dead.job, tries=0)
        revived = await self._client.call(
            "EVAL", scripts.REVIVE, 3, f"{self._base}:dead", self._stream(job), self._marker(job),
            dead.id, _encode(job), _MARKER_SECONDS,
        )  # fmt: skip
        return bool(revived)

    async def later(self) -> list[LaterJob]:
        """See `IQueue.later`."""
        found = []
        for stream in await self._all_streams():
            reply = await self._client.call("ZRANGE", f"{stream}:later", 0, -1, "WITHSCORES")
            for entry, at in zip(reply[::2], reply[1::2], strict=True):
                with suppress(msgspec.MsgspecError):  # it is set aside when it is due
                    found.append(LaterJob(msgspec.json.decode(entry, type=Job), float(at), entry.decode()))
        return sorted(found, key=lambda each: each.at)

    async def hurry(self, later: LaterJob) -> bool:
        """See `IQueue.hurry`."""
        job, stream = evolve(later.job, tries=0), self._stream(later.job)
        hurried = await self._client.call(
            "EVAL", scripts.HURRY, 3, stream, f"{stream}:later", self._marker(job),
            later.entry, _encode(job), _MARKER_SECONDS,
        )  # fmt: skip
        return bool(hurried)

    async def drop(self, dead: DeadJob) -> bool:
        """See `IQueue.drop`."""
        return bool(await self._client.call("XDEL", f"{self._base}:dead", dead.id))

    async def state(self, *, everywhere: bool = False) -> QueueState:
        """See `IQueue.state`."""
        streams = await self._all_streams() if everywhere else self._streams()
        keys = [f"{self._base}:dead"]
        for stream in streams:
            keys += [stream, f"{stream}:later", self._worker_key(stream)]
        counts = await self._client.call("EVAL", scripts.STATE, len(keys), *keys)
        waiting, later, dead, unattended, age = map(int, counts)
        return QueueState(waiting, later, dead, unattended, max(0.0, age / 1000))

    async def check(self) -> None:
        """See `IQueue.check`."""
        await self.state()

    def _streams(self) -> list[str]:
        """Return the streams to take jobs from. The disk's own comes first, since fewer workers can do its jobs."""
        return [f"{self._base}:{self._disk}", self._base] if self._disk else [self._base]

    async def _all_streams(self) -> list[str]:
        """Return the streams of all disks. Redis keeps a disk's stream even when it is empty."""
        of_disks = {name async for name in self._client.names(f"{self._base}:", "stream")}
        return [self._base, *(of_disks - {f"{self._base}:dead"})]

    def _stream(self, job: Job) -> str:
        return f"{self._base}:{job.disk}" if job.disk else self._base

    def _worker_key(self, stream: str) -> str:
        """Return the key that exists while a worker runs that takes jobs of this stream."""
        return self._workers + stream.removeprefix(self._base)

    def _keys_to_take_from(self, stream: str) -> list[str]:
        """Return the keys of a script for this stream that also records that this worker runs."""
        return [stream, f"{stream}:later", *map(self._worker_key, self._streams())]

    def _marker(self, job: Job) -> str:
        return f"{self._stream(job)}:queued:{job.kind}:{job.name}"

    async def _take_from(self, stream: str, count: int) -> list[ClaimedJob]:
        """
        Claim jobs of one stream, without waiting.

        Jobs whose claim has expired come first, then new ones. Each call searches only a part of the stream for expired
        claims, and the next call continues there.
        """
        keys, now = self._keys_to_take_from(stream), self._clock.seconds()
        is_first = stream not in self._looked_until
        self._looked_until[stream], entries = await self._client.call(
            "EVAL", scripts.TAKE, len(keys), *keys, self._claim, _GROUP, self._consumer, count,
            repr(now), self._looked_until.get(stream, b"0-0"), repr(now + LONGEST_PAUSE + MOST_SKEW),
        )  # fmt: skip
        if is_first:
            with suppress(CatalogDown):  # the jobs that were taken are done anyway
                await self._client.call("EVAL", scripts.FORGET_WORKERS, 1, stream, _GROUP, _WORKER_KEPT)
        return await self._readable(stream, entries)

    async def _wait_for_more(self, count: int) -> list[ClaimedJob]:
        """Wait for the next job. Redis may return one of each stream; a surplus is handed back."""
        streams = self._streams()
        reply = await self._reader.call(
            "XREADGROUP", "GROUP", _GROUP, self._consumer, "COUNT", 1, "BLOCK", self._wait,
            "STREAMS", *streams, *(">" for _ in streams),
        )  # fmt: skip
        taken: list[ClaimedJob] = []
        for stream, entries in reply or ():
            taken += await self._readable(stream.decode(), entries)
        for surplus in taken[count:]:
            await self.hand_back(surplus)
        return taken[:count]

    async def _readable(self, stream: str, entries: list[tuple[bytes, list[bytes]] | None]) -> list[ClaimedJob]:
        """
        Decode the jobs in these entries.

        Entries that are not jobs are set aside. Entries that were deleted while they were claimed (None) are skipped.
        """
        taken = []
        for identity, fields in filter(None, entries):
            each = ClaimedJob(_decode(identity, fields), stream, identity.decode())
            if each.job.kind == UNREADABLE:
                await self._set_aside(each, each.job, "this version can't read the entry as a job")
            else:
                taken.append(each)
        return taken

    async def _set_aside(self, taken: ClaimedJob, job: Job, why: str) -> None:
        reason = why[:_LONGEST_WHY].encode(errors="replace")
        await self._client.call(
            "EVAL", scripts.BURY, 3, taken.stream, f"{self._base}:dead", self._marker(job),
            _GROUP, taken.id, _encode(job), reason, repr(self._clock.seconds()), _MOST_DEAD,
        )  # fmt: skip


def pause_after(tries: int) -> float:
    """Return the seconds until the next try. They double after each failure, give or take a quarter."""
    return min(_LAST_PAUSE, _FIRST_PAUSE * 2.0 ** (tries - 1)) * random.uniform(1 - _SPREAD, 1 + _SPREAD)  # noqa: S311


def _encode(job: Job) -> bytes:
    return msgspec.json.encode(job)


def _decode(identity: bytes, fields: list[bytes]) -> Job:
    """Decode the job of a stream's entry. An entry that is not a job gives one of the kind `UNREADABLE`."""
    try:
        return msgspec.json.decode(dict(zip(fields[::2], fields[1::2], strict=True))[b"job"], type=Job)
    except (KeyError, msgspec.MsgspecError):
        return Job(UNREADABLE, identity.decode(), {"entry": repr(fields)[:_LONGEST_WHY]})
