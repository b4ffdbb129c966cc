"""The kinds of jobs, and the function that runs each. Every job can run twice without harm.

Knows storage and fetches. Must never know HTTP, Redis, or the process that has queued a job.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from mypypi.errors import NotFound, UpstreamRefused
from mypypi.job import Job
from mypypi.model import PackageFile
from mypypi.storage.bucket import UPLOAD, BucketStorage

if TYPE_CHECKING:
    from mypypi.files.fetches import Fetches
    from mypypi.interfaces import IStorage

FETCH = "fetch"
SWEEP = "sweep"

Handler = Callable[[Job], Awaitable[None]]


def fetch_job(file: PackageFile, disk: str) -> Job:
    """Return the job to fetch and store a file. With `disk`, only a worker with access to that disk runs it."""
    about = {"link": file.link, "url": file.url}
    if file.digests:
        about["digest"] = file.digest_text
    if file.size is not None:
        about["size"] = str(file.size)
    return Job(FETCH, file.key, about, disk)


def file_of(job: Job) -> PackageFile:
    """Return the file of a fetch job."""
    size = job.about.get("size")
    digests = job.about.get("digest", "")
    return PackageFile.of(job.about["link"], job.about["url"], digests, int(size) if size else None, job.name)


class Jobs:
    """The functions that run jobs, by kind, in `handlers`."""

    def __init__(self, storage: IStorage, fetches: Fetches) -> None:
        self._storage = storage
        self._fetches = fetches
        self.handlers: dict[str, Handler] = {UPLOAD: self._upload, FETCH: self._fetch, SWEEP: self._sweep}

    def interrupt(self) -> None:
        """Cancel running uploads, which can take long, so that another worker can do them."""
        if isinstance(self._storage, BucketStorage):
            self._storage.stopped.set()

    async def _upload(self, job: Job) -> None:
        if isinstance(self._storage, BucketStorage):
            await self._storage.upload(job.name)

    async def _fetch(self, job: Job) -> None:
        file = file_of(job)
        stored = await self._storage.find(file.key)
        if stored is None or not file.accepts(stored.digest):  # a digest of another algorithm proves nothing
            # The log has it. A retry is of no use until a client requests the file again.
            with suppress(NotFound, UpstreamRefused):
                await self._fetches.fetch_and_store(file)

    async def _sweep(self, job: Job) -> None:
        if isinstance(self._storage, BucketStorage):
            await self._storage.sweep()
            if job.about.get("records"):
                await self._storage.sweep_records()
