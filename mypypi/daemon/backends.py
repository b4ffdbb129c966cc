"""The backends of a process: threads, Redis, file storage, data directory. All its indexes share them.

Knows each of them by its class, and in which order they start and stop. Must never know what is served from them.
"""

from __future__ import annotations

import os
import time
import uuid
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred

from mypypi.clock import SharedClock
from mypypi.daemon.directories import check_directories, make_private
from mypypi.daemon.own_process import OwnProcess
from mypypi.daemon.watch import Watch
from mypypi.files.drafts import ABANDONED_SECONDS, Drafts
from mypypi.files.room import Room
from mypypi.interfaces import IStorage
from mypypi.observability import metrics
from mypypi.redis import eviction, time_of_day
from mypypi.redis.catalog import RedisCatalog
from mypypi.redis.client import RedisClient
from mypypi.redis.queue import RedisQueue
from mypypi.rendering.pool import RenderPool
from mypypi.storage.bucket import BucketStorage
from mypypi.storage.disk import DiskStorage
from mypypi.threads import Threads

if TYPE_CHECKING:
    from mypypi.settings.settings import Settings
    from mypypi.settings.types import RedisUrl

_DISK_THREADS = 8
#: Threads that decode files which upstream sends in the gzip encoding, and how many files may be decoded or wait.
_DECODING_THREADS, _MOST_DECODED = 1, 16
#: Threads that cut parts out of pages, and put addresses into pages while they are sent: short pieces of work.
_DERIVE_THREADS = 1
#: Threads for lookups in S3, besides those for uploads.
_LOOKUP_THREADS = 2
#: Seconds for which a stopping daemon waits for calls to S3, after the worker has waited for its jobs.
_BUCKET_STOP_TIME = 2.0
#: Seconds for which it waits for render processes that were killed.
_RENDER_STOP_TIME = 2.0
#: Timeout in seconds of the worker's reads from Redis; a blocking read for new jobs takes less.
_QUEUE_TIMEOUT = 6.0
#: Seconds between two measurements of the bytes that wait for upload, and two looks at a bucket that fails.
_MEASURE = 2.0
#: Seconds between two looks at Redis's policy of eviction, at Redis's clock, and at what this process lacks.
_POLICY = 60.0
_CLOCK = 2.0
_PROCESS = 1.0


class Backends(Service):
    """
    Threads, Redis, storage and drafts of this process. They start first and stop last.

    A process that `renders` has a pool of render processes; a worker needs none.
    """

    def __init__(self, settings: Settings, redis_url: RedisUrl, reactor: Any, *, renders: bool = True) -> None:
        self.settings = settings
        self._renders = renders
        self.reactor = reactor
        self.disk_threads = Threads(reactor, "disk", _DISK_THREADS)
        self.decoding_threads = Threads(reactor, "decoding", _DECODING_THREADS, most=_MOST_DECODED)
        #: Each thread waits for a render process; they are killed first when the daemon stops.
        self.render_threads = Threads(reactor, "render", settings.render_processes + 1, _RENDER_STOP_TIME)
        self.derive_threads = Threads(reactor, "derive", _DERIVE_THREADS)
        self.render_pool = RenderPool(self.render_threads, reactor, settings.render_processes)
        bucket_threads = settings.worker_concurrency + _LOOKUP_THREADS
        self.bucket_threads = Threads(reactor, "bucket", bucket_threads, _BUCKET_STOP_TIME)
        #: In the order in which they start; they stop in reverse.
        self._threads = [
            self.disk_threads,
            self.decoding_threads,
            self.derive_threads,
            self.render_threads,
            self.bucket_threads,
        ]
        probe = ("SET", f"{settings.redis_prefix}:check", "1", "EX", "60")
        self.redis = RedisClient(reactor, redis_url, probe=probe)
        #: For the worker's reads alone, which block.
        self._queue_redis = RedisClient(reactor, redis_url, timeout=_QUEUE_TIMEOUT, connections=1, quiet=True)
        self.disk = disk_id(settings.data_directory)
        #: The id of this process, which owns the leases of pages.
        self.process = uuid.uuid4().hex
        prefix, ecosystem = settings.redis_prefix, settings.package_type
        kept = settings.negative_cache_time
        self.catalog = RedisCatalog(self.redis, prefix, ecosystem, reactor, time.time, kept)
        shared = SharedClock(reactor, time.time)
        self.queue = RedisQueue(self.redis, prefix, ecosystem, self.disk, shared, reader=self._queue_redis)
        self.storage = self._make_storage()
        room = Room(settings.data_directory / "room", settings.drafts_max_bytes, self._waiting_bytes)
        self.drafts = Drafts(settings.data_directory / "drafts", room)
        #: What may be in trouble although this process serves. `mypypi.daemon.checks` asks them.
        self.eviction = Watch(partial(eviction.eviction_trouble, self.redis), _POLICY, reactor, ended=eviction.ENDED)
        look = partial(time_of_day.clock_trouble, self.redis, time.time)
        self.time_of_day = Watch(look, _CLOCK, reactor, ended=time_of_day.ENDED)
        self.sweep = Watch(self._sweep, ABANDONED_SECONDS, reactor, ended="the drafts can be swept again")
        own = OwnProcess(self.disk_threads, self.render_pool)
        self.own_process = Watch(own.look, _PROCESS, reactor, ended="this process has all it needs again")
        self._watches = [self.eviction, self.time_of_day, self.sweep, self.own_process]
        if isinstance(self.storage, BucketStorage):
            self._watches.append(Watch(partial(_look_at, self.storage), _MEASURE, reactor, ended=""))

    def startService(self) -> None:
        """
        Start the threads, the connections to Redis, and the regular looks at what may be in trouble.

        Redis need not be reachable yet. Raises CannotStart if a directory can't be written.
        """
        check_directories(self.settings)
        super().startService()
        for threads in self._threads:
            threads.startService()
        if self._renders:
            self.render_pool.startService()
        self.redis.start()
        self._queue_redis.start()
        for watch in self._watches:
            watch.startService()
        metrics.PROCESSES.set(1)

    async def reload(self) -> None:
        """Read the files again that the bucket's credentials come from. Raises StorageDown if that fails."""
        if isinstance(self.storage, BucketStorage) and self.running:
            await self.bucket_threads.run(self.storage.reload)

    def stopService(self) -> Deferred[None]:
        """Stop in reverse order; fires once the connections are closed and the threads have ended."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        for watch in self._watches:
            watch.stopService()
        if self._renders:
            self.render_pool.stopService()
        await self._queue_redis.stop()
        await self.redis.stop()
        for threads in reversed(self._threads):
            threads.stopService()
        self.drafts.room.close()

    def _make_storage(self) -> IStorage:
        settings = self.settings
        if settings.file_storage_driver == "local":
            return DiskStorage(settings.file_storage_directory, self.disk_threads)
        from mypypi.storage.s3 import BucketSettings, S3Bucket  # noqa: PLC0415 - boto3 takes half a second and 25 MB

        waiting = DiskStorage(settings.data_directory / "waiting", self.disk_threads)
        return BucketStorage(
            S3Bucket(BucketSettings.of(settings)),
            waiting,
            self.catalog,
            self.queue,
            self.bucket_threads,
            self.reactor,
            disk=self.disk,
            public=settings.s3_public,
            link_seconds=settings.s3_key_ttl,
            proxied=settings.s3_serve == "proxy",
        )

    def _waiting_bytes(self) -> int:
        """Return the bytes on disk that wait for upload."""
        return self.storage.waiting_bytes if isinstance(self.storage, BucketStorage) else 0

    async def _sweep(self) -> str:
        """Delete abandoned drafts, and say what is wrong if that fails."""
        try:
            await self.disk_threads.run(self.drafts.sweep)
        except OSError as error:
            return f"abandoned drafts can't be deleted: {error}"
        return ""


async def _look_at(bucket: BucketStorage) -> str:
    """Measure what waits for upload, and see whether a failure of the bucket has ended. The storage logs that."""
    await bucket.look()
    return ""


def disk_id(directory: Path) -> str:
    """
    Return the id of a data directory, and create it at the first call.

    Every process that sees the directory sees the same id. If the id can't be written, the process gets a random one,
    so that no other process takes jobs for files in this directory.
    """
    path = directory / "id"
    try:
        make_private(directory)
        draft = directory / f".id-{os.getpid()}"
        draft.write_text(uuid.uuid4().hex)
        try:
            os.link(draft, path)  # the first process wins, with a complete file
        except FileExistsError:
            pass
        finally:
            draft.unlink()
        return path.read_text().strip()
    except OSError:
        return uuid.uuid4().hex
