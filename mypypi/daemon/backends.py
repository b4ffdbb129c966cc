"""What server and worker are made of, put together as the settings say; shared where both run in one process.

Knows every part by its class, and in which order they start and stop. Must never know what a part does.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.application.service import IService, Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from mypypi.files.drafts import ABANDONED, Drafts
from mypypi.files.fetch import Fetches
from mypypi.interfaces import IStorage
from mypypi.redis.catalog import RedisCatalog
from mypypi.redis.client import RedisClient
from mypypi.redis.leases import Leases
from mypypi.redis.queue import RedisQueue
from mypypi.storage.bucket import BucketStorage
from mypypi.storage.disk import DiskStorage
from mypypi.threads import Threads
from mypypi.upstream.backoff import Pauses
from mypypi.upstream.breaker import Breaker
from mypypi.upstream.client import Upstream
from mypypi.upstream.requester import RETRIES, Credentials
from mypypi.worker.jobs import Jobs
from mypypi.worker.worker import Worker

if TYPE_CHECKING:
    from mypypi.settings.settings import Settings
    from mypypi.settings.types import RedisUrl

_DISK_THREADS = 8
_PRESS_THREADS = 2
#: Beside those that upload.
_ASKING_THREADS = 2
#: Seconds for which the stopping daemon waits for S3, after the worker has waited for its jobs.
_BUCKET_PATIENCE = 2.0
#: Seconds that Redis has for an answer to the queue: more than a read for new jobs waits.
_QUEUE_TIMEOUT = 6.0
_BUCKET_SECONDS = 30
#: Seconds for the tries of a request that fail fast, before one that takes as long as any may.
_TRIES = 5.0
#: Seconds between two looks at how much waits for its upload.
_WEIGH = 2.0


class InOrder(Service):
    """Services that start one after the other, and stop the other way round, each once the one before it has."""

    def __init__(self, services: Sequence[IService]) -> None:
        self._services = services

    def privilegedStartService(self) -> None:
        for service in self._services:
            service.privilegedStartService()

    def startService(self) -> None:
        super().startService()
        for service in self._services:
            service.startService()

    def stopService(self) -> Deferred[None]:
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        for service in reversed(self._services):
            await maybeDeferred(service.stopService)


class Parts(Service):
    """Started first, and stopped last."""

    log = Logger()

    def __init__(self, settings: Settings, redis_url: RedisUrl, reactor: Any) -> None:
        self.settings = settings
        self.reactor = reactor
        self.disk_threads = Threads(reactor, "disk", _DISK_THREADS)
        self.press_threads = Threads(reactor, "press", _PRESS_THREADS)
        bucket_threads = settings.worker_concurrency + _ASKING_THREADS
        self.bucket_threads = Threads(reactor, "bucket", bucket_threads, _BUCKET_PATIENCE)
        probe = ("SET", f"{settings.redis_prefix}:check", "1", "EX", "60")
        self.redis = RedisClient(reactor, redis_url, probe=probe)
        #: For the worker's reads alone, which block.
        self._queue_redis = RedisClient(reactor, redis_url, timeout=_QUEUE_TIMEOUT, connections=1, quiet=True)
        self.disk = disk_id(settings.data_directory)
        prefix, ecosystem = settings.redis_prefix, settings.package_type
        self.catalog = RedisCatalog(self.redis, prefix, ecosystem, reactor)
        self.queue = RedisQueue(self.redis, prefix, ecosystem, self.disk, reactor, reader=self._queue_redis)
        #: This process, for the leases that it holds.
        self.process = uuid.uuid4().hex
        self.pauses = Pauses(self.catalog, reactor)
        trial = settings.upstream_timeout + _TRIES
        breaker = Breaker(self.pauses, self.catalog, self.process, reactor, trial)
        self.upstream = make_upstream(settings, reactor, breaker)
        #: Gets files out of the bucket for clients that can't go there themselves.
        self.bucket_reader = Upstream(reactor, settings.s3_endpoint_url or "", timeout=_BUCKET_SECONDS, metered=False)
        self.storage = self._make_storage()
        self.drafts = Drafts(settings.data_directory / "drafts", settings.drafts_max_bytes, self._waiting_bytes)
        self._weighing: LoopingCall | None = None
        self._sweeping = LoopingCall(self._sweep)
        leases = Leases(self.catalog, self.disk, reactor)
        self.fetches = Fetches(self.upstream, self.drafts, self.storage, self.disk_threads, reactor, leases)

    def _make_storage(self) -> IStorage:
        """Where files are kept."""
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
        )

    def _waiting_bytes(self) -> int:
        """What waits on the disk for its upload."""
        return self.storage.waiting_bytes if isinstance(self.storage, BucketStorage) else 0

    def make_worker(self) -> Worker:
        """A worker over these parts."""
        settings = self.settings
        jobs = Jobs(self.storage, self.fetches, self.drafts)
        return Worker(self.queue, jobs, self.reactor, concurrency=settings.worker_concurrency, disk=self.disk)

    def startService(self) -> None:
        """Threads, then Redis, which need not be there yet; drafts that nobody fills are swept from now on."""
        super().startService()
        for threads in (self.disk_threads, self.press_threads, self.bucket_threads):
            threads.startService()
        self.redis.start()
        self._queue_redis.start()
        if isinstance(self.storage, BucketStorage):
            self._weighing = LoopingCall(self.storage.weigh)
            self._weighing.clock = self.reactor
            self._weighing.start(_WEIGH)
        self._sweeping.clock = self.reactor
        self._sweeping.start(ABANDONED)

    def stopService(self) -> Deferred[None]:
        """The other way round: what others need goes last."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _sweep(self) -> None:
        try:
            await self.disk_threads.run(self.drafts.sweep)
        except OSError as error:
            self.log.error("the drafts can't be looked at: {why}", why=error)

    async def _stop(self) -> None:
        self._sweeping.stop()
        if self._weighing is not None and self._weighing.running:
            self._weighing.stop()
        await self.fetches.stop()
        await self.upstream.stop()
        await self.bucket_reader.stop()
        await self._queue_redis.stop()
        await self.redis.stop()
        for threads in (self.bucket_threads, self.press_threads, self.disk_threads):
            threads.stopService()


def make_upstream(settings: Settings, reactor: Any, breaker: Breaker) -> Upstream:
    """Upstream as the settings say."""
    credentials = None
    if settings.upstream_username is not None and settings.upstream_password is not None:
        credentials = Credentials(settings.upstream_username, settings.upstream_password.reveal())
    return Upstream(
        reactor,
        settings.upstream_url,
        credentials=credentials,
        concurrency=settings.upstream_concurrency,
        timeout=settings.upstream_timeout,
        breaker=breaker,
        retries=RETRIES,
    )


def disk_id(directory: Path) -> str:
    """
    The id of this data directory, made when it is first asked for: whoever sees the same disk sees the same id.

    Where it can't be kept it is one that nobody else has, so that nobody else is given what lies here.
    """
    path = directory / "id"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        draft = directory / f".id-{os.getpid()}"
        draft.write_text(uuid.uuid4().hex)
        try:
            os.link(draft, path)  # the first one wins, whole
        except FileExistsError:
            pass
        finally:
            draft.unlink()
        return path.read_text().strip()
    except OSError:
        return uuid.uuid4().hex
