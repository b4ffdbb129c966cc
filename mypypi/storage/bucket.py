"""Stores package files in an S3 bucket, by way of this host's disk.

A finished draft waits on the disk until a worker uploads it, and is served from there meanwhile. The catalog has a
record of each uploaded file. If the record is missing, one request to the bucket finds the file. Knows the bucket, the
catalog and the queue. Must never know boto3, packages, or requests.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from zope.interface import implementer

from mypypi.clock import remaining
from mypypi.coalescing import Coalescer
from mypypi.coordination import fetch_lease
from mypypi.digests import Digest
from mypypi.errors import CatalogDown, NotFound, StorageDown, storage_error
from mypypi.interfaces import IStorage
from mypypi.job import Job
from mypypi.model import Link, StoredFile
from mypypi.storage.bucket_reads import BucketReads

if TYPE_CHECKING:
    from mypypi.interfaces import ICatalog
    from mypypi.job import IQueue
    from mypypi.storage.disk import DiskStorage
    from mypypi.storage.s3 import S3Bucket
    from mypypi.threads import Threads

#: A client only gets a link that is valid for at least this many more seconds.
LINK_MARGIN = 60
#: The most files that are kept on the disk while the bucket fails without a job for their upload.
MOST_KEPT = 10_000
#: The kind of the jobs that upload a file.
UPLOAD = "upload"


@implementer(IStorage)
class BucketStorage:
    """
    Stores files in `bucket`.

    Files that wait for their upload are in `waiting`, on the disk with the id `disk`. With `proxied`, clients get files
    through this server. While the bucket fails, no client is sent there, and nothing is looked up.
    """

    log = Logger()
    upload_window = 900.0

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
        proxied: bool = False,
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
        self._reads = BucketReads(bucket, threads, clock, self._upload_kept, proxied=proxied)
        #: The keys of files that the bucket has, and that are kept on the disk while it fails.
        self._kept: set[str] = set()
        self._lookups: Coalescer[StoredFile | None] = Coalescer()
        self._links: Coalescer[tuple[str, float]] = Coalescer()
        #: The bytes that wait for upload: those of the last `look`, and those that this process has added since.
        self.waiting_bytes = 0
        self._upload_error = ""
        self._swept = False
        #: Set this to cancel running uploads.
        self.stopped = threading.Event()

    @property
    def reaches_others(self) -> bool:
        """See `IStorage.reaches_others`. Not while the bucket fails."""
        return not self._reads.are_failing

    async def find(self, key: str, *, recheck: bool = False) -> StoredFile | None:
        """See `IStorage.find`. If the bucket does not answer, the file counts as missing, and is fetched again."""
        waiting = await self._waiting.find(key)
        if waiting is not None:
            return waiting
        try:
            recorded = await self._catalog.stored(key)
        except CatalogDown:
            recorded = None
        found = recorded
        if found is None and not recheck:
            found = await self._lookups.run(key, lambda: self._look_up(key))
        return found or await self._waiting.find(key)  # the file may have been committed meanwhile

    async def commit(self, key: str, draft: Path, digest: Digest) -> StoredFile:
        """
        See `IStorage.commit`.

        A file that the bucket has, and that was fetched again since the bucket fails, stays on the disk meanwhile. If
        it was uploaded and removed from there at once, each client would cause another fetch.
        """
        stored = await self._waiting.commit(key, draft, digest)
        self.waiting_bytes += stored.size
        if self._reads.are_failing and len(self._kept) < MOST_KEPT and await self._is_recorded(stored):
            self._kept.add(key)
        else:
            await self.queue_upload(key)
        return stored

    async def look(self) -> None:
        """
        See whether the bucket works again, and measure `waiting_bytes`, in a thread since many files may wait.

        The first look at which the catalog answers queues the uploads of all files that wait: a process that died may
        have kept some of them while the bucket failed.
        """
        await self._reads.try_again()
        if not self._swept:
            with suppress(CatalogDown):
                await self._catalog.check()
                self._swept = True
                await self.sweep()
        with suppress(OSError):
            self.waiting_bytes = await self._threads.run(self._waiting.weight)

    async def queue_upload(self, key: str) -> None:
        """Queue the upload of the file that waits under this key. If the queue is down, a sweep does so later."""
        try:
            await self._queue.put(Job(UPLOAD, key, disk=self._disk))
        except CatalogDown as error:
            self.log.warn("upload of {key} could not be queued, the next sweep tries again: {why}", key=key, why=error)

    async def upload(self, key: str) -> None:
        """
        Upload the file that waits under this key, if there is one.

        If another file replaces it meanwhile, that file is uploaded as well.

        Raises StorageDown, CatalogDown, and UploadCancelled once `stopped` is set.
        """
        while (waiting := await self._waiting.find(key)) is not None and waiting.path is not None:
            try:
                stored = await self._threads.run(self._bucket.upload, waiting.path, key, waiting.digest, self.stopped)
            except FileNotFoundError:
                continue  # another worker has uploaded it, or another file has replaced it
            except StorageDown as error:
                self._upload_error = str(error)
                raise
            except OSError as error:
                raise storage_error(error, "a file that waits for upload could not be read") from error
            self._upload_error = ""
            await self._catalog.put_stored(stored)
            await self._catalog.release_lease(fetch_lease(key), self._disk)
            await self._waiting.discard(waiting)
            with suppress(CatalogDown):  # a sweep that still found the file has taken the lease again
                await self._catalog.release_lease(fetch_lease(key), self._disk)
            self.log.info("uploaded {key}, {size} bytes", key=key, size=stored.size)

    async def digest_of(self, stored: StoredFile, algorithm: str) -> Digest | None:
        """See `IStorage.digest_of`. Only a file that waits for its upload is on this host's disk."""
        return await self._waiting.digest_of(stored, algorithm)

    async def link(self, stored: StoredFile) -> Link:
        """
        See `IStorage.link`. All clients get the same link until `LINK_MARGIN` seconds before it expires.

        A client is only sent to a bucket that has answered within the last few seconds.
        """
        if not await self._reads.is_readable(stored.key):
            with suppress(CatalogDown):
                await self._forget(stored.key)
            raise NotFound("the stored file is missing in S3")
        if self._public:
            return Link(await self._reads.link(stored.key), None)
        url, until = await self._links.run(stored.key, lambda: self._signed_link(stored.key))
        return Link(url, int(remaining(until, self._clock.seconds(), self._link_seconds) - LINK_MARGIN))

    async def note_read(self, stored: StoredFile, since: float, error: NotFound | StorageDown | None) -> bool:
        """See `IStorage.note_read`."""
        may_be_there = await self._reads.note(stored.key, since, error)
        if not may_be_there:
            await self._forget(stored.key)
        return may_be_there

    async def delete(self, key: str) -> None:
        """See `IStorage.delete`."""
        await self._waiting.delete(key)
        await self._catalog.forget_stored(key)
        await self._threads.run(self._bucket.delete, key)

    async def check(self) -> None:
        """See `IStorage.check`. Checks the disk, the bucket, whether files can be read, and the last upload."""
        await self._waiting.check()
        await self._reads.check()
        if self._upload_error:
            raise StorageDown(f"the last upload failed: {self._upload_error}")

    def reload(self) -> None:
        """Read the credentials again, see `S3Bucket.reload`. Blocks: call this in a thread. Raises StorageDown."""
        self._bucket.reload()

    async def sweep(self) -> None:
        """
        Queue the uploads of all files that wait on the disk.

        Their jobs may be missing, for instance because Redis has lost the queue. The lease keeps other hosts from
        fetching these files.
        """
        for key in await self._threads.run(self._waiting.keys):
            with suppress(CatalogDown):
                await self._catalog.take_lease(fetch_lease(key), self._disk, self.upload_window)
                if await self._waiting.find(key) is None:  # it was uploaded before the lease was taken
                    await self._catalog.release_lease(fetch_lease(key), self._disk)
                    continue
            await self.queue_upload(key)

    async def sweep_records(self) -> None:
        """Delete the records of files that are not in the bucket any more. Raises StorageDown, CatalogDown."""
        there = await self._threads.run(self._bucket.keys)
        async for key in self._catalog.stored_keys():
            # A file that was uploaded after the listing is found by its own look-up.
            if key not in there and await self._threads.run(self._bucket.head, key) is None:
                await self._catalog.forget_stored(key)

    async def _signed_link(self, key: str) -> tuple[str, float]:
        """Return the link that all clients get now, and the moment at which it expires. Raises StorageDown."""
        now = self._clock.seconds()
        try:
            known = await self._catalog.link(key)
        except CatalogDown:
            known = None
        if known is not None and remaining(known[1], now, self._link_seconds) >= LINK_MARGIN:
            return known
        url, until = await self._reads.link(key), now + self._link_seconds
        with suppress(CatalogDown):
            await self._catalog.put_link(key, url, until)
        return url, until

    def _upload_kept(self) -> None:
        """Queue the uploads of the files that were kept while the bucket failed, which removes them from the disk."""
        kept, self._kept = self._kept, set()
        for key in kept:
            Deferred.fromCoroutine(self.queue_upload(key)).addErrback(
                lambda failure: self.log.failure("an upload could not be queued", failure)
            )

    async def _is_recorded(self, stored: StoredFile) -> bool:
        """Whether the bucket has the same file, by its record."""
        try:
            recorded = await self._catalog.stored(stored.key)
        except CatalogDown:
            return False
        return recorded is not None and (recorded.size, recorded.digest) == (stored.size, stored.digest)

    async def _look_up(self, key: str) -> StoredFile | None:
        found = await self._reads.look_up(key)
        if found is not None:
            with suppress(CatalogDown):
                await self._catalog.put_stored(found)
        return found

    async def _forget(self, key: str) -> None:
        """Delete the record of a file that the bucket does not have. Raises CatalogDown."""
        self.log.warn("file {key} is missing in S3, it is fetched again when requested", key=key)
        await self._catalog.forget_stored(key)
