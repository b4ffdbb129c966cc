"""Package files in a bucket, by way of this host's disk.

A finished draft waits on the disk for its upload, which is a worker's job, and is served from there until then. What is
uploaded is noted in the catalog; where that note was lost, the bucket is asked once. Knows the bucket, the catalog and
the queue. Must never know boto3, packages, or requests.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from twisted.internet.defer import TimeoutError as WaitedTooLong
from twisted.logger import Logger
from zope.interface import implementer

from mypypi.coalescing import Coalescer
from mypypi.errors import CatalogDown, StorageDown, storage_error
from mypypi.interfaces import IStorage
from mypypi.model import Digest, Job, Link, StoredFile, fetch_lease

if TYPE_CHECKING:
    from mypypi.interfaces import ICatalog, IQueue
    from mypypi.storage.disk import DiskStorage
    from mypypi.storage.s3 import S3Bucket
    from mypypi.threads import Threads

P = ParamSpec("P")
T = TypeVar("T")

#: Seconds that a link must still hold for a client to get it.
SPARE = 60
#: Seconds that a client, or a health check, waits for the bucket to say what it has.
PATIENCE = 5
#: Seconds for which a bucket that did not answer is not asked again what it has.
PAUSE = 10
UPLOAD = "upload"


@implementer(IStorage)
class BucketStorage:
    """Keeps files in `bucket`; those on their way there lie in `waiting`, on the disk with the id `disk`."""

    log = Logger()
    passes_on = 900.0

    def __init__(
        self,
        bucket: S3Bucket,
        waiting: DiskStorage,
        catalog: ICatalog,
        queue: IQueue,
        threads: Threads,
        clock: Any,
        *,
        disk: str,
        public: bool,
        link_seconds: int,
    ) -> None:
        self._bucket = bucket
        self._waiting = waiting
        self._catalog = catalog
        self._queue = queue
        self._threads = threads
        self._clock = clock
        self._disk = disk
        self._public = public
        self._link_seconds = link_seconds
        self._looking: Coalescer[StoredFile | None] = Coalescer()
        #: What waits on the disk, as of the last `measure`, and what this process has added since.
        self.waiting_bytes = 0
        self._trouble = ""
        self._quiet_until = 0.0
        self.stopped = threading.Event()

    async def find(self, key: str, *, again: bool = False) -> StoredFile | None:
        """See `IStorage.find`. A bucket that does not answer counts as one without the file, which is fetched again."""
        waiting = await self._waiting.find(key)
        if waiting is not None:
            return waiting
        try:
            noted = await self._catalog.stored(key)
        except CatalogDown:
            noted = None
        found = noted
        if found is None and not again:
            found = await self._looking.run(key, lambda: self._look(key))
        return found or await self._waiting.find(key)  # where it may have come meanwhile

    async def commit(self, key: str, draft: Path, digest: Digest) -> StoredFile:
        """See `IStorage.commit`."""
        stored = await self._waiting.commit(key, draft, digest)
        self.waiting_bytes += stored.size
        await self.queue_upload(key)
        return stored

    async def measure(self) -> None:
        """See how much waits for its upload. There may be many files: a thread looks."""
        with suppress(OSError):
            self.waiting_bytes = await self._threads.run(self._waiting.weight)

    async def queue_upload(self, key: str) -> None:
        """Let a worker upload what waits under this key. Where the queue is down, a sweep finds it later."""
        try:
            await self._queue.put(Job(UPLOAD, key, disk=self._disk))
        except CatalogDown as error:
            self.log.warn("the upload of {key} could not be queued, a sweep will: {why}", key=key, why=error)

    async def upload(self, key: str) -> None:
        """
        Put into the bucket what waits under this key, and what came in its place meanwhile; nothing where nothing does.

        Raises StorageDown, CatalogDown, and UploadCancelled once `stopped` is set.
        """
        while (waiting := await self._waiting.find(key)) is not None and waiting.path is not None:
            try:
                stored = await self._threads.run(self._bucket.upload, waiting.path, key, waiting.digest, self.stopped)
            except FileNotFoundError:
                continue  # another worker was faster, or it was replaced
            except StorageDown as error:
                self._trouble = str(error)
                raise
            except OSError as error:
                raise storage_error(error, "a file could not be read") from error
            self._trouble = ""
            await self._catalog.put_stored(stored)
            await self._catalog.release_lease(fetch_lease(key), self._disk)
            await self._waiting.discard(waiting)
            self.log.info("uploaded {key}, {size} bytes", key=key, size=stored.size)

    async def link(self, stored: StoredFile) -> Link:
        """See `IStorage.link`. The same link for all clients, as long as it holds for a minute more."""
        if self._public:
            return Link(await self._ask(self._bucket.link, stored.key), None)
        now = self._clock.seconds()
        try:
            known = await self._catalog.link(stored.key)
        except CatalogDown:
            known = None
        if known is not None and known[1] - now >= SPARE:
            return Link(known[0], int(known[1] - now - SPARE))
        url = await self._ask(self._bucket.link, stored.key)
        with suppress(CatalogDown):
            await self._catalog.put_link(stored.key, url, now + self._link_seconds)
        return Link(url, self._link_seconds - SPARE)

    async def delete(self, key: str) -> None:
        """See `IStorage.delete`."""
        await self._waiting.delete(key)
        await self._catalog.forget_stored(key)
        await self._threads.run(self._bucket.delete, key)

    async def forget(self, key: str) -> None:
        """The bucket does not have what the catalog notes."""
        await self._catalog.forget_stored(key)

    async def check(self) -> None:
        """See `IStorage.check`: the disk, the bucket, and how the last upload ended."""
        await self._waiting.check()
        await self._ask(self._bucket.check)
        if self._trouble:
            raise StorageDown(f"the last upload failed: {self._trouble}")

    async def sweep(self) -> None:
        """Queue what waits on the disk and has no job, as where the queue was lost. No other host is to fetch it."""
        for key in await self._threads.run(self._waiting.keys):
            with suppress(CatalogDown):
                await self._catalog.take_lease(fetch_lease(key), self._disk, self.passes_on)
                if await self._waiting.find(key) is None:  # it was uploaded meanwhile
                    await self._catalog.release_lease(fetch_lease(key), self._disk)
                    continue
            await self.queue_upload(key)

    async def sweep_records(self) -> None:
        """Forget what is noted and not there any more. Raises StorageDown, CatalogDown."""
        there = await self._threads.run(self._bucket.keys)
        async for key in self._catalog.stored_keys():
            if key not in there and await self._threads.run(self._bucket.head, key) is None:  # nor came meanwhile
                await self._catalog.forget_stored(key)

    async def _look(self, key: str) -> StoredFile | None:
        if self._clock.seconds() < self._quiet_until:
            return None
        try:
            found = await self._ask(self._bucket.head, key)
        except StorageDown as error:
            self._quiet_until = self._clock.seconds() + PAUSE
            self.log.warn("the bucket was asked in vain, and is not for {pause} s: {why}", pause=PAUSE, why=error)
            return None
        if found is not None:
            with suppress(CatalogDown):
                await self._catalog.put_stored(found)
        return found

    async def _ask(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What the bucket says, in time; the thread may wait on for as long as S3's own limits are."""
        try:
            return await self._threads.run(function, *args, **kwargs).addTimeout(PATIENCE, self._clock)
        except WaitedTooLong:
            raise StorageDown(f"S3 did not answer within {PATIENCE} s") from None
