"""The queue of jobs, in Redis. It delivers each job at least once.

Jobs are entries of a Redis stream with a consumer group. One worker claims a job, and renews the claim while the job
runs. A job that fails is queued again after a delay that grows. A job that has failed too often is set aside with the
reason, for an operator to inspect and queue again. A job for one host's disk is only claimed by workers with access to
that disk. Needs Redis 6.2 or Valkey (XAUTOCLAIM). Knows `Job` and streams. Must never know what a job does.
"""

from __future__ import annotations

import random
import secrets
from typing import TYPE_CHECKING

import msgspec
from attrs import evolve
from zope.interface import implementer

from mypypi.job import ClaimedJob, DeadJob, IQueue, Job, QueueState

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from mypypi.redis.client import RedisClient

_GROUP = "workers"
#: Milliseconds until a claim expires: if it was not renewed, another worker takes the job over.
CLAIM_MS = 15_000
#: Seconds until a failed job is tried again: doubled after each failure, up to the second value.
_FIRST_PAUSE = 2.0
_LONGEST_PAUSE = 600.0
#: The number of tries before a job is set aside. With the pauses above, they take about three hours.
MOST_TRIES = 24
#: About this many jobs that were set aside are kept; the oldest are dropped.
_MOST_DEAD = 10_000
#: The longest reason that is kept of a failure, in characters.
_LONGEST_WHY = 1_000
#: Milliseconds for which `take` waits for a job if there is none.
WAIT_MS = 2_000
#: The kind under which an entry that is not a job is set aside.
UNREADABLE = "unreadable"

#: Queue a job, unless its marker shows that it is queued already. KEYS stream, marker; ARGV the job, _MARKER_SECONDS.
_PUT = """
if redis.call('SET', KEYS[2], '1', 'NX', 'EX', ARGV[2]) then redis.call('XADD', KEYS[1], '*', 'job', ARGV[1]) end
"""

#: Remove a job that succeeded. KEYS stream, marker; ARGV group, id.
_DONE = """
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
redis.call('XDEL', KEYS[1], ARGV[2])
redis.call('DEL', KEYS[2])
"""

#: Queue a failed job for a later try. KEYS stream, later (a sorted set of jobs by the time of their next try); ARGV
#: group, id, that time in seconds since the epoch, the job with this try counted.
_LATER = """
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 1 then redis.call('ZADD', KEYS[2], ARGV[3], ARGV[4]) end
redis.call('XDEL', KEYS[1], ARGV[2])
"""

#: Set a job aside. KEYS stream, dead (the stream of such jobs), marker; ARGV group, id, the job, the reason, the time
#: in seconds since the epoch, the number of such jobs to keep.
_BURY = """
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 1 then
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[6], '*', 'job', ARGV[3], 'why', ARGV[4], 'at', ARGV[5])
end
redis.call('XDEL', KEYS[1], ARGV[2])
redis.call('DEL', KEYS[3])
"""

#: Hand a job back. KEYS stream; ARGV group, id, the job.
_HAND_BACK = """
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 1 then redis.call('XADD', KEYS[1], '*', 'job', ARGV[3]) end
redis.call('XDEL', KEYS[1], ARGV[2])
"""

#: Claim jobs. KEYS stream, later; ARGV group, consumer, count, now, claim, the id to search from for expired claims.
#: Creates the group, which a Redis that is new or has lost its data does not have; moves jobs whose next try is due
#: into the stream; takes over jobs whose claim has expired; then reads new ones.
_TAKE = """
if redis.call('EXISTS', KEYS[1]) == 0 or #redis.call('XINFO', 'GROUPS', KEYS[1]) == 0 then
  redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')
end
for _, job in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', ARGV[4], 'LIMIT', 0, 100)) do
  redis.call('XADD', KEYS[1], '*', 'job', job)
  redis.call('ZREM', KEYS[2], job)
end
local claimed = redis.call('XAUTOCLAIM', KEYS[1], ARGV[1], ARGV[2], ARGV[5], ARGV[6], 'COUNT', ARGV[3])
local entries, count = claimed[2], tonumber(ARGV[3])
if #entries < count then
  local read = redis.call('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', count - #entries, 'STREAMS', KEYS[1], '>')
  for _, entry in ipairs(read and read[1][2] or {}) do entries[#entries + 1] = entry end
end
return {claimed[1], entries}
"""

#: Queue a job again that was set aside. KEYS dead, stream, marker; ARGV id, the job, _MARKER_SECONDS.
_REVIVE = """
if redis.call('XDEL', KEYS[1], ARGV[1]) == 0 then return 0 end
if redis.call('SET', KEYS[3], '1', 'NX', 'EX', ARGV[3]) then redis.call('XADD', KEYS[2], '*', 'job', ARGV[2]) end
return 1
"""

#: Count the jobs. KEYS dead, then streams; each stream has its own set `later`. An entry's id begins with the time when
#: it was added, in milliseconds on Redis's clock. The age is computed on that clock, so that no other clock matters.
_STATE = """
local waiting, later, oldest = 0, 0, -1
for i = 2, #KEYS do
  waiting = waiting + redis.call('XLEN', KEYS[i])
  later = later + redis.call('ZCARD', KEYS[i] .. ':later')
  local first = redis.call('XRANGE', KEYS[i], '-', '+', 'COUNT', 1)[1]
  local added = first and tonumber(string.match(first[1], '^%d+'))
  if added and (oldest < 0 or added < oldest) then oldest = added end
end
local time = redis.call('TIME')
local age = oldest < 0 and 0 or time[1] * 1000 + math.floor(time[2] / 1000) - oldest
return {waiting, later, redis.call('XLEN', KEYS[1]), age}
"""

#: Seconds until the marker of a queued job expires.
_MARKER_SECONDS = 86_400


@implementer(IQueue)
class RedisQueue:
    """
    The queue of one ecosystem's jobs, as one process sees it.

    `take` returns the jobs for any disk, and those for the disk with the id `disk` (empty: without access to a disk).
    `reader` is the client that waits for jobs. Waiting blocks its connection for other commands, so a worker passes a
    separate client, with a timeout longer than `wait`. `claim` and `wait` are in milliseconds.
    """

    def __init__(
        self,
        client: RedisClient,
        prefix: str,
        ecosystem: str,
        disk: str,
        clock: IReactorTime,
        *,
        reader: RedisClient | None = None,
        claim: int = CLAIM_MS,
        wait: int = WAIT_MS,
    ) -> None:
        self._client = client
        self._reader = reader or client
        self._base = f"{prefix}:queue:{ecosystem}"
        self._disk = disk
        self._clock = clock
        self._claim = claim
        self._wait = wait
        self._consumer = secrets.token_hex(8)
        self._looked_until: dict[str, bytes] = {}

    async def put(self, job: Job) -> None:
        """See `IQueue.put`."""
        stream = self._stream(job)
        await self._client.call("EVAL", _PUT, 2, stream, self._marker(job), _encode(job), _MARKER_SECONDS)

    async def take(self, count: int) -> list[ClaimedJob]:
        """See `IQueue.take`."""
        taken: list[ClaimedJob] = []
        for stream in self._streams():
            if len(taken) < count:
                taken += await self._take_from(stream, count - len(taken))
        return taken or await self._wait_for_more(count)

    async def renew(self, taken: ClaimedJob) -> None:
        """See `IQueue.renew`."""
        await self._client.call("XCLAIM", taken.stream, _GROUP, self._consumer, 0, taken.id, "JUSTID")

    async def done(self, taken: ClaimedJob) -> None:
        """See `IQueue.done`."""
        await self._client.call("EVAL", _DONE, 2, taken.stream, self._marker(taken.job), _GROUP, taken.id)

    async def failed(self, taken: ClaimedJob, why: str) -> bool:
        """See `IQueue.failed`."""
        job = evolve(taken.job, tries=taken.job.tries + 1)
        if job.tries >= MOST_TRIES:
            await self._set_aside(taken, job, why)
            return False
        when = self._clock.seconds() + pause_after(job.tries)
        await self._client.call(
            "EVAL", _LATER, 2, taken.stream, f"{taken.stream}:later", _GROUP, taken.id, repr(when), _encode(job)
        )
        return True

    async def hand_back(self, taken: ClaimedJob) -> None:
        """See `IQueue.hand_back`."""
        await self._client.call("EVAL", _HAND_BACK, 1, taken.stream, _GROUP, taken.id, _encode(taken.job))

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
            "EVAL", _REVIVE, 3, f"{self._base}:dead", self._stream(job), self._marker(job),
            dead.id, _encode(job), _MARKER_SECONDS,
        )  # fmt: skip
        return bool(revived)

    async def drop(self, dead: DeadJob) -> bool:
        """See `IQueue.drop`."""
        return bool(await self._client.call("XDEL", f"{self._base}:dead", dead.id))

    async def state(self, *, everywhere: bool = False) -> QueueState:
        """See `IQueue.state`."""
        streams = await self._all_streams() if everywhere else self._streams()
        waiting, later, dead, age = await self._client.call(
            "EVAL", _STATE, 1 + len(streams), f"{self._base}:dead", *streams
        )
        return QueueState(int(waiting), int(later), int(dead), max(0.0, int(age) / 1000))

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

    def _marker(self, job: Job) -> str:
        return f"{self._stream(job)}:queued:{job.kind}:{job.name}"

    async def _take_from(self, stream: str, count: int) -> list[ClaimedJob]:
        """
        Claim jobs of one stream, without waiting.

        Jobs whose claim has expired come first, then new ones. Each call searches only a part of the stream for expired
        claims, and the next call continues there.
        """
        self._looked_until[stream], entries = await self._client.call(
            "EVAL", _TAKE, 2, stream, f"{stream}:later", _GROUP, self._consumer, count,
            repr(self._clock.seconds()), self._claim, self._looked_until.get(stream, b"0-0"),
        )  # fmt: skip
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
            "EVAL", _BURY, 3, taken.stream, f"{self._base}:dead", self._marker(job),
            _GROUP, taken.id, _encode(job), reason, repr(self._clock.seconds()), _MOST_DEAD,
        )  # fmt: skip


def pause_after(tries: int) -> float:
    """Return the seconds until the next try. They double after each failure, give or take a quarter."""
    return min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** (tries - 1)) * random.uniform(0.75, 1.25)  # noqa: S311


def _encode(job: Job) -> bytes:
    return msgspec.json.encode(job)


def _decode(identity: bytes, fields: list[bytes]) -> Job:
    """Decode the job of a stream's entry. An entry that is not a job gives one of the kind `UNREADABLE`."""
    try:
        return msgspec.json.decode(dict(zip(fields[::2], fields[1::2], strict=True))[b"job"], type=Job)
    except (KeyError, msgspec.MsgspecError):
        return Job(UNREADABLE, identity.decode(), {"entry": repr(fields)[:_LONGEST_WHY]})
