"""The queue of jobs: a Redis stream with a consumer group, at least once.

A job is taken by one worker, which renews its claim while it works on it. One that fails comes again after a pause that
grows; one that failed too often is set aside with the reason, to be looked at and queued anew. A job that needs what
lies on one host's disk is only taken by workers that see that disk. Needs Redis 6.2 or Valkey (XAUTOCLAIM). Knows
`Job` and streams. Must never know what a job does.
"""

from __future__ import annotations

import random
import secrets
from typing import TYPE_CHECKING

import msgspec
from attrs import evolve
from zope.interface import implementer

from mypypi.interfaces import IQueue
from mypypi.model import ClaimedJob, DeadJob, Job, QueueState

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from mypypi.redis.client import RedisClient

_GROUP = "workers"
#: Milliseconds without a sign of life after which another worker takes a job over.
CLAIM = 15_000
#: Seconds until a failed job comes again: doubled each time.
_FIRST_PAUSE = 2.0
_LONGEST_PAUSE = 600.0
#: How often a job is tried before it is set aside: for about three hours.
MOST_TRIES = 24
_MOST_DEAD = 10_000
_LONGEST_WHY = 1_000
#: Milliseconds for which a read waits where there is nothing to do.
WAIT = 2_000
#: The kind of what was found in the queue and is no job, when it is set aside.
UNREADABLE = "unreadable"

#: KEYS stream, marker; ARGV the job, seconds that the marker holds. A job whose marker stands is queued already.
_PUT = """
if redis.call('SET', KEYS[2], '1', 'NX', 'EX', ARGV[2]) then redis.call('XADD', KEYS[1], '*', 'job', ARGV[1]) end
"""

#: KEYS stream, marker; ARGV group, id.
_DONE = """
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
redis.call('XDEL', KEYS[1], ARGV[2])
redis.call('DEL', KEYS[2])
"""

#: KEYS stream, later; ARGV group, id, when, the job with its tries counted.
_LATER = """
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 1 then redis.call('ZADD', KEYS[2], ARGV[3], ARGV[4]) end
redis.call('XDEL', KEYS[1], ARGV[2])
"""

#: KEYS stream, dead, marker; ARGV group, id, the job, why, when, how many are kept.
_BURY = """
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 1 then
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[6], '*', 'job', ARGV[3], 'why', ARGV[4], 'at', ARGV[5])
end
redis.call('XDEL', KEYS[1], ARGV[2])
redis.call('DEL', KEYS[3])
"""

#: KEYS stream; ARGV group, id, the job.
_HAND_BACK = """
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 1 then redis.call('XADD', KEYS[1], '*', 'job', ARGV[3]) end
redis.call('XDEL', KEYS[1], ARGV[2])
"""

#: KEYS stream, later; ARGV group, consumer, count, now, claim, where to look for claims that ran out. Makes the group,
#: which a Redis that came back empty does not have; puts what is due back into the stream; takes over, then reads anew.
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

#: KEYS dead, stream, marker; ARGV id, the job, seconds that the marker holds. A job that was set aside starts anew.
_REVIVE = """
if redis.call('XDEL', KEYS[1], ARGV[1]) == 0 then return 0 end
if redis.call('SET', KEYS[3], '1', 'NX', 'EX', ARGV[3]) then redis.call('XADD', KEYS[2], '*', 'job', ARGV[2]) end
return 1
"""

#: KEYS dead, then streams; of each its jobs that come later are beside it. An entry's id begins with when it was added,
#: on Redis's clock in milliseconds, so that no other clock has to agree with it.
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

_MARKER_SECONDS = 86_400


@implementer(IQueue)
class RedisQueue:
    """
    The jobs of one ecosystem, and those for the disk with this id, empty where no disk is seen.

    `reader` is the client that waits for jobs, and holds up whatever else is sent on its connection: who takes jobs
    gives it one of its own, whose timeout is longer than `wait`. `claim` and `wait` are in milliseconds.
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
        claim: int = CLAIM,
        wait: int = WAIT,
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
        """Where this queue's jobs come from; first those that few can do."""
        return [f"{self._base}:{self._disk}", self._base] if self._disk else [self._base]

    async def _all_streams(self) -> list[str]:
        """Where the jobs of all disks come from: a disk's stream stays when it is empty."""
        of_disks = {name async for name in self._client.names(f"{self._base}:", "stream")}
        return [self._base, *(of_disks - {f"{self._base}:dead"})]

    def _stream(self, job: Job) -> str:
        return f"{self._base}:{job.disk}" if job.disk else self._base

    def _marker(self, job: Job) -> str:
        return f"{self._stream(job)}:queued:{job.kind}:{job.name}"

    async def _take_from(self, stream: str, count: int) -> list[ClaimedJob]:
        """What is there now: jobs whose claim ran out, looked for a part at a time, then new ones."""
        self._looked_until[stream], entries = await self._client.call(
            "EVAL", _TAKE, 2, stream, f"{stream}:later", _GROUP, self._consumer, count,
            repr(self._clock.seconds()), self._claim, self._looked_until.get(stream, b"0-0"),
        )  # fmt: skip
        return await self._readable(stream, entries)

    async def _wait_for_more(self, count: int) -> list[ClaimedJob]:
        """The next job; Redis may give one of each stream, so that there may be one too many."""
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
        """The jobs in these entries. What is none is set aside; what was deleted while somebody held it is nothing."""
        taken = []
        for identity, fields in filter(None, entries):
            each = ClaimedJob(_decode(identity, fields), stream, identity.decode())
            if each.job.kind == UNREADABLE:
                await self._set_aside(each, each.job, "this is no job that this version can read")
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
    """Seconds until a job that failed so often comes again: doubled each time, give or take a quarter."""
    return min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** (tries - 1)) * random.uniform(0.75, 1.25)  # noqa: S311


def _encode(job: Job) -> bytes:
    return msgspec.json.encode(job)


def _decode(identity: bytes, fields: list[bytes]) -> Job:
    """The job in an entry of a stream; one of the kind `UNREADABLE` where there is none in it."""
    try:
        return msgspec.json.decode(dict(zip(fields[::2], fields[1::2], strict=True))[b"job"], type=Job)
    except (KeyError, msgspec.MsgspecError):
        return Job(UNREADABLE, identity.decode(), {"entry": repr(fields)[:_LONGEST_WHY]})
